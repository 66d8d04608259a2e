"""Fitting a budget: what is given up, when it is refused, and what a budget may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specgen.core.config import EngineConfig
from specgen.core.cost.strict import WidthClass
from specgen.core.errors import MemoryBudgetError, UsageError
from specgen.core.host.limits import _cgroup_memory
from specgen.core.memory.budget import PlanInputs, fit, full_speed, least, parse_budget, plan_for
from specgen.core.models.modelinfo import ModelInfo, read_headers
from tests.conftest import TinyModel
from tests.support.headers import MADE

MB = 1_000_000
MIB = 1 << 20
WANTED = EngineConfig(flash_attention=True)


PADDED = WidthClass((301,), branch=False)  # calls of one row have 300 rows of padding


def tables(n_ctx: int, few: bool) -> int:
    """Of drafters: 2 MB and some by the context, or half of it."""
    return (2 * MB + 70 * n_ctx) // (2 if few else 1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> PlanInputs:
    """A model of 1B by its header."""
    headers = read_headers(MADE["1b"].write(tmp_path_factory.mktemp("budget") / "1b.gguf"))
    return PlanInputs(headers, ModelInfo.from_headers(headers), frozenset(), tables)


def test_enough_memory_changes_nothing(inputs: PlanInputs) -> None:
    """What fits as asked is left as it is."""
    found = fit(inputs, WANTED, 10**12)
    assert (found.config, found.concessions) == (WANTED, ())
    assert found.plan == plan_for(inputs, WANTED)


def test_every_budget_is_kept(inputs: PlanInputs) -> None:
    """From the least that works to what was asked for; more memory is used, up to a tenth."""
    low, high = least(inputs, WANTED).total, plan_for(inputs, WANTED).total
    before = None
    for step in range(101):
        budget = low + (high - low) * step // 100
        found = fit(inputs, WANTED, budget)
        assert found.plan == plan_for(inputs, found.config)
        assert found.plan.total <= budget
        assert bool(found.concessions) == (found.config != WANTED)
        if before:
            assert found.plan.total >= before.plan.total * 0.9
        before = found
    assert before is not None
    assert before.config == WANTED


def test_a_byte_less_than_the_least_is_refused(inputs: PlanInputs) -> None:
    """With what would fit, in one line."""
    low = least(inputs, WANTED).total
    with pytest.raises(MemoryBudgetError, match="needs") as failure:
        fit(inputs, WANTED, low - 1)
    assert f"--memory-budget {-(-low // MIB)}M" in failure.value.hint
    assert failure.value.exit_code == 4
    assert fit(inputs, WANTED, -(-low // MIB) * MIB).plan.total <= -(-low // MIB) * MIB


def test_nothing_is_given_up_in_vain(inputs: PlanInputs) -> None:
    """Each concession is needed: without any one of them the budget would be crossed."""
    low, high = least(inputs, WANTED).total, plan_for(inputs, WANTED).total
    for step in range(1, 40):
        budget = low + (high - low) * step // 40
        config = fit(inputs, WANTED, budget).config
        for name in ("chunk", "max_drafts", "type_k", "few_drafters"):
            wanted = getattr(WANTED, name)
            if getattr(config, name) != wanted:
                better = replace(config, **{name: wanted})
                assert plan_for(inputs, better).total > budget, (budget, name)


def test_a_context_that_was_asked_for_is_kept(inputs: PlanInputs) -> None:
    """-c is a promise; without it the context shrinks."""
    asked = replace(WANTED, n_ctx=1024)
    assert fit(inputs, asked, least(inputs, asked).total).config.n_ctx == 1024
    shrunk = fit(inputs, WANTED, least(inputs, WANTED).total).config
    assert shrunk.n_ctx == 512


def test_strict_keeps_what_rounding_depends_on(inputs: PlanInputs) -> None:
    """The calls of a prompt, and the type of the cache."""
    strict = replace(WANTED, strict=True)
    config = fit(inputs, strict, least(inputs, strict).total).config
    assert (config.chunk, config.cache_types) == (WANTED.chunk, ("f16", "f16"))


def test_a_cache_that_rounds_comes_last(inputs: PlanInputs) -> None:
    """Where the context is open, all else is given up before the text may change."""
    low, high = least(inputs, WANTED).total, plan_for(inputs, WANTED).total
    for step in range(40):
        config = fit(inputs, WANTED, low + (high - low) * step // 40).config
        if config.type_k:
            assert config.max_drafts == 0
    assert fit(inputs, WANTED, low).config.cache_types == ("q4_0", "q4_0")


def test_without_flash_attention_the_cache_keeps_its_type(inputs: PlanInputs) -> None:
    """llama.cpp has no quantized cache there."""
    off = EngineConfig(flash_attention=False)
    assert fit(inputs, off, least(inputs, off).total).config.type_v is None


def test_full_speed_needs_less_than_all(inputs: PlanInputs) -> None:
    """Only the context is less."""
    low, high = least(inputs, WANTED).total, plan_for(inputs, WANTED).total
    assert low < full_speed(inputs, WANTED).total < high


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("400M", 400 * MIB),
        ("400m", 400 * MIB),
        ("400MB", 400 * MB),
        ("1.5G", 1536 * MIB),
        ("1.5GB", 1500 * MB),
        ("300MiB", 300 << 20),
        ("2GiB", 2 << 30),
        ("1000000", MB),
        ("1 k", 1024),
        ("25%", 1_000 * MB),
        (" 12.5% ", 500 * MB),
    ],
)
def test_budgets(text: str, n_bytes: int) -> None:
    """Sizes by 1,000 and by 1,024, and parts of what is available."""
    assert parse_budget(text, 4_000 * MB) == n_bytes


@pytest.mark.parametrize("text", ["0", "0%", "0.0001k", "4G", "101%", "9" * 15])
def test_what_no_budget_can_be(text: str) -> None:
    """Nothing, and more than there is: one clear error, exit code 4."""
    with pytest.raises(MemoryBudgetError, match="budget"):
        parse_budget(text, 4_000 * MB)


@pytest.mark.parametrize(
    "text", ["", "abc", "-1G", "1X", "M", "%", "1e9", "nan", "inf", "1" * 99, "1 G B", "١G"]
)
def test_what_is_no_size(text: str) -> None:
    """One clear error, exit code 2."""
    with pytest.raises(UsageError, match="no size"):
        parse_budget(text, 4_000 * MB)


def test_a_part_of_what_is_not_known() -> None:
    """A size is needed where the system does not tell what is available."""
    assert parse_budget("9G", None) == 9 << 30
    with pytest.raises(MemoryBudgetError, match="does not tell"):
        parse_budget("50%", None)


def write(folder: Path, **files: object) -> None:
    """Files of a cgroup."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_limits_of_control_groups(tmp_path: Path) -> None:
    """The tightest group counts, less what is in use; files that can be dropped are free."""
    membership = tmp_path / "membership"
    membership.write_text("0::/a/b\n")
    root = tmp_path / "root"
    write(
        root / "a",
        memory__max=1000,
        memory__current=400,
        memory__stat="anon 9\ninactive_file 40\nactive_file 10\nfile 99",
    )
    write(root / "a" / "b", memory__max="max", memory__current=100)
    assert _cgroup_memory(membership, root) == 650
    write(root / "a" / "b", memory__max=300, memory__current=100)
    assert _cgroup_memory(membership, root) == 200
    write(root, memory__max="max")
    assert _cgroup_memory(membership, root) == 200
    membership.write_text("5:memory:/c\n4:cpu:/d\n")
    assert _cgroup_memory(membership, root) is None
    write(
        root / "memory" / "c",
        memory__limit_in_bytes=5000,
        memory__usage_in_bytes=1000,
        memory__stat="total_inactive_file 7\ntotal_active_file 3\ntotal_cache 99",
    )
    assert _cgroup_memory(membership, root) == 4010
    assert _cgroup_memory(tmp_path / "nowhere", root) is None


