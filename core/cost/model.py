"""What one target call costs: T(n, context), the seconds of a call with n rows.

n counts every row of the call: pending tokens, root and draft tokens. `CostModel` is a measured
table; T is no smooth curve, and its stairs and dips are what it is measured for. It is what a call
takes in a run of calls of one width; what a change of width takes is kept beside it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from specgen.core.errors import UsageError
from specgen.core.protocols import Change
from specgen.core.records import CACHE_BYTES, items, member, number, read_record, whole

from .gear import FREE

Costs: TypeAlias = tuple[float, ...]  # (MAX_ROWS,) seconds; [n - 1] is for n rows

MAX_ROWS: Final = 128  # `costs` answers for calls of up to so many rows
BUCKET: Final = 64  # contexts within so many tokens share one tuple of costs
# Names the curve that is used where nothing was measured: drafts must be sure.
UNKNOWN: Final = "unknown"
_MAX_CACHED: Final = 256
# A call takes between these, in seconds; ratios and sums of such times are numbers.
_LEAST_S, _MOST_S = 1e-9, 1e6


@dataclass(frozen=True, slots=True)
class CostModel:
    """A table of T with straight lines between its points.

    Below the first context T is that of the first, beyond the last it goes on as between the
    last two, but never falls.

    Attributes:
        sizes: rows, rising, from 1.
        contexts: committed tokens, rising.
        times: (contexts, sizes) seconds.
        change: what calls of a new width take more.

    Raises ValueError for a table that is none.
    """

    sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    times: tuple[tuple[float, ...], ...]
    change: Change = FREE
    _grid: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _rows: dict[int, Costs] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.sizes, self.contexts, self.times)
        if not all(0 <= seconds <= _MOST_S for seconds in self.change):
            raise ValueError(f"a change must take 0 to {1e3 * _MOST_S:g} ms")
        grid = [_fill(self.sizes, times) for times in self.times]
        object.__setattr__(self, "_grid", np.array(grid))

    def seconds(self, n: int, context: int) -> float:
        """T of one call with `n` rows when `context` tokens are committed."""
        times = [_at(self.sizes, row, n) for row in self.times]
        low, share = self._place(context)
        if share == 0:
            return times[low]
        return _between(times[low], times[low + 1], share)

    def costs(self, context: int) -> Costs:
        """T of 1..MAX_ROWS rows at the middle of the bucket that `context` is in."""
        bucket = context // BUCKET
        costs = self._rows.get(bucket)
        if costs is None:
            if len(self._rows) >= _MAX_CACHED:
                self._rows.clear()
            costs = self._rows[bucket] = self._compute(bucket * BUCKET + BUCKET // 2)
        return costs

    def _compute(self, context: int) -> Costs:
        low, share = self._place(context)
        times = self._grid[low]
        if share:
            after = self._grid[low + 1]
            rise = after - times
            if share > 1:
                times, share, rise = after, share - 1, np.maximum(rise, 0)
            times = times + share * rise
        return tuple(times.tolist())

    def _place(self, context: int) -> tuple[int, float]:
        """A row of the table and the way from there to the next one, > 1 beyond the last."""
        contexts = self.contexts
        if context <= contexts[0] or len(contexts) == 1:
            return 0, 0.0
        low = min(bisect_right(contexts, context) - 1, len(contexts) - 2)
        return low, (context - contexts[low]) / (contexts[low + 1] - contexts[low])

    def observe(
        self, n: int, context: int, seconds: float | None, *, explored: bool = False
    ) -> None:
        """Nothing is learnt from a call; online.CostTracker does."""

    def explore(self, context: int, max_rows: int) -> int | None:
        """None: the table is taken for the truth; see online.CostTracker."""
        return None

    def record(self) -> dict[str, Any]:
        """The table as JSON, in the format that `from_record` and `load_curve` read."""
        ms = [[round(1e3 * seconds, 4) for seconds in row] for row in self.times]
        record = {"contexts": list(self.contexts), "sizes": list(self.sizes), "ms": ms}
        if self.change != FREE:
            record["change_ms"] = [round(1e3 * seconds, 4) for seconds in self.change]
        return record

    @classmethod
    def from_record(cls, record: Any) -> CostModel:
        """The table of `record`. Raises ValueError if there is none in it."""
        sizes = [whole(n, "a size") for n in items(member(record, "sizes"), '"sizes"')]
        contexts = [whole(n, "a context") for n in items(member(record, "contexts"), '"contexts"')]
        rows = [items(row, 'a row of "ms"') for row in items(member(record, "ms"), '"ms"')]
        times = [tuple([number(ms, "a time in ms") / 1e3 for ms in row]) for row in rows]
        return cls(tuple(sizes), tuple(contexts), tuple(times), _change(record))


def _change(record: Any) -> Change:
    """What a change takes; nothing, where a record says nothing of it."""
    if "change_ms" not in record:
        return FREE
    first, second = [
        number(ms, "a time in ms") / 1e3 for ms in items(record["change_ms"], '"change_ms"')
    ]
    return Change(first, second)


def _check(sizes: Sequence[int], contexts: Sequence[int], times: Sequence[Costs]) -> None:
    for name, values, first in (("sizes", sizes, 1), ("contexts", contexts, 0)):
        if not values or not all(type(value) is int for value in values):
            raise ValueError(f'"{name}" must be a list of whole numbers')
        if values[0] < first or any(a >= b for a, b in pairwise(values)):
            raise ValueError(f'"{name}" must rise from {first} or more')
    if sizes[0] != 1:
        raise ValueError('"sizes" must begin with 1')
    if len(times) != len(contexts) or any(len(row) != len(sizes) for row in times):
        raise ValueError(f'"ms" must be {len(contexts)} lists of {len(sizes)} times')
    if not all(_LEAST_S <= value <= _MOST_S for row in times for value in row):
        raise ValueError(f"times must be {1e3 * _LEAST_S:g} to {1e3 * _MOST_S:g} ms")


def _at(sizes: Sequence[int], times: Sequence[float], n: int) -> float:
    """T of n rows on the lines through (sizes, times), the last of which goes on."""
    if len(sizes) == 1:
        return times[0] * n  # nothing is known: no call takes less time than its rows one by one
    i = min(bisect_right(sizes, n) - 1, len(sizes) - 2)
    return _between(times[i], times[i + 1], (n - sizes[i]) / (sizes[i + 1] - sizes[i]))


def _fill(sizes: Sequence[int], times: Sequence[float]) -> list[float]:
    return [_at(sizes, times, n) for n in range(1, MAX_ROWS + 1)]


def _between(a: float, b: float, share: float) -> float:
    """The way from a to b; beyond b it does not fall."""
    return b + (share - 1) * max(b - a, 0.0) if share > 1 else a + share * (b - a)


@cache
def _shipped() -> dict[str, CostModel]:
    records = json.loads(Path(__file__).with_name("curves.json").read_bytes())
    return {name: CostModel.from_record(record) for name, record in records.items()}


def load_curve(name: str) -> CostModel:
    """The curve of that name, or the one in a JSON file. Raises UsageError."""
    curves = _shipped()
    if name in curves:
        return curves[name]
    path = Path(name)
    known = ", ".join(curves)
    try:
        return CostModel.from_record(read_record(path, CACHE_BYTES))
    except OSError as error:
        raise UsageError(
            f"there is no cost curve {name!r}: {error.strerror or error}",
            f"use {known}, or a file that `specgen calibrate --curve-out` wrote",
        ) from None
    except ValueError as error:
        raise UsageError(
            f"{path} is no cost curve: {error}",
            f"`specgen calibrate --curve-out` writes one; {known} need no file",
        ) from None
