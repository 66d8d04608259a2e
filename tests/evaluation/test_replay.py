"""Replay: recorded answers through drafters give exact, repeatable figures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from benchmarks.replay_learned import learn, load
from specgen.core.cost.model import load_curve
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.errors import UsageError
from specgen.core.evaluation.replay import Recording, load_recordings, replay
from specgen.core.protocols import Drafter, Tokens
from specgen.drafters import REGISTRY
from specgen.drafters.ensemble import ensemble
from tests.conftest import TinyModel
from tests.support.command import run

CURVE = load_curve("mi50")
LOOP = tuple(range(100, 110)) * 8  # repeats, so that there is something to copy
RECORDING = Recording("task", ((LOOP[:15], LOOP), (LOOP[:5], LOOP[3:60])))


def characters(text: str) -> list[int]:
    """A token per character."""
    return [ord(char) for char in text]


def test_plain_decoding_makes_one_token_a_step() -> None:
    """Without drafts: as many steps as tokens, one row each, speed 1."""
    tallies = replay(RECORDING, ensemble("none"), CURVE, None, 16)
    assert list(tallies) == ["task turn 1", "task turn 2"]
    for tally, (_, answer) in zip(tallies.values(), RECORDING.turns, strict=True):
        assert (tally.tokens, tally.steps, tally.nodes) == (len(answer),) * 3
        assert tally.speedup == 1.0


def test_a_copied_loop_is_counted_by_hand() -> None:
    """Prompt lookup on a loop accepts all of its seven copied tokens at each full step."""
    recording = Recording("task", ((LOOP[:15], LOOP[5:77]),))
    (tally,) = replay(recording, ensemble("prompt-lookup"), CURVE, None, 16).values()
    assert (tally.tokens, tally.steps, tally.nodes) == (72, 9, 72)
    assert tally.accepted_by == {"prompt-lookup": 72 - 9}
    assert tally.speedup == pytest.approx(8 * CURVE.costs(0)[0] / CURVE.costs(0)[7])


@pytest.mark.parametrize("name", ["auto", *REGISTRY])
def test_every_drafter_replays_the_whole_answer_twice_alike(name: str) -> None:
    """All tokens are emitted, and the same figures come out again."""

    def once() -> list[tuple[int, int, int]]:
        acceptance = AcceptanceModel() if name == "auto" else None
        tallies = replay(RECORDING, ensemble(name), CURVE, acceptance, 63)
        return [(tally.tokens, tally.steps, tally.nodes) for tally in tallies.values()]

    assert once() == once()
    assert [figures[0] for figures in once()] == [80, 57]


def test_the_curve_decides_the_size_of_trees() -> None:
    """Where calls cost the same whatever their size, trees grow; where they are dear, less."""

    def rows(curve: str) -> float:
        tallies = replay(RECORDING, ensemble("auto"), load_curve(curve), AcceptanceModel(), 63)
        return tallies["task turn 1"].nodes_per_step

    assert rows("flat") > rows("cpu2")


def test_recordings_are_read_from_json_lines(tmp_path: Path) -> None:
    """Turns and answers become token pairs; blank lines are skipped."""
    path = tmp_path / "x.jsonl"
    line = {"task": "t", "turns": ["a"], "answers": ["bc"]}
    path.write_text(json.dumps(line) + "\n\n" + json.dumps(line))
    first, second = load_recordings(path, characters)
    turns = ((tuple(map(ord, "\n\na\n\n")), (98, 99)),)
    assert (first, second) == (Recording("t", turns), Recording("t", turns))


def test_a_plain_text_is_one_recording(tmp_path: Path) -> None:
    """Its first 64 tokens are the prompt, the rest the answer."""
    path = tmp_path / "story.txt"
    path.write_text("x" * 100)
    (recording,) = load_recordings(path, characters)
    assert (recording.task, [len(part) for part in recording.turns[0]]) == ("story", [64, 36])


@pytest.mark.parametrize(
    "line", ["not json", "{}", '{"turns": ["a", "b"], "answers": ["c"]}', '{"turns": 1}']
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    """One line that says which one is at fault."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"turns": ["a"], "answers": ["b"]}\n' + line)
    with pytest.raises(UsageError, match="line 2 is no recorded conversation"):
        load_recordings(path, characters)


