"""From evidence to probability: how often were guesses on such evidence right?

Every bucket of evidence counts how often a guess was right where its parent was, with decay, so
it follows the text. A guess falls into one bucket for each drafter that made it, together with
the run of right guesses before it, one for its token and one for the token before it. Their
estimates are mixed in the logistic domain with weights learnt online, one weight vector per set
of drafters that agree (Mahoney, "Adaptive Weighing of Context Models for Lossless Data
Compression", 2005): agreement counts for as much as it turns out to be worth. A last bucket, of
guesses judged about as likely, takes back what the mixture is too sure of. And texts differ: each
begins with some caution, and wins or loses confidence by what comes true in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

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

_N_TOKEN_KEYS = 2  # the guess and the token before it each have a bucket
_STRENGTHS = 5  # into how many classes guesses are sorted, for the buckets of tokens
_Key: TypeAlias = tuple[object, ...]
_Group: TypeAlias = tuple[str | int, ...]
_Bucket: TypeAlias = list[float]  # [hits, visits, logit of their ratio]


class Guess(NamedTuple):
    """A judged guess, ready to be learnt from."""

    prob: float
    keys: tuple[_Key, ...]
    inputs: tuple[float, ...]  # each bucket's estimate, as a logit; the mixture comes last
    group: _Group  # the drafters that agree


class Calibrator:
    """Probabilities of guesses, learnt from what became of earlier ones."""

    def __init__(self) -> None:
        self._buckets: dict[_Key, _Bucket] = {}
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
            evidence: of every drafter that made the guess.
            prior: the most confident drafter's own estimate.
            token: the token guessed.
            last: the token before it.
            run: guesses in a row that were right, up to here.
        """
        get = self._buckets.get
        streak = 0 if run == 0 else 1 if run < 3 else 2 if run < 8 else 3
        keys: list[_Key] = []
        inputs: list[float] = []
        base = default = logit(prior)
        for item in evidence:
            key: _Key = (item, streak)
            keys.append(key)
            bucket = get(key)
            value = default if bucket is None else bucket[2]
            inputs.append(value)
            if len(keys) == 1 or value > base:
                base = value
        strength = int(_STRENGTHS * squash(base))
        for key in ((1, token, strength), (2, last, strength)):
            keys.append(key)
            bucket = get(key)
            inputs.append(base if bucket is None else _trusted(bucket, base))
        group = tuple([item[0] for item in evidence])
        weights = self._weights.get(group)
        if weights is None:
            weights = self._weights[group] = [1.0 / len(keys)] * len(keys)
        total = 0.0
        for weight, value in zip(weights, inputs):  # noqa: B905  (on the path of every guess)
            total += weight * value
        # Last, what guesses judged about as likely as this one came to.
        key = (3, round(2 * total), streak)
        keys.append(key)
        bucket = get(key)
        final = total if bucket is None else _trusted(bucket, total)
        inputs.append(total)
        return Guess(squash(final + self._confidence), tuple(keys), tuple(inputs), group)

    def learn(self, guess: Guess, right: bool) -> None:
        """Count what became of a guess whose parent was right."""
        confidence = self._confidence + CONFIDENCE_RATE * (right - guess.prob)
        self._confidence = min(max(confidence, -MOST_CONFIDENCE), MOST_CONFIDENCE)
        weights = self._weights[guess.group]
        step = LEARNING_RATE * (right - squash(guess.inputs[-1]))
        for i in range(len(weights)):
            weights[i] += step * guess.inputs[i]
        for key, value in zip(guess.keys, guess.inputs):  # noqa: B905  (see above)
            bucket = self._buckets.get(key)
            if bucket is None:
                if len(self._buckets) >= MAX_BUCKETS:
                    continue
                bucket = self._buckets[key] = [PRIOR_VISITS * squash(value), PRIOR_VISITS, 0.0]
            bucket[0] = bucket[0] * DECAY + right
            bucket[1] = bucket[1] * DECAY + 1
            bucket[2] = logit(bucket[0] / bucket[1])

    def copy(self) -> Calibrator:
        """One that goes its own way from here, at the beginning of a text."""
        copy = Calibrator()
        copy._buckets = {key: list(bucket) for key, bucket in self._buckets.items()}
        copy._weights = {group: list(weights) for group, weights in self._weights.items()}
        return copy

    def merge(self, other: Calibrator) -> None:
        """Add what `other` saw. What both knew before counts twice, which its ratio survives."""
        for key, (hits, visits, _) in other._buckets.items():
            bucket = self._buckets.setdefault(key, [0.0, 0.0, 0.0])
            total = bucket[1] + visits
            scale = min(1.0, KEPT_VISITS / total)
            bucket[:] = _bucket((bucket[0] + hits) * scale, total * scale)
        for group, weights in other._weights.items():
            mine = self._weights.get(group, weights)
            self._weights[group] = [(a + b) / 2 for a, b in zip(mine, weights, strict=True)]

    def record(self, of: Callable[[_Key], bool] = lambda key: True) -> dict[str, Any]:
        """What is worth keeping `of` the keys that say so, as JSON."""
        kept = [item for item in self._buckets.items() if of(item[0])]
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
                made._buckets[_tuple(key)] = _bucket(float(hits), float(visits))
            for group, weights in record["weights"]:
                if len(weights) != len(group) + _N_TOKEN_KEYS or not all(
                    map(math.isfinite, weights)
                ):
                    raise ValueError(f"weights {weights} of {group}")
                made._weights[_tuple(group)] = [float(weight) for weight in weights]
        except (KeyError, TypeError, ValueError) as error:
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


def _bucket(hits: float, visits: float) -> _Bucket:
    return [hits, visits, logit(hits / visits)]


def _trusted(bucket: _Bucket, base: float) -> float:
    """A bucket's logit, pulled towards `base` while it has seen little."""
    return (bucket[2] * bucket[1] + base * TRUST_VISITS) / (bucket[1] + TRUST_VISITS)


def logit(p: float) -> float:
    """ln(p / (1 - p)), with p kept off 0 and 1."""
    p = min(max(p, 1e-4), 1 - 1e-4)
    return math.log(p / (1 - p))


def squash(x: float) -> float:
    """The inverse of `logit`."""
    return 1 / (1 + math.exp(-x)) if x > -30 else 0.0
