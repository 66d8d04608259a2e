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
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeAlias

import numpy as np

from specgen.core.protocols import Candidate, Logits, Tokens
from specgen.core.tree import DraftTree, Evidence

from .evidence import LONGEST_COPY

ORDERS = (1, 2, 3, 5, 8, 16)
LONGEST = ORDERS[-1]
OCCURRENCES = 6  # looked at for one ending, the latest first
LEVELS = 2  # endings with a match that are looked at, the longest first
SURE = 8  # tokens of an ending that is enough by itself, if one token alone followed it
CAPACITY = 1 << 16  # most tokens remembered, the latest
_FEWEST = 1 << 10  # tokens that there is room for from the start
_HEADS = 1 << 16  # by the upper bits of a hash
_BITS = 30  # of a hash: Python's integers are quickest up to there
_MASK = (1 << _BITS) - 1
_SHIFT = _BITS - 16
_BASE, _SPREAD = 0x2545F491, 0x1F3D5B79  # odd, with bits all over
_POWERS = tuple([(order, pow(_BASE, order, 1 << _BITS)) for order in ORDERS])

# Running hashes of the text up to its last LONGEST + 1 places, drafted tokens included, and how
# many more may be drafted.
_State: TypeAlias = tuple[tuple[int, ...], int]

# An ending that occurred before: which of ORDERS, its hash, and the latest place.
_Match: TypeAlias = tuple[int, int, int]


class Suffix:
    """See specgen.core.protocols.Drafter.

    Memory: 1.5 MiB and 52 bytes a token, doubled as the text grows, at most 4.8 MiB. Time:
    O(1) a token and a state, but for places whose hashes have the upper half in common.

    Args:
        standalone: draft as the papers do, up to 1 + 4 x match tokens of the likeliest guess.
    """

    name = "suffix"
    effort = None
    reads_logits = False
    occurrences = OCCURRENCES

    def __init__(self, standalone: bool = False) -> None:
        self._standalone = standalone
        # For each order: the latest place behind an ending with this hash, and from each place
        # the one before it; places count tokens from the start of the text.
        self._heads = [array("i", [-1]) * _HEADS for _ in ORDERS]
        self._make_room(_FEWEST)
        self._n = 0
        self._ends: tuple[int, ...] = (0,)
        self._found_last = 0  # which of ORDERS

    def _make_room(self, capacity: int) -> None:
        """Empty rings for so many tokens, a power of 2."""
        self._text = array("i", bytes(4 * capacity))
        self._earlier = [array("i", bytes(4 * capacity)) for _ in ORDERS]
        self._hashes = [array("i", bytes(4 * capacity)) for _ in ORDERS]
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
        ends = np.fromiter(running(tokens.tolist()), np.int64, n + 1)
        for i, (first, power) in enumerate(_POWERS):  # `first` has enough before it
            heads = np.asarray(self._heads[i])
            heads[:] = -1
            keys = (ends[first:n] - ends[: max(n - first, 0)] * power) & _MASK
            slots = keys >> _SHIFT
            by_head = slots.argsort(kind="stable")  # chains, one after the other
            ordered = slots[by_head]
            is_first = np.ones(len(slots), bool)
            is_first[1:] = ordered[1:] != ordered[:-1]
            before = np.concatenate(([-1], by_head[:-1] + first))
            np.asarray(self._earlier[i])[by_head + first] = np.where(is_first, -1, before)
            np.asarray(self._hashes[i])[first : first + len(keys)] = keys
            heads[slots] = np.arange(first, first + len(slots))  # of equals the last one stays
        self._n = n
        self._ends = tuple(ends[-LONGEST - 1 :].tolist())

    def root(self) -> _State | None:
        """The end of the text."""
        if len(self._ends) == 1:
            return None
        if not self._standalone:
            return (self._ends, LONGEST_COPY)
        match = self._longest(self._ends)
        return (self._ends, 1 + 4 * ORDERS[match[0]]) if match else None

    def advance(self, state: _State, token: int) -> _State:
        """See Drafter."""
        ends, left = state
        return (after(ends, token), left - 1)

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        self._extend(emitted)

    def predict(self, state: _State) -> Sequence[Candidate]:
        """Tokens that followed the two longest endings with a match, the longest first."""
        ends, left = state
        if left <= 0:
            return ()
        found: dict[int, Candidate] = {}
        match = self._longest(ends)
        for level in range(LEVELS):
            if match is None:
                break
            i, key, place = match
            self._rank(found, self._followers(i, key, place), ORDERS[i], level)
            if len(found) == 1 and ORDERS[i] >= SURE:
                break
            match = self._latest(i - 1, ends)
        guesses = list(found.values())
        return guesses[:1] if self._standalone else guesses

    def _longest(self, ends: tuple[int, ...]) -> _Match | None:
        """The longest ending that occurred before.

        Where one did all shorter ones did. So the search begins at the length found last time,
        which mostly is that of this time, and goes up, or else down.
        """
        i = self._found_last
        match = self._latest(i, ends)
        while match and (longer := self._latest(i + 1, ends)):
            i, match = i + 1, longer
        while not match and i > 0:
            i -= 1
            match = self._latest(i, ends)
        self._found_last = i
        return match

    def _latest(self, i: int, ends: tuple[int, ...]) -> _Match | None:
        """Where the ending of ORDERS[i] tokens occurred last, if there is one and it did."""
        if not 0 <= i < len(ORDERS) or ORDERS[i] >= len(ends):
            return None
        order, power = _POWERS[i]
        key = _key(ends, order, power)
        ring, hashes = self._ring, self._hashes[i]
        oldest = max(self._n - ring - 1, 0)
        place = self._heads[i][key >> _SHIFT]
        while place >= oldest:
            if hashes[place & ring] == key:
                return i, key, place
            place = self._earlier[i][place & ring]
        return None

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

    def _followers(self, order_index: int, key: int, place: int) -> list[int]:
        """Tokens that came after the ending with this hash, from `place` on, the latest first."""
        hashes, earlier = self._hashes[order_index], self._earlier[order_index]
        ring = self._ring
        oldest = max(self._n - ring - 1, 0)
        followers = []
        while place >= oldest:
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
            for i, (order, power) in enumerate(_POWERS):
                if order >= len(self._ends):
                    break
                key, heads = _key(self._ends, order, power), self._heads[i]
                self._earlier[i][slot] = heads[key >> _SHIFT]
                self._hashes[i][slot] = key
                heads[key >> _SHIFT] = place
            self._text[slot] = token
            self._n = place + 1
            self._ends = after(self._ends, token)


def _key(ends: tuple[int, ...], order: int, power: int) -> int:
    """Hash of the last `order` tokens; see _POWERS."""
    return (ends[-1] - ends[-1 - order] * power) & _MASK


def running(tokens: Iterable[int]) -> Iterator[int]:
    """Hashes of the first 0, 1, … of the tokens.

    Polynomials, so that of the last k tokens alone it is h[-1] - h[-1 - k] * _BASE ** k.
    """
    return accumulate(tokens, _extended, initial=0)


def after(ends: tuple[int, ...], token: int) -> tuple[int, ...]:
    """`ends` one token later."""
    return (*ends[-LONGEST:], _extended(ends[-1], token))


def _extended(end: int, token: int) -> int:
    return (end * _BASE + (token + 1) * _SPREAD) & _MASK


def _prior(order: int, level: int, rank: int, share: int) -> float:
    prior = min(0.9, 0.12 + 0.1 * order) * 0.6**level * 0.5**rank
    return min(0.95, 1.3 * prior) if share == 9 else prior
