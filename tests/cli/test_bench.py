"""`specgen bench` as users run it, on a tiny model; other tests say what its figures are worth."""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from specgen.cli.bench import live as bench_live
from specgen.core.config import EngineConfig
from specgen.core.engine import Engine
from specgen.core.evaluation.benchmark import measure_arms
from specgen.core.evaluation.results import PLAIN, Run, load_results
from specgen.core.evaluation.summary import ALL
from specgen.core.evaluation.tasks import Prompt
from specgen.core.knowledge.profile import Profile
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.opening import fitted
from tests.support.command import Outcome, run
from tests.support.made_up import CURVE, benchmark, results
from tests.support.made_up import run as made_up_run

pytestmark = [pytest.mark.llama, pytest.mark.usefixtures("quiet")]

# Two conversations in Spec-Bench's format and a single question.
DATA = [
    {"question_id": 1, "category": "talk", "turns": ["the one that was not", "and the other"]},
    {"question_id": 2, "category": "talk", "turns": ["have you been there", "or not"]},
    {"question_id": 3, "category": "sum", "turns": ["one and one and one and one and"]},
]
TASKS = ["talk turn 1", "talk turn 2", "sum"]
KEYS = {"task", "drafter", "tokens_per_second", "speedup", "tokens_per_step", "host_ms_per_step"}
PROFILE = Profile(CURVE, True, None, {128: ((1, 2, 4, 8),)}, {128: {2: True, 4: True}}, 1.0)

Bench = Callable[..., Outcome]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompts as a file."""
    file = tmp_path_factory.mktemp("data") / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, DATA)))
    return file


@pytest.fixture
def bench(endless: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """`specgen bench` with few tokens, on a model that is said to be measured already."""
    monkeypatch.setattr(
        "specgen.core.knowledge.profiling.measure_profile", lambda *_, **__: PROFILE
    )
    monkeypatch.setattr(bench_live, "measure_bandwidth", lambda threads: 20e9)

    def command(*words: str | Path) -> Outcome:
        short = ("--data", data, "-t", "1", "-c", "256", "-n", "8")
        return run("bench", endless, *short, *words)

    return command


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring anything fails the test."""
    for name in ("ensure_model", "ensure_profile", "measure_bandwidth", "measure_arms"):
        monkeypatch.setattr(bench_live, name, lambda *_, **__: pytest.fail("too late"))


def saved(path: Path, **options: Any) -> Path:
    """A file of results that were made up."""
    path.write_text(json.dumps(benchmark(**options).record()))
    return path


def table_rows(text: str) -> list[list[str]]:
    """The words of each line of a table but for its heads."""
    return [line.split() for line in text.split("\n\n")[1].splitlines()[2:]]


def refused(outcome: Outcome, said: str) -> None:
    """One line on stderr, nothing on stdout, exit code 2."""
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert outcome.err.startswith("specgen: error: ")
    assert outcome.err.count("\n") == 1


# ---- a benchmark


def test_a_benchmark_is_shown_saved_and_drawn(bench: Bench, tmp_path: Path) -> None:
    """A table on stdout, what is done on stderr; the files have the same; it loads again."""
    file, drawing = tmp_path / "a.json", tmp_path / "a.svg"
    outcome = bench("--save", file, "--plot", drawing)
    assert outcome.code == 0
    said = ("measuring endless.gguf on this machine, once", *(f"round {n} of 3" for n in (1, 2, 3)))
    assert outcome.err == "".join(f"specgen: {line}\n" for line in said)
    card, _, below = outcome.out.split("\n\n", 2)
    assert "model            endless.gguf\n" in card
    assert "memory           20.0 GB per second\n" in card
    assert "of 100 benchmarks, 95 come within" in " ".join(below.split())
    rows = table_rows(outcome.out)
    tasks = [ALL, *(" ".join(row[: row.index(PLAIN)]) for row in rows[2::2])]
    assert tasks == [ALL, *TASKS]
    assert [row[0] for row in rows[1::2]] == ["auto"] * 4
    assert all(row[4].startswith("±") for row in rows[1::2])
    kept = load_results(file)
    assert kept.drafters == (PLAIN, "auto")
    assert len(kept.runs) == 2 * 3 * 5
    assert {found.tokens for found in kept.runs} == {8}
    assert kept.card.n_ctx == 256
    assert kept.card.flash_attention is True
    svg = drawing.read_text("utf-8")
    assert "endless.gguf" in svg and "talk turn 2" in svg
    assert sorted(path.name for path in tmp_path.glob("a*")) == ["a.json", "a.svg"]
    assert run("bench", "--load", file) == Outcome(0, outcome.out, "")


