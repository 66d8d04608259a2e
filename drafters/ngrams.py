"""An index of a growing text: where each n-gram occurred first, or last.

Open addressing in a flat array of places. The n-grams themselves stay in the text and are
compared there, so the index is exact and takes 8 to 16 bytes for each distinct n-gram.
"""

from __future__ import annotations

from array import array

import numpy as np

from specgen.core.protocols import Tokens

_FEWEST_SLOTS = 64
_FARTHEST = 16  # a match is measured back to so many tokens


class NgramIndex:
    """One place for every n-gram of `text` that was added.

    A place is the number of tokens up to the end of an occurrence: what follows it stands at
    `text[place]`.

    Args:
        text: the tokens; the caller appends to it.
        order: n, the length of the n-grams.
        first: keep the first place of an n-gram rather than the last.
    """

    def __init__(self, text: array[int], order: int, *, first: bool) -> None:
        self._text = text
        self._order = order
        self._first = first
        self.clear()

    def clear(self) -> None:
        """Forget all places."""
        self._slots = array("i", bytes(4 * _FEWEST_SLOTS))  # 0 is free
        self._n_used = 0

    def find(self, end: int) -> int:
        """The place of the n-gram that ends before `text[end]`, or 0 if it was never added."""
        return self._slots[self._slot(end)] if end >= self._order else 0

    def add(self, end: int) -> None:
        """Note that the n-gram before `text[end]` occurred there."""
        if end < self._order:
            return
        slot = self._slot(end)
        if self._slots[slot]:
            if not self._first:
                self._slots[slot] = end
            return
        self._slots[slot] = end
        self._n_used += 1
        if 2 * self._n_used > len(self._slots):
            self._grow()

    def _slot(self, end: int) -> int:
        """Where the n-gram before `end` is noted, or else the free slot for it."""
        text, slots, order = self._text, self._slots, self._order
        gram = text[end - order : end]
        mask = len(slots) - 1
        slot = hash(tuple(gram)) & mask
        while (place := slots[slot]) and text[place - order : place] != gram:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        places = [place for place in self._slots if place]
        self._slots = array("i", bytes(8 * len(self._slots)))
        for place in places:
            self._slots[self._slot(place)] = place


def tokens_added(text: array[int], context: Tokens) -> list[int] | None:
    """What `context` has beyond `text`, or None where it does not begin with it."""
    n = len(text)
    if len(context) < n or not np.array_equal(np.array(text, np.int32), context[:n]):
        return None
    added: list[int] = context[n:].tolist()
    return added


def match_length(text: array[int], a: int, b: int) -> int:
    """How many tokens before `text[a]` equal those before `text[b]`, up to a few."""
    n = 0
    limit = min(a, b, _FARTHEST)
    while n < limit and text[a - n - 1] == text[b - n - 1]:
        n += 1
    return n
