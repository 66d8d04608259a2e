"""What a benchmark recorded: every run with its figures, the machine card and the cost curve.

All tables and plots are made from this, so a saved file can be looked at in every way later.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from specgen.core.cost.model import CostModel
from specgen.core.errors import UsageError
from specgen.core.records import (
    SAVED_BYTES,
    counted,
    items,
    member,
    members,
    number,
    read_record,
    switch,
    text,
    whole,
)

from .card import Card

PLAIN: Final = "none"  # names plain decoding, with which all drafters are compared

_FORMAT: Final = "specgen bench"
_VERSION: Final = 1
_LEAST_S: Final = 1e-9  # the least time that tokens can have taken, in seconds
_MOST: Final = 1e18  # the largest figure that a record may hold, counts aside
_MOST_ROWS: Final = 1 << 12  # the most rows that a call of a record may have


@dataclass(frozen=True, slots=True)
class Run:
    """One turn of one prompt, answered with one drafter. Times are seconds.

    Attributes:
        task: the group that the prompt belongs to.
        prompt: number of the prompt in its set; with `turn` it says what was asked.
        turn: 1 for the first question of a conversation.
        repetition: 0 for the first time that it was asked.
        drafter: name of the drafter, with " warm" behind it where state was carried over.
        tokens: emitted.
        seconds: from the first step to the last, prompt processing left out.
        first_token_s: from the question to the first emitted token.
        steps: target calls.
        nodes: rows scored for trees, roots included.
        drafted: draft tokens scored.
        accepted: draft tokens that were accepted.
        host_s: time of the steps outside the backend.
        context: tokens of prompt and half of the answer.
        peak_bytes: most resident memory of the process meanwhile; 0 where it is not known.
        accepted_by: accepted draft tokens by drafter; one made by several counts for each of them.
        sizes: how many steps had a tree of so many nodes.
        reached: how many steps accepted so many draft tokens in a row.
        offered: how many steps had a tree so deep.
    """

    task: str
    prompt: int
    turn: int
    repetition: int
    drafter: str
    tokens: int
    seconds: float
    first_token_s: float
    steps: int
    nodes: int
    drafted: int
    accepted: int
    host_s: float
    context: int
    peak_bytes: int
    accepted_by: Mapping[str, int]
    sizes: Mapping[int, int]
    reached: Mapping[int, int]
    offered: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Results:
    """A benchmark, whole or interrupted.

    Attributes:
        card: the machine, the model and the settings.
        curve: what calls cost, as measured before; None if that is not known.
        runs: in the order they were made.
    """

    card: Card
    curve: CostModel | None
    runs: tuple[Run, ...]

    @property
    def drafters(self) -> tuple[str, ...]:
        """Names of the drafters, plain decoding first, then in the order of their first runs."""
        names = dict.fromkeys([PLAIN, *(run.drafter for run in self.runs)])
        return tuple(names)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the order of their first runs."""
        return tuple(dict.fromkeys(run.task for run in self.runs))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "card": self.card.record(),
            "curve": self.curve and self.curve.record(),
            "runs": [_record(run) for run in self.runs],
        }

    @classmethod
    def from_record(cls, record: Any) -> Results:
        """The results in `record`. Raises ValueError if there are none in it."""
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise ValueError("no results of specgen bench are in it")
        if record.get("version") != _VERSION:
            version = reprlib.repr(record.get("version"))
            raise ValueError(f"results of version {version}, and only {_VERSION} can be read")
        try:
            curve = member(record, "curve")
            return cls(
                _card(member(record, "card")),
                None if curve is None else CostModel.from_record(curve),
                tuple([_run(run) for run in items(member(record, "runs"), "runs")]),
            )
        except ValueError as error:
            raise ValueError(f"damaged results: {error}") from error


def _record(run: Run) -> dict[str, Any]:
    """A run as JSON; its counts may be of any kind of mapping."""
    values = {field.name: getattr(run, field.name) for field in fields(Run)}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _card(record: Any) -> Card:
    """Raises ValueError."""
    card = Card.from_record(_values(Card, record))
    if not (card.bandwidth and card.read_bytes):  # figures are relative to them
        raise ValueError("a card without bandwidth or bytes to read")
    return card


def _run(record: Any) -> Run:
    """Raises ValueError."""
    run = Run(**_values(Run, record))
    if run.tokens and not (run.steps and (run.seconds == 0 or run.seconds >= _LEAST_S)):
        raise ValueError(f"{run.tokens} tokens in {run.steps} steps and {run.seconds} seconds")
    return run


def _values(kind: type[Card | Run], record: Any) -> dict[str, Any]:
    """The fields of a card or a run, each of its type. Raises ValueError."""
    return {
        field.name: _READERS[str(field.type)](member(record, field.name), field.name)
        for field in fields(kind)
    }


def _amount(value: Any, name: str) -> float:
    return number(value, name, 0.0, _MOST)


def _maybe(value: Any, name: str) -> bool | None:
    return None if value is None else switch(value, name)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    return tuple([text(part, name) for part in items(value, name)])


def _by_name(value: Any, name: str) -> dict[str, int]:
    return {text(key, name): whole(n, name) for key, n in members(value, name).items()}


def _by_number(value: Any, name: str) -> dict[int, int]:
    """Keys are numbers, which JSON has not."""
    found = members(value, name).items()
    return {counted(key, name, _MOST_ROWS): whole(n, name) for key, n in found}


_READERS: Final[Mapping[str, Callable[[Any, str], Any]]] = {  # how a field is read, by its type
    "str": text,
    "int": whole,
    "float": _amount,
    "bool | None": _maybe,
    "tuple[str, ...]": _texts,
    "Mapping[str, int]": _by_name,
    "Mapping[int, int]": _by_number,
}


def load_results(path: Path) -> Results:
    """What `specgen bench --save` wrote. Raises UsageError."""
    try:
        return Results.from_record(read_record(path, SAVED_BYTES))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        hint = "give a file that `specgen bench --save` wrote"
        raise UsageError(f"cannot read {path}: {error}", hint) from None