def test_what_will_be_missing_is_said_first(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ratios, or not of each task; and that the machine is busy. It is said before all else."""
    monkeypatch.setattr(bench_live, "load", lambda: (5.26, 4))
    once = bench("-r", "1", "--per-task", "1", "-o", "jsonl")
    first, second, third, *_ = once.err.splitlines()
    assert first.startswith("specgen: there will be no ratios: it takes 3 pairs, and 2 repetitions")
    assert second == (
        "specgen: the machine is busy: its load is 5.3 on 4 CPUs, so speeds will vary"
    )
    assert "measuring endless.gguf" in third
    assert all(json.loads(line)["speedup"] is None for line in once.out.splitlines())
    monkeypatch.setattr(bench_live, "load", lambda: (3.9, 4))
    twice = bench("-r", "2", "--drafter", "suffix", "-o", "jsonl")
    said = "specgen: there will be no ratios of sum: it takes 3 pairs"
    assert twice.err.startswith(said) and "busy" not in twice.err
    records = [json.loads(line) for line in twice.out.splitlines()]
    without = {r["task"] for r in records if r["speedup"] is None and r["drafter"] != PLAIN}
    assert without == {"sum"}
    few = bench("-r", "2", "--per-task", "1")
    assert "no ratios of single tasks: " in few.err


def test_json_lines(bench: Bench) -> None:
    """A record for each task and drafter, all tasks first."""
    outcome = bench("-o", "jsonl", "--drafter", "auto,prompt-lookup")
    assert outcome.code == 0
    records = [json.loads(line) for line in outcome.out.splitlines()]
    names = [PLAIN, "auto", "prompt-lookup"]
    order = [(task, name) for task in (ALL, *TASKS) for name in names]
    assert [(r["task"], r["drafter"]) for r in records] == order
    assert all(record.keys() >= KEYS for record in records)
    assert all(record["tokens_per_second"] > 0 for record in records)
    assert all((r["speedup"] is None) == (r["drafter"] == PLAIN) for r in records)
    assert {r["tokens_per_step"] for r in records if r["drafter"] == PLAIN} == {1.0}
    assert [r["runs"] for r in records[:3]] == [3 * 5] * 3


@pytest.mark.parametrize("format", ["md", "csv", "json"])
def test_other_formats(bench: Bench, format: str) -> None:
    """The same rows for readers of Markdown, spreadsheets and programs."""
    outcome = bench("-o", format, "-r", "1", "--per-task", "1")
    assert outcome.code == 0
    expected = [(task, name) for task in (ALL, *TASKS) for name in (PLAIN, "auto")]
    if format == "md":
        lines = [line for line in outcome.out.splitlines() if line.startswith("|")]
        found = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in lines[2:]]
    elif format == "csv":
        found = [(row["task"], row["drafter"]) for row in csv.DictReader(io.StringIO(outcome.out))]
    else:
        record = outcome.record
        found = [(row["task"], row["drafter"]) for row in record["rows"]]
        assert record["card"]["model"] == "endless.gguf"
        assert len(record["runs"]) == 2 * 3
    assert found == expected


def test_one_repetition_has_no_ratio(bench: Bench) -> None:
    """There is nothing to tell the noise by, and it says so."""
    outcome = bench("-r", "1")
    assert outcome.code == 0
    assert [row[3] for row in table_rows(outcome.out)[1::2]] == ["-"] * 4
    assert "speedup -: too few runs; it takes 3 pairs, and 2 repetitions" in outcome.out
    assert "±" not in outcome.out


def test_quick(bench: Bench, endless: Path, data: Path, tmp_path: Path) -> None:
    """One prompt of each task and few tokens, unless these are given, too."""

    def runs(*words: str) -> list[Run]:
        file = tmp_path / "a.json"
        short = ("--data", data, "-t", "1", "-c", "256", "-r", "1", "--save", file)
        assert run("bench", endless, *short, "--quick", *words).code == 0
        return [found for found in load_results(file).runs if found.drafter == PLAIN]

    assert [(found.task, found.tokens) for found in runs()] == [(task, 24) for task in TASKS]
    assert [found.tokens for found in runs("-n", "5", "--per-task", "0")] == [5] * 5


@pytest.mark.parametrize(
    ("words", "drafters"),
    [
        (("--warm", "--drafter", "auto,suffix"), [PLAIN, "auto", "auto warm", "suffix"]),
        (("--strict",), [PLAIN, "none strict", "auto strict"]),
        (("--strict", "--drafter", "none"), [PLAIN, "none strict"]),
        (("--drafter", "none,none"), [PLAIN, "none again"]),
    ],
    ids=["warm", "strict", "strict none", "none"],
)
def test_more_rows(bench: Bench, words: tuple[str, ...], drafters: list[str]) -> None:
    """Drafters that go on learning, strict decoding, and plain decoding against itself."""
    outcome = bench(*words, "-r", "1", "--per-task", "1", "-o", "jsonl")
    assert outcome.code == 0
    records = [json.loads(line) for line in outcome.out.splitlines()]
    of_all = [(r["drafter"], r["runs"]) for r in records if r["task"] == ALL]
    assert of_all == [(drafter, 3) for drafter in drafters]  # each is measured but once


def test_a_draft_model_is_measured_beside_the_others_and_alone(bench: Bench, endless: Path) -> None:
    """Alone it guesses four at a time, and being the model itself is right."""
    outcome = bench("-md", endless, "--drafter", "suffix,auto", "-r", "1", "-o", "jsonl")
    assert outcome.code == 0
    records = [json.loads(line) for line in outcome.out.splitlines()]
    steps = {r["drafter"]: r["tokens_per_step"] for r in records if r["task"] == ALL}
    assert list(steps) == [PLAIN, "suffix", "auto", "auto + draft-model", "draft-model"]
    assert steps["draft-model"] == 4.0  # 8 tokens an answer: 5 and 3


def test_a_draft_model_joins_those_that_work_together(endless: Path) -> None:
    """Beside each of them without it."""
    options: dict[str, Any] = {field.name: None for field in fields(bench_live.LiveJob)}
    job = bench_live.LiveJob(**options | {"config": EngineConfig(), "names": ["auto"]})
    backend = FakeBackend(HashModel(12), fake_limits(12))
    engine = cast(Engine, SimpleNamespace(draft=backend, vocab=None))
    nothing = np.array([], np.int32)
    found = {
        arm.name: [each.name for each in arm.drafters(Prompt("t", ("a",)), nothing)]
        for arm in bench_live._arms(job, EngineConfig(), engine)
    }
    assert found["auto + draft-model"] == [*found["auto"], "draft-model"]
    assert found["draft-model"] == ["draft-model"]


def test_answers_that_do_not_fit(bench: Bench, tmp_path: Path) -> None:
    """They are left out, which is told; if there are no others, it is an error."""
    long = {"category": "long", "prompt": "the one that was not there " * 20}
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(map(json.dumps, [long, DATA[2]])))
    outcome = bench("--data", file, "-c", "64", "-r", "1", "-o", "jsonl")
    assert outcome.code == 0
    assert {json.loads(line)["task"] for line in outcome.out.splitlines()} == {ALL, "sum"}
    assert "specgen: 2 answers are left out: they did not fit the context of 64" in outcome.err
    file.write_text(json.dumps(long))
    outcome = bench("--data", file, "-c", "64", "-r", "1")
    assert (outcome.code, outcome.out) == (5, "")
    *_, error = outcome.err.splitlines()
    assert "no prompt and its answer fit the context of 64 tokens (use a larger context" in error


def test_a_budget_holds_for_what_is_measured_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The speed of memory is measured with no more of it than the model takes."""
    asked: list[int] = []

    def measured(threads: int, n_bytes: int) -> float:
        asked.append(n_bytes)
        return 20e9

    monkeypatch.setattr(bench_live, "measure_bandwidth", measured)
    outcome = bench("--memory-budget", "80M", "-r", "1", "--per-task", "1", "-o", "jsonl")
    assert outcome.code == 0
    assert len(asked) == 1
    assert 0 < asked[0] < 35 << 20  # 80 less the process and its libraries


def test_without_drafts_plain_decoding_is_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given up for memory is not measured as if it were there."""

    def tight(*given: Any) -> Any:
        found = fitted(*given)
        return replace(found, config=replace(found.config, max_drafts=0))

    monkeypatch.setattr(bench_live, "fitted", tight)
    outcome = bench("--drafter", "auto,suffix", "-r", "1", "--per-task", "1", "-o", "jsonl")
    assert outcome.code == 0
    assert {json.loads(line)["drafter"] for line in outcome.out.splitlines()} == {PLAIN}


# ---- an interrupt


def after(n_runs: int, number: int) -> Callable[..., Iterator[Run]]:
    """A benchmark in which a signal comes after so many answers."""

    def interrupted(*args: Any) -> Iterator[Run]:
        if n_runs == 0:
            signal.raise_signal(number)
        for i, found in enumerate(measure_arms(*args), start=1):
            yield found
            if i == n_runs:
                signal.raise_signal(number)

    return interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_shows_what_there_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    """And saves it."""
    monkeypatch.setattr(bench_live, "measure_arms", after(7, number))
    before = signal.getsignal(number)
    outcome = bench("--save", tmp_path / "a.json")
    assert signal.getsignal(number) == before
    assert outcome.code == code
    assert [row[1] for row in table_rows(outcome.out)[:1]] == [PLAIN]
    assert len(load_results(tmp_path / "a.json").runs) == 7
    assert "left out" not in outcome.err


def test_an_interrupt_before_the_first_answer(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is shown or saved."""
    monkeypatch.setattr(bench_live, "measure_arms", after(0, signal.SIGINT))
    outcome = bench("--save", tmp_path / "a.json")
    assert (outcome.code, outcome.out) == (130, "")
    assert not (tmp_path / "a.json").exists()


# ---- saved results


@pytest.mark.parametrize("format", ["table", "md", "csv", "json", "jsonl"])
def test_saved_results_in_every_format(tmp_path: Path, format: str) -> None:
    """Without a model."""
    file = saved(tmp_path / "a.json", tasks=("code", "edit"))
    outcome = run("bench", "--load", file, "-o", format)
    assert (outcome.code, outcome.err) == (0, "")
    assert "prompt-lookup" in outcome.out and "edit" in outcome.out


def test_what_json_prints_can_be_loaded(tmp_path: Path) -> None:
    """It has all that --save keeps."""
    file, again = saved(tmp_path / "a.json", tasks=("code",)), tmp_path / "b.json"
    again.write_text(run("bench", "--load", file, "-o", "json").out)
    assert run("bench", "--load", again) == run("bench", "--load", file)


def test_saved_results_are_compared(tmp_path: Path) -> None:
    """How fast B is, relative to A."""
    a, b = (saved(tmp_path / f"{n}.json", tasks=("code", "edit"), seed=n) for n in (1, 2))
    outcome = run("bench", "--compare", a, b)
    assert (outcome.code, outcome.err) == (0, "")
    assert "B relative to A: A's time over B's" in outcome.out
    records = [
        json.loads(line) for line in run("bench", "--compare", a, b, "-o", "jsonl").out.splitlines()
    ]
    assert (records[0]["task"], records[0]["drafter"]) == (ALL, PLAIN)
    assert all(0.8 < record["speedup"] < 1.25 for record in records)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(results(made_up_run("cooking")).record()))
    refused(run("bench", "--compare", a, other), "have no prompt in common")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("content", ["", "hello", "{}", "[]", '{"format": "specgen bench"}'])
