"""What a benchmark asks: prompts of eleven tasks that are our own, or those of a file.

How much a drafter saves depends on the text: an edit repeats most of its prompt, random words
repeat nothing. So the tasks reach from one end to the other, and a speed is given for each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from specgen.core.errors import UsageError
from specgen.core.records import parse_record
from specgen.core.sampling import SamplingParams
from specgen.core.text.encoding import decode_text

_GREEDY: Final = SamplingParams(temperature=0.0)
_NEEDS: Final = "each line is a JSON object with `turns`, a list of texts, or `prompt`, a text"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation of a benchmark: what the user says, turn by turn.

    Attributes:
        task: the group that it belongs to.
        turns: what the user says; the model answers each before the next is asked.
        predicted: a text that the output will resemble, or None.
        sampling: how the answers are sampled.
    """

    task: str
    turns: tuple[str, ...]
    predicted: str | None = None
    sampling: SamplingParams = _GREEDY


def own_prompts() -> list[Prompt]:
    """The prompts of tasks.json: the first of every task, then the second of every task, …

    So what a prefix of the list leaves out is spread over all tasks.
    """
    records = json.loads(Path(__file__).with_name("tasks.json").read_bytes())
    prompts = [_own_prompt(record) for record in records]
    of_tasks = [
        [prompt for prompt in prompts if prompt.task == task]
        for task in dict.fromkeys(prompt.task for prompt in prompts)
    ]
    return [prompt for rank in zip(*of_tasks, strict=True) for prompt in rank]


def _own_prompt(record: dict[str, Any]) -> Prompt:
    given = {f.name: record[f.name] for f in fields(SamplingParams) if f.name in record}
    sampling = SamplingParams(**({"temperature": 0.0} | given))
    return Prompt(record["task"], tuple(record["turns"]), record.get("predicted"), sampling)


def sampled(prompts: Sequence[Prompt], per_task: int) -> list[Prompt]:
    """The first `per_task` prompts of every task, in the order in which they came."""
    taken: Counter[str] = Counter()
    kept = []
    for prompt in prompts:
        if taken[prompt.task] < per_task:
            taken[prompt.task] += 1
            kept.append(prompt)
    return kept


def load_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file in the format of Spec-Bench and MT-Bench, to be answered greedily.

    Each line is a JSON object with `turns`, a list of texts, or `prompt`, a single one. The task
    is its `category`, or else its `task`, or else "text"; all other fields are left aside. Raises
    UsageError with the line at fault.
    """
    try:
        text = decode_text(path.read_bytes(), f"the file {path}")
    except OSError as error:
        raise UsageError(f"cannot read the prompts {path}: {error.strerror or error}") from None
    prompts = []
    for number, line in enumerate(text.split("\n"), start=1):  # a text may hold other line ends
        if line.strip():
            prompts.append(_prompt(line, number, path))
    if not prompts:
        raise UsageError(f"{path} has no prompts: no line of it has any text", _NEEDS)
    return prompts


def _prompt(line: str, number: int, path: Path) -> Prompt:
    try:
        record = parse_record(line)
        if not isinstance(record, dict):
            raise ValueError("it is no JSON object")
        task = record.get("category") or record.get("task") or "text"
        return Prompt(_text(task, "the task"), _turns(record))
    except ValueError as error:
        raise UsageError(f"{path}, line {number} is no prompt: {error}", _NEEDS) from None


def _turns(record: dict[str, Any]) -> tuple[str, ...]:
    """What the user says in `record`. Raises ValueError."""
    if "turns" not in record and "prompt" not in record:
        raise ValueError("it has neither `turns` nor `prompt`")
    if "turns" not in record:
        return (_text(record["prompt"], "`prompt`"),)
    turns = record["turns"]
    if not isinstance(turns, list) or not turns:
        raise ValueError("`turns` is no list of texts")
    return tuple([_text(turn, f"turn {n}") for n, turn in enumerate(turns, start=1)])


def _text(value: Any, name: str) -> str:
    """`value` if it is a text that can be tokenized. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    value.encode()  # JSON can spell half a surrogate pair, which no tokenizer takes
    return value
