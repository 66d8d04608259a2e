"""Measuring a backend: what a call costs, and which of two settings is faster.

Everything is timed in turns (size after size, setting after setting, and again), because load
comes and goes. It only ever adds, so of several times the lower quartile is reported. Deadlines
are kept by fewer repetitions first, then by fewer points: a slow model is known less exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Final, TypeAlias

import numpy as np

from .cost import CostModel
from .protocols import Backend, Tokens
from .stop import ShouldStop, heed, never
from .tree import DraftTree

Clock: TypeAlias = Callable[[], float]
Progress: TypeAlias = Callable[[float], None]  # told the part that is done, 0..1

# Most important first: where time runs out, the rest is left to the lines between.
SIZES: Final = (1, 4, 8, 2, 16, 12, 3, 6, 5, 7, 9, 10, 32, 24, 64)
CONTEXTS: Final = (128, 512, 1024, 2048, 4096, 8192)  # a shorter one fills too slowly to judge

_ALWAYS: Final = 3  # sizes that are measured whatever the deadline
_ROUNDS: Final = 7
_DISTURBED: Final = 1.2  # kernels that change with the context make up for less
_STEEPEST_DIP: Final = 1.4  # 1.3 was seen where sizes have no kernel of their own
_LARGE: Final = 16  # sizes above take long and are rarely used: fewer rounds, fewer contexts
_LARGE_ROUNDS: Final = 2
# Sizes by which settings are compared, and their weights: most calls have one row.
_COMPARED: Final = {1: 6, 4: 1, 8: 1, 12: 1}
_COMPARE_CONTEXTS: Final = (128, 1024)
_COMPARE_ROUNDS: Final = 3
# Parts of a deadline for text that is only there to be long. The comparison's stays for later.
_PREFILL_SHARE: Final = 0.4
_COMPARE_PREFILL_SHARE: Final = 0.8


class Subject:
    """A backend being measured, and a text to fill it with.

    Args:
        backend: measured; its cache is overwritten.
        tokens: a text, repeated as needed.
        clock: seconds.
        should_stop: asked before each call.
    """

    def __init__(
        self,
        backend: Backend,
        tokens: Sequence[int],
        clock: Clock = perf_counter,
        should_stop: ShouldStop = never,
    ):
        self.backend = backend
        self.clock = clock
        self._should_stop = should_stop
        self.prefill_s = 0.0
        self.prefilled = 0  # tokens, in prefill_s
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
        most = self.backend.limits.n_ctx - largest
        fit = [c for c in contexts if c <= most] or [most // 2]
        if self.backend.length < fit[0]:
            self.go_to(fit[0])
        rate = self.prefill_s / self.prefilled if self.prefilled else 0.0
        new = (max(0, context - self.backend.length) for context in fit[1:])
        return (fit[0], *(c for c, n in zip(fit[1:], new, strict=True) if n * rate <= time_s))

    def go_to(self, context: int) -> None:
        """Commit exactly `context` tokens; what cannot be dropped stays."""
        backend = self.backend
        if backend.limits.can_rewind:
            backend.rewind(context)
        start = self.clock()
        while (done := backend.length) < context:
            end = min(context, done + backend.limits.chunk)
            backend.prefill(self._text[done:end])
            self.prefilled += end - done
        self.prefill_s += self.clock() - start

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
        return seconds

    @property
    def times_pairs(self) -> bool:
        """Whether `time_in_company` includes the next call of one row, for n > 1."""
        return self.backend.limits.can_rewind

    def time_in_company(self, n: int) -> float:
        """Seconds of a call with `n` rows among calls with one.

        One row is timed behind one row, as in plain decoding. Others are timed together with the
        one row that comes next: llama.cpp reuses its graph as long as calls have the same size,
        so what a larger call costs shows in two calls. Where nothing can be dropped, text is too
        precious for that.
        """
        if not self.times_pairs:
            return self.time(n)
        if n > 1:
            return self.time(n) + self.time(1)
        self.time(1)
        return self.time(1)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A curve, and how much to trust it.

    Attributes:
        noise: by what factor times of the same call differed; 1.0 is a quiet machine.
    """

    curve: CostModel
    noise: float


def measure(
    subject: Subject,
    deadline_s: float,
    sizes: Sequence[int] = SIZES,
    contexts: Sequence[int] = CONTEXTS,
    on_progress: Progress = lambda share: None,
) -> Measurement:
    """T of `sizes`, most important first, at rising `contexts`, as far as time allows."""
    end = subject.clock() + deadline_s
    sizes = subject.sizes(sizes)
    contexts = subject.contexts(contexts, max(sizes), _PREFILL_SHARE * deadline_s)
    subject.go_to(contexts[-1] if subject.backend.limits.can_rewind else contexts[0])
    order = contexts[::-1] if subject.backend.limits.can_rewind else contexts
    tables: dict[int, dict[int, list[float]]] = {}
    for i, context in enumerate(order):
        if tables and subject.clock() > end:
            break
        subject.go_to(context)
        share_s = (end - subject.clock()) / (len(order) - i)
        inner = 0 < i < len(order) - 1
        due = [n for n in sizes if n <= _LARGE] if inner else sizes
        tables[context] = _time_sizes(subject, due, share_s)
        on_progress((i + 1) / len(order))
    typical = {
        context: _typical_times(table, with_next=subject.times_pairs)
        for context, table in tables.items()
    }
    _fill(typical)
    excess = _repair(typical)
    spread = [median(s) / min(s) for table in tables.values() for s in table.values()]
    measured = tuple(sorted(typical[order[0]]))
    found = tuple(sorted(typical))
    times = tuple(tuple(typical[context][n] for n in measured) for context in found)
    curve = CostModel(measured, found, times)
    return Measurement(curve, noise=max(median(spread), excess))


