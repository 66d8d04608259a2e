"""What runs leave for later ones: kept per model, shared by processes, never in the way."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from specgen.core.drafting.acceptance import AcceptanceModel, shipped_priors
from specgen.core.engine import Engine
from specgen.core.knowledge.learned import MOST_ANSWERS, Learned, load_learned
from specgen.core.knowledge.store import cache_folder, clear
from specgen.core.protocols import Drafter
from tests.support.command import forget_home, generate, run

N_PROCESSES = 4
EACH = 6


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file to be known by; what is in it does not matter here."""
    path = tmp_path / "some.gguf"
    path.write_bytes(b"weights")
    return path


def teach(learned: Learned, evidence: str, right: bool, times: int = 20) -> None:
    """Let some guesses come true, or not."""
    for _ in range(times):
        guess = learned.acceptance.estimate([(evidence,)], 0.3, 1, 0)
        learned.acceptance.learn(guess, right)


def chance(learned: Learned, evidence: str) -> float:
    """What a guess on some evidence is thought to be worth at the beginning of a text."""
    learned.acceptance.begin()
    return learned.acceptance.estimate([(evidence,)], 0.3, 3, 0)[0]


def test_a_new_model_begins_with_experience(model: Path) -> None:
    """And with no answers."""
    learned = load_learned(model)
    assert learned.acceptance.record() == shipped_priors().record()
    assert learned.answers.tolist() == []


def test_what_is_kept_is_recalled(model: Path, tmp_path: Path) -> None:
    """By the weights, not by the name of the file; other weights know nothing of it."""
    learned = load_learned(model, answers=True)
    before = chance(learned, "x")
    teach(learned, "x", True)
    learned.add([5, 6])
    learned.add([7])
    learned.keep()
    moved = model.rename(tmp_path / "other.gguf")
    again = load_learned(moved, answers=True)
    assert again.answers.tolist() == [5, 6, 7]
    assert chance(again, "x") == pytest.approx(chance(learned, "x"), abs=0.01)
    assert chance(again, "x") > before + 0.1
    model.write_bytes(b"other weights")
    assert load_learned(model, answers=True).answers.tolist() == []


def test_answers_are_kept_only_when_asked_for(model: Path) -> None:
    """Else none is in any file; kept ones are left alone by runs that do not want them."""
    learned = load_learned(model)
    teach(learned, "x", True)
    learned.add([31_415, 31_416])
    learned.keep()
    (path,) = cache_folder().glob("*.json")
    assert path.name.startswith("specgen-counts-")
    assert learned.answers.tolist() == load_learned(model, answers=True).answers.tolist() == []
    asking = load_learned(model, answers=True)
    assert chance(asking, "x") == pytest.approx(chance(learned, "x"), abs=0.01)
    asking.add([1, 2])
    asking.keep()
    other = load_learned(model)
    assert other.answers.tolist() == []
    other.add([3])
    other.keep()
    assert load_learned(model, answers=True).answers.tolist() == [1, 2]


def test_answers_of_earlier_versions_are_dropped(model: Path) -> None:
    """Those versions kept them unasked. The first write of any kind removes all such files."""
    folder = cache_folder()
    folder.mkdir(parents=True)
    name = f"specgen-learned-{'0' * 20}.json"
    old = [name, f"{name}.bad", f"{name}.ab12.new", "specgen-learned.lock"]
    others = ["specgen-learned-notes.txt", f"specgen-profile-{'0' * 20}.json"]
    for each in (*old, *others):
        (folder / each).write_text("{}")
    load_learned(model)
    assert all((folder / each).exists() for each in old)
    load_learned(model).keep()
    assert not any((folder / each).exists() for each in old)
    assert all((folder / each).exists() for each in others)


def test_only_the_last_answers_are_kept(model: Path) -> None:
    """The oldest tokens go first."""
    learned = load_learned(model, answers=True)
    learned.add(range(MOST_ANSWERS))
    learned.add([1, 2, 3])
    learned.keep()
    answers = load_learned(model, answers=True).answers.tolist()
    assert len(answers) == MOST_ANSWERS
    assert answers[0] == 3
    assert answers[-3:] == [1, 2, 3]


