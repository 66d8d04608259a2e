"""What calls cost, in a moment: a few sizes behind a text that is in the cache already.

For whoever has not measured a model with `measure`. Calls of each size come in a row, so the first
two of each also tell what a change of width takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from .measure import LEAST_SAMPLES
from .model import UNKNOWN, CostModel, load_curve
from .timed import TimedBackend, change_of, typical

# Most important first: without the second there is nothing to compare the first with.
QUICK_SIZES: Final = (1, 4, 2, 8)
_CALLS: Final = 1 + LEAST_SAMPLES  # of a size: the first is behind a change
_WORTH: Final = 4  # measuring may take one in so many parts of the time that the answer will take
# Tokens of an answer, with fewer of which no two sizes can be compared in that part.
LEAST_TOKENS: Final = _WORTH * 2 * _CALLS


@dataclass(frozen=True, slots=True)
class QuickMeasurement:
    """A curve of few sizes at one context.

    Attributes:
        curve: of the sizes that there was time for.
        noise: by what factor times of the same call differed.
        seconds: that it took.
    """

    curve: CostModel
    noise: float
    seconds: float


def measure_quickly(
    timed: TimedBackend, limit_s: float, n_tokens: int, sizes: Sequence[int] = QUICK_SIZES
) -> QuickMeasurement | None:
    """T of `sizes` where the cache ends, as many as there is time for; None if too few.

    The cache is left as it is. Sizes are given up that would take longer than `limit_s`, or than
    what an answer of `n_tokens` tokens can gain.

    Args:
        timed: of a backend that can rewind, and a text that begins with what is in its cache.
        limit_s: seconds that it may take.
        n_tokens: that will be generated.
        sizes: rows, from 1, the most important first.

    Raises Interrupted, and BackendError as a call may.
    """
    if n_tokens < LEAST_TOKENS:
        return None
    start, context = timed.clock(), timed.backend.length
    end = start + limit_s
    runs: dict[int, list[float]] = {}
    for n in timed.sizes(sizes):
        until = end if runs else start + limit_s / 2  # the next size takes at least as long
        times = _run(timed, n, _expected_s(runs, n, context), until) if timed.has_room(n) else []
        if times:
            runs[n] = times
        if not runs:
            return None
        if n == 1:
            end = min(end, start + n_tokens * typical(times[1:]) / _WORTH)
    if len(runs) < 2:
        return None
    found = sorted(runs)
    # Load only ever adds: a size takes no longer than a larger one.
    times = [min(typical(runs[m][1:]) for m in found if m >= n) for n in found]
    changed = [runs[n] for n in found if n > 1]  # one row came behind the prompt
    change = change_of([[run[place] - typical(run[1:]) for run in changed] for place in range(2)])
    curve = CostModel(tuple(found), (context,), (tuple(times),), change)
    noise = max(median(times[1:]) / min(times[1:]) for times in runs.values())
    return QuickMeasurement(curve, noise, timed.clock() - start)


def _run(timed: TimedBackend, n: int, expected_s: float, until: float) -> list[float]:
    """Seconds of calls with `n` rows in a row; [] if they would take too long."""
    times: list[float] = []
    for left in range(_CALLS, 0, -1):
        needed_s = left * min(times) if times else expected_s
        if timed.clock() + needed_s > until:
            return []
        times.append(timed.time(n))
    return times


def _expected_s(runs: dict[int, list[float]], n: int, context: int) -> float:
    """What a call will take at most, by the sizes that were timed; 0 if none was."""
    curve = load_curve(UNKNOWN)
    return min(
        [
            typical(times[1:]) * max(1.0, curve.seconds(n, context) / curve.seconds(m, context))
            for m, times in runs.items()
        ],
        default=0.0,
    )


def extended(curve: CostModel) -> CostModel:
    """The curve with sizes beyond its largest, in proportion as dear as on any known machine."""
    unknown = load_curve(UNKNOWN)
    widest = curve.sizes[-1]
    sizes = tuple(n for n in unknown.sizes if n > widest)
    times = tuple(
        (*row, *[row[-1] * unknown.seconds(n, c) / unknown.seconds(widest, c) for n in sizes])
        for c, row in zip(curve.contexts, curve.times, strict=True)
    )
    return CostModel((*curve.sizes, *sizes), curve.contexts, times, curve.change)
