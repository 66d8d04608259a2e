"""T(n, context) refined by what the steps of a run take.

A step that takes longer than the table says has two possible reasons: the machine is busy, which
makes all sizes slower alike, or the table is wrong about this size. So the tracker keeps a scale
for the machine, a median over few recent steps, and a correction per size and context, a median
over many; each is measured relative to the other. Only upward outliers happen to times, so
medians of an even number are the lower of the two.

Sizes that nobody measured are tried now and then, for at most a hundredth of the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from specgen.core.protocols import Change

from .model import BUCKET, MAX_ROWS, UNKNOWN, CostModel, Costs, load_curve

# Sizes are tried in this order; between them the correction is a line.
EXPLORED: Final = (4, 8, 16, 2, 32)
SHARE: Final = 0.01  # exploring may cost this part of the time
_TRIES: Final = 2  # each size is tried twice: the lower of two times is no outlier
_SCALE_STEPS: Final = 9
# Several times _SCALE_STEPS, so that the scale is the first to follow a load.
_SIZE_STEPS: Final = 31
_REFRESH: Final = 8  # the costs are computed again after so many steps
_FIRST_CONTEXT: Final = 256  # shorter contexts are one bucket, then each doubling is one

_NUMBERS: Final = np.arange(1, MAX_ROWS + 1)


class CostTracker:
    """A cost table that learns.

    Args:
        model: what to begin with; None is the most expensive curve known.
        explore: whether to try sizes for what they cost; by default where there is no model.
    """

    def __init__(self, model: CostModel | None = None, *, explore: bool | None = None) -> None:
        self.model = load_curve(UNKNOWN) if model is None else model
        self.total_s = 0.0  # of all calls so far, but for the first
        self.explored_s = 0.0  # what exploring has cost of that
        self._scale: deque[float] = deque(maxlen=_SCALE_STEPS)
        self._sizes: dict[tuple[int, int], deque[float]] = {}  # by size and context bucket
        self._untried = list(EXPLORED) if explore or (explore is None and model is None) else []
        self._started = False
        self._held: tuple[int, int, float] | None = None  # a call whose next one is awaited
        self._costs: Costs = ()
        self._costs_bucket = -1
        self._costs_age = 0

    @property
    def scale(self) -> float:
        """How many times slower the machine is now than when the table was made."""
        return _low_median(self._scale) if self._scale else 1.0

    @property
    def change(self) -> Change:
        """What calls of a new width take more."""
        return self.model.change

    def observe(self, n: int, context: int, seconds: float, *, explored: bool = False) -> None:
        """A call with `n` rows at `context` committed tokens took `seconds`.

        `explored` says that it would have been smaller, had `explore` not asked for more.
        """
        if not self._started:  # the first call sets up what all others find ready
            self._started = True
            return
        self.total_s += seconds
        if explored:
            self.explored_s += max(0.0, seconds - self.costs(context)[0])
        held, self._held = self._held, None
        if n > 1:
            self._held = n, context, seconds
        if held and n == 1:  # what is slow about one row behind several is due to those
            self._record(held[0], held[1], held[2] + max(0.0, seconds - self.costs(context)[0]))
        elif held:
            self._record(*held)
        elif n == 1:
            self._record(n, context, seconds)

    def _record(self, n: int, context: int, seconds: float) -> None:
        ratio = seconds / self.model.costs(context)[n - 1]
        key = n, _bucket(context)
        known = self._sizes.get(key)
        if known is not None:
            self._scale.append(ratio / _low_median(known))
        elif not self._scale:  # the first step: the table is taken to be true of its size
            self._scale.append(ratio)
        if known is None:
            known = self._sizes[key] = deque(maxlen=_SIZE_STEPS)
            self._costs_age = _REFRESH
        known.append(ratio / self.scale)
        self._costs_age += 1
        if self._untried and n in self._untried and self._tries(n) >= _TRIES:
            self._untried.remove(n)

    def costs(self, context: int) -> Costs:
        """T of 1..MAX_ROWS rows, refined; [n - 1] is for n rows."""
        bucket = context // BUCKET
        if bucket != self._costs_bucket or self._costs_age >= _REFRESH:
            self._costs = self._refine(context)
            self._costs_bucket = bucket
            self._costs_age = 0
        return self._costs

    def explore(self, context: int, max_rows: int) -> int | None:
        """A size that is worth trying once, of at most `max_rows`, or None.

        Nothing is owed for an answer that is not followed.
        """
        if self._held is not None:  # what the last one cost is not known yet
            return None
        for n in self._untried:
            if n <= max_rows:
                costs = self.costs(context)
                cost = max(0.0, costs[n - 1] - costs[0])
                return n if self.explored_s + cost <= SHARE * self.total_s else None
        return None

    def _tries(self, n: int) -> int:
        return sum(len(times) for (size, _), times in self._sizes.items() if size == n)

    def _refine(self, context: int) -> Costs:
        costs = np.array(self.model.costs(context)) * self.scale
        nearest = _nearest(self._sizes, _bucket(context))
        if nearest:
            sizes = sorted(nearest)
            factors = [_low_median(self._sizes[n, nearest[n]]) for n in sizes]
            costs *= self._spread(sizes, factors)
        return tuple(costs.tolist())

    def _spread(self, sizes: list[int], factors: list[float]) -> NDArray[np.float64]:
        """Corrections of all sizes from those of the sizes seen."""
        # That larger calls take longer than thought is likely to go on; that they take less
        # may end at the next stair.
        beyond = max(1.0, factors[-1])
        return np.interp(_NUMBERS, sizes, factors, right=beyond)


def _low_median(values: Collection[float]) -> float:
    """statistics.median_low, several times faster."""
    return sorted(values)[(len(values) - 1) // 2]


def _bucket(context: int) -> int:
    return (context // _FIRST_CONTEXT).bit_length()


def _nearest(seen: Iterable[tuple[int, int]], bucket: int) -> dict[int, int]:
    """For each size seen, the context bucket nearest to `bucket` that it was seen in."""
    nearest: dict[int, int] = {}
    for n, other in seen:
        best = nearest.get(n)
        if best is None or abs(other - bucket) < abs(best - bucket):
            nearest[n] = other
    return nearest
