"""From evidence to probability: how often were guesses on such evidence right?

Every bucket of evidence counts how often a guess was right where its parent was, with decay, so
it follows the text. A guess falls into one bucket by the evidence of the first drafter that made
it, together with the run of right guesses before it, one by its token and one by the token before
it. Their estimates are mixed in the logistic domain with weights learnt online, one weight vector
per set of drafters that agree (Mahoney, "Adaptive Weighing of Context Models for Lossless Data
Compression", 2005): agreement counts for as much as it turns out to be worth. (With a bucket for
each of them estimates are worse: what they look at is nearly the same.) A last bucket, of
guesses judged about as likely, takes back what the mixture is too sure of. And texts differ: each
begins with some caution, and wins or loses confidence by what comes true in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from .tree import Evidence

DECAY = 0.998  # per visit: a bucket remembers its last 500 guesses or so
PRIOR_VISITS = 2.0  # what a bucket's first estimate counts for
TRUST_VISITS = 4.0  # visits after which a bucket is believed as much as the drafter's own one
LEARNING_RATE = 0.003
MAX_BUCKETS = 100_000  # some 20 MB; later ones are not counted
CAUTION = -0.4  # confidence in a new text, added to the logit of every guess
CONFIDENCE_RATE = 0.05
MOST_CONFIDENCE = 2.0  # either way
KEPT_BUCKETS: Final = 4096  # in a record, those that saw most
KEPT_VISITS: Final = 100.0  # most that a bucket of a record counts for, so that it can be wrong

_LEAST, _MOST = 1e-4, 1 - 1e-4  # probability that a logit is taken of
_EQUAL = (1 / 3, 1 / 3, 1 / 3)  # weights of evidence, token and the token before it
_STRENGTHS = 5  # into how many classes guesses are sorted, for the buckets of tokens
_N_STREAKS = 4
_STREAKS = (0, 1, 1, 2, 2, 2, 2, 2)  # by right guesses in a row; more are the last one
_Key: TypeAlias = tuple[object, ...]  # of a bucket in a record
_Group: TypeAlias = tuple[str | int, ...]
_Bucket: TypeAlias = list[float]  # [hits, visits, logit of their ratio]
_Table: TypeAlias = dict[Any, _Bucket]


# A judged guess, ready to be learnt from: its probability; for each bucket where it is, under which
# key, the bucket if there is one, and its estimate as a logit, the mixture of the others last; and
# the weights of the drafters that agree. A bare tuple, since one is made for every guess.
Guess: TypeAlias = tuple[float, list[tuple[_Table, Any, "_Bucket | None", float]], list[float]]


class Calibrator:
    """Probabilities of guesses, learnt from what became of earlier ones."""

    def __init__(self) -> None:
        # By streak and evidence, by token and strength, by estimate and streak: keys that are
        # quickly made and found.
        self._by_evidence: tuple[_Table, ...] = tuple({} for _ in range(_N_STREAKS))
        self._by_guess: _Table = {}
        self._by_last: _Table = {}
        self._by_estimate: _Table = {}
        # In a record these have keys (kind, a, b), and here a * n + b.
        self._numbered = {
            1: (self._by_guess, _STRENGTHS),
            2: (self._by_last, _STRENGTHS),
            3: (self._by_estimate, _N_STREAKS),
        }
        self._tables = (*self._by_evidence, *[table for table, _ in self._numbered.values()])
        self._weights: dict[_Group, list[float]] = {}
        self._confidence = CAUTION

    def begin(self) -> None:
        """Another text begins: it may be of another kind."""
        self._confidence = CAUTION

    def guess(
        self, evidence: Sequence[Evidence], prior: float, token: int, last: int, run: int
    ) -> Guess:
        """What is known of a guess.

        Args:
            evidence: of every drafter that made the guess, in the order of the drafters.
            prior: the most confident drafter's own estimate.
            token: the token guessed.
            last: the token before it.
            run: guesses in a row that were right, up to here.
        """
        streak = _STREAKS[run] if run < len(_STREAKS) else _N_STREAKS - 1
        table, item = self._by_evidence[streak], evidence[0]
        bucket = table.get(item)
        base = logit(prior) if bucket is None else bucket[2]
        seen: list[tuple[_Table, Any, _Bucket | None, float]] = [(table, item, bucket, base)]
        strength = int(_STRENGTHS * squash(base))
        for table, key in (
            (self._by_guess, token * _STRENGTHS + strength),
            (self._by_last, last * _STRENGTHS + strength),
        ):
            bucket = table.get(key)
            seen.append((table, key, bucket, base if bucket is None else _trusted(bucket, base)))
        group = tuple([item[0] for item in evidence])
        weights = self._weights.get(group)
        if weights is None:  # they begin as those of the first drafter alone
            weights = self._weights[group] = [*self._weights.get(group[:1], _EQUAL)]
        total = 0.0
        for weight, one in zip(weights, seen):  # noqa: B905  (on the path of every guess)
            total += weight * one[3]
        # Last, what guesses judged about as likely as this one came to.
        table = self._by_estimate
        key = round(2 * total) * _N_STREAKS + streak
        bucket = table.get(key)
        seen.append((table, key, bucket, total))
        final = total if bucket is None else _trusted(bucket, total)
        return squash(final + self._confidence), seen, weights

    def learn(self, guess: Guess, right: bool) -> None:
        """Count what became of a guess whose parent was right."""
        prob, seen, weights = guess
        confidence = self._confidence + CONFIDENCE_RATE * (right - prob)
        self._confidence = min(max(confidence, -MOST_CONFIDENCE), MOST_CONFIDENCE)
        step = LEARNING_RATE * (right - squash(seen[-1][3]))
        for i in range(len(weights)):
            weights[i] += step * seen[i][3]
        for table, key, known, value in seen:
            bucket = known or table.get(key) or self._new(table, key, value)
            hits = bucket[0] = bucket[0] * DECAY + right
            visits = bucket[1] = bucket[1] * DECAY + 1
            bucket[2] = logit(hits / visits)

    def _new(self, table: _Table, key: Any, value: float) -> _Bucket:
        """A bucket that begins with an estimate, kept if there is room for it."""
        bucket = [PRIOR_VISITS * squash(value), PRIOR_VISITS, 0.0]
        if sum(map(len, self._tables)) < MAX_BUCKETS:
            table[key] = bucket
        return bucket

    def _items(self) -> Iterator[tuple[_Key, _Bucket]]:
        """All buckets, by the keys that they have in a record."""
        for streak, table in enumerate(self._by_evidence):
            for item, bucket in table.items():
                yield (item, streak), bucket
        for kind, (table, n) in self._numbered.items():
            for key, bucket in table.items():
                yield (kind, *divmod(key, n)), bucket

    def _place(self, key: Any) -> tuple[_Table, Any]:
        """Where a bucket of a record belongs. Raises IndexError, KeyError, … for no such key."""
        if isinstance(key[0], tuple):
            item, streak = key
            return self._by_evidence[_below(_N_STREAKS, streak)], item
        kind, number, part = key
        table, n = self._numbered[kind]
        return table, number * n + _below(n, part)

    def copy(self) -> Calibrator:
        """One that goes its own way from here, at the beginning of a text."""
        copy = Calibrator()
        for table, mine in zip(copy._tables, self._tables, strict=True):
            table.update({key: list(bucket) for key, bucket in mine.items()})
        copy._weights = {group: list(weights) for group, weights in self._weights.items()}
        return copy

    def merge(self, other: Calibrator) -> None:
        """Add what `other` saw. What both knew before counts twice, which its ratio survives."""
        for key, (hits, visits, _) in other._items():
            table, at = self._place(key)
            bucket = table.setdefault(at, [0.0, 0.0, 0.0])
            total = bucket[1] + visits
            scale = min(1.0, KEPT_VISITS / total)
            bucket[:] = _bucket((bucket[0] + hits) * scale, total * scale)
        for group, weights in other._weights.items():
            mine = self._weights.get(group, weights)
            self._weights[group] = [(a + b) / 2 for a, b in zip(mine, weights, strict=True)]

    def record(self, of: Callable[[_Key], bool] = lambda key: True) -> dict[str, Any]:
        """What is worth keeping `of` the keys that say so, as JSON."""
        kept = [item for item in self._items() if of(item[0])]
        most = sorted(kept, key=lambda item: -item[1][1])[:KEPT_BUCKETS]
        buckets = []
        for key, (hits, visits, _) in most:
            scale = min(1.0, KEPT_VISITS / visits)
            buckets.append([key, round(hits * scale, 3), round(visits * scale, 3)])
        weights = [[group, [round(w, 5) for w in ws]] for group, ws in self._weights.items()]
        return {"buckets": buckets, "weights": weights}

    @classmethod
    def from_record(cls, record: Any) -> Calibrator:
        """The calibrator in `record`. Raises ValueError if there is none in it."""
        made = cls()
        try:
            for key, hits, visits in record["buckets"]:
                if not 0 <= hits <= visits < math.inf or not visits > 0:
                    raise ValueError(f"{hits} hits of {visits}")
                table, at = made._place(_tuple(key))
                table[at] = _bucket(float(hits), float(visits))
            for group, weights in record["weights"]:
                if len(weights) != len(_EQUAL) or not all(map(math.isfinite, weights)):
                    raise ValueError(f"weights {weights} of {group}")
                made._weights[_tuple(group)] = [float(weight) for weight in weights]
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"no record of a calibrator: {error}") from error
        return made


@cache
def _shipped() -> Calibrator:
    return Calibrator.from_record(json.loads(Path(__file__).with_name("priors.json").read_bytes()))


def experienced() -> Calibrator:
    """One that knows what guesses were worth in other texts: see benchmarks/make_priors.py."""
    return _shipped().copy()


def _tuple(value: Any) -> Any:
    """Lists are what JSON makes of tuples. Raises TypeError for what no key is made of."""
    if isinstance(value, list):
        return tuple([_tuple(item) for item in value])
    if not isinstance(value, str | int):
        raise TypeError(f"{value!r} in a key")
    return value


def _below(end: int, number: int) -> int:
    """`number`. Raises IndexError if it is not within 0 and `end`."""
    if not 0 <= number < end:
        raise IndexError(f"{number} is not below {end}")
    return number


def _bucket(hits: float, visits: float) -> _Bucket:
    return [hits, visits, logit(hits / visits)]


def _trusted(bucket: _Bucket, base: float) -> float:
    """A bucket's logit, pulled towards `base` while it has seen little."""
    return (bucket[2] * bucket[1] + base * TRUST_VISITS) / (bucket[1] + TRUST_VISITS)


def logit(p: float) -> float:
    """ln(p / (1 - p)), with p kept off 0 and 1."""
    if p < _LEAST:
        p = _LEAST
    elif p > _MOST:
        p = _MOST
    return math.log(p / (1 - p))


def squash(x: float) -> float:
    """The inverse of `logit`."""
    return 1 / (1 + math.exp(-x)) if x > -30 else 0.0
