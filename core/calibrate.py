"""From evidence to probability: how often were guesses on such evidence right?

Every bucket of evidence counts how often a guess was right where its parent was, with decay, so
it follows the text. A guess has several buckets: one or more of each drafter that made it, the
token itself, and the token before it. Their estimates are mixed in the logistic domain with
weights that are learnt online, one weight vector per set of drafters that agree
(Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression", 2005). Agreement
counts for as much as it turns out to be worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from .tree import Evidence

DECAY = 0.998  # per visit: a bucket remembers about its last 500 guesses
PRIOR_VISITS = 2.0  # what the estimate at a bucket's first visit counts for
RATE = 0.02  # learning rate of the weights
MAX_BUCKETS = 50_000

_Bucket: TypeAlias = list[float]  # [hits, visits, logit of hits / visits]
Key: TypeAlias = tuple[object, ...]


def logit(p: float) -> float:
    """ln(p / (1 - p)), with p kept off 0 and 1."""
    p = min(max(p, 1e-4), 1 - 1e-4)
    return math.log(p / (1 - p))


def squash(x: float) -> float:
    """The inverse of `logit`."""
    return 1 / (1 + math.exp(-x)) if x > -30 else 0.0


class Guess:
    """A guess with the buckets that it falls into, ready to be learnt from."""

    __slots__ = ("group", "inputs", "keys", "prob")

    def __init__(
        self, keys: tuple[Key, ...], group: tuple[str | int, ...], inputs: list[float], prob: float
    ) -> None:
        self.keys = keys
        self.group = group
        self.inputs = inputs
        self.prob = prob


class Calibrator:
    """Probabilities of guesses, learnt from what became of earlier ones."""

    def __init__(self) -> None:
        self._buckets: dict[Key, _Bucket] = {}
        self._weights: dict[tuple[str | int, ...], list[float]] = {}

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
        run = min(run.bit_length(), 4)
        strength = int(5 * prior)
        keys: list[Key] = []
        for item in evidence:
            keys.append((item, run))
            keys.append(item)
        keys.append(("token", token, strength))
        keys.append(("after", last, strength))
        get = self._buckets.get
        default = logit(prior)
        inputs = []
        for key in keys:
            bucket = get(key)
            inputs.append(default if bucket is None else bucket[2])
        group = tuple(item[0] for item in evidence)
        weights = self._weights.get(group)
        if weights is None:
            weights = self._weights[group] = [1.2 / len(keys)] * len(keys)
        total = 0.0
        for weight, value in zip(weights, inputs):  # noqa: B905  (on the path of every guess)
            total += weight * value
        return Guess(tuple(keys), group, inputs, squash(total))

    def learn(self, guess: Guess, right: bool) -> None:
        """Count what became of a guess whose parent was right."""
        weights = self._weights[guess.group]
        step = RATE * (right - guess.prob)
        for i, value in enumerate(guess.inputs):
            weights[i] += step * value
        for key in guess.keys:
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = [PRIOR_VISITS * guess.prob, PRIOR_VISITS, 0.0]
            bucket[0] = bucket[0] * DECAY + right
            bucket[1] = bucket[1] * DECAY + 1
            bucket[2] = logit(bucket[0] / bucket[1])
