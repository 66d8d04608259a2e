"""The likeliest tokens of rows, compiled and with NumPy, against sorting."""

from __future__ import annotations

import numpy as np
import pytest

from specgen.core import ranking
from specgen.core.kernels import compiled
from specgen.core.ranking import top_k_rows


@pytest.fixture(params=["compiled", "numpy"])
def rank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """`top_k_rows` with the compiled library and without."""
    name: str = request.param
    if name == "numpy":
        monkeypatch.setattr(ranking, "compiled", lambda: None)
    elif compiled() is None:
        pytest.skip("this installation had no compiler")
    return name


@pytest.mark.parametrize("n_vocab", [1, 5, 8, 100, 1024, 1025, 1100, 5000, 49_152])
def test_top_k_rows_equals_sorting(rank: str, n_vocab: int) -> None:
    """Tokens are the k likeliest of each row; probabilities are right, or little too large."""
    rng = np.random.default_rng(n_vocab)
    logits = (4 * rng.standard_normal((5, n_vocab))).astype(np.float32)
    entries = top_k_rows(logits, 8)
    truth = np.argsort(-logits, axis=1, kind="stable")[:, :8]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.array_equal(entries["token"], truth)
    ratio = entries["prob"] / np.take_along_axis(probs, truth, 1)
    assert (ratio > 0.999).all() and (ratio < 1.5).all()


def test_rows_without_usable_logits_have_no_probabilities(rank: str) -> None:
    """One NaN, or a largest logit that is not finite, is enough."""
    logits = np.zeros((4, 5000), np.float32)
    logits[0, 4321], logits[1], logits[2, 7] = np.nan, -np.inf, np.inf
    probs = top_k_rows(logits, 8)["prob"]
    assert (probs[:3] == 0).all()
    assert (probs[3] > 0).all()


def test_rows_that_are_not_contiguous(rank: str) -> None:
    """Columns of a larger array are ranked like a copy of them."""
    wide = np.random.default_rng(0).standard_normal((3, 4000)).astype(np.float32)
    part = wide[:, 100:3000]
    assert np.array_equal(top_k_rows(part, 4)["token"], top_k_rows(part.copy(), 4)["token"])


def test_both_ways_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installations with and without a compiler learn the same."""
    logits = (3 * np.random.default_rng(1).standard_normal((6, 49_152))).astype(np.float32)
    found = top_k_rows(logits, 8)
    monkeypatch.setattr(ranking, "compiled", lambda: None)
    other = top_k_rows(logits, 8)
    assert np.array_equal(found["token"], other["token"])
    assert np.allclose(found["prob"], other["prob"], rtol=1e-4)


def test_ties_go_to_the_lowest_token(rank: str) -> None:
    """Of tokens that are equally likely the first are taken, wherever their blocks begin."""
    if rank == "numpy":
        pytest.skip("it takes any of equals")
    logits = np.zeros((2, 5000), np.float32)
    logits[1, [9, 5 + 3 * (5000 // 64), 4999]] = 1.0
    entries = top_k_rows(logits, 3)["token"]
    assert entries.tolist() == [[0, 1, 2], [9, 5 + 3 * (5000 // 64), 4999]]
    assert top_k_rows(logits, 1)["token"].tolist() == [[0], [9]]
