"""What a benchmark recorded: every run with its figures, the machine card and the cost curve.

All tables and plots are made from this, so a saved file can be looked at in every way later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Final, TypeVar

from .card import Card
from .cost import CostModel
from .errors import UsageError

PLAIN: Final = "none"  # the drafter that all others are compared with

_FORMAT: Final = "specgen bench"
_VERSION: Final = 1


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
        drafted: guesses scored.
        accepted: guesses that were right.
        host_s: time of the steps outside the backend.
        context: tokens of prompt and half of the answer.
        peak_bytes: most resident memory of the process meanwhile; 0 where it is not known.
        accepted_by: right guesses by drafter; one made by several counts for each of them.
        sizes: how many steps had a tree of so many nodes.
        reached: how many steps accepted so many guesses in a row.
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
            version = record.get("version")
            raise ValueError(f"results of version {version!r}, and only {_VERSION} can be read")
        try:
            curve = record["curve"]
            return cls(
                _checked(Card.from_record(record["card"])),
                None if curve is None else CostModel.from_record(curve),
                tuple([_run(run) for run in record["runs"]]),
            )
        except KeyError as error:
            raise ValueError(f"damaged results: there is no {error}") from error
        except (TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"damaged results: {error}") from error


_COUNTS: Final = ("sizes", "reached", "offered")  # keys are numbers, which JSON has not
_KINDS: Final[Mapping[str, Any]] = {  # what values of a type may be in JSON
    "str": str,
    "int": int,
    "float": (int, float),
    "bool | None": (bool, NoneType),
}
_Values = TypeVar("_Values", Card, Run)


def _record(run: Run) -> dict[str, Any]:
    """A run as JSON; its counts may be of any kind of mapping."""
    values = {field.name: getattr(run, field.name) for field in fields(Run)}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _run(record: Mapping[str, Any]) -> Run:
    values = {field.name: record[field.name] for field in fields(Run)}
    for name in _COUNTS:
        values[name] = {int(key): int(count) for key, count in values[name].items()}
    by = values["accepted_by"].items()
    return _checked(Run(**values | {"accepted_by": {str(name): int(n) for name, n in by}}))


def _checked(values: _Values) -> _Values:
    """What was read from a file, if all is of its type and no number is negative or endless."""
    for field in fields(values):
        value, kind = getattr(values, field.name), _KINDS.get(str(field.type))
        right = kind is None or isinstance(value, kind)
        if right and isinstance(value, int | float):
            right = 0 <= value < math.inf
        if not right:
            raise ValueError(f"{field.name} is {value!r}")
    return values


def load_results(path: Path) -> Results:
    """What `specgen bench --save` wrote. Raises UsageError."""
    try:
        return Results.from_record(json.loads(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        reason = "not JSON" if isinstance(error, json.JSONDecodeError) else error
        hint = "give a file that `specgen bench --save` wrote"
        raise UsageError(f"cannot read {path}: {reason}", hint) from None
