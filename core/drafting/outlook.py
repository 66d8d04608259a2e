"""How texts go on: what drafts promise next, by what they promise now and promised lately.

Text that copies goes on copying for a while, and text without anything to draft from stays so.
Here that is a Markov chain over few states, counted token by token in recorded conversations
(benchmarks/make_outlook.py); a step that emits k tokens moves k times.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

NOW: Final = 4  # what a tree of so many nodes promises tells states apart
LATELY: Final = 8  # the trend is about trees of so many nodes
_FADE: Final = 0.05  # a token's weight in the trend
_START: Final = 0.3  # the trend at the beginning of a text
_LONGEST: Final = 64  # a step moves at most so many times


class Trend:
    """What drafts promised lately in a text: the mean logarithm of a tree's expected tokens."""

    def __init__(self) -> None:
        self.value = _START
        self._promised = _START

    def promised(self, expected: Sequence[float]) -> None:
        """A tree of 1, 2, … nodes promises so many tokens."""
        self._promised = math.log(min(expected[min(LATELY, len(expected)) - 1], LATELY))

    def passed(self, n_tokens: int) -> None:
        """The text grew by `n_tokens`."""
        self.value += (1 - (1 - _FADE) ** n_tokens) * (self._promised - self.value)


@dataclass(frozen=True)
class Outlook:
    """A Markov chain of what drafts promise.

    Attributes:
        now: bounds of what a tree of NOW nodes promises, tokens, rising.
        lately: bounds of the trend, rising.
        sizes: nodes of trees, rising.
        tokens: (states, sizes) that a tree promises; state `now class * lately classes + lately
            class`.
        moves: (states, states) chances of the next token's state.
    """

    now: tuple[float, ...]
    lately: tuple[float, ...]
    sizes: tuple[int, ...]
    tokens: NDArray[np.float64]
    moves: NDArray[np.float64]

    def state(self, expected: Sequence[float], trend: float) -> int:
        """The state of a text in which a tree of 1, 2, … nodes promises `expected` tokens."""
        now = bisect_right(self.now, expected[min(NOW, len(expected)) - 1])
        return now * (len(self.lately) + 1) + bisect_right(self.lately, trend)

    def at(self, widths: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a step with each width brings: tokens (states, widths), and chances
        (widths, states, states) of the state behind it.
        """
        tokens = np.array([np.interp(widths, self.sizes, row) for row in self.tokens])
        powers = [np.eye(len(self.moves))]
        for _ in range(_LONGEST):
            powers.append(powers[-1] @ self.moves)
        steps = np.rint(tokens).astype(int).clip(1, _LONGEST)
        states = np.arange(len(tokens))[:, None]
        return tokens, np.array(powers)[steps, states].transpose(1, 0, 2)

    def record(self) -> dict[str, Any]:
        """As JSON, for `from_record`."""
        return {
            "now": list(self.now),
            "lately": list(self.lately),
            "sizes": list(self.sizes),
            "tokens": [[round(value, 3) for value in row] for row in self.tokens.tolist()],
            "moves": [[round(value, 4) for value in row] for row in self.moves.tolist()],
        }

    @classmethod
    def from_record(cls, record: Any) -> Outlook:
        """The chain of a record that `record` made."""
        moves = np.array(record["moves"])
        return cls(
            tuple(record["now"]),
            tuple(record["lately"]),
            tuple(record["sizes"]),
            np.array(record["tokens"]),
            moves / moves.sum(axis=1, keepdims=True),
        )


@cache
def shipped_outlook() -> Outlook:
    """Counted in recorded conversations, see benchmarks/make_outlook.py."""
    return Outlook.from_record(json.loads(Path(__file__).with_name("outlook.json").read_bytes()))
