"""From evidence to probability: how often were draft tokens with such evidence accepted?

Every bucket of evidence counts how often a draft token was accepted where its parent was, with
decay, so it follows the text. A draft token falls into one bucket by the evidence of the first
drafter that proposed it, together with the run of accepted ones before it, and into one by the
token itself. The two estimates are mixed in the logistic domain with weights learnt online, a pair
for each set of drafters that agree (Mahoney, "Adaptive Weighing of Context Models for Lossless Data
Compression", 2005): agreement counts for as much as it turns out to be worth. (More buckets make
worse estimates: what they look at is nearly the same, and each set of them has to learn its
weights.) And texts differ: each begins with some caution, and wins or loses confidence by what
comes true in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from specgen.core.records import MOST_WHOLE, items, member, number, whole
from specgen.core.tree import Evidence

DECAY = 0.998  # counts fade with each visit, so a bucket remembers about its last 500 draft tokens
PRIOR_VISITS = 2.0  # a bucket's first estimate counts as so many visits
# After so many visits a bucket is believed as much as the drafter's own estimate.
TRUST_VISITS = 4.0
LEARNING_RATE = 0.003
MAX_BUCKETS = 100_000  # at most so many buckets, about 20 MB, are kept; later ones are not counted
CAUTION = -0.4  # added to the logit of every draft token at the beginning of a text
CONFIDENCE_RATE = 0.05
MOST_CONFIDENCE = 2.0  # confidence in a text stays between minus and plus this logit
KEPT_BUCKETS: Final = 4096  # a record keeps the buckets that saw most, at most so many
# A bucket of a record counts as no more visits than this, so that it can be unlearnt.
KEPT_VISITS: Final = 100.0

_LEAST_VISITS = 1e-3  # visits in a record are rounded to this
_MOST_WEIGHT = 1e6  # no learning gets to larger weights, and the sum of such weights is finite
_LEAST, _MOST = 1e-4, 1 - 1e-4  # probability that a logit is taken of
_EQUAL = (0.5, 0.5)  # the weights of evidence and token at the beginning
_STRENGTHS = 7  # buckets of tokens tell so many classes of evidence apart, from weak to strong
_STRENGTH_WIDTH = 1.5  # such a class is so wide, as a difference of logits
_N_STREAKS = 4
# The class of a run of accepted draft tokens, by its length; longer runs are in the last.
_STREAKS = (0, 1, 1, 2, 2, 2, 2, 2)
_Key: TypeAlias = tuple[Evidence | int, int]  # of a bucket in a record
_Group: TypeAlias = tuple[str | int, ...]
_Bucket: TypeAlias = list[float]  # [hits, visits, logit of their ratio]
_Table: TypeAlias = dict[Any, _Bucket]


# An estimate, ready to be learnt from: its probability; where it is by evidence, the bucket if
# there is one, and its estimate as a logit; the same by token; and the weights of the drafters that
# agree. A bare tuple, since one is made for every draft token.
Estimate: TypeAlias = tuple[
    float, _Table, Evidence, "_Bucket | None", float, int, "_Bucket | None", float, list[float]
]


class AcceptanceModel:
    """Probabilities of draft tokens, learnt from what became of earlier ones."""

    def __init__(self) -> None:
        # A table for each streak; and by token * _STRENGTHS + strength, a key that is quickly made.
        self._by_evidence: tuple[_Table, ...] = tuple({} for _ in range(_N_STREAKS))
        self._by_token: _Table = {}
        self._weights: dict[_Group, list[float]] = {}
        self._confidence = CAUTION

    def begin(self) -> None:
        """Another text begins: it may be of another kind."""
        self._confidence = CAUTION

    def estimate(
        self, evidence: Sequence[Evidence], prior: float, token: int, run: int
    ) -> Estimate:
        """What is known of a draft token.

        Args:
            evidence: of every drafter that proposed the token, in the order of the drafters.
            prior: the most confident drafter's own estimate.
            token: the draft token.
            run: draft tokens in a row that were accepted, up to here.
        """
        table = self._by_evidence[_STREAKS[run] if run < len(_STREAKS) else _N_STREAKS - 1]
        known = table.get(evidence[0])
        base = logit(prior) if known is None else known[2]
        key = token * _STRENGTHS + _strength(base)
        like = self._by_token.get(key)
        value = base if like is None else _trusted(like, base)
        group = tuple([item[0] for item in evidence])
        weights = self._weights.get(group)
        if weights is None:  # they begin as those of the first drafter alone
            weights = self._weights[group] = [*self._weights.get(group[:1], _EQUAL)]
        total = weights[0] * base + weights[1] * value
        prob = squash(total + self._confidence)
        return prob, table, evidence[0], known, base, key, like, value, weights

    def learn(self, estimate: Estimate, accepted: bool) -> None:
        """Count what became of a draft token whose parent was accepted."""
        prob, table, item, known, base, key, like, value, weights = estimate
        confidence = self._confidence + CONFIDENCE_RATE * (accepted - prob)
        self._confidence = min(max(confidence, -MOST_CONFIDENCE), MOST_CONFIDENCE)
        step = LEARNING_RATE * (accepted - squash(weights[0] * base + weights[1] * value))
        weights[0] += step * base
        weights[1] += step * value
        _count(known or table.get(item) or self._new(table, item, base), accepted)
        tokens = self._by_token
        _count(like or tokens.get(key) or self._new(tokens, key, value), accepted)

    def _new(self, table: _Table, key: Any, value: float) -> _Bucket:
        """A bucket that begins with an estimate, kept if there is room for it."""
        bucket = [PRIOR_VISITS * squash(value), PRIOR_VISITS, 0.0]
        if len(self._by_token) + sum(map(len, self._by_evidence)) < MAX_BUCKETS:
            table[key] = bucket
        return bucket

    def _items(self) -> Iterator[tuple[_Key, _Bucket]]:
        """All buckets, by the keys that they have in a record: (evidence, streak) or numbers."""
        for streak, table in enumerate(self._by_evidence):
            for item, bucket in table.items():
                yield (item, streak), bucket
        for key, bucket in self._by_token.items():
            yield divmod(key, _STRENGTHS), bucket

    def _place(self, key: _Key) -> tuple[_Table, Any]:
        """Where a bucket of a record belongs."""
        what, number = key
        if isinstance(what, tuple):
            return self._by_evidence[number], what
        return self._by_token, what * _STRENGTHS + number

    def copy(self) -> AcceptanceModel:
        """One that goes its own way from here, at the beginning of a text."""
        copy = AcceptanceModel()
        for key, bucket in self._items():
            table, at = copy._place(key)
            table[at] = list(bucket)
        copy._weights = {group: list(weights) for group, weights in self._weights.items()}
        return copy

    def merge(self, other: AcceptanceModel) -> None:
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
        kept = [item for item in self._items() if _can_be_kept(item[0]) and of(item[0])]
        most = sorted(kept, key=lambda item: -item[1][1])[:KEPT_BUCKETS]
        buckets = []
        for key, (hits, visits, _) in most:
            scale = min(1.0, KEPT_VISITS / visits)
            buckets.append([key, round(hits * scale, 3), round(visits * scale, 3)])
        weights = [[group, [round(w, 5) for w in ws]] for group, ws in self._weights.items()]
        return {"buckets": buckets, "weights": weights}

    @classmethod
    def from_record(cls, record: Any) -> AcceptanceModel:
        """The acceptance model in `record`. Raises ValueError if there is none in it."""
        made = cls()
        try:
            for bucket in items(member(record, "buckets"), "buckets"):
                key, hits, visits = items(bucket, "a bucket")
                seen = number(visits, "visits", _LEAST_VISITS, KEPT_VISITS)
                table, at = made._place(_key(key))
                table[at] = _bucket(number(hits, "hits", 0.0, seen), seen)
            for pair in items(member(record, "weights"), "weights"):
                group, weights = items(pair, "weights of a group")
                of_evidence, of_token = items(weights, "weights")
                made._weights[_group(group)] = [_weight(of_evidence), _weight(of_token)]
        except ValueError as error:
            raise ValueError(f"no record of an acceptance model: {error}") from error
        return made


@cache
def _shipped() -> AcceptanceModel:
    return AcceptanceModel.from_record(
        json.loads(Path(__file__).with_name("priors.json").read_bytes())
    )


def shipped_priors() -> AcceptanceModel:
    """One that knows how often drafts were accepted in other texts (benchmarks/make_priors.py)."""
    return _shipped().copy()


def _key(value: Any) -> _Key:
    """The key of a bucket in a record. Raises ValueError."""
    what, place = items(value, "a key")
    if isinstance(what, list):
        return _group(what), whole(place, "a streak", most=_N_STREAKS - 1)
    return whole(what, "a token"), whole(place, "a strength", most=_STRENGTHS - 1)


def _group(value: Any) -> Evidence:
    """Names and numbers; lists are what JSON makes of tuples. Raises ValueError."""
    parts = items(value, "evidence")
    for part in parts:
        if not isinstance(part, str | bool):
            whole(part, "evidence", -MOST_WHOLE)
    return tuple(parts)


def _can_be_kept(key: _Key) -> bool:
    """Whether JSON gives back the key: a drafter of others may count by anything."""
    what = key[0]
    return isinstance(what, int) or all(type(part) in (str, int, bool) for part in what)


def _weight(value: Any) -> float:
    return number(value, "a weight", -_MOST_WEIGHT, _MOST_WEIGHT)


def _bucket(hits: float, visits: float) -> _Bucket:
    return [hits, visits, logit(hits / visits)]


def _strength(base: float) -> int:
    """The class of a draft token, by the logit of its evidence."""
    most = _STRENGTHS // 2
    return min(max(round(base / _STRENGTH_WIDTH), -most), most) + most


def _count(bucket: _Bucket, accepted: bool) -> None:
    """One more visit."""
    hits = bucket[0] = bucket[0] * DECAY + accepted
    visits = bucket[1] = bucket[1] * DECAY + 1
    bucket[2] = logit(hits / visits)


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
