"""Do draws follow a distribution? Pearson's chi-square test of counts in cells.

Drafts must not show in the distribution of sampled texts. A sampler that draws once per path of
the tree, not once per node, gives draft tokens several chances, and is found out here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

LEAST_P: Final = 1e-4  # draws that are less likely than this are held to be of another distribution
# Outcomes that are expected less often than this are counted together in one cell.
LEAST_EXPECTED: Final = 5.0

_ROUNDING: Final = 1e-9  # a sum of probabilities may be off by this


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """How well counts fit.

    Attributes:
        draws: counted.
        cells: that they were counted in.
        statistic: sum of (count - expected)^2 / expected.
        p: probability of counts that fit as badly or worse, if they have the distribution; about.
    """

    draws: int
    cells: int
    statistic: float
    p: float

    @property
    def is_good(self) -> bool:
        """Whether the draws may be of the distribution."""
        return self.p >= LEAST_P


def chi_square(draws: Iterable[Hashable], probabilities: Mapping[Hashable, float]) -> ChiSquare:
    """The fit of `draws` to `probabilities`; what these do not mention shares what is left of 1.

    Rare outcomes are taken together until enough draws are expected of them. Where too few are
    even so, the test would not see too many of them, so these are tested alone, too. A draw that
    is impossible fits nothing.
    """
    counts = Counter(draws)
    n = counts.total()
    left = 1 - math.fsum(probabilities.values())
    left = left if left > _ROUNDING else 0.0
    impossible = [outcome for outcome in counts if probabilities.get(outcome, left) == 0]
    cells: list[tuple[float, int]] = []  # expected, counted
    rare = n * left
    for outcome, p in probabilities.items():
        if p * n >= LEAST_EXPECTED:
            cells.append((p * n, counts.pop(outcome, 0)))
        else:
            rare += p * n
    if impossible:
        return ChiSquare(n, len(cells), math.inf, 0.0)
    p_rare = 1.0
    n_rare = counts.total()
    if rare >= LEAST_EXPECTED or not cells:
        cells.append((rare, n_rare))
    else:
        p_rare = _as_many(n_rare, rare)
        expected, count = cells.pop()
        cells.append((expected + rare, count + n_rare))
    statistic = sum((count - expected) ** 2 / expected for expected, count in cells if expected)
    return ChiSquare(n, len(cells), statistic, min(p_rare, _exceeds(statistic, len(cells) - 1)))


def _as_many(count: int, expected: float) -> float:
    """P(`count` or more events, where few are `expected`), by Poisson's distribution."""
    fewer = math.fsum(expected**k / math.factorial(k) for k in range(min(count, 99)))
    return max(0.0, 1 - math.exp(-expected) * fewer)


def _exceeds(statistic: float, freedom: int) -> float:
    """P(chi-square of so many degrees of freedom >= statistic).

    By the cube root, which is nearly normal (Wilson and Hilferty, 1931).
    """
    if freedom == 0:
        return 1.0
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5
    return math.erfc(z * 0.5**0.5) / 2
