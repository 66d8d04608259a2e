"""The acceptance model: what it says is what happens, and agreement counts for what it is worth."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest

from specgen.core.drafting.acceptance import (
    CAUTION,
    KEPT_BUCKETS,
    KEPT_VISITS,
    AcceptanceModel,
    logit,
    shipped_priors,
    squash,
)


def rate(acceptance: AcceptanceModel, evidence: list[tuple[str | int, ...]]) -> float:
    """What the acceptance model says of a guess that it has never seen the token of."""
    return acceptance.estimate(evidence, 0.3, token=999, run=0)[0]


def train(acceptance: AcceptanceModel, chances: dict[tuple[str | int, ...], float]) -> None:
    """Thousands of guesses, each right by the chance of its evidence."""
    rng = random.Random(1)
    for _ in range(3000):
        for evidence, chance in chances.items():
            guess = acceptance.estimate([evidence], 0.3, rng.randrange(50), 0)
            acceptance.learn(guess, rng.random() < chance)


def test_unseen_evidence_has_the_drafters_own_estimate() -> None:
    """Before anything is learnt the prior stands, taken with the caution of every new text."""
    logit = math.log(0.3 / 0.7) + CAUTION
    assert rate(AcceptanceModel(), [("a", 1)]) == pytest.approx(1 / (1 + math.exp(-logit)))


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.7, 0.95])
def test_estimates_become_the_frequencies(chance: float) -> None:
    """After many guesses on some evidence its estimate is how often they were right."""
    acceptance = AcceptanceModel()
    train(acceptance, {("a", 1): chance, ("a", 2): 0.5})
    assert rate(acceptance, [("a", 1)]) == pytest.approx(chance, abs=0.12)


def test_agreement_of_independent_drafters_counts() -> None:
    """Guesses that two drafters share are found to be better than those of either."""
    acceptance = AcceptanceModel()
    rng = random.Random(2)
    for _ in range(4000):
        for evidence, chance in (([("a",)], 0.4), ([("b",)], 0.4), ([("a",), ("b",)], 0.8)):
            guess = acceptance.estimate(evidence, 0.3, rng.randrange(50), 0)
            acceptance.learn(guess, rng.random() < chance)
    assert rate(acceptance, [("a",), ("b",)]) > rate(acceptance, [("a",)]) + 0.15


def test_a_new_agreement_begins_as_the_first_drafter_alone() -> None:
    """Whoever joins in changes an estimate only by what is learnt of them together."""
    acceptance = AcceptanceModel()
    train(acceptance, {("a", 1): 0.9, ("a", 2): 0.2})
    for evidence in (("a", 1), ("a", 2)):
        alone = rate(acceptance, [evidence])
        assert rate(acceptance, [evidence, ("b", 7), ("c", 7)]) == alone


def test_estimates_follow_a_text_that_changes() -> None:
    """Old counts decay."""
    acceptance = AcceptanceModel()
    train(acceptance, {("a", 1): 0.9})
    train(acceptance, {("a", 1): 0.1})
    assert rate(acceptance, [("a", 1)]) < 0.3


def test_probabilities_stay_inside_0_and_1() -> None:
    """However sure the evidence."""
    acceptance = AcceptanceModel()
    for _ in range(5000):
        acceptance.learn(acceptance.estimate([("a",)], 0.99, 1, 9), True)
    prob = acceptance.estimate([("a",)], 0.99, 1, 9)[0]
    assert 0.9 < prob < 1


def test_squash_undoes_logit() -> None:
    """Between the bounds that keep logits finite."""
    for p in (0.001, 0.2, 0.5, 0.9, 0.999):
        assert squash(logit(p)) == pytest.approx(p)
    assert logit(0.0) == pytest.approx(-logit(1.0))
    assert squash(-1e9) == 0.0


def test_a_text_wins_and_loses_confidence() -> None:
    """What comes true in a text raises all its guesses, for that text alone."""
    for right in (True, False):
        acceptance = AcceptanceModel()
        before = rate(acceptance, [("new",)])
        for _ in range(20):
            acceptance.learn(acceptance.estimate([("seen",)], 0.3, 1, 0), right)
        assert (rate(acceptance, [("new",)]) > before) is right
        acceptance.begin()
        assert acceptance.copy().estimate([("new",)], 0.3, 7, 5)[0] == pytest.approx(before)


def taught(seed: int = 1) -> AcceptanceModel:
    """One that knows two kinds of evidence, and their agreement."""
    acceptance = AcceptanceModel()
    rng = random.Random(seed)
    for _ in range(500):
        for evidence, chance in (([("a", 1)], 0.2), ([("b", "x")], 0.6), ([("a", 1), ("b",)], 0.8)):
            guess = acceptance.estimate(evidence, 0.3, rng.randrange(9), 0)
            acceptance.learn(guess, rng.random() < chance)
    acceptance.begin()
    return acceptance


def test_a_record_says_the_same() -> None:
    """Through JSON and back: the same estimates, but for rounding."""
    acceptance = taught()
    again = AcceptanceModel.from_record(json.loads(json.dumps(acceptance.record())))
    seen: list[list[tuple[str | int, ...]]] = [[("a", 1)], [("b", "x")], [("a", 1), ("b",)]]
    seen.append([("unseen",)])
    for evidence in seen:
        assert rate(again, evidence) == pytest.approx(rate(acceptance, evidence), abs=0.01)
    assert again.record()["weights"] == acceptance.record()["weights"]


def test_a_record_is_small_and_open_to_news() -> None:
    """Only so many buckets, those that saw most; none counts for so much that it stays wrong."""
    acceptance = AcceptanceModel()
    for i in range(KEPT_BUCKETS + 500):
        acceptance.learn(acceptance.estimate([("e", i)], 0.3, 1, 0), i % 2 == 0)
    for _ in range(300):
        acceptance.learn(acceptance.estimate([("often",)], 0.3, 1, 0), True)
    buckets = acceptance.record()["buckets"]
    assert len(buckets) == KEPT_BUCKETS
    assert max(visits for _, _, visits in buckets) == KEPT_VISITS
    assert any(key == (("often",), 0) for key, _, _ in buckets)


def test_merging_adds_what_both_saw() -> None:
    """Two runs from nothing, merged, estimate what one run over both texts would."""
    one, other = AcceptanceModel(), AcceptanceModel()
    train(one, {("a",): 0.3, ("mine",): 0.9})
    train(other, {("a",): 0.7, ("theirs",): 0.1})
    one.begin()
    one.merge(other)
    for evidence, chance in ((("a",), 0.5), (("mine",), 0.9), (("theirs",), 0.1)):
        assert rate(one, [evidence]) == pytest.approx(chance, abs=0.13)


BAD_RECORDS: list[Any] = [
    None,
    [],
    {"buckets": []},
    {"buckets": [[["a"], 1]], "weights": []},
    {"buckets": [[["a"], 3, 2]], "weights": []},
    {"buckets": [[["a"], 0, 0]], "weights": []},
    {"buckets": [[["a"], float("nan"), 2]], "weights": []},
    {"buckets": [[[None], 1, 2]], "weights": []},
    {"buckets": [[[1, 2, 3], 1, 2]], "weights": []},
    {"buckets": [[[1, 99], 1, 2]], "weights": []},
    {"buckets": [], "weights": [[["a"], [0.5]]]},
    {"buckets": [], "weights": [[["a", "b"], [0.5, 0.5, 0.5]]]},
    {"buckets": [], "weights": [[["a"], [0.5, float("inf")]]]},
]


@pytest.mark.parametrize("record", BAD_RECORDS)
def test_a_record_that_is_none(record: Any) -> None:
    """Nothing is made of what may be damaged."""
    with pytest.raises(ValueError, match="no record of an acceptance model"):
        AcceptanceModel.from_record(record)


def test_experience_is_shipped() -> None:
    """A long match is known to be worth more than a short one before anything is generated."""
    acceptance = shipped_priors()
    short = acceptance.estimate([("suffix", 1, 0, 0, 1, 9)], 0.3, 1, 0)
    long = acceptance.estimate([("suffix", 16, 0, 0, 1, 9)], 0.3, 1, 0)
    assert long[0] > short[0] + 0.3
    acceptance.learn(long, False)
    assert shipped_priors().record() != acceptance.record()  # each has one of its own


def test_what_json_does_not_keep_is_left_out() -> None:
    """A drafter of others may count by anything; a record of it must still be read."""
    acceptance = AcceptanceModel()
    part: Any
    for part in (np.int64(7), 0.5, None, b"x", "fine", 3, True):
        estimate = acceptance.estimate([("other", part)], 0.3, 1, 0)
        acceptance.learn(estimate, True)
    record = json.loads(json.dumps(acceptance.record()))
    kept = [key[0] for key, *_ in record["buckets"] if isinstance(key[0], list)]
    assert sorted(map(str, kept)) == sorted(map(str, [["other", p] for p in ("fine", 3, True)]))
    AcceptanceModel.from_record(record)
