"""Which of two settings is faster: both are timed in turns, for load comes and goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .measure import LEAST_SAMPLES, NOISY, slowdown
from .timed import TimedBackend, typical

# Sizes by which settings are compared, and their weights: most calls have one row.
_SIZES: Final = {1: 6, 4: 1, 8: 1, 12: 1}
_CONTEXTS: Final = (128, 1024)
_ROUNDS: Final = 5
# Filling the context with text may take this part of a deadline; the text stays for later.
_PREFILL_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much longer each of several subjects takes than the first one.

    Attributes:
        steps: geometric mean over sizes and contexts; 1.0 for the first.
        prefill: of the text; timed once only, so it decides nothing.
        contexts: that were compared; none where there was no time for it.
        apart: whether no time of it is in the range of the first one's, on a machine that was not
            busy, so that it is certain who is faster.
    """

    steps: tuple[float, ...]
    prefill: tuple[float, ...]
    contexts: tuple[int, ...]
    apart: tuple[bool, ...] = ()


def compare(
    subjects: Sequence[TimedBackend], deadline_s: float, contexts: Sequence[int] = _CONTEXTS
) -> Comparison:
    """Time the subjects in turns. All must have the same limits."""
    first = subjects[0]
    start, waited = first.clock(), first.waits()
    end = start + deadline_s
    sizes = first.sizes(tuple(_SIZES))
    time_s = _PREFILL_SHARE * deadline_s / len(subjects)
    contexts = first.contexts(contexts, max(sizes), time_s)
    if first.clock() < end:
        first.time(1)
    turns: dict[tuple[int, int], list[list[float]]] = {}  # by context and size
    for context in contexts:
        fill_s = first.token_s * sum(context - timed.backend.length for timed in subjects)
        least_s = len(subjects) * (1 + LEAST_SAMPLES) * first.expected_s(1)
        if first.clock() + fill_s + least_s >= end:
            break
        for timed in subjects:
            timed.warm_up(context)
            timed.go_to(context)
            timed.time(1)
        for n, samples in _time_in_turns(subjects, sizes, end).items():
            turns[context, n] = samples
    low, mean, high = (_means(turns, len(subjects), pick) for pick in (min, typical, max))
    is_quiet = slowdown(first, start, waited) <= NOISY
    return Comparison(
        tuple(seconds / mean[0] for seconds in mean),
        tuple(_ratio(timed.token_s, first.token_s) for timed in subjects),
        tuple(dict.fromkeys(context for context, _ in turns)),
        tuple(
            is_quiet and (high[0] < lowest or highest < low[0])
            for lowest, highest in zip(low, high, strict=True)
        ),
    )


def _time_in_turns(
    subjects: Sequence[TimedBackend], sizes: Sequence[int], end: float
) -> dict[int, list[list[float]]]:
    """For each size, the times of each timed, as many as it takes to know their spread."""
    clock = subjects[0].clock
    times: dict[int, list[list[float]]] = {n: [[] for _ in subjects] for n in sizes}
    for number in range(_ROUNDS):
        for n in sizes:
            turn_s = sum(timed.expected_s(n) for timed in subjects)
            due = 1 if number else LEAST_SAMPLES  # a size that is begun is to be known
            if len(times[n][0]) < number or clock() + due * turn_s > end:
                continue
            for timed, samples in zip(subjects, times[n], strict=True):
                samples.append(timed.time(n))
    return {n: turn for n, turn in times.items() if len(turn[0]) >= LEAST_SAMPLES}


def _means(
    turns: Mapping[tuple[int, int], Sequence[Sequence[float]]],
    n_subjects: int,
    pick: Callable[[Sequence[float]], float],
) -> list[float]:
    """The geometric mean of what `pick` takes of the samples of each timed; 1.0 of none."""
    weight = sum(_SIZES[n] for _, n in turns) or 1
    return [
        math.exp(sum(_SIZES[n] * math.log(pick(t[i])) for (_, n), t in turns.items()) / weight)
        for i in range(n_subjects)
    ]


def _ratio(a: float, b: float) -> float:
    return a / b if a > 0 and b > 0 else 1.0
