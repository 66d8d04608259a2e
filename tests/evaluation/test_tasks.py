"""The prompts of a benchmark: our own, and those of a file."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from specgen.core.errors import UsageError
from specgen.core.evaluation.tasks import Prompt, load_prompts, own_prompts, sampled
from specgen.core.sampling import SamplingParams

TASKS = [
    *("chat", "code", "edit", "summarize", "question", "translate"),
    *("maths", "extract", "story", "revise", "noise"),
]
GREEDY = SamplingParams(temperature=0.0)
FREE = SamplingParams(temperature=1.0)
WILD = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0)


def own(task: str) -> list[Prompt]:
    """Our own prompts of one task."""
    return [prompt for prompt in own_prompts() if prompt.task == task]


def write(path: Path, *lines: Any) -> Path:
    """A file of JSON lines; a text is written as it is."""
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8"
    )
    return path


def test_every_third_of_the_own_prompts_has_every_task() -> None:
    """Three rounds through the tasks, in the same order."""
    assert [prompt.task for prompt in own_prompts()] == TASKS * 3


def test_own_prompts_are_all_different() -> None:
    """No turn is asked twice, or what is learnt from one answer would be tried on the same."""
    counts = Counter(turn for prompt in own_prompts() for turn in prompt.turns)
    assert counts.most_common(1)[0][1] == 1


def test_own_prompts_are_clean_text() -> None:
    """Something to read: no control characters but line ends, nothing around the text."""
    for prompt in own_prompts():
        for turn in prompt.turns:
            assert turn and turn == turn.strip()
            assert not [c for c in turn if unicodedata.category(c)[0] == "C" and c != "\n"]


def test_own_prompts_fit_a_small_context() -> None:
    """Less than 3000 characters, which are some 700 tokens of English or code."""
    assert max(len(turn) for prompt in own_prompts() for turn in prompt.turns) < 3000


@pytest.mark.parametrize("task", TASKS)
def test_own_prompts_are_greedy_but_where_a_task_asks_for_chance(task: str) -> None:
    """Stories at temperature 1, noise with nothing cut off, and no seed."""
    sampling = {"story": FREE, "noise": WILD}.get(task, GREEDY)
    assert [prompt.sampling for prompt in own(task)] == [sampling] * 3


def test_edits_predict_the_document_in_their_prompt() -> None:
    """The whole code, 25 to 60 lines of it, and no other task predicts anything."""
    for prompt in own("edit"):
        assert prompt.predicted is not None
        assert prompt.predicted in prompt.turns[0]
        assert 25 <= prompt.predicted.count("\n") <= 60
    assert {prompt.task for prompt in own_prompts() if prompt.predicted is not None} == {"edit"}


def test_revisions_have_three_turns() -> None:
    """And of the others only one chat has more than one."""
    assert [len(prompt.turns) for prompt in own("revise")] == [3, 3, 3]
    others = [prompt for prompt in own_prompts() if prompt.task != "revise"]
    assert [p.task for p in others if len(p.turns) > 1] == ["chat"]


@pytest.mark.parametrize("task", ["summarize", "question"])
def test_documents_come_before_what_is_asked(task: str) -> None:
    """The last line asks, and what stands before it is long enough to copy from."""
    for prompt in own(task):
        document, asked = prompt.turns[0].rsplit("\n\n", 1)
        assert asked.endswith("?" if task == "question" else ".")
        assert 300 <= len(document.split()) <= 600


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        (
            {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["x"]},
            Prompt("writing", ("a", "b"), None, GREEDY),
        ),
        ({"task": "rag", "turns": ["a"]}, Prompt("rag", ("a",), None, GREEDY)),
        ({"category": "qa", "task": "rag", "turns": ["a"]}, Prompt("qa", ("a",), None, GREEDY)),
        ({"category": None, "task": "rag", "turns": ["a"]}, Prompt("rag", ("a",), None, GREEDY)),
        ({"turns": [" a\n"]}, Prompt("text", (" a\n",), None, GREEDY)),
        ({"prompt": "a"}, Prompt("text", ("a",), None, GREEDY)),
        ({"prompt": "a", "turns": ["b"]}, Prompt("text", ("b",), None, GREEDY)),
        ({"turns": ["a"], "temperature": 1}, Prompt("text", ("a",), None, GREEDY)),
    ],
)
def test_a_line_is_a_prompt(record: dict[str, Any], prompt: Prompt, tmp_path: Path) -> None:
    """In the fields of Spec-Bench and MT-Bench, or with a single text."""
    assert load_prompts(write(tmp_path / "x.jsonl", record)) == [prompt]


def test_a_file_is_read_in_order_without_blank_lines(tmp_path: Path) -> None:
    """Line ends of all systems, and those inside a text, which JSON leaves as they are."""
    path = tmp_path / "x.jsonl"
    path.write_bytes('\n{"prompt": "a\u2028b"}\r\n  \r\n{"prompt": "ü"}\n\n'.encode())
    assert [prompt.turns for prompt in load_prompts(path)] == [("a\u2028b",), ("ü",)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hello", "not JSON"),
        ('{"turns": ["a"]', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('["a"]', "no JSON object"),
        ("null", "no JSON object"),
        ({}, "neither `turns` nor `prompt`"),
        ({"turns": []}, "`turns` is no list of texts"),
        ({"turns": "a"}, "`turns` is no list of texts"),
        ({"turns": None, "prompt": "a"}, "`turns` is no list of texts"),
        ({"turns": {"a": "b"}}, "`turns` is no list of texts"),
        ({"turns": ["a", ""]}, "turn 2 is empty"),
        ({"turns": ["a", " \n"]}, "turn 2 is empty"),
        ({"turns": [1]}, "turn 1 is no text"),
        ({"turns": ["\ud800"]}, "surrogates not allowed"),
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": ["a"]}, "`prompt` is no text"),
        ({"turns": ["a"], "category": 7}, "the task is no text"),
    ],
)
def test_a_bad_line_is_named(line: Any, reason: str, tmp_path: Path) -> None:
    """The file, the number of the line, what is wrong with it and what it needs."""
    path = write(tmp_path / "x.jsonl", {"turns": ["a"]}, "", line)
    with pytest.raises(UsageError) as caught:
        load_prompts(path)
    assert caught.value.message.startswith(f"{path}, line 3 is no prompt: ")
    assert reason in caught.value.message
    assert "`turns`" in caught.value.hint and "`prompt`" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_prompts_is_refused(content: bytes, tmp_path: Path) -> None:
    """Empty or blank: the file is named, and what each line needs."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_prompts(path)
    assert str(path) in caught.value.message
    assert "each line is a JSON object with `turns`" in caught.value.hint


