"""Prompt lookup: what followed the last few tokens when they occurred before?

Find the longest n-gram (3, 2, then 1 tokens) that ends the text and occurred earlier, take its
last occurrence, and copy what followed it. No match drafts nothing. A copy that reaches the
end of the text goes on with what it has copied, so loops are followed.

Source: Saxena, "Prompt Lookup Decoding", 2023 (apoorvumang/prompt-lookup-decoding). That version
takes the first occurrence; the last one follows edits better.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from specgen.core.protocols import Candidate, Logits, Tokens
from specgen.core.tree import DraftTree

from .evidence import LONGEST_COPY, length_bucket
from .ngrams import NgramIndex, match_length, tokens_added

MAX_ORDER = 3

# Tokens copied when alone, after a match of 1, 2, 3 tokens: with the root they fill batches of
# 2, 4 and 8, the widths that llama.cpp's small-batch kernels are best at.
COPY_LENGTH = {1: 1, 2: 3, 3: 7}

# Rough chances by the bucket of the tokens in agreement: those matched and those copied.
_CHANCE = (0.0, 0.15, 0.35, 0.5, 0.7, 0.85, 0.92)


class _Copy(NamedTuple):
    """A state: `copied` tokens were taken from `start` on, after a match of `match` tokens."""

    start: int
    match: int
    copied: int


class PromptLookup:
    """See specgen.core.protocols.Drafter.

    Memory: 28 to 52 bytes per token of text, at most 6.5 MiB at 131,072 tokens.

    Args:
        standalone: tie the length of a copy to that of the match.
    """

    name = "prompt-lookup"
    effort = None
    reads_logits = False

    def __init__(self, standalone: bool = False) -> None:
        self._standalone = standalone
        self._text = array("i")
        # Only n-grams that something followed; the longest first.
        self._indexes = [
            NgramIndex(self._text, order, first=False) for order in range(MAX_ORDER, 0, -1)
        ]

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        added = tokens_added(self._text, context)
        if added is None:
            del self._text[:]
            for index in self._indexes:
                index.clear()
            added = context.tolist()
        self._extend(added)

    def root(self) -> _Copy | None:
        """The longest match that ends the text, or None."""
        n = len(self._text)
        for index in self._indexes:
            if place := index.find(n):
                return _Copy(place, match_length(self._text, place, n), 0)
        return None

    def predict(self, state: _Copy) -> Sequence[Candidate]:
        """The one token that the copy goes on with."""
        _, match, copied = state
        if copied >= (COPY_LENGTH[min(match, MAX_ORDER)] if self._standalone else LONGEST_COPY):
            return ()
        evidence = (self.name, length_bucket(match), length_bucket(copied))
        prob = _CHANCE[length_bucket(match + copied)]
        return (Candidate(self._next(state), evidence, prob),)

    def advance(self, state: _Copy, token: int) -> _Copy | None:
        """The copy goes on if `token` is what it would have copied, and ends otherwise."""
        if token != self._next(state):
            return None
        start, match, copied = state
        return _Copy(start, match, copied + 1)

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        self._extend(emitted)

    def _next(self, state: _Copy) -> int:
        # Past the end of the text the copy reads its own tokens: it repeats with this period.
        period = len(self._text) - state.start
        return self._text[state.start + state.copied % period]

    def _extend(self, tokens: Sequence[int]) -> None:
        text = self._text
        for token in tokens:
            # Only now does something follow the n-grams that end the text: index them.
            for index in self._indexes:
                index.add(len(text))
            text.append(token)
