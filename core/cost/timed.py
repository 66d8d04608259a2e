"""A backend whose calls are timed: one call, or one in a run of calls of the same width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median, median_low
from time import perf_counter
from typing import Final, TypeAlias

import numpy as np

from specgen.core.host.limits import Waits
from specgen.core.protocols import Backend, Change, Tokens
from specgen.core.stop import ShouldStop, heed, never
from specgen.core.tree import DraftTree

from .gear import SECOND, Gear

Clock: TypeAlias = Callable[[], float]

LARGE: Final = 16  # larger calls take long and are rare: shorter runs of them
_WARM_UP: Final = 8  # the time of the first tokens says nothing: weights may come from disk
_TASTE: Final = 32  # the time of so many tokens tells how long others will take
_RUNS: Final = 6  # so many runs tell what a change takes
# A change is work of the host, of some milliseconds: from here on it is within the noise.
_SLOW_S: Final = 0.2
_LEAST_PART: Final = 0.25  # of a call is no change


class TimedBackend:
    """A backend being measured, and a text to fill it with.

    Args:
        backend: measured; its cache is overwritten.
        tokens: a text, repeated as needed.
        clock: seconds.
        waits: how long threads had to wait so far, see host.thread_waits; {} if nobody tells.
        should_stop: asked before each call.
    """

    def __init__(
        self,
        backend: Backend,
        tokens: Sequence[int],
        clock: Clock = perf_counter,
        waits: Callable[[], Waits] = dict,
        should_stop: ShouldStop = never,
    ) -> None:
        self.backend = backend
        self.clock = clock
        self.waits = waits
        self._should_stop = should_stop
        self.prefill_s = 0.0
        self.prefilled = 0  # tokens, in prefill_s
        self._taken: dict[int, tuple[int, float]] = {}  # by rows: calls and their seconds
        self._gear = Gear()
        # What first and second calls of a run took more than the sample behind them.
        self._excess: tuple[list[float], list[float]] = ([], [])
        n_ctx = backend.limits.n_ctx
        self._text: Tokens = np.resize(np.array(tokens, np.int32), n_ctx)

    def sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Those of `sizes` that the backend can score, with room for a context."""
        limits = self.backend.limits
        most = min(limits.max_rows, limits.n_ctx // 2)
        return tuple(n for n in sizes if n <= most)

    def contexts(self, contexts: Sequence[int], largest: int, time_s: float) -> tuple[int, ...]:
        """Those of rising `contexts` that leave room for `largest` rows and fill in `time_s`.

        At least one, shorter than asked for if need be.
        """
        end = self.clock() + time_s
        most = self.backend.limits.n_ctx - largest
        fit = [c for c in contexts if c <= most] or [most // 2]
        self.warm_up(fit[0])
        left_s = end - self.clock()
        reached = [c for c in fit if self.fill_s(c) <= left_s]
        if reached:
            return tuple(reached)
        length = self.backend.length
        return (min(fit[0], length + max(0, int(left_s / self.token_s))),)

    def warm_up(self, context: int) -> None:
        """Fill a part of `context` tokens, so that it is known how long the rest will take."""
        for taste in (_WARM_UP, _TASTE):
            taste = min(taste, context * taste // _TASTE)
            if self.backend.length < taste:
                self.go_to(taste)

    @property
    def token_s(self) -> float:
        """Seconds of a token of a prompt; 0 if none was timed."""
        return self.prefill_s / self.prefilled if self.prefilled else 0.0

    def fill_s(self, context: int) -> float:
        """Seconds that `go_to` will probably take."""
        return max(0, context - self.backend.length) * self.token_s

    def go_to(self, context: int) -> None:
        """Commit exactly `context` tokens; what cannot be dropped stays."""
        backend = self.backend
        self._gear = Gear()  # of what comes next nobody knows what was before it
        if backend.limits.can_rewind:
            backend.rewind(context)
        while (done := backend.length) < context:
            end = min(context, done + backend.limits.chunk)
            start = self.clock()
            backend.prefill(self._text[done:end])
            if done:  # whatever comes first warms up
                self.prefilled += end - done
                self.prefill_s += self.clock() - start

    def has_room(self, n: int) -> bool:
        """Whether `n` rows fit: where nothing can be dropped, measuring fills the context."""
        return self.backend.length + n <= self.backend.limits.n_ctx

    def chain(self, n: int) -> DraftTree:
        """The next `n` tokens of the text, for a call. Raises Interrupted."""
        heed(self._should_stop)
        start = self.backend.length
        return DraftTree.from_parents(self._text[start : start + n].tolist(), range(-1, n - 1))

    def time(self, n: int) -> float:
        """Seconds of one call with `n` rows, none of which is kept if that can be."""
        tree = self.chain(n)
        start = self.clock()
        self.backend.score(tree, ())
        seconds = self.clock() - start
        self.backend.commit(0 if self.backend.limits.can_rewind else 1)
        self._gear = self._gear.after(n)
        calls, total_s = self._taken.get(n, (0, 0.0))
        self._taken[n] = calls + 1, total_s + seconds
        return seconds

    def expected_s(self, n: int) -> float:
        """What `time` will take, by the next larger size or the largest; 0 if none was timed.

        On average: under load the fastest call says little of what others will take.
        """
        if not self._taken:
            return 0.0
        m = min((m for m in self._taken if m >= n), default=max(self._taken))
        calls, total_s = self._taken[m]
        return total_s / calls * max(1.0, n / m)

    @property
    def change(self) -> Change:
        """What a change of width takes, by the samples so far; nothing where it is not seen."""
        return change_of(self._excess)

    def sample(self, n: int) -> float:
        """Seconds of a call with `n` rows in a run of such calls, see `time`.

        The first and the second call of the run may take longer. That is what a change takes; once
        it is known, the second is a sample, too. A call that takes long shows little of a change.
        """
        before: dict[int, float] = {}
        while True:
            gear = self._gear
            seconds = self.time(n)
            place = gear.place(n)
            if seconds >= _SLOW_S or self._is_steady(place, n) or not self.has_room(n):
                break
            if gear.width:  # else it is behind a prompt, or nobody knows what
                before[place] = seconds
        for earlier, taken_s in before.items():
            self._excess[earlier].append(taken_s - seconds)
        if place == SECOND and self._is_known:
            seconds = max(seconds - self.change.second_s, _LEAST_PART * seconds)
        return seconds

    def expected_sample_s(self, n: int) -> float:
        """What `sample` will take."""
        seconds = self.expected_s(n)
        if seconds >= _SLOW_S:
            return seconds
        return (2 if self._is_steady(SECOND, n) else 3) * seconds

    def _is_steady(self, place: int, n: int) -> bool:
        """Whether a call at this place of a run is a sample."""
        if place != SECOND:
            return place > SECOND
        return self._is_known and (n > LARGE or self.change.second_s == 0)

    @property
    def _is_known(self) -> bool:
        return len(self._excess[SECOND]) >= _RUNS


def change_of(excess: Sequence[Sequence[float]]) -> Change:
    """What a change takes, by what first and second calls took more than those behind them.

    Medians, since load may be on either; what is within what most of them differ by is none.
    """
    return Change(*[_beyond_noise(seen) if seen else 0.0 for seen in excess])


def _beyond_noise(samples: Sequence[float]) -> float:
    middle = median_low(samples)
    return middle if middle > median([abs(seconds - middle) for seconds in samples]) else 0.0


def typical(samples: Sequence[float]) -> float:
    """The lower quartile: load makes times longer and never shorter."""
    return sorted(samples)[(len(samples) - 1) // 4]