@pytest.mark.parametrize(
    ("encoding", "reason"), [("utf-16", "is UTF-16"), ("latin-1", "is not UTF-8: byte 12 is 0xe9")]
)
def test_a_file_of_another_encoding_is_refused(encoding: str, reason: str, tmp_path: Path) -> None:
    """The file is named, and what to do."""
    path = tmp_path / "x.jsonl"
    path.write_bytes('{"prompt": "é"}'.encode(encoding))
    with pytest.raises(UsageError, match=reason) as caught:
        load_prompts(path)
    assert str(path) in caught.value.message
    assert "iconv" in caught.value.hint


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    """Editors of Windows write one."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [prompt.turns for prompt in load_prompts(path)] == [("a",), ("b",)]


@pytest.mark.parametrize("name", ["nowhere.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    """Missing, or a folder."""
    path = tmp_path / name
    with pytest.raises(UsageError) as caught:
        load_prompts(path)
    assert caught.value.message.startswith(f"cannot read the prompts {path}: ")


def test_sampled_takes_the_first_of_every_task() -> None:
    """The order stays, and a task with fewer prompts gives all it has."""
    a1, b1, a2, a3, b2, c1 = (Prompt(task, (str(n),)) for n, task in enumerate("abaabc"))
    prompts = [a1, b1, a2, a3, b2, c1]
    assert sampled(prompts, 0) == []
    assert sampled(prompts, 1) == [a1, b1, c1]
    assert sampled(prompts, 2) == [a1, b1, a2, b2, c1]
    assert sampled(prompts, 9) == prompts


@pytest.mark.parametrize("per_task", [1, 2])
def test_sampled_own_prompts_are_a_prefix(per_task: int) -> None:
    """As many rounds through the tasks."""
    prompts = own_prompts()
    assert sampled(prompts, per_task) == prompts[: per_task * len(TASKS)]