def test_originals_of_copies_do_not_count_where_the_system_may_drop_them(tmp_path: Path) -> None:
    """By default a model fits whose file and copies are more than there is; a size is kept."""
    headers = read_headers(MADE["7b"].write(tmp_path / "m.gguf"))
    features = frozenset({"AVX2", "REPACK"})
    inputs = PlanInputs(headers, ModelInfo.from_headers(headers), features, tables)
    config = replace(WANTED, n_ctx=512)
    plan = plan_for(inputs, config)
    assert plan.copies > plan.weights / 2
    budget = plan.total - plan.copies
    found = fit(inputs, config, budget, may_drop=True)
    assert found.config == config
    with pytest.raises(MemoryBudgetError, match="and the memory budget is"):
        fit(inputs, config, budget)
    with pytest.raises(MemoryBudgetError, match="85% of what is available") as failure:
        fit(inputs, config, plan.used // 2, may_drop=True)
    assert "--memory-budget" not in failure.value.hint


LADDER = (
    "context of 4,096 tokens",
    "context of 2,048 tokens",
    "context of 1,024 tokens",
    "smaller tables of drafters",
    "prompts in calls of 256 tokens",
    "prompts in calls of 128 tokens",
    "prompts in calls of 64 tokens",
    "prompts in calls of 32 tokens",
    "context of 512 tokens",
    "drafts of at most 8 tokens",
    "drafts of at most 4 tokens",
    "no drafts: plain decoding",
    "cache of type q8_0, which rounds",
    "cache of type q4_0, which rounds",
)


@pytest.mark.parametrize("strict", [False, True])
def test_the_order_of_what_is_given_up(inputs: PlanInputs, strict: bool) -> None:
    """As the budget falls: step by step, what is missed least first, and none is left out."""
    wanted = replace(WANTED, strict=strict)
    low, told = least(inputs, wanted).total, list[str]()
    found = fit(inputs, wanted, None)
    while found.plan.total > low:
        found = fit(inputs, wanted, found.plan.total - 1)
        told += [name for name in found.concessions if name not in told]
    rounds = ("prompts", "cache")
    assert told == [step for step in LADDER if not (strict and step.startswith(rounds))]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"type_k": "f16"}, ("f16", "q4_0")),
        ({"type_v": "f16"}, ("q4_0", "f16")),
        ({"type_k": "q8_0"}, ("q8_0", "q4_0")),
        ({"type_k": "q8_0", "type_v": "q8_0"}, ("q8_0", "q8_0")),
    ],
)
def test_a_cache_that_was_asked_for_is_kept(
    inputs: PlanInputs, given: dict[str, str], kept: tuple[str, str]
) -> None:
    """-ctk and -ctv are promises; the other one may be less."""
    asked = replace(WANTED, **given)  # type: ignore[arg-type]
    assert fit(inputs, asked, least(inputs, asked).total).config.cache_types == kept


