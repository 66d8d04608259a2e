"""Gears: which width the next calls have, where changing it costs time.

A width is changed only where that pays for the change, and a call of any width takes as many
draft tokens as it has rows. What is lost with a width in one step is its call's time beyond what
its tokens would take at the best width of that step, C(w) - E(w) / r: so a width is measured by
the text at hand, for tokens of a text cannot be had elsewhere. What will be lost from then on
depends on how texts go on (see outlook.py): a Markov decision process of few states, solved by
value iteration (Bellman, "A Markovian Decision Process", 1957) whenever the prices have changed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from specgen.core.cost.gear import FREE, Gear
from specgen.core.protocols import Change

from .outlook import Outlook, shipped_outlook

# What drafts promise is taken to be so many times too much: the highest of many estimates is.
PREMIUM: Final = 1.05

_SWEEPS: Final = 160  # of value iteration, from nothing
_FURTHER_SWEEPS: Final = 16  # and from what was found under other prices
_CHECKED: Final = 64  # steps between two looks at the prices
_CHANGED: Final = 0.05  # prices that differ by less, relative to one row's, are the same

_Losses: TypeAlias = list[list[list[float]]]  # by state, width, and whether the width is new


def believed(expected: float) -> float:
    """The tokens of a step that promises `expected`."""
    return 1 + (expected - 1) / PREMIUM


class Gears:
    """The width of the last call, and the choice of the next.

    Args:
        widths: rows that calls may have, rising.
        outlook: how texts go on; None takes the one that is shipped.
    """

    def __init__(self, widths: Sequence[int], outlook: Outlook | None = None) -> None:
        self.last = Gear()
        self._widths = tuple(widths)
        self._given = outlook
        self._prices: tuple[float, ...] = ()  # what `_losses` was worked out for, one row's are 1
        self._values: NDArray[np.float64] | None = None
        self._losses: _Losses = []  # seconds to be lost from then on, in calls with one row
        self._age = 0

    @property
    def _outlook(self) -> Outlook:
        return self._given or shipped_outlook()

    def called(self, n_rows: int) -> None:
        """A call of `n_rows` rows was made."""
        self.last = self.last.after(n_rows)

    def choose(
        self,
        expected: Sequence[float],
        trend: float,
        n_pending: int,
        costs: Sequence[float],
        change: Change,
        most: int,
    ) -> int:
        """The rows of the next call.

        Args:
            expected: tokens that a tree of 1, 2, … nodes promises.
            trend: what drafts promised lately, see outlook.Trend.
            n_pending: rows ahead of the tree.
            costs: seconds of a call with 1, 2, … rows in a run of its width.
            change: what calls of a new width take more.
            most: the most rows; but the least width that holds the root is always allowed.
        """
        first = bisect_right(self._widths, n_pending)
        fit = self._widths[first : max(first + 1, bisect_right(self._widths, most))]
        seconds = [costs[width - 1] for width in fit]
        last = len(expected)
        tokens = [believed(expected[min(width - n_pending, last) - 1]) for width in fit]
        pace = max(map(float.__truediv__, tokens, seconds))
        lost = [s - t / pace for s, t in zip(seconds, tokens, strict=True)]
        if change != FREE:
            future = self._future(costs, change)[self._outlook.state(expected, trend)]
            plain_s = costs[0]
            for i, width in enumerate(fit):
                lost[i] += self.last.extra_s(width, change)
                lost[i] += plain_s * future[first + i][width != self.last.width]
        return fit[lost.index(min(lost))]

    def _future(self, costs: Sequence[float], change: Change) -> _Losses:
        """What will be lost behind the next call, worked out anew where prices have changed."""
        self._age -= 1
        if self._age < 0:
            self._age = _CHECKED
            plain_s = costs[0]
            prices = (
                *[costs[w - 1] / plain_s for w in self._widths],
                *[s / plain_s for s in change],
            )
            if not _alike(prices, self._prices):
                self._prices = prices
                self._solve(np.array(prices[: len(self._widths)]), Change(*prices[-2:]))
        return self._losses

    def _solve(self, costs: NDArray[np.float64], change: Change) -> None:
        """Value iteration; costs (widths,) and the change in calls with one row."""
        tokens, moves = self._outlook.at(self._widths)  # (states, widths), (widths, states, states)
        pace = (tokens / costs).max(axis=1, keepdims=True)
        lost = costs - tokens / pace
        values, sweeps = self._values, _FURTHER_SWEEPS
        if values is None:
            values, sweeps = np.zeros((*tokens.shape, 2)), _SWEEPS
        for _ in range(sweeps):
            ahead = np.matmul(moves, values.transpose(1, 0, 2)).transpose(1, 0, 2)
            stay = lost + ahead[:, :, 0]
            go = _least_of_others(lost + ahead[:, :, 1]) + change.first_s
            old, new = np.minimum(stay, go), np.minimum(stay + change.second_s, go)
            values = np.stack((old, new), axis=2)
            values -= values.mean()
        self._values = values
        self._losses = np.matmul(moves, values.transpose(1, 0, 2)).transpose(1, 0, 2).tolist()


def _least_of_others(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each value (states, widths) the least one of the other widths."""
    if values.shape[1] == 1:
        return np.full_like(values, np.inf)
    least, second = np.partition(values, 1, axis=1)[:, :2].T[:, :, None]
    others: NDArray[np.float64] = np.where(values == least, second, least)
    return others


def _alike(prices: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two lists of prices are the same but for noise."""
    if len(prices) != len(others):
        return False
    return all(
        math.isclose(a, b, rel_tol=_CHANGED, abs_tol=_CHANGED)
        for a, b in zip(prices, others, strict=True)
    )
