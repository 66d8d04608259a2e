"""T(n, context), and what a change of width takes, refined by what the steps of a run take.

The third and later calls of a width are samples of T. One that takes longer than the table says has
two possible reasons: the machine is busy, which makes all sizes slower alike, or the table is wrong
about this size. So the tracker keeps a scale for the machine, a median over few recent steps, and a
correction per size and context, a median over many; each is measured relative to the other.

What the first and the second call of a width take beyond the T that other calls showed is what a
change takes. Where a size has hardly any other calls, they tell its T, less what changes take.

Only upward outliers happen to times, so medians of an even number are the lower of the two. Sizes
that nobody measured are tried now and then, for at most a hundredth of the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from specgen.core.protocols import Change

from .gear import FREE, LATER, Gear
from .model import BUCKET, MAX_ROWS, UNKNOWN, CostModel, Costs, load_curve

# Sizes are tried in this order; between them the correction is a line.
EXPLORED: Final = (4, 8, 16, 2, 32)
SHARE: Final = 0.01  # exploring may cost this part of the time
_TRIES: Final = 2  # each size is tried twice: the lower of two times is no outlier
_SCALE_STEPS: Final = 9
# Several times _SCALE_STEPS, so that the scale is the first to follow a load.
_SIZE_STEPS: Final = 31
_ENOUGH: Final = 3  # so many samples tell what a change takes
# So many calls of a size need no others to tell its T: the scale has followed a load meanwhile.
_ALONE: Final = _SCALE_STEPS
_REFRESH: Final = 8  # the costs are computed again after so many steps
_LEAST_PART: Final = 0.25  # of a call is no change, whatever is known of one
_FIRST_CONTEXT: Final = 256  # shorter contexts are one bucket, then each doubling is one

_NUMBERS: Final = np.arange(1, MAX_ROWS + 1)


class CostTracker:
    """A cost table that learns.

    Args:
        model: what to begin with; None is the most expensive curve known.
        explored: sizes to try for what they cost; None tries EXPLORED where there is no model.
    """

    def __init__(
        self, model: CostModel | None = None, explored: Sequence[int] | None = None
    ) -> None:
        self.total_s = 0.0  # of all calls so far, but for the first
        self.explored_s = 0.0  # what exploring has cost of that
        self._started = False
        self._gear = Gear()
        self.restart(model, explored)

    def restart(self, model: CostModel | None, explored: Sequence[int] | None = None) -> None:
        """Begin with another model, see above, and forget what calls took."""
        self.model = load_curve(UNKNOWN) if model is None else model
        self._scale: deque[float] = deque(maxlen=_SCALE_STEPS)
        self._sizes: dict[tuple[int, int], _Size] = {}  # by size and context bucket
        # What first and second calls of a width took more, and so what a change takes, at scale 1.
        self._excess: list[deque[float]] = [deque(maxlen=_SIZE_STEPS) for _ in self.model.change]
        self._changes = list(self.model.change)
        if explored is None:
            explored = EXPLORED if model is None else ()
        self._untried = list(explored)
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
        scale = self.scale
        return Change(*[seconds * scale for seconds in self._changes])

    def observe(
        self, n: int, context: int, seconds: float | None, *, explored: bool = False
    ) -> None:
        """A call with `n` rows at `context` committed tokens took `seconds`.

        It must be told of all calls, in order; None is a time that nobody knows. `explored` says
        that the call would have been smaller, had `explore` not asked for more.
        """
        gear, self._gear = self._gear, self._gear.after(n)
        if seconds is None:
            if explored:  # which would tell nothing the next time either
                self._untried.remove(n)
            return
        if not self._started:  # the first call sets up what all others find ready
            self._started = True
            return
        self.total_s += seconds
        if explored:
            back_s = sum(self.change) if n != gear.width else 0.0
            self.explored_s += max(0.0, seconds - self.costs(context)[0]) + back_s
        place = gear.place(n)
        if place == LATER:
            self._record(n, context, seconds)
        else:
            self._record_changed(n, context, seconds, place)
        self._costs_age += 1
        if self._untried and n in self._untried and self._tries(n) >= _TRIES:
            self._untried.remove(n)

    def _record(self, n: int, context: int, seconds: float) -> None:
        """A call of the width of the two calls before."""
        ratio = seconds / self.model.costs(context)[n - 1]
        size = self._size(n, context)
        if not self._scale:  # the table is taken to be true of the first call
            self._scale.append(ratio)
        elif self._is_sure(size):
            self._scale.append(ratio / size.factor(self._changes))
        elif size.tries and (scale := ratio / size.factor(FREE)) > self.scale:
            self._scale.append(scale)  # what takes longer than with any change is under load
        size.steady.append(ratio / self.scale)

    def _is_sure(self, size: _Size) -> bool:
        """Whether what is known of a size has no unknown change in it."""
        is_known = all(len(excess) >= _ENOUGH for excess in self._excess)
        if len(size.steady) >= _ALONE:
            return True
        return is_known if size.changed else bool(size.steady)

    def _record_changed(self, n: int, context: int, seconds: float, place: int) -> None:
        """The first or second call of a width, by its place."""
        size, known_s = self._size(n, context), self.model.costs(context)[n - 1]
        if not self._scale:  # the table is taken to be true of the first call
            self._scale.append(_net(seconds, self._changes[place]) / known_s)
        # Load shows here, too, but not where it may be a change that nobody knows.
        elif size.tries and len(self._excess[place]) >= _ENOUGH:
            expected_s = known_s * size.factor(self._changes) + self._changes[place]
            self._scale.append(seconds / expected_s)
        taken_s = seconds / self.scale
        size.changed.append((taken_s, known_s, place))
        if len(size.steady) >= _ALONE:
            excess = self._excess[place]
            excess.append(taken_s - known_s * size.factor(self._changes))
            if len(excess) >= _ENOUGH:
                self._changes[place] = max(0.0, _low_median(excess))

    def _size(self, n: int, context: int) -> _Size:
        key = n, _bucket(context)
        size = self._sizes.get(key)
        if size is None:
            size = self._sizes[key] = _Size()
            self._costs_age = _REFRESH
        return size

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
        for n in self._untried:
            if n <= max_rows:
                costs, change = self.costs(context), self.change
                cost = max(0.0, costs[n - 1] - costs[0]) + change.first_s + sum(change)
                return n if self.explored_s + cost <= SHARE * self.total_s else None
        return None

    def _tries(self, n: int) -> int:
        return sum(seen.tries for (size, _), seen in self._sizes.items() if size == n)

    def _refine(self, context: int) -> Costs:
        costs = np.array(self.model.costs(context)) * self.scale
        nearest = _nearest(self._sizes, _bucket(context))
        if nearest:
            sizes = sorted(nearest)
            factors = [self._sizes[n, nearest[n]].factor(self._changes) for n in sizes]
            costs *= self._spread(sizes, factors)
        return tuple(costs.tolist())

    def _spread(self, sizes: list[int], factors: list[float]) -> NDArray[np.float64]:
        """Corrections of all sizes from those of the sizes seen."""
        # That larger calls take longer than thought is likely to go on; that they take less
        # may end at the next stair.
        beyond = max(1.0, factors[-1])
        return np.interp(_NUMBERS, sizes, factors, right=beyond)


class _Size:
    """What calls of one size and context bucket took, on a machine of scale 1.

    Attributes:
        steady: of calls of the width of the two calls before: how many times what the table says.
        changed: of others: seconds, what the table says, and whether it was the first or second.
    """

    def __init__(self) -> None:
        self.steady: deque[float] = deque(maxlen=_SIZE_STEPS)
        self.changed: deque[tuple[float, float, int]] = deque(maxlen=_SIZE_STEPS)

    @property
    def tries(self) -> int:
        """How many calls there were, up to a point."""
        return len(self.steady) + len(self.changed)

    def factor(self, changes: Sequence[float]) -> float:
        """How many times longer calls take than the table says, if changes take so long.

        Calls behind a change count only where there are few others.
        """
        if len(self.steady) >= _ALONE:
            return _low_median(self.steady)
        changed = [_net(taken, changes[place]) / known for taken, known, place in self.changed]
        return _low_median([*self.steady, *changed]) if changed or self.steady else 1.0


def _net(seconds: float, change_s: float) -> float:
    """What a call takes without its change; never less than a part, whatever load there was."""
    return max(seconds - change_s, _LEAST_PART * seconds)


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