def test_a_cache_that_rounds_has_flash_attention(inputs: PlanInputs) -> None:
    """llama.cpp has none without, and so the choice is not left to it any more."""
    auto = EngineConfig()
    assert fit(inputs, auto, None).config.flash_attention is None
    config = fit(inputs, auto, least(inputs, auto).total).config
    assert (config.cache_types, config.flash_attention) == (("q4_0", "q4_0"), True)


def test_full_speed_gives_up_context_alone(inputs: PlanInputs) -> None:
    """The calls of prompts and the drafts are as asked for."""
    expected = plan_for(inputs, replace(WANTED, n_ctx=512))
    assert full_speed(inputs, WANTED) == expected


def test_tables_are_those_of_the_drafters_there_are(inputs: PlanInputs) -> None:
    """All of them, a few, or none where nothing is drafted; by the context without padding."""
    padded = replace(inputs, strict=PADDED)
    config = replace(WANTED, n_ctx=1024)
    assert plan_for(padded, config).drafters == tables(1024, few=False)
    assert plan_for(padded, replace(config, few_drafters=True)).drafters == tables(1024, few=True)
    assert plan_for(padded, replace(config, max_drafts=0)).drafters == 0


def test_padding_takes_cells(inputs: PlanInputs) -> None:
    """Strict decoding has a longer cache than the text."""
    config = replace(WANTED, n_ctx=1024)
    without, padded = plan_for(inputs, config), plan_for(replace(inputs, strict=PADDED), config)
    assert padded.kv * 1024 == without.kv * 1536  # 1,324 padded to a multiple of 256
    assert padded.cells * 1024 == without.cells * 1536


