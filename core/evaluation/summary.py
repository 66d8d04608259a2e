"""Figures of a benchmark: speeds by task and drafter, and ratios with the noise they carry.

A ratio compares pairs: the same prompt, answered plainly and with a drafter, one soon after the
other, so that what slows both, a machine that gets warm, cancels out. It is plain decoding's time
over the drafter's, summed over prompts, so they weigh by the time that they take; each one's time
is the mean of its repetitions.

A burst of load hits one run of a pair, and does not cancel out. It makes the pair take longer, so
pairs are left out that took much longer than the fastest one with the same prompt. That favours
neither side: for runs that vary alike, the length of a pair says nothing of its ratio. A median of
the repetitions would be worse: two bursts in three pairs are rare, but so many prompts meet them
that they decide what the ratio is off by.

The noise is what the ratios of a prompt's repetitions differ by, those left out not counted. It
says how well the ratio of these prompts is known, and nothing of other prompts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Final, TypeAlias

from specgen.core.cost.model import CostModel

from .results import PLAIN, Results, Run

ALL: Final = "all"  # the task of all tasks
LEAST_PAIRS: Final = 3  # of a ratio
LEAST_REPETITIONS: Final = 2  # of a pair, or there is nothing to tell the noise by
LARGEST: Final = 64  # rows of a call

_TO_SIGMA: Final = 1.4826  # from the median of |x| to the standard deviation of a normal x
_FAR: Final = 2.0  # times what 95 % are within; beyond, a pair has met with a burst of load
_NEIGHBOURS: Final = 4  # on either side, that show what changes slowly
_NEAR: Final = 0.02  # never so little that leaving a pair out would be worth it

# Student's t: 95 % lie within so many standard deviations that were estimated from 1, 2, ... values
_WITHIN_95: Final = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)

_Asked: TypeAlias = tuple[str, int, int]  # task, prompt and turn
_Times: TypeAlias = tuple[float, ...]  # logs of seconds: of a pair of runs, or of a single one
_Timed: TypeAlias = tuple[_Asked, _Times]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast as plain decoding, or as in another benchmark.

    Attributes:
        value: the ratio.
        noise: in 95 of 100 benchmarks the value is no further than this from the truth.
        pairs: that it was made from, those that were left out not counted. Between benchmarks
            there are no pairs: runs of the one that has fewer.
    """

    value: float
    noise: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Change:
    """One drafter in one task, in two benchmarks, where both asked the same.

    Attributes:
        before, after: median tokens per second of the runs.
        ratio: of the second to the first; None where there are too few runs. Its noise is that
            of repetitions, and knows nothing of how one day differs from another.
    """

    task: str
    drafter: str
    before: float
    after: float
    ratio: Ratio | None


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one drafter in one task; see runs.Run. Times are seconds.

    Attributes:
        low, high: quartiles of the tokens per second of the runs.
        ratio: to plain decoding; None for plain decoding itself and where there are too few runs.
        acceptance: share of the guesses that were right; None if there were none.
        share_by: of all tokens, the part that a drafter guessed.
        of_best: speed, relative to drafts of the best size that are always right; None where the
            cost curve is not known.
    """

    task: str
    drafter: str
    runs: int
    tokens: int
    tokens_per_s: float
    low: float
    high: float
    ratio: Ratio | None
    tokens_per_step: float
    nodes_per_step: float
    acceptance: float | None
    share_by: Mapping[str, float]
    host_s_per_step: float
    first_token_s: float
    peak_bytes: int
    of_best: float | None


def summarize(results: Results) -> list[Row]:
    """A row for each task and drafter, all tasks together first."""
    names = results.drafters
    samples = {name: _samples(_pairs(results.runs, name)) for name in names if name != PLAIN}
    rows = []
    for task in (ALL, *results.tasks):
        of_task = [run for run in results.runs if task in (ALL, run.task)]
        for drafter in names:
            runs = _of(of_task, task, drafter)
            if runs:
                ratio = None if drafter == PLAIN else _ratio(samples[drafter], task)
                rows.append(_row(task, drafter, runs, ratio, results.curve))
    return rows


def without_ratio(answers: Mapping[str, int], repetitions: int) -> list[str]:
    """Tasks that cannot get a ratio from so many answers by task, with ALL if none can."""
    if repetitions < LEAST_REPETITIONS or sum(answers.values()) < LEAST_PAIRS:
        return [ALL, *answers]
    return [task for task, n in answers.items() if n < LEAST_PAIRS]


def compare(before: Results, after: Results) -> list[Change]:
    """What both have, in the order of `after`; nothing if they have nothing in common."""
    olds, news = _in_both(before, after), _in_both(after, before)
    tokens = {_asked(run): run.tokens for run in news}
    samples = {
        drafter: [_samples(_single(runs, drafter, tokens)) for runs in (olds, news)]
        for drafter in after.drafters
    }
    changes = []
    for task in (ALL, *after.tasks):
        for drafter in after.drafters:
            old, new = _of(olds, task, drafter), _of(news, task, drafter)
            if old and new:
                ratio = _between(samples[drafter], task)
                changes.append(Change(task, drafter, _speed(old), _speed(new), ratio))
    return changes


def _in_both(results: Results, others: Results) -> list[Run]:
    asked = {(_asked(run), run.drafter) for run in others.runs if _has_speed(run)}
    return [r for r in results.runs if _has_speed(r) and (_asked(r), r.drafter) in asked]


def _speed(runs: Iterable[Run]) -> float:
    return median(run.tokens / run.seconds for run in runs)


def _has_speed(run: Run) -> bool:
    """Whether anything was emitted."""
    return run.tokens > 0 and run.seconds > 0


def _of(runs: Iterable[Run], task: str, drafter: str) -> list[Run]:
    return [r for r in runs if r.drafter == drafter and task in (ALL, r.task) and _has_speed(r)]


def _row(
    task: str, drafter: str, runs: Sequence[Run], ratio: Ratio | None, curve: CostModel | None
) -> Row:
    speeds = sorted(run.tokens / run.seconds for run in runs)
    tokens, steps = sum(run.tokens for run in runs), sum(run.steps for run in runs)
    drafted = sum(run.drafted for run in runs)
    accepted_by: Counter[str] = Counter()
    for run in runs:
        accepted_by.update(run.accepted_by)
    return Row(
        task=task,
        drafter=drafter,
        runs=len(runs),
        tokens=tokens,
        tokens_per_s=median(speeds),
        low=_quantile(speeds, 0.25),
        high=_quantile(speeds, 0.75),
        ratio=ratio,
        tokens_per_step=tokens / steps,
        nodes_per_step=sum(run.nodes for run in runs) / steps,
        acceptance=sum(run.accepted for run in runs) / drafted if drafted else None,
        share_by={name: count / tokens for name, count in accepted_by.most_common()},
        host_s_per_step=sum(run.host_s for run in runs) / steps,
        first_token_s=median(run.first_token_s for run in runs),
        peak_bytes=max(run.peak_bytes for run in runs),
        of_best=_of_best(runs, curve),
    )


def _quantile(values: Sequence[float], share: float) -> float:
    """Of sorted `values`, the one below which `share` of them lie, on lines between them."""
    at = share * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def best_speed(curve: CostModel, context: int, largest: int) -> float:
    """Tokens per second if all guesses were right, at the best size up to `largest` rows."""
    row = curve.costs(context)
    return max(n / row[n - 1] for n in range(1, min(largest, len(row)) + 1))


def _of_best(runs: Sequence[Run], curve: CostModel | None) -> float | None:
    """The time that the best drafts would have taken, relative to what was taken."""
    if curve is None:
        return None
    best_s = sum(run.tokens / best_speed(curve, run.context, LARGEST) for run in runs)
    return best_s / sum(run.seconds for run in runs)


@dataclass(frozen=True, slots=True)
class _Samples:
    """Times of prompts that were asked several times.

    Attributes:
        found: how many times each was asked.
        kept: the times of each that no burst of load made longer.
        variance: of what is compared, see _compared.
        common_variance: of the log of the time that a pair's runs take on average.
        freedom: differences that both are known from.
    """

    found: Mapping[_Asked, int]
    kept: Mapping[_Asked, Sequence[_Times]]
    variance: float
    common_variance: float
    freedom: int


def _pairs(runs: Iterable[Run], drafter: str) -> list[_Timed]:
    """Plain decoding's time, and the time of `drafter` for as many tokens, as they were made."""
    of = {(_asked(run), run.repetition, run.drafter): run for run in runs if _has_speed(run)}
    found: list[_Timed] = []
    for (asked, repetition, name), run in of.items():
        plain = of.get((asked, repetition, PLAIN))
        if name == drafter and plain is not None:
            seconds = run.seconds * plain.tokens / run.tokens
            found.append((asked, (math.log(plain.seconds), math.log(seconds))))
    return found