def _repair(tables: dict[int, dict[int, float]]) -> float:
    """Replace times that a longer context, or a much larger size, undercuts: load was on them.

    Returns by how much they were too long, the median over all times; 1.0 is a clean table.
    """
    ratios: list[float] = []
    for context, table in tables.items():
        longer = [other for c, other in tables.items() if c >= context]
        for n, seconds in table.items():
            same = min(other[n] for other in longer if n in other)
            larger = min(other[m] for other in longer for m in other if m >= n)
            ratios.append(seconds / min(same, larger))
            if seconds > _DISTURBED * same:
                table[n] = same
            table[n] = min(table[n], _STEEPEST_DIP * larger)
    return median(ratios)


def _fill(tables: dict[int, dict[int, float]]) -> None:
    """Where a size is missing, put it in proportion to the next smaller one."""
    for n in sorted(set().union(*tables.values())):
        known = [context for context in tables if n in tables[context]]
        for context in set(tables).difference(known):
            other = tables[min(known, key=lambda c: abs(c - context))]
            smaller = max(m for m in tables[context] if m < n)
            tables[context][n] = tables[context][smaller] * other[n] / other[smaller]


def _typical(samples: Sequence[float]) -> float:
    return sorted(samples)[(len(samples) - 1) // 4]


def _typical_times(table: dict[int, list[float]], *, with_next: bool) -> dict[int, float]:
    """T by size, from what `_time_sizes` gives; with the next call's one row, or without."""
    plain_s = _typical(table[1]) if with_next else 0.0
    return {n: _typical(samples) - (plain_s if n > 1 else 0.0) for n, samples in table.items()}


def _time_sizes(subject: Subject, sizes: Sequence[int], time_s: float) -> dict[int, list[float]]:
    """`time_in_company` of as many rounds over `sizes` as fit into `time_s`."""
    end = subject.clock() + time_s
    subject.time(1)  # the first call after a prefill takes longer
    times: dict[int, list[float]] = {}
    for number in range(_ROUNDS):
        for i, n in enumerate(sizes):
            if n > _LARGE and number >= _LARGE_ROUNDS:
                continue
            is_due = number == 0 and i < _ALWAYS
            if not is_due and subject.clock() + _expected_s(times, n) > end:
                continue
            times.setdefault(n, []).append(subject.time_in_company(n))
    return times


def _expected_s(times: dict[int, list[float]], n: int) -> float:
    """What a call will take, by its own size or by the next larger or smaller one."""
    known = [m for m in times if m >= n] or list(times)
    m = min(known, key=lambda m: abs(m - n))
    return min(times[m]) * max(1.0, n / m)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much longer each of several subjects takes than the first one.

    Attributes:
        steps: geometric mean over sizes and contexts; 1.0 for the first.
        prefill: of the text; timed once only, so it decides nothing.
        contexts: that were compared.
    """

    steps: tuple[float, ...]
    prefill: tuple[float, ...]
    contexts: tuple[int, ...]


def compare(
    subjects: Sequence[Subject], deadline_s: float, contexts: Sequence[int] = _COMPARE_CONTEXTS
) -> Comparison:
    """Time the subjects in turns. All must have the same limits."""
    first = subjects[0]
    end = first.clock() + deadline_s
    sizes = first.sizes(tuple(_COMPARED))
    time_s = _COMPARE_PREFILL_SHARE * deadline_s / len(subjects)
    contexts = first.contexts(contexts, max(sizes), time_s)
    sums, weights = [0.0] * len(subjects), 0
    for context in contexts:
        for subject in subjects:
            subject.go_to(context)
            subject.time(1)
        for n, samples in _time_in_turns(subjects, sizes, end).items():
            weights += _COMPARED[n]
            for i, times in enumerate(samples):
                sums[i] += _COMPARED[n] * math.log(_typical(times))
    means = [total / weights for total in sums]
    return Comparison(
        tuple(math.exp(mean - means[0]) for mean in means),
        tuple(_ratio(subject.prefill_s, first.prefill_s) for subject in subjects),
        tuple(contexts),
    )


def _time_in_turns(
    subjects: Sequence[Subject], sizes: Sequence[int], end: float
) -> dict[int, list[list[float]]]:
    """For each size, the times of each subject; the first size at least."""
    times: dict[int, list[list[float]]] = {}
    longest_s = 0.0
    for _ in range(_COMPARE_ROUNDS):
        for n in sizes:
            start = subjects[0].clock()
            if times and start + longest_s > end:
                break
            turn = times.setdefault(n, [[] for _ in subjects])
            for subject, samples in zip(subjects, turn, strict=True):
                samples.append(subject.time(n))
            longest_s = max(longest_s, subjects[0].clock() - start)
    return times


def _ratio(a: float, b: float) -> float:
    return a / b if a > 0 and b > 0 else 1.0
