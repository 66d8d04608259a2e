"""Suffix matching: what followed the longest endings of the text where they occurred before?

For endings of several lengths the last few occurrences are looked at. A guess is a token that
followed one of them; its evidence is how long the longest such ending is, how recently and how
often the token followed it, and what else did. One drafter for long copies and short habits.

Sources: Oliaro et al., "SuffixDecoding", arXiv 2411.04975 (counts below a matched suffix); Hu et
al., "SAM Decoding", arXiv 2411.10666 (longest match, and a copy length of 1 + 4 x match). Instead
of a trie or an automaton, chains of positions by hashed ending, as LZ77 packers keep them: the
memory is constant, and a branch of the draft is looked up like the text itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specgen.core.protocols import Candidate, Logits, Tokens
from specgen.core.tree import DraftTree, Evidence

from .evidence import LONGEST_COPY

ORDERS = (1, 2, 3, 5, 8, 16)
LONGEST = ORDERS[-1]
OCCURRENCES = 6  # looked at for one ending, the latest first
LEVELS = 2  # endings with a match that are looked at, the longest first
CAPACITY = 1 << 16  # most tokens remembered, the latest
_FEWEST = 1 << 10  # tokens that there is room for from the start
_HEADS = (1 << 16) - 1
_FACTOR = 0x9E3779B97F4A7C15
_BITS = (1 << 62) - 1


class _State(NamedTuple):
    """The last LONGEST tokens, drafted ones included, and how many more may be drafted."""

    tail: tuple[int, ...]
    left: int


class Suffix:
    """See specgen.core.protocols.Drafter.

    Memory: 1.5 MiB and 76 bytes a token, doubled as the text grows, at most 6.3 MiB. Time:
    O(LONGEST) a token and a state.

    Args:
        alone: draft as the papers do, up to 1 + 4 x match tokens of the likeliest guess.
    """

    name = "suffix"
    occurrences = OCCURRENCES

    def __init__(self, alone: bool = False) -> None:
        self._alone = alone
        # For each order: the latest place behind an ending with this hash, and from each place
        # the one before it; places count tokens from the start of the text.
        self._heads = [array("i", [-1]) * (_HEADS + 1) for _ in ORDERS]
        self._make_room(_FEWEST)
        self._n = 0
        self._tail: tuple[int, ...] = ()

    def _make_room(self, capacity: int) -> None:
        """Empty rings for so many tokens, a power of 2."""
        self._text = array("i", bytes(4 * capacity))
        self._earlier = [array("i", bytes(4 * capacity)) for _ in ORDERS]
        self._hashes = [array("q", bytes(8 * capacity)) for _ in ORDERS]
        self._ring = capacity - 1

    def _double(self) -> None:
        """Twice as large rings; the text has filled these, and so every place is where it was."""
        for ring in (self._text, *self._earlier, *self._hashes):
            ring.frombytes(bytes(ring.itemsize * len(ring)))
        self._ring = 2 * self._ring + 1

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        self._index(context)

    def _index(self, tokens: Tokens) -> None:
        """What `_extend` would do token by token, from nothing, for all `tokens` at once."""
        tokens = tokens[-CAPACITY:]
        n = len(tokens)
        self._make_room(max(_FEWEST, 1 << (n - 1).bit_length()))
        np.asarray(self._text)[:n] = tokens
        for i, keys in enumerate(_all_hashes(tokens)):
            heads = np.asarray(self._heads[i])
            heads[:] = -1
            first = ORDERS[i]  # the first place with so many tokens before it
            slots = (keys & _HEADS).astype(np.int64)
            by_head = slots.argsort(kind="stable")  # chains, one after the other
            ordered = slots[by_head]
            is_first = np.ones(len(slots), bool)
            is_first[1:] = ordered[1:] != ordered[:-1]
            before = np.concatenate(([-1], by_head[:-1] + first))
            np.asarray(self._earlier[i])[by_head + first] = np.where(is_first, -1, before)
            np.asarray(self._hashes[i])[first : first + len(keys)] = keys
            heads[slots] = np.arange(first, first + len(slots))  # of equals the last one stays
        self._n = n
        self._tail = tuple(tokens[-LONGEST:].tolist())

    def root(self) -> _State | None:
        """The end of the text."""
        if not self._tail:
            return None
        if not self._alone:
            return _State(self._tail, LONGEST_COPY)
        hashes = _hashes(self._tail)
        matches = [ORDERS[i] for i, key in enumerate(hashes) if self._followers(i, key)]
        return _State(self._tail, 1 + 4 * matches[-1]) if matches else None

    def advance(self, state: _State, token: int) -> _State:
        """See Drafter."""
        return _State(_after(state.tail, token), state.left - 1)

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        self._extend(emitted)

    def predict(self, state: _State) -> Sequence[Candidate]:
        """Tokens that followed the two longest endings with a match, the longest first."""
        if state.left <= 0:
            return ()
        hashes = _hashes(state.tail)
        found: dict[int, Candidate] = {}
        level = 0
        for i in range(len(hashes) - 1, -1, -1):
            followers = self._followers(i, hashes[i])
            if not followers:
                continue
            self._rank(found, followers, ORDERS[i], level)
            level += 1
            if level == LEVELS:
                break
        guesses = list(found.values())
        return guesses[:1] if self._alone else guesses

    def _rank(
        self, found: dict[int, Candidate], followers: list[int], order: int, level: int
    ) -> None:
        """Add the tokens of one ending, the latest first, that no longer one had."""
        n = len(followers)
        for rank, token in enumerate(dict.fromkeys(followers)):
            if token in found:
                continue
            count = followers.count(token)
            rank = min(rank, 3)
            share = 9 if count == n else count
            evidence: Evidence = (self.name, order, level, rank, n, share)
            found[token] = Candidate(token, evidence, _prior(order, level, rank, share))

    def _followers(self, order_index: int, key: int) -> list[int]:
        """Tokens that came after the ending with this hash, the latest first."""
        place = self._heads[order_index][key & _HEADS]
        if place < 0:
            return []
        hashes, earlier = self._hashes[order_index], self._earlier[order_index]
        ring = self._ring
        oldest = self._n - ring - 1
        followers = []
        while place >= max(oldest, 0):
            slot = place & ring
            if hashes[slot] == key:
                followers.append(self._text[slot])
                if len(followers) == self.occurrences:
                    break
            place = earlier[slot]
        return followers

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            place = self._n
            if self._ring < place < CAPACITY:
                self._double()
            slot = place & self._ring
            for i, key in enumerate(_hashes(self._tail)):
                heads = self._heads[i]
                self._earlier[i][slot] = heads[key & _HEADS]
                self._hashes[i][slot] = key
                heads[key & _HEADS] = place
            self._text[slot] = token
            self._n = place + 1
            self._tail = _after(self._tail, token)


def _after(tail: tuple[int, ...], token: int) -> tuple[int, ...]:
    return (*tail[1 - LONGEST :], token)


def _hashes(tail: tuple[int, ...]) -> list[int]:
    """Hashes of the endings of `tail`, for as many of ORDERS as it is long enough for."""
    keys = []
    key = 0
    for length, token in enumerate(reversed(tail), start=1):
        key = (key * _FACTOR + token + 1) & _BITS
        key ^= key >> 29
        if length in _ORDER_SET:
            keys.append(key)
    return keys


def _all_hashes(tokens: Tokens) -> list[NDArray[np.uint64]]:
    """For each of ORDERS, `_hashes` of the tokens before every place from that one on, but the end.

    Products wrap at 64 bits, which leaves the 62 that count as they are.
    """
    n = len(tokens)
    words = tokens.astype(np.uint64)
    key = np.zeros(n, np.uint64)
    found = []
    for length in range(1, LONGEST + 1):
        # key[j] is for place length - 1 + j; one more token to the left loses the first place.
        key = key[1:] if length > 1 else key
        key = (key * np.uint64(_FACTOR) + words[: len(key)] + np.uint64(1)) & np.uint64(_BITS)
        key ^= key >> np.uint64(29)
        if length in _ORDER_SET:
            found.append(key[:-1] if len(key) else key)
    return found


_ORDER_SET = frozenset(ORDERS)


def _prior(order: int, level: int, rank: int, share: int) -> float:
    prior = min(0.9, 0.12 + 0.1 * order) * 0.6**level * 0.5**rank
    return min(0.95, 1.3 * prior) if share == 9 else prior
