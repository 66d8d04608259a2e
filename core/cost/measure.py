"""Measuring what a call of a backend costs.

A sample is a call in a run of calls of one width, and what the first calls of the runs take more is
what a change of width takes. Everything is timed in turns (size after size, and again), because
load comes and goes. It only ever adds, so of several times the lower quartile is reported.

Deadlines are kept by shorter contexts first, then by fewer repetitions and sizes: a slow model is
known less exactly. What was timed once only is not known at all: one sample has no spread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Final, TypeAlias

from specgen.core.host.limits import Waits, longest_wait_s

from .model import CostModel
from .timed import LARGE, TimedBackend, typical

Progress: TypeAlias = Callable[[float], None]  # told the part that is done, 0..1
_Times: TypeAlias = dict[int, list[float]]  # samples by size

# Most important first: where time runs out, the rest is left to the lines between.
SIZES: Final = (1, 4, 8, 2, 16, 12, 3, 6, 5, 7, 9, 10, 32, 24, 64)
CONTEXTS: Final = (128, 512, 1024, 2048, 4096, 8192)  # shorter ones fill too slowly to judge
LEAST_SAMPLES: Final = 3  # sizes that matter need so many samples; with fewer nothing is known well
# Times that vary by more cannot be trusted; on quiet machines they vary by 1.0 to 1.1.
NOISY: Final = 1.3

_CORE: Final = 3  # the first three sizes matter most
# Other sizes need two samples, or they are left to the lines between their neighbours.
_PAIR: Final = 2
_ROUNDS: Final = 7
_DISTURBED: Final = 1.2  # kernels that change with the context make less of a difference
# What one kernel has over another at most: 1.3 was seen where sizes have none of their own.
_KERNELS: Final = 1.4
_LARGE_ROUNDS: Final = 2  # and fewer contexts
# Another context is filled only if the deadline is so many times what all contexts would take.
_ENOUGH: Final = 2.0
_PREFILL_SHARE: Final = 0.4  # filling the context with text may take this part of a deadline


@dataclass(frozen=True, slots=True)
class Measurement:
    """A curve, and how much to trust it.

    Attributes:
        noise: by what factor times of the same call differed, or were longer than they can be
            on a quiet machine, which is 1.0.
        samples: of the sizes that matter at the shortest context, the fewest of any.
    """

    curve: CostModel
    noise: float
    samples: int


def measure(
    timed: TimedBackend,
    deadline_s: float,
    sizes: Sequence[int] = SIZES,
    contexts: Sequence[int] = CONTEXTS,
    on_progress: Progress = lambda share: None,
    latest_s: float | None = None,
) -> Measurement:
    """T of `sizes`, most important first, at rising `contexts`, as far as time allows.

    LEAST_SAMPLES of the sizes that matter at the shortest context are worth more than all else:
    time is left for them, and for `latest_s` seconds they may be taken. Other contexts are looked
    at on the way up, from where the text ends, and measured on the way down, where that is
    possible, so that a busy spell does not meet all that is known of one.
    """
    start, waited = timed.clock(), timed.waits()
    end = start + deadline_s
    latest = start + (deadline_s if latest_s is None else latest_s)
    sizes = timed.sizes(sizes)
    core = sizes[:_CORE]
    contexts = timed.contexts(contexts, max(sizes), _PREFILL_SHARE * deadline_s)
    shortest = contexts[0]
    tables: dict[int, _Times] = {context: {} for context in contexts}

    def visit(context: int, rounds: int, until: float) -> None:
        timed.go_to(context)
        warm_up_s = timed.time(1)  # the first call after a prefill takes longer
        if context == shortest and not tables[context]:
            is_late = timed.clock() > latest  # but something must be known
            tables[context][1] = [warm_up_s if is_late else timed.sample(1)]
            rounds, until = LEAST_SAMPLES, latest
        _time_rounds(timed, core, tables[context], rounds, until)

    rewinds = timed.backend.limits.can_rewind
    visited = [c for c in contexts if c < timed.backend.length] if rewinds else []
    for context in contexts[len(visited) :] if rewinds else ():
        needed_s = _ENOUGH * (1 + len(visited)) * _least_s(timed, core)
        if context > shortest and timed.clock() + timed.fill_s(context) + needed_s > end:
            break
        visit(context, 1, end)
        visited.append(context)
    order = visited[::-1] or contexts
    for i, context in enumerate(order):
        left_s, n_left = end - timed.clock(), len(order) - i
        is_short = left_s < n_left * _least_s(timed, core)
        if is_short and (context > shortest or tables[context]):
            continue
        share = timed.clock() + left_s / n_left
        visit(context, LEAST_SAMPLES, share)
        inner = 0 < i < len(order) - 1
        due = [n for n in sizes if n <= LARGE] if inner else sizes
        _time_sizes(timed, due, tables[context], share)
        on_progress((i + 1) / len(order))
    known = _known(tables, core)
    tables_s = {c: {n: typical(times[n]) for n in times} for c, times in known.items()}
    noise = max(_spread(known, core), _excess(tables_s), slowdown(timed, start, waited))
    _repair(tables_s)
    _fill(tables_s)
    measured = tuple(sorted(tables_s[shortest]))
    found = tuple(sorted(tables_s))
    rows = tuple(tuple(tables_s[context][n] for n in measured) for context in found)
    samples = min(len(tables[shortest].get(n, ())) for n in core)
    return Measurement(CostModel(measured, found, rows, timed.change), noise, samples)


def _known(tables: Mapping[int, _Times], core: Sequence[int]) -> dict[int, _Times]:
    """What was timed often enough; of the first context, which must have something, the best."""
    first = next(iter(tables))
    known = {
        context: {n: s for n, s in times.items() if len(s) >= _least(n, core)}
        for context, times in tables.items()
    }
    if not all(n in known[first] for n in core):
        return {first: {n: samples for n, samples in tables[first].items() if n in core}}
    return {c: times for c, times in known.items() if all(n in times for n in core)}


def _least(n: int, core: Sequence[int]) -> int:
    """Samples of a size without which nothing is known of it."""
    return LEAST_SAMPLES if n in core else _PAIR


def _spread(tables: Mapping[int, _Times], core: Sequence[int]) -> float:
    """By what factor times of the same call differed: of any size that matters, and of most.

    A median, so that what comes now and then does not count.
    """
    spreads = {
        (context, n): median(samples) / min(samples)
        for context, times in tables.items()
        for n, samples in times.items()
        if len(samples) >= LEAST_SAMPLES
    }
    important = [spread for (_, n), spread in spreads.items() if n in core]
    return max((median(spreads.values()), *important)) if spreads else 1.0


def _excess(tables: Mapping[int, Mapping[int, float]]) -> float:
    """By how much times were longer than kernels explain, at the worst place; 1.0 is a clean table.

    A longer context or more rows take no less time, and rows no more than one part after another.
    """
    excess = 1.0
    for (context, table), (longer, other) in product(tables.items(), repeat=2):
        for (n, seconds), (m, more) in product(table.items(), other.items()):
            if context < longer and n == m and seconds > _DISTURBED * more:
                excess = max(excess, seconds / more)
            if context <= longer and n < m and seconds > _KERNELS * more:
                excess = max(excess, seconds / more)
            parts = -(-m // n)
            if context == longer and n < m and more > _KERNELS * parts * seconds:
                excess = max(excess, more / (parts * seconds))
    return excess


def slowdown(timed: TimedBackend, start: float, waited: Waits) -> float:
    """By what factor work took longer because something else had the processors."""
    seconds = timed.clock() - start
    working_s = seconds - longest_wait_s(waited, timed.waits())
    return seconds / max(working_s, 0.01 * seconds) if seconds > 0 else 1.0


def _repair(tables: dict[int, dict[int, float]]) -> None:
    """Replace times that a longer context, or a much larger size, undercuts: load was on them."""
    for context, table in tables.items():
        longer = [other for c, other in tables.items() if c >= context]
        for n, seconds in table.items():
            same = min(other[n] for other in longer if n in other)
            larger = min(other[m] for other in longer for m in other if m >= n)
            if seconds > _DISTURBED * same:
                table[n] = same
            table[n] = min(table[n], _KERNELS * larger)


def _fill(tables: dict[int, dict[int, float]]) -> None:
    """Where a size is missing, put it in proportion to the next smaller one."""
    for n in sorted(set().union(*tables.values())):
        known = [context for context in tables if n in tables[context]]
        for context in set(tables).difference(known):
            other = tables[min(known, key=lambda c: abs(c - context))]
            smaller = max(m for m in tables[context] if m < n)
            tables[context][n] = tables[context][smaller] * other[n] / other[smaller]


def _least_s(timed: TimedBackend, core: Sequence[int]) -> float:
    """What it takes to know a context."""
    return LEAST_SAMPLES * sum(map(timed.expected_sample_s, core))


def _time_sizes(timed: TimedBackend, sizes: Sequence[int], times: _Times, end: float) -> None:
    """Add samples of the sizes that matter, and of others that there is time for twice."""
    due = list(sizes[:_CORE])
    left_s = end - timed.clock()
    for n in sizes[_CORE:]:
        left_s -= _PAIR * timed.expected_sample_s(n)
        if left_s >= 0:
            due.append(n)
    _time_rounds(timed, due, times, _ROUNDS, end)


def _time_rounds(
    timed: TimedBackend, sizes: Sequence[int], times: _Times, rounds: int, end: float
) -> None:
    """Add samples of `sizes` in turns, until there are as many samples, or to the end."""
    for number in range(rounds):
        for n in sizes:
            samples = times.get(n, [])
            enough = number >= _LARGE_ROUNDS if n > LARGE else len(samples) > number
            late = timed.clock() + timed.expected_sample_s(n) > end
            if enough or late or not timed.has_room(n):
                continue
            times[n] = [*samples, timed.sample(n)]
