"""Choosing the next token from a row of logits: llama.cpp's samplers, names, order and defaults.

The chain is penalties, top-k, typical, top-p, min-p, temperature, then one uniform draw. A token
costs exactly one random number (none when greedy), and the draw walks the kept candidates in
order of token id. So a seed's text depends on nothing but the rows of logits.

A filter takes the logits of candidates, in order of id, and returns the positions that stay,
ascending. Of equal logits the lowest id goes first. Top-k gives its candidates best first, and
of those top-p and min-p keep a prefix; so the usual chain only counts. It does so in plain Python:
after llama.cpp has streamed the weights, every NumPy function starts with cold caches.
"""

from __future__ import annotations

import math
import secrets
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from ctypes import c_float
from dataclasses import dataclass
from itertools import accumulate
from random import Random

import numpy as np
from numpy.typing import NDArray

from .errors import BackendError, UsageError
from .rows import Largest

_FEW = 256  # candidates
_LEAST_TEMPERATURE = 1e-200  # below it no weight changes any more, and the logits would overflow


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. A value out of range raises UsageError.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token, after penalties alone.
        top_k: candidates kept; 0 keeps all.
        top_p: probability that the likeliest candidates kept must reach; 1 keeps all.
        min_p: least probability of a candidate, relative to the likeliest; 0 keeps all.
        typical_p: probability that the most typical candidates kept must exceed; 1 keeps all.
        repeat_penalty: divides positive and multiplies negative logits of recent tokens.
        repeat_last_n: recent tokens that the penalties see; 0 none, -1 the whole text.
        presence_penalty: taken once from the logit of each recent token.
        frequency_penalty: taken from it as often as the token occurs.
        seed: of the random numbers; None draws one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, math.inf, "0 or more, and finite")
        _check("top_k", self.top_k, 0, math.inf, "0 or more")
        _check("top_p", self.top_p, 0, 1, "between 0 and 1")
        _check("min_p", self.min_p, 0, 1, "between 0 and 1")
        _check("typical_p", self.typical_p, 0, 1, "between 0 and 1")
        _check("repeat_penalty", self.repeat_penalty, 0.001, 1000, "between 0.001 and 1000")
        _check("repeat_last_n", self.repeat_last_n, -1, math.inf, "-1 or more")
        _check("presence_penalty", self.presence_penalty, -1000, 1000, "between -1000 and 1000")
        _check("frequency_penalty", self.frequency_penalty, -1000, 1000, "between -1000 and 1000")
        if self.seed is not None:
            _check("seed", self.seed, 0, 2**64 - 1, "between 0 and 2**64 - 1")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken, without a random number."""
        return self.temperature == 0

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens change the logits."""
        changes = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return self.repeat_last_n != 0 and changes != (1, 0, 0)


def _check(name: str, value: float, low: float, high: float, interval: str) -> None:
    """Raise UsageError unless `value` is finite and in low..high."""
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an int too large for a float
        finite = True
    if not (finite and low <= value <= high):
        raise UsageError(f"{name} is {value}; it must be {interval}")


