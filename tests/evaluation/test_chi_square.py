"""The chi-square test: tables, right distributions, wrong ones, and cells that are too rare."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Mapping
from typing import Any

import pytest

from specgen.core.evaluation.chi_square import LEAST_P, ChiSquare, _exceeds, chi_square

FAIR: dict[Any, float] = dict.fromkeys(range(6), 1 / 6)
# Large cells, rare ones, and 5 % of outcomes that are not mentioned.
UNEVEN: dict[Any, float] = {
    "a": 0.5,
    "b": 0.2,
    "c": 0.15,
    "d": 0.05,
    **{f"rare {i}": 0.005 for i in range(10)},
}


@pytest.mark.parametrize(
    ("freedom", "statistic", "p"),
    [
        (1, 3.841, 0.05),
        (1, 6.635, 0.01),
        (1, 10.828, 0.001),
        (2, 1.386, 0.5),
        (2, 13.816, 0.001),
        (5, 11.070, 0.05),
        (10, 3.940, 0.95),
        (10, 9.342, 0.5),
        (10, 18.307, 0.05),
        (10, 29.588, 0.001),
        (30, 43.773, 0.05),
        (100, 99.334, 0.5),
        (100, 124.342, 0.05),
        (100, 149.449, 0.001),
    ],
)
def test_tail_is_that_of_the_tables(freedom: int, statistic: float, p: float) -> None:
    """Within 0.01, and of small probabilities within a quarter: the formula is approximate."""
    found = _exceeds(statistic, freedom)
    assert found == pytest.approx(p, abs=0.01)
    assert p > 0.01 or found == pytest.approx(p, rel=0.25)


def test_tail_of_even_freedom_in_closed_form() -> None:
    """For 2k degrees: exp(-x/2) times the first k terms of the series of exp(x/2)."""
    for freedom in (4, 10, 40):
        for statistic in (0.5 * freedom, freedom, 1.5 * freedom, 2 * freedom):
            half = statistic / 2
            terms = [half**k / math.factorial(k) for k in range(freedom // 2)]
            exact = math.exp(-half) * math.fsum(terms)
            assert _exceeds(statistic, freedom) == pytest.approx(exact, abs=0.004)


def test_statistic_of_an_example() -> None:
    """A die thrown sixty times: 25 + 4 + 1 + 4 + 0 + 100, over the ten expected of each face."""
    counts = (5, 8, 9, 8, 10, 20)
    fit = chi_square([face for face in FAIR for _ in range(counts[face])], FAIR)
    assert (fit.draws, fit.cells) == (60, 6)
    assert fit.statistic == pytest.approx(13.4)
    assert fit.p == pytest.approx(0.0199, abs=0.001)


def drawn(seed: int, n: int, probabilities: Mapping[Any, float]) -> list[Hashable]:
    """`n` outcomes; what is left of 1 is drawn as numbers that nobody mentioned."""
    rng = random.Random(seed)
    left = 1 - math.fsum(probabilities.values())
    others = {("other", i): left / 5 for i in range(5)} if left > 1e-9 else {}
    cells = {**probabilities, **others}
    return rng.choices(list(cells), list(cells.values()), k=n)


@pytest.mark.parametrize("probabilities", [FAIR, UNEVEN], ids=["fair", "uneven"])
def test_p_is_uniform_for_the_right_distribution(probabilities: Mapping[Any, float]) -> None:
    """So a limit of 1e-4 is wrong once in about ten thousand times."""
    found = sorted(chi_square(drawn(i, 300, probabilities), probabilities).p for i in range(400))
    furthest = max(abs(p - i / len(found)) for i, p in enumerate(found))
    assert furthest < 1.63 / math.sqrt(len(found)) + 0.01  # Kolmogorov's limit for 1 %
    assert found[0] > LEAST_P


def test_another_distribution_is_found() -> None:
    """A face that comes up a third too often, in 3000 throws."""
    loaded = {0: 4 / 18, **dict.fromkeys(range(1, 6), 14 / 90)}
    fits = [chi_square(drawn(i, 3000, loaded), FAIR) for i in range(50)]
    assert all(not fit.is_good for fit in fits)


def test_rare_cells_are_taken_together() -> None:
    """Hundred outcomes of 1 % each, and 200 draws: two are expected of each, so it is one cell."""
    probabilities: dict[Any, float] = {"often": 0.5} | {i: 0.005 for i in range(100)}
    fit = chi_square(drawn(1, 200, probabilities), probabilities)
    assert (fit.draws, fit.cells) == (200, 2)
    assert fit.is_good


def test_too_many_of_the_rare() -> None:
    """Half a draw was expected, six came: too few for a cell, too many to be chance."""
    probabilities: dict[Any, float] = {"a": 0.5, "b": 0.499}
    fine = chi_square(["a"] * 250 + ["b"] * 249 + ["c"], probabilities)
    odd = chi_square(["a"] * 250 + ["b"] * 244 + ["c"] * 6, probabilities)
    assert fine.p == pytest.approx(1 - math.exp(-0.5), rel=1e-6)
    assert not odd.is_good
    single: dict[Any, float] = {"a": 0.99}
    alone = chi_square(["a"] * 40 + ["b"] * 60, single)
    assert (alone.cells, alone.is_good) == (1, False)


@pytest.mark.parametrize("probabilities", [{"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.4, "no": 0.0}])
def test_the_impossible(probabilities: dict[Any, float]) -> None:
    """One draw that cannot be is enough, whether it was named or not."""
    draws = [*["a"] * 150, *["b"] * 149, "no"]
    assert chi_square(draws, probabilities) == ChiSquare(300, 2, math.inf, 0.0)
    assert chi_square(draws[:-1], {"a": 0.5, "b": 0.5}).is_good


def test_rounding_is_not_impossible() -> None:
    """Sums of floats that miss 1 by a little leave nothing, and too much takes nothing."""
    for chances in ([0.1] * 10, [1 / 3 + 1e-16] * 3):
        probabilities: dict[Any, float] = dict(enumerate(chances))
        draws = drawn(1, 300, probabilities)
        assert chi_square(draws, probabilities).is_good
        assert chi_square([*draws, "no"], probabilities).p == 0


def test_nothing_to_tell_by() -> None:
    """No draws, or one outcome, fit anything."""
    assert chi_square([], FAIR).is_good
    assert chi_square([], {}).is_good
    assert chi_square(["a"] * 300, {"a": 1.0}) == ChiSquare(300, 1, 0.0, 1.0)
    assert chi_square(["a", "b", "b"], {"a": 0.5, "b": 0.5}) == ChiSquare(3, 1, 0.0, 1.0)
    assert chi_square(["a", "b", "b"], {}).is_good
