"""CopySpec: where did the last three tokens stand first? Copy what followed them there.

A hash table maps every 3-gram to its first occurrence; a hit copies a block of tokens.

Source: Dumitru et al., "CopySpec: Accelerating LLMs with Speculative Copy-and-Paste Without
Compromising Quality", arXiv 2502.08923, section 3 (gamma = 3, copies of 10).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from specgen.core.protocols import Candidate, Logits, Tokens
from specgen.core.tree import DraftTree

from .evidence import LONGEST_COPY, length_bucket
from .ngrams import NgramIndex, match_length, tokens_added

GAMMA = 3  # tokens that must match
COPY_LENGTH = 10  # tokens copied when alone

# Rough chances by the bucket of the tokens in agreement: those matched and those copied.
_CHANCE = (0.0, 0.0, 0.0, 0.5, 0.7, 0.85, 0.94)


class _Copy(NamedTuple):
    """A state: the next token to copy, how long the match was, and the tokens copied so far."""

    next: int
    match: int
    copied: int


class CopySpec:
    """See specgen.core.protocols.Drafter.

    Memory: 12 to 20 bytes per token of text, at most 2.5 MiB at 131,072 tokens.

    Args:
        standalone: copy 10 tokens at most, as the paper does.
    """

    name = "copyspec"
    effort = None
    reads_logits = False

    def __init__(self, standalone: bool = False) -> None:
        self._longest = COPY_LENGTH if standalone else LONGEST_COPY
        self._text = array("i")
        self._index = NgramIndex(self._text, GAMMA, first=True)

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        added = tokens_added(self._text, context)
        if added is None:
            del self._text[:]
            self._index.clear()
            added = context.tolist()
        self._extend(added)

    def root(self) -> _Copy | None:
        """Behind the first occurrence of the 3-gram that ends the text, or None."""
        n = len(self._text)
        place = self._index.find(n)
        return _Copy(place, match_length(self._text, place, n), 0) if place else None

    def predict(self, state: _Copy) -> Sequence[Candidate]:
        """The one token that the copy goes on with; none at the end of the text."""
        place, match, copied = state
        if copied >= self._longest or place >= len(self._text):
            return ()
        evidence = (self.name, length_bucket(match), length_bucket(copied))
        prob = _CHANCE[length_bucket(match + copied)]
        return (Candidate(self._text[place], evidence, prob),)

    def advance(self, state: _Copy, token: int) -> _Copy | None:
        """The copy goes on if `token` is what it would have copied, and ends otherwise."""
        place, match, copied = state
        if place >= len(self._text) or self._text[place] != token:
            return None
        return _Copy(place + 1, match, copied + 1)

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        self._extend(emitted)

    def _extend(self, tokens: Sequence[int]) -> None:
        text = self._text
        for token in tokens:
            # The 3-gram that ends the text is added when something follows it, so that it never
            # finds itself.
            self._index.add(len(text))
            text.append(token)