def test_files_that_are_no_results(tmp_path: Path, content: str) -> None:
    """One line says which."""
    file = tmp_path / "a.json"
    file.write_text(content)
    refused(run("bench", "--load", file), f"cannot read {file}")
    refused(run("bench", "--compare", saved(tmp_path / "b.json"), file), f"cannot read {file}")


def test_what_cannot_be_drawn_is_printed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And saved: a failure at the end costs no more than its own file."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device", "a.svg")

    monkeypatch.setattr(bench_live, "plot", fail)
    words = ("--save", tmp_path / "a.json", "--plot", tmp_path / "a.svg")
    outcome = bench(*words, "-r", "1", "--per-task", "1")
    assert outcome.code == 1
    assert "No space left" in outcome.err
    assert len(table_rows(outcome.out)) == 2 * 4
    assert len(load_results(tmp_path / "a.json").runs) == 2 * 3


# ---- what is refused


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--curve", "flat"), "--curve does nothing without --replay"),
        (("--replay", "x", "--warm"), "--warm does nothing with --replay"),
        (("--replay", "x", "--plot", "a.svg"), "--plot does nothing with --replay"),
        (("--load", "x", "-t", "1"), "--threads does nothing with --load"),
        (("--load", "x", "-fa", "on"), "--flash-attn does nothing with --load"),
        (("--load", "x", "--save", "y"), "--save does nothing with --load"),
        (("--load", "x", "--drafter", "suffix"), "--drafter does nothing with --load"),
        (("--load", "x", "smollm2-135m"), "MODEL does nothing with --load"),
        (("--load", "x", "--quick"), "--quick does nothing with --load"),
        (("--compare", "x", "y", "--plot", "a.svg"), "--plot does nothing with --compare"),
        (("--compare", "x", "y", "--load", "z"), "--load does nothing with --compare"),
        (("--compare", "x", "y", "--replay", "z"), "--replay does nothing with --compare"),
        (("--warm", "--drafter", "suffix"), "--warm does nothing with suffix"),
        (("--drafter", "psychic"), "there is no drafter named 'psychic'"),
        (("--drafter", "auto,"), "there is no drafter named ''"),
        (("--save", "nowhere/a.json"), "there is no folder nowhere"),
        (("--save", "."), "it is a folder"),
        (("--plot", "nowhere/a.svg"), "there is no folder nowhere"),
        (("--plot", "a.pdf"), "must end with .svg, .png or .html"),
        (("--load", "x", "--plot", "a.pdf"), "must end with .svg, .png or .html"),
        (("--load", "nowhere.json"), "cannot read nowhere.json: No such file"),
        (("--data", "nowhere.jsonl"), "cannot read the prompts nowhere.jsonl"),
        (("-r", "0"), "'-r'"),
        (("-o", "xml"), "'xml'"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_bad_input(
    endless: Path,
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line, exit code 2, before any work."""
    monkeypatch.chdir(tmp_path)
    needs_none = {"--load", "--compare"} & set(words)
    refused(run("bench", *([] if needs_none else [endless]), *words), said)


@pytest.mark.usefixtures("no_work")
def test_what_is_no_model() -> None:
    """An unknown name ends here."""
    outcome = run("bench", "no-such-model")
    assert (outcome.code, outcome.out) == (3, "")
    assert "no-such-model" in outcome.err