def test_keeping_twice_adds_each_answer_once(model: Path) -> None:
    """A chat keeps after every answer."""
    learned = load_learned(model, answers=True)
    for token in (1, 2):
        learned.add([token])
        learned.keep()
    assert load_learned(model, answers=True).answers.tolist() == [1, 2]


def test_what_is_forgotten_is_not_kept_again(model: Path) -> None:
    """Answers that a user removes during a chat stay removed; only later ones are kept."""
    learned = load_learned(model, answers=True)
    learned.add([1])
    learned.keep()
    clear(cache_folder())
    learned.add([2])
    learned.keep()
    assert load_learned(model, answers=True).answers.tolist() == [2]


def test_runs_at_the_same_time_both_count(model: Path) -> None:
    """The second to end adds to what the first one kept."""
    first, second = load_learned(model, answers=True), load_learned(model, answers=True)
    teach(first, "x", True, 40)
    teach(second, "y", False, 40)
    first.add([1])
    second.add([2])
    first.keep()
    second.keep()
    second.add([3])
    second.keep()
    both = load_learned(model, answers=True)
    assert both.answers.tolist() == [1, 2, 3]
    assert chance(both, "x") > 0.5
    assert chance(both, "y") < 0.15


def test_counts_that_nobody_changed_are_not_read_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept replaces what it was made of; only counts of others are joined with it."""
    load_learned(model).keep()
    ours, others = load_learned(model), load_learned(model)
    read = []

    def counted(record: object) -> AcceptanceModel:
        read.append(record)
        return ours.acceptance

    monkeypatch.setattr(AcceptanceModel, "from_record", counted)
    ours.keep()
    assert not read
    others.keep()
    assert len(read) == 1


def _run(model: Path, number: int) -> None:
    for i in range(EACH):
        learned = load_learned(model, answers=True)
        teach(learned, f"evidence {number}", True, 5)
        learned.add([number * EACH + i])
        learned.keep()


def test_processes_lose_nothing(model: Path) -> None:
    """Whatever the order in which they read and write."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_run, args=(model, n)) for n in range(N_PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * N_PROCESSES
    learned = load_learned(model, answers=True)
    assert sorted(learned.answers.tolist()) == list(range(N_PROCESSES * EACH))
    assert all(chance(learned, f"evidence {n}") > 0.5 for n in range(N_PROCESSES))


@pytest.mark.parametrize(
    "change",
    [
        *({"acceptance": {}}, {"acceptance": []}),
        *({"age": value} for value in (None, math.inf, math.nan, -1, 1.5, True, 10**400, "1")),
        {"acceptance": {"buckets": [[[["a"], 0], 10**400, 10**400]], "weights": []}},
        {"acceptance": {"buckets": [], "weights": [[["a"], [1e308, 1e308]]]}},
    ],
)
def test_a_damaged_file_is_set_aside(
    model: Path, change: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning, and everything starts anew."""
    learned = load_learned(model)
    teach(learned, "x", True)
    learned.keep()
    (path,) = cache_folder().glob("specgen-counts-*.json")
    record = json.loads(path.read_bytes())
    record["value"].update(change)
    path.write_text(json.dumps(record))
    assert load_learned(model).record() == Learned(shipped_priors()).record()
    assert "is set aside" in caplog.text
    assert Path(f"{path}.bad").exists()


@pytest.mark.parametrize(
    "answers", [[1, -2], ["a"], [1 << 31], "ab", {}, [1] * (MOST_ANSWERS + 1)], ids=range(6)
)
def test_damaged_answers_are_set_aside(
    model: Path, answers: object, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning; the counts, which are in another file, are used."""
    learned = load_learned(model, answers=True)
    teach(learned, "x", True)
    learned.add([1])
    learned.keep()
    (path,) = cache_folder().glob("specgen-answers-*.json")
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps(record | {"value": answers}))
    again = load_learned(model, answers=True)
    assert again.answers.tolist() == []
    assert again.record() == load_learned(model).record()
    assert chance(again, "x") == pytest.approx(chance(learned, "x"), abs=0.01)
    assert "is set aside" in caplog.text
    assert Path(f"{path}.bad").exists()