def _single(runs: Iterable[Run], drafter: str, tokens: Mapping[_Asked, int]) -> list[_Timed]:
    """The times of `drafter` for so many tokens, by what was asked, as they were made."""
    found: list[_Timed] = []
    for run in _of(runs, ALL, drafter):
        seconds = run.seconds * tokens[_asked(run)] / run.tokens
        found.append((_asked(run), (math.log(seconds),)))
    return found


def _asked(run: Run) -> _Asked:
    return run.task, run.prompt, run.turn


def _compared(times: _Times) -> float:
    """The log of a pair's ratio, or of a single run's time."""
    return times[0] - sum(times[1:])


def _samples(timed: Sequence[_Timed]) -> _Samples | None:
    """Leaves out what took too long; None if nothing was repeated.

    How far repetitions usually differ is taken from those that follow each other, so that slow
    changes do not count, and as a median, so that bursts do not.
    """
    counts = Counter(asked for asked, _ in timed)
    repeated = [one for one in timed if counts[one[0]] >= LEAST_REPETITIONS]
    changes = [
        abs(_compared(after) - _compared(before))
        for times in _by_prompt(repeated).values()
        for before, after in pairwise(times)
    ]
    if not changes:
        return None
    sigma = _TO_SIGMA * median(changes) / math.sqrt(2)
    far = max(_NEAR, _FAR * _within_95(len(changes)) * sigma)
    kept = _by_prompt(_undisturbed(repeated, far))
    freedom = sum(len(times) - 1 for times in kept.values())
    if not freedom:
        return None
    compared = sum(_squares([_compared(one) for one in times]) for times in kept.values())
    means = sum(_squares([fmean(one) for one in times]) for times in kept.values())
    return _Samples(counts, kept, compared / freedom, means / freedom, freedom)


