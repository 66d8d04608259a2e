"""`specgen plan` and `--memory-budget`, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from specgen import opening
from specgen.core.config import EngineConfig
from specgen.core.cost.model import load_curve
from specgen.core.errors import MemoryBudgetError
from specgen.core.knowledge.profile import Profile
from specgen.core.llama.kernels import NONE
from specgen.core.llama.library import library
from specgen.core.memory.budget import plan_for
from specgen.core.memory.plan import MemoryPlan, memory_text
from specgen.core.models.modelinfo import read_headers, read_model
from specgen.drafters.ensemble import table_bytes
from specgen.opening import Wanted, budget_bytes, fitted, plan_inputs, require_room_to_measure
from tests.conftest import TinyModel
from tests.support.command import generate, record_of, run
from tests.support.headers import MADE

MIB = 1 << 20

pytestmark = pytest.mark.llama


def test_table(tiny_model: TinyModel) -> None:
    """A line for each term, what was chosen, and what is needed."""
    outcome = run("plan", tiny_model(), "-c", "512")
    assert (outcome.code, outcome.err) == (0, "")
    head, *rows = outcome.out.split("\n\n")[0].splitlines()
    assert head.split() == ["memory", "MiB"]
    names = [row.split()[0] for row in rows]
    assert names[-1] == "total"
    assert set(names) <= {*MemoryPlan.__dataclass_fields__, "total"}
    total = sum(float(row.split()[1]) for row in rows[:-1])
    assert float(rows[-1].split()[1]) == pytest.approx(total, abs=0.5)
    assert "context   512 tokens, cache of type f16\n" in outcome.out
    assert all(len(line) <= 110 for line in outcome.out.splitlines())


def test_json(tmp_path: Path) -> None:
    """Everything in bytes; with the least budget all is given up that can be."""
    model = MADE["1b"].write(tmp_path / "1b.gguf", "llama")
    record = run("plan", model, "--json").record
    assert record["plan"]["total"] == record["needs"]["as_asked"]
    low = record["needs"]["least"]
    tight = run("plan", model, "--json", "--memory-budget", str(low)).record
    assert (tight["budget"], tight["plan"]["total"]) == (low, low)
    assert tight["settings"]["max_drafts"] == 0
    assert len(tight["concessions"]) == 4
    assert record["concessions"] == []


@pytest.mark.parametrize(
    ("budget", "code"),
    [
        ("0", 4),
        ("0%", 4),
        ("1K", 4),
        ("100000T", 4),
        ("-3M", 2),
        ("lots", 2),
        ("", 2),
        ("5 apples", 2),
    ],
)
@pytest.mark.parametrize("command", ["plan", "generate"])
def test_absurd_budgets(tiny_model: TinyModel, command: str, budget: str, code: int) -> None:
    """One line before anything is loaded: exit code 2 for what is no size, 4 for what cannot be."""
    words = ["-p", "x"] if command == "generate" else []
    outcome = run(command, tiny_model(), f"--memory-budget={budget}", *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("specgen: error: ")
    assert outcome.err.count("\n") == 1


def test_generate_within_a_budget(tiny_model: TinyModel) -> None:
    """What is given up is told, the text is the same, and --json has the plan and the peak."""
    model = tiny_model(quantization="Q4_1")
    words = (model, "-p", "abc", "-n", "8", "--greedy", "-c", "512", "--no-learn")
    budget = run("plan", model, "-c", "512", "--json").record["needs"]["as_asked"] - (11 << 20)
    plain = generate(*words)
    tight = generate(*words, "--memory-budget", str(budget), "--stats")
    assert (plain.code, tight.code, tight.out) == (0, 0, plain.out)
    assert "specgen: to stay within" in tight.err
    assert "memory" in tight.err.splitlines()[-1]
    memory = record_of(*words)["specgen"]["memory"]
    assert memory["planned"] > 0 < memory["peak"]


def test_settings_are_those_asked_for(tiny_model: TinyModel) -> None:
    """Types of the cache, drafts and drafters: each has its part in the plan, by hand."""
    model = tiny_model()
    n_vocab = read_model(model).n_vocab
    usual = run("plan", model, "-c", "512", "--json").record
    words = ("-c", "512", "-ctk", "q8_0", "--draft-max", "4", "--drafter", "copyspec")
    asked = run("plan", model, *words, "--json").record
    settings = asked["settings"]
    assert (settings["type_k"], settings["type_v"], settings["max_drafts"]) == ("q8_0", None, 4)
    assert asked["plan"]["kv"] * 128 == usual["plan"]["kv"] * (34 + 64)  # bytes of 32 numbers
    assert asked["plan"]["outputs"] == 4 * n_vocab * (4 + 1 + 4)  # root, and as many pending
    assert asked["plan"]["drafters"] == table_bytes(
        "copyspec", n_vocab, 512, learn=False, answers=False
    )
    none = run("plan", model, "-c", "512", "--drafter", "none", "--json").record
    assert (none["settings"]["max_drafts"], none["plan"]["drafters"]) == (0, 0)
    assert "cache of type keys q8_0, values f16\n" in run("plan", model, *words).out


def test_what_is_needed_does_not_depend_on_the_budget(tiny_model: TinyModel) -> None:
    """The table says in MiB what JSON says in bytes, and what is given up, a line for each."""
    model = tiny_model()
    needs = run("plan", model, "--json").record["needs"]
    assert needs["least"] < needs["full_speed"] < needs["as_asked"]
    words = (model, "--memory-budget", str(needs["full_speed"] - 1))
    tight, table = run("plan", *words, "--json").record, run("plan", *words).out
    assert tight["needs"] == needs
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert f"total {tight['plan']['total'] / MIB:,.1f}" in lines
    assert f"budget {tight['budget'] / MIB:,.0f} MiB" in lines
    assert f"needs {needs['as_asked'] / MIB:,.1f} MiB as asked" in lines
    assert tight["concessions"]
    assert f"given up {tight['concessions'][0]}" in lines
    assert set(tight["concessions"][1:]) <= set(lines)


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """`available(n)` makes the system say that `n` bytes of memory are available."""

    def set_available(n_bytes: int | None) -> None:
        monkeypatch.setattr(opening, "available_memory_bytes", lambda: n_bytes)

    return set_available


def test_without_a_budget_a_part_of_what_is_available_is_taken(
    available: Callable[[int | None], None],
) -> None:
    """85 %, and what is asked for as it stands; no limit where the system says nothing."""
    available(1000 * MIB)
    assert budget_bytes(None) == 850 * MIB
    assert budget_bytes("900M") == 900 * MIB
    available(None)
    assert budget_bytes(None) is None
    assert memory_text(1536 * MIB) == "1,536 MiB"


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """specgen's own are not used, as with SPECGEN_KERNELS=none."""
    loaded = replace(library(), kernels=NONE)
    monkeypatch.setattr(opening, "library", lambda: loaded)


