"""Trigram weights that age: which tokens followed the last two lately, and how often?

Every token of the text adds 1 to the weight of its trigram, and all weights fade with every
token. The paper explores a trigram table by Monte-Carlo tree search; over a table the likeliest
tree is found directly, and ageing lets new habits overtake old ones, with no randomness at all.

Source: Liu et al., "Adaptive Draft-Verification for Efficient LLM Decoding" (ADED), arXiv
2407.12021, section 3; 12 successors a pair and depth 4 as there, but no table from a corpus.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeAlias

from specgen.core.protocols import Candidate, Logits, Tokens
from specgen.core.tree import DraftTree

from .slots import Slots

SUCCESSORS = 12  # tokens remembered after a pair, the heaviest
PAIRS = 1 << 15  # pairs remembered, the newest
DEPTH = 4  # levels of the tree when alone
FADE = 0.999  # of a weight per token of text

_LOW = (1 << 32) - 1
_WEIGHTS = (0.6, 1.05, 2.05, 4.05)  # upper ends of the weight buckets but the last
_LEAST = 0.01  # a successor whose weight faded below it is not worth offering
_DOUBT = 0.6  # weight given to a token that was never seen after the pair

# The last two tokens, packed; and the tokens drafted before.
_State: TypeAlias = tuple[int, int]


class Trigram:
    """See specgen.core.protocols.Drafter.

    Memory: at most 8.5 MiB, reached after 32,768 different pairs of tokens.

    Args:
        standalone: draft 4 levels at most, as the paper does.
    """

    name = "trigram"
    effort = None
    reads_logits = False

    def __init__(self, standalone: bool = False) -> None:
        self._depth = DEPTH if standalone else 0
        self._forget()

    def _forget(self) -> None:
        self._now = 0  # tokens of text so far
        self._last_pair = -1
        self._slots = Slots(PAIRS)
        # By slot: when its weights were right, and how many successors it has. Then each slot's
        # successors, the heaviest first, and their weights.
        self._times = array("q")
        self._sizes = bytearray()
        self._tokens = array("i")
        self._weights = array("f")

    def begin(self, context: Tokens) -> None:
        """See Drafter. Of a long context the last 32,768 tokens are learnt."""
        self._forget()
        self._extend(context[-PAIRS:].tolist())

    def root(self) -> _State | None:
        """The last two tokens."""
        return (self._last_pair, 0) if self._now >= 2 else None

    def predict(self, state: _State) -> Sequence[Candidate]:
        """What followed the pair, the heaviest first."""
        pair, drafted = state
        slot = self._slots.get(pair)
        if slot is None or (self._depth and drafted >= self._depth):
            return ()
        start = slot * SUCCESSORS
        end = start + self._sizes[slot]
        # As they were when the pair was last seen: since then all have faded alike, and a pair
        # that comes back after long is no less sure.
        weights = self._weights[start:end]
        total = sum(weights)
        return [
            Candidate(token, self._evidence(rank, weight, total), weight / (total + _DOUBT))
            for rank, (token, weight) in enumerate(
                zip(self._tokens[start:end], weights, strict=True)
            )
            if weight > _LEAST
        ]

    def advance(self, state: _State, token: int) -> _State:
        """The pair moves on, known or not: what comes after it may be known again."""
        pair, drafted = state
        return _next_pair(pair, token), drafted + 1

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        self._extend(emitted)

    def _evidence(self, rank: int, weight: float, total: float) -> tuple[str | int, ...]:
        share = min(int(5 * weight / total), 4)
        return (self.name, min(rank, 3), share, bisect_right(_WEIGHTS, weight))

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if self._now >= 2:
                self._learn(self._last_pair, token)
            self._last_pair = _next_pair(self._last_pair, token)
            self._now += 1

    def _learn(self, pair: int, token: int) -> None:
        slot = self._slots.get(pair)
        if slot is None:
            slot = self._new_slot(pair)
        tokens, weights = self._tokens, self._weights
        start = slot * SUCCESSORS
        size = self._sizes[slot]
        if (age := self._now - self._times[slot]) and size:
            fade = FADE**age
            for at in range(start, start + size):
                weights[at] *= fade
        self._times[slot] = self._now
        try:
            at = tokens.index(token, start, start + size)
            weight = weights[at] + 1
        except ValueError:
            if size < SUCCESSORS:
                self._sizes[slot] = size = size + 1
            at = start + size - 1  # the free place, or the lightest
            weight = 1.0
        while at > start and weights[at - 1] <= weight:  # of equals the newest goes first
            tokens[at], weights[at] = tokens[at - 1], weights[at - 1]
            at -= 1
        tokens[at], weights[at] = token, weight

    def _new_slot(self, pair: int) -> int:
        """A slot without successors."""
        slot = self._slots.take(pair)
        if slot == len(self._times):
            self._times.append(0)
            self._sizes.append(0)
            self._tokens.extend([0] * SUCCESSORS)
            self._weights.extend([0.0] * SUCCESSORS)
        self._sizes[slot] = 0
        return slot


def _next_pair(pair: int, token: int) -> int:
    return (pair & _LOW) << 32 | token
