"""Prompt lookup: what followed the last few tokens when they occurred before?

Find the longest n-gram (3, 2, then 1 tokens) that ends the text and occurred earlier, take its
last occurrence, and copy what followed it. Longer matches are trusted with longer copies; no
match drafts nothing. A copy that reaches the end of the text goes on with what it has copied,
so loops are followed.

Source: Saxena, "Prompt Lookup Decoding", 2023 (apoorvumang/prompt-lookup-decoding). That version
takes the first occurrence and a fixed length; the last occurrence follows edits better, and a
length tied to the match wastes less on short ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from specgen.core.protocols import Candidate, Logits, Tokens
from specgen.core.tree import DraftTree

MAX_ORDER = 3

# Tokens copied after a match of 1, 2, 3 tokens: with the root they fill batches of 2, 4 and 8,
# the widths that llama.cpp's small-batch kernels are best at.
COPY_LENGTH = {1: 1, 2: 3, 3: 7}

# Rough chances that the first copied token is right, by order; later ones depend on earlier
# ones having been right, which makes them likelier.
FIRST_PROB = {1: 0.25, 2: 0.5, 3: 0.7}
NEXT_PROB = 0.8


class _Copy(NamedTuple):
    """A state: `copied` tokens were taken from `start` on, after a match of `order` tokens."""

    start: int
    order: int
    copied: int


class PromptLookup:
    """See specgen.core.protocols.Drafter. Time O(1) a token; memory O(text)."""

    name = "prompt-lookup"

    def __init__(self) -> None:
        self._text: list[int] = []
        # For each n-gram that something followed: where its last occurrence ends.
        self._ends: dict[tuple[int, ...], int] = {}

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        self._text = []
        self._ends = {}
        self._extend(context.tolist())

    def root(self) -> _Copy | None:
        """The longest match that ends the text, or None."""
        for order in range(min(MAX_ORDER, len(self._text)), 0, -1):
            end = self._ends.get(tuple(self._text[-order:]))
            if end is not None:
                return _Copy(end, order, 0)
        return None

    def predict(self, state: _Copy) -> Sequence[Candidate]:
        """The one token that the copy goes on with."""
        if state.copied >= COPY_LENGTH[state.order]:
            return ()
        prob = NEXT_PROB if state.copied else FIRST_PROB[state.order]
        return (Candidate(self._next(state), (self.name, state.order, state.copied), prob),)

    def advance(self, state: _Copy, token: int) -> _Copy | None:
        """The copy goes on if `token` is what it would have copied, and ends otherwise."""
        return state._replace(copied=state.copied + 1) if token == self._next(state) else None

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
            for order in range(1, min(MAX_ORDER, len(text)) + 1):
                self._ends[tuple(text[-order:])] = len(text)
            text.append(token)