@pytest.mark.parametrize("command", ["plan", "generate"])
def test_what_the_weights_run_on(
    command: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-v says it in a line, and the record of `plan` in bytes, those of the file."""
    model = tiny_model(quantization="F16")
    words = (model, "-c", "256", *(("-p", "x", "-n", "1") if command == "generate" else ()))
    line = "specgen: weights: 99 % F16 and 1 % F32 on llama.cpp's\n"
    assert line in run(command, *words, "-v").err
    without_kernels(monkeypatch)
    shares = run("plan", tiny_model(quantization="Q8_0"), "--json").record["shares"]
    assert [(share["kernels"], share["type"]) for share in shares] == [
        ("plain", "Q8_0"),
        ("plain", "F32"),
    ]
    table = read_model(tiny_model(quantization="Q8_0")).n_vocab * 128 // 32 * 34
    (header,) = read_headers(tiny_model(quantization="Q8_0"))
    assert sum(share["bytes"] for share in shares) + table == sum(
        tensor.n_bytes for tensor in header.tensors
    )


def test_without_specgens_kernels_llama_cpp_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole file stays, and there are copies; with the kernels hardly anything is twice."""
    monkeypatch.setattr(opening, "cpu_features", lambda _: frozenset({"AVX2", "REPACK"}))
    model = MADE["1b"].write(tmp_path / "m.gguf", "llama")
    ours = run("plan", model, "-c", "512", "--json").record["plan"]
    without_kernels(monkeypatch)
    theirs = run("plan", model, "-c", "512", "--json").record["plan"]
    assert (theirs["laid_out"], theirs["loading"]) == (0, 0)
    assert theirs["weights"] == model.stat().st_size
    assert theirs["copies"] > theirs["weights"] / 2
    if library().kernels != NONE:
        assert ours["laid_out"] == theirs["copies"]
        assert ours["copies"] == 0
        assert ours["total"] < theirs["total"] - 0.95 * theirs["copies"]


def test_originals_of_copies_do_not_count_by_default(
    tmp_path: Path, available: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` says what `generate` does: only a size that was given is kept with them."""
    monkeypatch.setattr(opening, "cpu_features", lambda _: frozenset({"AVX2", "REPACK"}))
    without_kernels(monkeypatch)
    model = MADE["1b"].write(tmp_path / "m.gguf", "llama")
    available(1 << 50)
    plan = run("plan", model, "-c", "512", "--json").record["plan"]
    enough = plan["total"] - plan["copies"] + MIB
    available(int(enough / 0.85))
    assert run("plan", model, "-c", "512", "--json").record["concessions"] == []
    wanted = Wanted(model, EngineConfig(n_ctx=512), "auto", None)
    assert fitted(wanted, None).concessions == ()
    available(1 << 50)
    outcome = run("plan", model, "-c", "512", "--memory-budget", str(enough))
    assert outcome.code == 4 or "given up" in outcome.out
    with pytest.raises(MemoryBudgetError):
        fitted(replace(wanted, budget=str(enough // 2)), None)


PROFILE = Profile(
    load_curve("cpu2"), True, None, {128: ((4, 8, 16),)}, {128: {4: True, 8: True}}, 1.0
)


def test_what_a_plan_is_told_of_the_drafters(tiny_model: TinyModel) -> None:
    """Answers are searched by all of them only; few drafters are two of "auto"."""
    model = tiny_model()
    n_vocab = read_model(model).n_vocab
    wanted = Wanted(model, EngineConfig(), "auto", None, answers=True, interface=777)
    inputs = plan_inputs(wanted, None)
    everything = table_bytes("auto", n_vocab, 512, learn=True, answers=True)
    assert inputs.tables(512, False) == everything
    few = table_bytes("suffix,prompt-lookup", n_vocab, 512, learn=False, answers=False)
    assert inputs.tables(512, True) == few < everything
    counts = table_bytes("auto", n_vocab, 512, learn=True, answers=False)
    nothing = table_bytes("auto", n_vocab, 512, learn=False, answers=False)
    assert nothing < counts < everything
    for changed, planned in (
        (replace(wanted, answers=False), counts),
        (replace(wanted, learn=False), nothing),
    ):
        assert plan_inputs(changed, None).tables(512, False) == planned
    assert inputs.interface == 777


def test_only_strict_decoding_is_padded(tiny_model: TinyModel) -> None:
    """A class of 4, 8 and 16 rows pads with up to 7."""
    wanted = Wanted(tiny_model(), EngineConfig(), "auto", None)
    assert plan_inputs(wanted, PROFILE).strict is None
    strict = replace(wanted, config=EngineConfig(strict=True))
    assert plan_inputs(strict, PROFILE).strict == PROFILE.strict
    assert plan_inputs(strict, None).strict is None


def test_measuring_needs_two_contexts_at_once(
    tiny_model: TinyModel, available: Callable[[int | None], None]
) -> None:
    """One with flash attention and one without, but the model once; not a byte less is enough."""
    available(None)
    model = tiny_model()
    inputs = plan_inputs(Wanted(model, EngineConfig(), "none", None), None)
    largest = EngineConfig(n_ctx=2048, max_drafts=128)
    on, off = (
        plan_for(inputs, replace(largest, flash_attention=setting)) for setting in (True, False)
    )
    once = off.weights + off.laid_out + off.copies + off.loading + off.vocabulary + off.baseline
    both = on.total + off.total - once
    for config, needed in (
        (EngineConfig(), both),
        (EngineConfig(draft_model=model), both),  # which is not opened
        (EngineConfig(flash_attention=True), on.total),
        (EngineConfig(flash_attention=False), off.total),
    ):
        require_room_to_measure(model, config, str(needed))
        with pytest.raises(MemoryBudgetError, match="must be measured once"):
            require_room_to_measure(model, config, str(needed - 1))