def _by_prompt(timed: Iterable[_Timed]) -> dict[_Asked, list[_Times]]:
    found: dict[_Asked, list[_Times]] = defaultdict(list)
    for asked, times in timed:
        found[asked].append(times)
    return found


def _squares(values: Sequence[float]) -> float:
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)


def _undisturbed(timed: Sequence[_Timed], far: float) -> list[_Timed]:
    """Without those that took longer than the prompt's fastest, times e to the `far`.

    What the neighbours in time took longer, too, is taken off before: that is no burst.
    """
    usual = {asked: median(map(sum, times)) for asked, times in _by_prompt(timed).items()}
    longer = [sum(times) - usual[asked] for asked, times in timed]
    alone = [
        took - median(longer[max(0, i - _NEIGHBOURS) : i + _NEIGHBOURS + 1])
        for i, took in enumerate(longer)
    ]
    fastest: dict[_Asked, float] = defaultdict(lambda: math.inf)
    for (asked, _), took in zip(timed, alone, strict=True):
        fastest[asked] = min(fastest[asked], took)
    return [one for one, took in zip(timed, alone, strict=True) if took <= fastest[one[0]] + far]


def _ratio(samples: _Samples | None, task: str) -> Ratio | None:
    """The ratio of a task's pairs, or None where they are too few."""
    if samples is None:
        return None
    chosen = [asked for asked in samples.kept if task in (ALL, asked[0])]
    if sum(samples.found[asked] for asked in chosen) < LEAST_PAIRS:
        return None
    pairs = [samples.kept[asked] for asked in chosen]
    plain = [fmean(math.exp(times[0]) for times in of_prompt) for of_prompt in pairs]
    drafted = [fmean(math.exp(times[1]) for times in of_prompt) for of_prompt in pairs]
    value = sum(plain) / sum(drafted)
    variance = 0.0
    for of_prompt, p, d in zip(pairs, plain, drafted, strict=True):
        weight, other = p / sum(plain), d / sum(drafted)
        of_one = ((weight + other) / 2) ** 2 * samples.variance
        of_one += (weight - other) ** 2 * samples.common_variance  # prompts weigh by their times
        variance += of_one / len(of_prompt)
    noise = value * _within_95(samples.freedom) * math.sqrt(variance)
    return Ratio(value, noise, sum(map(len, pairs)))


def _within_95(freedom: int) -> float:
    return _WITHIN_95[freedom - 1] if freedom <= len(_WITHIN_95) else 1.96 + 2.6 / freedom


def _between(samples: Sequence[_Samples | None], task: str) -> Ratio | None:
    """The ratio of two benchmarks' times of a task, or None where there are too few runs."""
    old, new = samples
    if old is None or new is None:
        return None
    chosen = [asked for asked in old.kept if asked in new.kept and task in (ALL, asked[0])]
    if min(sum(of.found[asked] for asked in chosen) for of in (old, new)) < LEAST_PAIRS:
        return None
    totals, variance = [], 0.0
    for of in (old, new):
        counts = [len(of.kept[asked]) for asked in chosen]
        seconds = [fmean(math.exp(one) for (one,) in of.kept[asked]) for asked in chosen]
        totals.append(sum(seconds))
        shares = (s / totals[-1] for s in seconds)
        variance += of.variance * sum(s**2 / n for s, n in zip(shares, counts, strict=True))
    value = totals[0] / totals[1]
    noise = value * _within_95(min(old.freedom, new.freedom)) * math.sqrt(variance)
    return Ratio(value, noise, min(sum(len(of.kept[a]) for a in chosen) for of in (old, new)))
