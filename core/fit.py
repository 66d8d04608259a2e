"""Do draws follow a distribution? Pearson's chi-square test of counts in cells.

Guesses must not show in the distribution of sampled texts. A sampler that draws once per path of
the tree, not once per node, gives guessed tokens several chances, and is found out here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

LEAST_P: Final = 1e-4  # less likely draws are held to be of another distribution
LEAST_EXPECTED: Final = 5.0  # counts of a cell; rarer ones are taken together


@dataclass(frozen=True, slots=True)
class Fit:
    """How well counts fit.

    Attributes:
        draws: counted.
        cells: that they were counted in.
        statistic: sum of (count - expected)^2 / expected.
        p: probability of counts that fit as badly or worse, if the distribution is right.
    """

    draws: int
    cells: int
    statistic: float
    p: float

    @property
    def is_good(self) -> bool:
        """Whether the draws may be of the distribution."""
        return self.p >= LEAST_P


def chi_square(draws: Iterable[Hashable], probabilities: Mapping[Hashable, float]) -> Fit:
    """The fit of `draws` to `probabilities`; what these do not mention shares what is left of 1.

    Rare outcomes are taken together until enough draws are expected of them.
    """
    counts = Counter(draws)
    n = counts.total()
    cells: list[tuple[float, int]] = []  # expected, counted
    for outcome, p in probabilities.items():
        if p * n >= LEAST_EXPECTED:
            cells.append((p * n, counts.pop(outcome, 0)))
    rest = n - sum(expected for expected, _ in cells), counts.total()
    if rest[0] >= LEAST_EXPECTED or not cells:
        cells.append(rest)
    else:
        cells.append(tuple(map(sum, zip(cells.pop(), rest, strict=True))))  # type: ignore[arg-type]
    statistic = sum((count - expected) ** 2 / expected for expected, count in cells)
    return Fit(n, len(cells), statistic, _exceeds(statistic, len(cells) - 1))


def _exceeds(statistic: float, freedom: int) -> float:
    """P(chi-square of so many degrees of freedom >= statistic).

    By the cube root, which is nearly normal (Wilson and Hilferty, 1931).
    """
    if freedom == 0:
        return 1.0
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5
    return NormalDist().cdf(-z)