def test_an_acceptance_model_alone_is_no_record() -> None:
    """All parts must be there."""
    with pytest.raises(ValueError, match="nothing learnt"):
        Learned.from_record({"acceptance": AcceptanceModel().record()})


def test_a_file_as_old_as_can_be_is_kept_on(model: Path) -> None:
    """How often it was kept is not counted any further."""
    load_learned(model).keep()
    (path,) = cache_folder().glob("specgen-counts-*.json")
    record = json.loads(path.read_bytes())
    record["value"]["age"] = 1 << 40
    path.write_text(json.dumps(record))
    before = chance(load_learned(model), "x")
    for _ in range(2):
        learned = load_learned(model)
        teach(learned, "x", True)
        learned.keep()
    assert load_learned(model).record()["age"] == 1 << 40
    assert chance(load_learned(model), "x") > before + 0.1


@pytest.mark.llama
def test_no_home_is_no_error(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with a path runs, and it is said once that nothing is kept; names are errors."""
    options = ("-p", LOOP, "--greedy", "-n", "4")
    usual = generate(endless, *options)
    forget_home(monkeypatch)
    outcome = generate(endless, *options)
    assert (outcome.code, outcome.out) == (0, usual.out)
    assert outcome.err.count("nothing is kept") == outcome.err.count("\n") == 1
    assert run("info", endless).code == run("plan", endless).code == 0
    assert "no such file" in run("generate", "none.gguf", "-p", "x").err
    for words in (
        ("generate", "-p", "x"),
        ("list",),
        ("pull", "smollm2-135m"),
        ("info",),
        ("cache", "path"),
        ("cache", "clear"),
    ):
        refused = run(*words)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err.count("\n") == 1
        assert "there is no home folder (set HOME, or set SPECGEN_" in refused.err


LOOP = "the and was the and was the and was the and was"


@pytest.mark.llama
def test_generate_learns_unless_told_not_to(endless: Path) -> None:
    """Counts by default, answers if asked for; the text is the same; `cache clear` forgets them."""

    def kept() -> tuple[int, int]:
        learned = load_learned(endless, answers=True)
        return learned.record()["age"], len(learned.answers)

    options = ("-p", LOOP, "--greedy", "-n", "12")
    plain = generate(endless, *options, "--no-learn")
    assert generate(endless, *options, "--no-learn", "--learn-answers").out == plain.out
    assert not cache_folder().exists()
    for more, expected in (
        ([], (1, 0)),
        (["--learn-answers"], (2, 12)),
        (["--learn-answers"], (3, 24)),
        ([], (4, 24)),
        # A single drafter drafts as its paper says.
        (["--learn-answers", "--drafter", "suffix"], (4, 24)),
    ):
        assert generate(endless, *options, *more).out == plain.out != ""
        assert kept() == expected
    assert run("cache", "clear").code == 0
    assert kept() == (0, 0)


@pytest.mark.llama
def test_past_answers_are_drafted_from(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model said in an earlier run is searched in a later one, if both are told to."""
    seen: list[list[str]] = []

    renew = Engine.renew

    def spy(engine: Engine, drafters: Sequence[Drafter], *rest: Any, **more: Any) -> None:
        seen.append([drafter.name for drafter in drafters])
        renew(engine, drafters, *rest, **more)

    monkeypatch.setattr(Engine, "renew", spy)
    options = ("-p", LOOP, "--greedy", "-n", "20", "--drafter", "suffix,copyspec")
    for more in (["--learn-answers"], ["--learn-answers"], []):
        generate(endless, *options, *more)
    asked = ["suffix", "copyspec"]  # an engine begins without any
    assert seen == [[], asked, [], [*asked, "past"], [], asked]
