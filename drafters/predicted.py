"""Predicted output: the answer will mostly repeat a text that is already here.

A pointer runs along the predicted text. Where the answer leaves it, some ways to go on are
tried at once: tokens were replaced, dropped or put in, or the last tokens stand elsewhere. A
track that the next tokens agree with lives on, the others end.

Source: Ge et al., "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding", arXiv
2205.10350, section 3 (copy on, and after a mismatch match the last tokens again).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from specgen.core.protocols import Candidate, Logits, Tokens
from specgen.core.tree import DraftTree

from .evidence import LONGEST_COPY, length_bucket

WINDOW = 32  # tokens that an edit may drop, put in or replace without a search
SHORTEST, LONGEST = 3, 8  # tokens that must, and that may, agree with another place
SURE = 3  # tokens in agreement that make a track the truth
TRACKS = 4  # followed at once
NEIGHBOURS = 4  # places compared on each side of the pointer

_BITS = 21  # of a token in a packed n-gram

# Ways in which a track came about, and rough chances of its first token.
_ON, _FOUND, _FOUND_AGAIN, _DROPPED, _REPLACED, _PUT_IN = range(6)
_FIRST_CHANCE = {
    _ON: 0.6, _FOUND: 0.7, _FOUND_AGAIN: 0.4, _DROPPED: 0.3, _REPLACED: 0.35, _PUT_IN: 0.15
}  # fmt: skip
_CHANCE = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # by the bucket of tokens in agreement


class _Track(NamedTuple):
    """A way to go on: the place of the next token, how it came about, tokens that agreed since."""

    next: int
    how: int
    agreed: int


class _State(NamedTuple):
    """Where the text stands.

    Attributes:
        tracks: ways to go on, the best first, at different places.
        anchor: the place that followed the last sure agreement.
        astray: tokens since then.
        tail: the last tokens, as many as a search may use.
        drafted: tokens since the end of the text.
    """

    tracks: tuple[_Track, ...]
    anchor: int
    astray: int
    tail: tuple[int, ...]
    drafted: int


class Predicted:
    """See specgen.core.protocols.Drafter. A text begins where the context ends.

    Memory: 16 bytes per predicted token, 2 MiB for 131,072.

    Args:
        tokens: the predicted text.
        standalone: after a mismatch, copy on only from the one place where the last tokens stand.
    """

    name = "predicted"
    effort = None
    reads_logits = False

    def __init__(self, tokens: Sequence[int], standalone: bool = False) -> None:
        self._standalone = standalone
        self._predicted = array("i", tokens)
        self._keys, self._places = _index(self._predicted)
        self._state = self._start()

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        self._state = self._start()

    def root(self) -> _State | None:
        """See Drafter."""
        return self._state if self._predicted else None

    def predict(self, state: _State) -> Sequence[Candidate]:
        """The next token of every track, the best track first."""
        if state.drafted >= LONGEST_COPY:
            return ()
        predicted, copied = self._predicted, length_bucket(state.drafted)
        found: dict[int, Candidate] = {}
        for place, how, agreed in state.tracks:
            if place < len(predicted) and (token := predicted[place]) not in found:
                bucket = length_bucket(agreed)
                # After long agreement it says no more how it began.
                evidence = (self.name, how if bucket < 4 else -1, bucket, copied)
                chance = _CHANCE[bucket] if agreed else _FIRST_CHANCE[how]
                found[token] = Candidate(token, evidence, chance)
        return list(found.values())

    def advance(self, state: _State, token: int) -> _State:
        """Follow the tracks that go on with `token`, or look for new ones."""
        predicted, n = self._predicted, len(self._predicted)
        tail = (*state.tail[1 - LONGEST :], token)
        going_on = [
            _Track(place + 1, how, agreed + 1)
            for place, how, agreed in state.tracks
            if place < n and predicted[place] == token
        ]
        best = max(going_on, key=lambda track: track.agreed, default=None)
        if best and (best.agreed >= SURE or self._standalone or best.how in (_ON, _FOUND)):
            return _State((best,), best.next, 0, tail, state.drafted + 1)
        astray = state.astray + 1
        tracks = going_on + self._realign(state.anchor, astray, tail)
        return _State(_different(tracks), state.anchor, astray, tail, state.drafted + 1)

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        for token in emitted:
            self._state = self.advance(self._state, token)._replace(drafted=0)

    def _start(self) -> _State:
        return _State((_Track(0, _ON, 0),), 0, 0, (), 0)

    def _realign(self, anchor: int, astray: int, tail: tuple[int, ...]) -> list[_Track]:
        """Ways to go on, `astray` tokens after the pointer stood at `anchor`."""
        tracks = self._search(anchor, tail)
        if self._standalone or astray > WINDOW:
            return tracks
        n, window = len(self._predicted), range(anchor, anchor + WINDOW)
        replaced, put_in = _Track(anchor + astray, _REPLACED, 0), _Track(anchor, _PUT_IN, 0)
        try:
            at = self._predicted.index(tail[-1], window.start, min(window.stop, n))
            dropped = [_Track(at + 1, _DROPPED, 0)]
        except ValueError:
            dropped = []
        return [*tracks, *dropped, replaced, put_in]

    def _search(self, anchor: int, tail: tuple[int, ...]) -> list[_Track]:
        """The place of the last tokens that agrees longest; of equals the nearest to `anchor`."""
        if len(tail) < SHORTEST:
            return []
        key = _pack(tail[-SHORTEST:])
        first, last = bisect_left(self._keys, key), bisect_left(self._keys, key + 1)
        if first == last or (self._standalone and last - first > 1):
            return []
        here = bisect_left(self._places, anchor, first, last)
        nearby = self._places[max(first, here - NEIGHBOURS) : min(last, here + NEIGHBOURS)]
        # What comes after the pointer is nearer: a text is mostly repeated forwards.
        place = max(nearby, key=lambda p: (self._agreement(p, tail), p >= anchor, -abs(p - anchor)))
        how = _FOUND if last - first == 1 else _FOUND_AGAIN
        return [_Track(place, how, 0)]

    def _agreement(self, place: int, tail: tuple[int, ...]) -> int:
        """How many of the last tokens stand before `place`."""
        n = 0
        for token in reversed(tail):
            if n == place or self._predicted[place - n - 1] != token:
                break
            n += 1
        return n


def _index(tokens: array[int]) -> tuple[array[int], array[int]]:
    """All n-grams, packed and sorted, and the places behind them, ascending for equal ones."""
    ids = np.array(tokens, np.int64)
    n = max(len(ids) - SHORTEST + 1, 0)
    keys = np.zeros(n, np.int64)
    for i in range(SHORTEST):
        keys = keys << _BITS | ids[i : i + n]
    order = keys.argsort(kind="stable")
    places = (order + SHORTEST).astype(np.int32)
    return array("q", keys[order].tobytes()), array("i", places.tobytes())


def _pack(gram: Sequence[int]) -> int:
    key = 0
    for token in gram:
        key = key << _BITS | token
    return key


def _different(tracks: Sequence[_Track]) -> tuple[_Track, ...]:
    """The first few tracks at different places."""
    at: dict[int, _Track] = {}
    for track in tracks:
        at.setdefault(track.next, track)
    return tuple(at.values())[:TRACKS]
