"""Strict decoding: every call has a width of one exact class, so no text depends on the drafts.

Calls are padded to the next width of the class. Which class that is depends on the model, the
machine and the settings alone (see rounding.py), never on the drafter or on the text.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from specgen.core.protocols import Change, Prices

from .model import MAX_ROWS, CostModel, Costs
from .rounding import Branching, WidthClasses

# Tokens per step rise by this with each doubling of the rows: recorded answers of 7B and 8B
# models, replayed with all drafters, gave 1.4 with 4 rows and 1.8 with 16.
_GAIN = 0.2


@dataclass(frozen=True, slots=True)
class WidthClass:
    """Widths of calls that give the same bits.

    Attributes:
        widths: rising; of calls, pending tokens before the root included.
        branch: whether that holds for side branches, too.
    """

    widths: tuple[int, ...]
    branch: bool

    @property
    def largest(self) -> int:
        """The largest width."""
        return self.widths[-1]

    @property
    def slack(self) -> int:
        """Rows that padding adds at most."""
        return max(b - a - 1 for a, b in pairwise((0, *self.widths)))

    def within(self, max_rows: int) -> WidthClass:
        """The class without widths that are larger, but for its least one."""
        first, *others = self.widths
        return WidthClass((first, *[n for n in others if n <= max_rows]), self.branch)

    def padded(self, n: int) -> int:
        """The least width that holds `n` rows, at most `largest`."""
        return self.widths[bisect_left(self.widths, n)]


# Each call has one token: that is exact wherever nothing else is.
ONE_ROW = WidthClass((1,), branch=False)


def strict_widths(
    classes: Mapping[int, WidthClasses], branching: Mapping[int, Branching], curve: CostModel
) -> WidthClass:
    """The exact class that is likely to be the fastest, or ONE_ROW if there is none.

    Args:
        classes: by context, widths that give bit-identical rows.
        branching: by context and width, whether that holds for side branches.
        curve: what calls cost.
    """
    groups = [group for group in _everywhere(list(classes.values())) if group[-1] > 1]
    if not groups:
        return ONE_ROW
    costs = curve.costs(0)
    best = max(groups, key=lambda group: max(_speed(costs, width) for width in group))
    tried = [[known[width] for width in best if width in known] for known in branching.values()]
    return WidthClass(best, branch=bool(tried) and all(known and all(known) for known in tried))


def _everywhere(classes: Sequence[WidthClasses]) -> list[tuple[int, ...]]:
    """Widths that are in one class at every context."""
    if not classes:
        return []
    groups = [set(widths) for widths in classes[0]]
    for other in classes[1:]:
        groups = [both for group in groups for widths in other if (both := group & set(widths))]
    return [tuple(sorted(group)) for group in groups]


def _speed(costs: Costs, width: int) -> float:
    """Tokens per second of an ordinary text, if all calls were `width` wide."""
    return (1 + _GAIN * math.log2(width)) / costs[width - 1]


class StrictPrices:
    """What calls cost once they are padded. Sizes are not explored: padding decides them.

    Args:
        prices: of calls as they are.
        strict: what they are padded to.
    """

    def __init__(self, prices: Prices, strict: WidthClass) -> None:
        self._prices = prices
        self._padded = [strict.padded(n) for n in range(1, strict.largest + 1)]
        self._costs: Costs = ()
        self._costs_of: Sequence[float] = ()

    @property
    def change(self) -> Change:
        """What calls of a new width take more."""
        return self._prices.change

    def costs(self, context: int) -> Costs:
        """Seconds of a call with 1, 2, … rows, each padded. Beyond the class there are none."""
        costs = self._prices.costs(context)
        if costs is not self._costs_of:
            prices = [costs[n - 1] for n in self._padded]
            self._costs = (*prices, *[math.inf] * (MAX_ROWS - len(prices)))
            self._costs_of = costs
        return self._costs

    def observe(
        self, n: int, context: int, seconds: float | None, *, explored: bool = False
    ) -> None:
        """See Prices."""
        self._prices.observe(n, context, seconds, explored=explored)

    def explore(self, context: int, max_rows: int) -> int | None:
        """Which size to try next: none, for padding decides the sizes."""
        return None