def top_k_ids(row: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Positions of the `k` largest values of `row` (n,), best first, ties by lowest position.

    Returns all n positions where k >= n, and none where k <= 0. NaN is above all else.
    """
    return np.array(Largest(len(row), k).top_k(row)[0], np.int32)


def typical_ids(logits: NDArray[np.float32], p: float) -> NDArray[np.intp]:
    """Positions of the candidates whose surprise is nearest to the entropy.

    As few as it takes for their probability to exceed `p`.
    """
    probs = _softmax(logits)
    with np.errstate(divide="ignore"):  # the impossible is infinitely surprising
        surprise = -np.log(probs)
    possible = probs > 0
    entropy = probs[possible] @ surprise[possible]
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    n_kept = int(np.searchsorted(np.cumsum(probs[order]), p, side="right")) + 1
    return np.sort(order[:n_kept])


def top_p_count(ranked: NDArray[np.float32], p: float) -> int:
    """How many candidates, `ranked` best first, it takes for their probability to reach `p`."""
    reached = _weights(ranked, ranked[0]).cumsum()
    return int(reached.searchsorted(p * reached[-1], side="left")) + 1


def top_p_ids(logits: NDArray[np.float32], p: float) -> NDArray[np.intp]:
    """Positions of the fewest likeliest candidates whose probability reaches `p`."""
    ranked = np.sort(logits)[::-1]
    n_kept = top_p_count(ranked, p)
    if n_kept >= len(logits):
        return np.arange(len(logits))
    last = ranked[n_kept - 1]
    above = np.flatnonzero(logits > last)
    level = np.flatnonzero(logits == last)[: n_kept - len(above)]
    return np.sort(np.concatenate((above, level)))


def min_p_floor(peak: np.float32, p: float) -> np.float32:
    """The least logit that is at least `p` > 0 times as likely as the largest, `peak`."""
    return peak + np.float32(math.log(p))


def min_p_ids(logits: NDArray[np.float32], p: float) -> NDArray[np.intp]:
    """Positions of the candidates at least `p` > 0 times as likely as the likeliest."""
    return np.flatnonzero(logits >= min_p_floor(logits.max(), p))


def penalized(
    logits: NDArray[np.float32],  # (n,) of the tokens counted
    counts: NDArray[np.float32],  # (n,) how often each occurred, at least once
    params: SamplingParams,
) -> NDArray[np.float32]:
    """The logits after the repeat, frequency and presence penalties."""
    repeat = np.float32(params.repeat_penalty)
    scaled = np.where(logits <= 0, logits * repeat, logits / repeat)
    taken = counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
    after: NDArray[np.float32] = (scaled - taken).astype(np.float32, copy=False)
    return after


def _weights(
    logits: NDArray[np.float32], peak: np.float32, temperature: float = 1.0
) -> NDArray[np.float64]:
    """Probabilities of candidates, but for a common factor; `peak` is the largest logit."""
    shifted = np.subtract(logits, peak, dtype=np.float64)
    if temperature != 1.0:
        shifted /= max(temperature, _LEAST_TEMPERATURE)
    return np.exp(shifted, out=shifted)


def _require_finite(peak: float) -> None:
    if not math.isfinite(peak):
        raise BackendError(
            f"the model returned logits without a usable maximum ({peak})",
            hint="the model file may be damaged or its quantization unsupported here",
        )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of candidates of which at least one logit is finite and none is +inf."""
    weights = _weights(logits, logits.max())
    weights /= weights.sum()
    return weights


class Sampler:
    """Chooses tokens one after another, remembering those that the penalties look back on."""

    def __init__(self, params: SamplingParams, n_vocab: int) -> None:
        self.params = params
        self.n_vocab = n_vocab
        self.seed = secrets.randbits(32) if params.seed is None else params.seed
        self._rng = Random(self.seed)
        self._largest = Largest(n_vocab, params.top_k)
        # Few are quicker in plain Python, whose code is at hand: see core/rows.py.
        self._log_min_p = float(np.float32(math.log(params.min_p))) if params.min_p else -math.inf
        self._keeps_few = 0 < params.top_k <= _FEW and params.typical_p == 1
        self._recent: deque[int] = deque()
        self._counts: Counter[int] = Counter()

    def begin(self, history: Sequence[int]) -> None:
        """Look back on `history`, the text so far, from now on. Random numbers go on."""
        self._recent.clear()
        self._counts.clear()
        if self.params.penalizes:
            last_n = self.params.repeat_last_n
            self._recent.extend(history if last_n < 0 else history[-last_n:])
            self._counts.update(self._recent)

    def next(self, logits: NDArray[np.float32]) -> int:  # (n_vocab,)
        """The next token: one random number, or none when greedy. `logits` stay as they are.

        Raises BackendError where no token can be chosen; then nothing was drawn.
        """
        row = self._row(logits)
        if self.params.greedy:
            token = self._argmax(row)
        elif self._keeps_few:
            few, chances = self._weighted_few(row)
            cumulative = [*accumulate(chances)]
            token = few[bisect_right(cumulative, self._rng.random() * cumulative[-1])]
        else:
            ids, weights = self._weighted(row)
            token = int(ids[self._draw(weights.cumsum())])
        self._remember(token)
        return token

    def distribution(
        self, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Candidates (n,) that `next` would choose from, ascending, and their probabilities.

        Raises BackendError where no token can be chosen.
        """
        row = self._row(logits)
        if self.params.greedy:
            return np.array([self._argmax(row)], np.int32), np.ones(1)
        ids, weights = self._weighted(row)
        return ids, weights / weights.sum()

    def _row(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits after penalties: `logits` itself, or a copy."""
        if not self._counts:
            return logits
        if logits.shape != (self.n_vocab,):
            raise ValueError(f"logits have shape {logits.shape}, not ({self.n_vocab},)")
        ids = np.fromiter(self._counts.keys(), np.intp, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        row = logits.copy()
        row[ids] = penalized(row[ids], counts, self.params)
        return row

    def _argmax(self, row: NDArray[np.float32]) -> int:
        """The likeliest token, the lowest id of equals."""
        token = self._largest.argmax(row)
        _require_finite(row.item(token))
        return token

    def _weighted(self, row: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Ids that pass every filter, ascending, and their weights in the draw."""
        params = self.params
        if self._keeps_few:
            few, chances = self._weighted_few(row)
            return np.array(few, np.int32), np.array(chances)
        token = self._argmax(row)
        peak = row[token]
        if self._is_alone(row, peak):
            return np.array([token], np.int32), np.ones(1)
        is_cut = 0 < params.top_k < len(row)
        found = self._largest.top_k(row)[0] if is_cut else np.arange(len(row))
        ids = self._filtered(row, np.sort(np.array(found, np.int32)))
        logits = row[ids]
        if params.typical_p < 1:  # the only filter that may drop the likeliest
            peak = logits.max()
        return ids, _weights(logits, peak, params.temperature)

    def _weighted_few(self, row: NDArray[np.float32]) -> tuple[list[int], list[float]]:
        """The same for the usual chain: of the top k, best first, top-p and min-p keep a prefix."""
        ids, logits = self._largest.top_k(row)
        peak = logits[0]  # a NaN, where there is one
        _require_finite(peak)
        n_kept = self._n_likeliest(logits)
        if n_kept == 1:
            return ids[:1], [1.0]
        temperature = max(self.params.temperature, _LEAST_TEMPERATURE)
        kept = sorted(zip(ids[:n_kept], logits, strict=False))
        return [i for i, _ in kept], [math.exp((x - peak) / temperature) for _, x in kept]

    def _n_likeliest(self, ranked: list[float]) -> int:
        """How many candidates, logits `ranked` best first, pass top-p and min-p.

        Min-p is asked first: it leaves one alone for many of the tokens that a drafter guesses.
        """
        peak, top_p = ranked[0], self.params.top_p
        floor = c_float(peak + self._log_min_p).value  # as `min_p_floor` rounds it
        n_kept = bisect_left(ranked, True, key=lambda logit: logit < floor)
        if top_p < 1 and n_kept > 1:
            reached = [*accumulate([math.exp(logit - peak) for logit in ranked])]
            n_kept = min(n_kept, bisect_left(reached, top_p * reached[-1]) + 1)
        return n_kept

    def _is_alone(self, row: NDArray[np.float32], peak: np.float32) -> bool:
        """Whether min-p leaves no token but the likeliest, whatever top-k and top-p do before."""
        params = self.params
        if params.min_p == 0 or params.typical_p < 1:  # typical may drop the likeliest itself
            return False
        return len((row >= min_p_floor(peak, params.min_p)).nonzero()[0]) == 1

    def _filtered(self, row: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Those of `ids`, ascending, that pass typical, top-p and min-p."""
        params = self.params
        if params.typical_p < 1:
            ids = ids[typical_ids(row[ids], params.typical_p)]
        if params.top_p < 1:
            ids = ids[top_p_ids(row[ids], params.top_p)]
        if params.min_p > 0:
            ids = ids[min_p_ids(row[ids], params.min_p)]
        return ids

    def _draw(self, cumulative: NDArray[np.float64]) -> int:
        """A position, by one uniform number; never one whose probability is 0.

        The number is at most 1 - 2**-53, so its product with the total stays below the total.
        """
        at = self._rng.random() * cumulative[-1]
        return int(cumulative.searchsorted(at, side="right"))

    def _remember(self, token: int) -> None:
        """Add `token` to the penalty window, and drop the token that leaves it."""
        if not self.params.penalizes:
            return
        self._recent.append(token)
        self._counts[token] += 1
        if 0 <= self.params.repeat_last_n < len(self._recent):
            oldest = self._recent.popleft()
            self._counts[oldest] -= 1
            if self._counts[oldest] == 0:
                del self._counts[oldest]
