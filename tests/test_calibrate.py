"""The calibrator: what it says is what happens, and agreement counts for what it is worth."""

from __future__ import annotations

import random

import pytest

from specgen.core.calibrate import Calibrator, logit, squash


def rate(calibrator: Calibrator, evidence: list[tuple[str | int, ...]]) -> float:
    """What the calibrator says of a guess that it has never seen the token of."""
    return calibrator.guess(evidence, 0.3, token=999, last=998, run=0).prob


def train(calibrator: Calibrator, chances: dict[tuple[str | int, ...], float]) -> None:
    """Thousands of guesses, each right by the chance of its evidence."""
    rng = random.Random(1)
    for _ in range(3000):
        for evidence, chance in chances.items():
            guess = calibrator.guess([evidence], 0.3, rng.randrange(50), rng.randrange(50), 0)
            calibrator.learn(guess, rng.random() < chance)


def test_unseen_evidence_has_the_drafters_own_estimate() -> None:
    """Before anything is learnt the prior stands."""
    assert rate(Calibrator(), [("a", 1)]) == pytest.approx(0.3)


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.7, 0.95])
def test_estimates_become_the_frequencies(chance: float) -> None:
    """After many guesses on some evidence its estimate is how often they were right."""
    calibrator = Calibrator()
    train(calibrator, {("a", 1): chance, ("a", 2): 0.5})
    assert rate(calibrator, [("a", 1)]) == pytest.approx(chance, abs=0.12)


def test_agreement_of_independent_drafters_counts() -> None:
    """Guesses that two drafters share are found to be better than those of either."""
    calibrator = Calibrator()
    rng = random.Random(2)
    for _ in range(4000):
        for evidence, chance in (([("a",)], 0.4), ([("b",)], 0.4), ([("a",), ("b",)], 0.8)):
            guess = calibrator.guess(evidence, 0.3, rng.randrange(50), rng.randrange(50), 0)
            calibrator.learn(guess, rng.random() < chance)
    assert rate(calibrator, [("a",), ("b",)]) > rate(calibrator, [("a",)]) + 0.15


def test_estimates_follow_a_text_that_changes() -> None:
    """Old counts decay."""
    calibrator = Calibrator()
    train(calibrator, {("a", 1): 0.9})
    train(calibrator, {("a", 1): 0.1})
    assert rate(calibrator, [("a", 1)]) < 0.3


def test_probabilities_stay_inside_0_and_1() -> None:
    """However sure the evidence."""
    calibrator = Calibrator()
    for _ in range(5000):
        calibrator.learn(calibrator.guess([("a",)], 0.99, 1, 2, 9), True)
    prob = calibrator.guess([("a",)], 0.99, 1, 2, 9).prob
    assert 0.9 < prob < 1


def test_squash_undoes_logit() -> None:
    """Between the bounds that keep logits finite."""
    for p in (0.001, 0.2, 0.5, 0.9, 0.999):
        assert squash(logit(p)) == pytest.approx(p)
    assert logit(0.0) == pytest.approx(-logit(1.0))
    assert squash(-1e9) == 0.0