@pytest.mark.llama
def test_the_command_prints_a_record_per_drafter_curve_and_group(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    """`bench --replay` with the tiny model's vocabulary, in every format."""
    path = tmp_path / "x.jsonl"
    answer = "the one that was not there " * 6
    path.write_text(json.dumps({"task": "t", "turns": ["say it"], "answers": [answer]}))
    words = ("bench", tiny_model(), "--replay", path, "--drafter", "auto,none")
    outcome = run(*words, "--curve", "cpu2,flat", "-o", "jsonl")
    assert (outcome.code, outcome.err) == (0, "")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    keys = [(r["curve"], r["drafter"], r["group"]) for r in records]
    assert keys == [
        (curve, drafter, group)
        for curve in ("cpu2", "flat")
        for drafter in ("auto", "none")
        for group in ("all", "t turn 1")
    ]
    assert all(r["speedup"] == 1.0 for r in records if r["drafter"] == "none")
    assert records[4]["tokens_per_step"] > 2
    for r in records:
        n_accepted = r["tokens"] - r["steps"]
        assert all(0 < n <= n_accepted for n in r["accepted"].values())
        assert sum(r["accepted"].values()) >= n_accepted  # those that agree all count
    both = ("--curve", "cpu2,flat")
    whole = run(*words, *both, "-o", "json").record
    assert whole["replay"] == records
    rows = list(csv.DictReader(io.StringIO(run(*words, *both, "-o", "csv").out)))
    assert [(row["curve"], row["drafter"], row["group"]) for row in rows] == keys
    assert [float(row["speedup"]) for row in rows] == [r["speedup"] for r in records]
    md = run(*words, *both, "-o", "md").out.splitlines()
    assert "| group | drafter | curve | tokens/step | nodes/step | speed |" in md
    assert sum(line.startswith("|") for line in md) == 2 + len(records)


@pytest.mark.llama
def test_the_table_of_a_replay(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The recording, a line for each group, who guessed, and what the speed means."""
    path = tmp_path / "x.txt"
    path.write_text("the one that was not there " * 20)
    outcome = run("bench", tiny_model(), "--replay", path, "--drafter", "suffix, none,suffix")
    assert (outcome.code, outcome.err) == (0, "")
    above, table, guessed, legend = outcome.out.split("\n\n")
    assert " ".join(above.split()) == f"recording {path}"
    upper, lower, *rows = table.splitlines()
    assert [upper.split(), lower.split()] == [
        ["tokens", "nodes"],
        ["group", "drafter", "curve", "/step", "/step", "speed"],
    ]
    assert [row.split()[-5] for row in rows] == ["suffix"] * 2 + ["none"] * 2  # each but once
    assert [row.split()[-1] for row in rows[2:]] == ["1.000x"] * 2
    assert guessed.startswith("suffix, cpu2: of 100 tokens drafted by suffix ")
    assert legend.startswith("speed: relative to plain decoding")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--replay", "nowhere.jsonl"), "cannot read the recording nowhere.jsonl"),
        (("--replay", "x", "--drafter", "psychic"), "there is no drafter named 'psychic'"),
        (("--replay", "x", "--curve", "bell"), "bell"),
        (("--replay", "x", "--warm"), "--warm does nothing with --replay"),
        (("--replay", "x", "-t", "1"), "--threads does nothing with --replay"),
        (("--replay", "x", "--save", "y"), "--save does nothing with --replay"),
        (("--curve", "flat"), "--curve does nothing without --replay"),
    ],
)
def test_bad_input(tiny_model: TinyModel, words: tuple[str, ...], message: str) -> None:
    """One line, exit code 2."""
    outcome = run("bench", tiny_model(), *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_learning_goes_through_all_answers() -> None:
    """In the order of the questions; the answers of one question are remembered together."""
    texts: dict[int, list[tuple[int, ...]]] = {3: [(7, 8, 9)], 1: [(1, 2), (6, 6)], 2: [(4,)]}
    recordings = {q: [Recording("t", (((5,), t),)) for t in alike] for q, alike in texts.items()}
    seen: list[list[int]] = []

    def make(answers: Tokens) -> tuple[Drafter, ...]:
        seen.append(answers.tolist())
        return ensemble("auto")

    learned = learn(recordings, make, CURVE, AcceptanceModel())
    assert seen == [[], [], [1, 2, 6, 6], [1, 2, 6, 6, 4]]
    assert learned.answers.tolist() == [1, 2, 6, 6, 4, 7, 8, 9]


@pytest.mark.llama
def test_conversations_by_question(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The number of the question, or of the line."""
    path = tmp_path / "x.jsonl"
    lines: tuple[dict[str, int], ...] = (
        {"question_id": 3},
        {"question_id": 8},
        {},
        {"question_id": 8},
    )
    texts = [json.dumps({"turns": ["a"], "answers": ["b"], **line}) for line in lines]
    path.write_text("\n\n".join(texts))
    found = load(tiny_model(), path)
    assert {question: len(alike) for question, alike in found.items()} == {3: 1, 8: 2, 5: 1}


@pytest.mark.llama
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt", "short", "has no answers to replay"),
        ("x.jsonl", "", "has no answers to replay"),
        ("x.jsonl", '{"turns": [], "answers": []}', "has no answers to replay"),
        ("x.jsonl", '{"turns": ["a"], "answers": [""]}', "has no answers to replay"),
        ("x.jsonl", '{"turns": [1], "answers": ["b"]}', "line 1 is no recorded conversation"),
        ("x.jsonl", '{"turns": ["a"], "answers": "b"}', "line 1 is no recorded conversation"),
        ("x.jsonl", '{"turns": ["a"], "answers": ["\\ud800"]}', "line 1 is no recorded"),
        ("x.jsonl", "[" * 100_000, "line 1 is no recorded conversation: it is nested too deeply"),
    ],
)
def test_files_without_answers(
    name: str, content: str, said: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """One line, exit code 2."""
    path = tmp_path / name
    path.write_text(content)
    outcome = run("bench", tiny_model(), "--replay", path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err


@pytest.mark.llama
def test_an_empty_answer_counts_for_nothing(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The others are replayed, and its group is not shown."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"turns": ["a", "b"], "answers": ["the and was the and was", ""]}')
    outcome = run("bench", tiny_model(), "--replay", path, "-o", "jsonl")
    groups = [json.loads(line)["group"] for line in outcome.out.splitlines()]
    assert (outcome.code, groups) == (0, ["all", "text turn 1"])