def test_a_command_takes_more_than_generate(inputs: PlanInputs) -> None:
    """Its bytes are in the total, once."""
    more = replace(inputs, interface=12_345)
    assert plan_for(more, WANTED).total == plan_for(inputs, WANTED).total + 12_345


def test_a_recurrent_state_is_there_with_its_snapshots(tmp_path: Path) -> None:
    """Once for the text and once for each of 8 older ones; such a model has no branches."""
    headers = read_headers(MADE["hybrid"].write(tmp_path / "m.gguf"))
    hybrid = PlanInputs(headers, ModelInfo.from_headers(headers), frozenset(), tables)
    planned = plan_for(hybrid, replace(WANTED, n_ctx=512))
    assert planned.state == 5 * (3 - 1) * 2048 * 4 * (1 + 8)


def test_a_window_is_kept_for_one_sequence(tiny_model: TinyModel) -> None:
    """Where not all cells are kept there are no branches: 32 cells and a call, padded to 256."""
    headers = read_headers(tiny_model("gemma3"))
    windowed = PlanInputs(headers, ModelInfo.from_headers(headers), frozenset(), tables)
    config = replace(WANTED, n_ctx=2048, chunk=32)
    full = plan_for(windowed, config).kv
    planned = plan_for(windowed, replace(config, swa_full=False)).kv
    assert planned * 3 * 2048 == full * (2048 + 2 * 256)  # one of three layers sees all


def test_a_budget_may_be_all_that_is_available() -> None:
    """And not a byte more."""
    assert parse_budget("1000000", MB) == parse_budget("100%", MB) == MB
    with pytest.raises(MemoryBudgetError, match="is more than"):
        parse_budget("1000001", MB)


def test_a_limit_of_the_group_at_the_root(tmp_path: Path) -> None:
    """Inside a container the limit is there."""
    membership, root = tmp_path / "membership", tmp_path / "root"
    membership.write_text("0::/\n")
    write(root, memory__max=1000, memory__current=400, memory__stat="active_file 50")
    assert _cgroup_memory(membership, root) == 650
    membership.write_text("0::/a\n")
    write(root / "a", memory__max="max", memory__current=100)
    assert _cgroup_memory(membership, root) == 650


def test_heads_that_no_quantized_cache_can_store(tmp_path: Path) -> None:
    """Of 80 numbers, which are no whole blocks of 32: the cache keeps its type."""
    made = replace(MADE["1b"], n_embd=2560, head=80)
    headers = read_headers(made.write(tmp_path / "m.gguf"))
    inputs = PlanInputs(headers, ModelInfo.from_headers(headers), frozenset(), tables)
    low = least(inputs, WANTED)
    found = fit(inputs, WANTED, low.total)
    assert (found.config.cache_types, found.config.max_drafts) == (("f16", "f16"), 0)
    with pytest.raises(MemoryBudgetError, match="at least"):
        fit(inputs, WANTED, low.total - 1)


def test_flash_attention_that_is_slower_comes_on_for_memory(inputs: PlanInputs) -> None:
    """It was left to what was measured, and is no promise; --flash-attn off is one."""
    auto, slower = EngineConfig(), replace(inputs, flash_attention=False)
    assert plan_for(slower, auto) == plan_for(inputs, replace(auto, flash_attention=False))
    assert least(slower, auto) == least(inputs, auto)
    found = fit(slower, auto, plan_for(slower, auto).total - 1)
    assert found.config.flash_attention in (None, True)
    tight = fit(slower, auto, plan_for(inputs, auto).total - 1)
    assert tight.config.flash_attention is True
    assert any("slower here" in concession for concession in tight.concessions)
    strict = replace(auto, strict=True)
    assert fit(slower, strict, least(slower, strict).total).config.flash_attention is None


def test_strict_calls_have_the_rows_of_their_class(inputs: PlanInputs) -> None:
    """Without drafts as well: the least width of the class."""
    plain = replace(WANTED, n_ctx=1024, max_drafts=0)
    a_row = plan_for(inputs, plain).outputs
    strict = replace(inputs, strict=WidthClass((8, 16), branch=False))
    assert plan_for(strict, plain).outputs == 8 * a_row
