"""The pace: drafters are asked while that pays, seldom while it does not, and miss nothing."""

from __future__ import annotations

import numpy as np
import pytest

from specgen.core.cost.model import CostModel
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.drafting.pace import SKIPPED, BackOff
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from tests.support.guessers import Witness

N_VOCAB = 30
PLAIN_S = 0.01
CURVE = CostModel((1, 64), (0,), ((PLAIN_S, 10 * PLAIN_S),))


def asked(back_off: BackOff, n_steps: int, gain_s: float) -> list[bool]:
    """Whether each of `n_steps` asks, where each that does gains so much."""
    steps = []
    for _ in range(n_steps):
        steps.append(back_off.should_draft())
        if steps[-1]:
            back_off.settle(PLAIN_S, gain_s)
    return steps


def test_what_pays_is_asked_always() -> None:
    """And what costs nothing."""
    assert all(asked(BackOff(), 200, PLAIN_S / 100))
    assert all(asked(BackOff(), 200, 0.0))


def test_what_does_not_pay_is_asked_seldom() -> None:
    """First for a while in every step, then with longer and longer breaks."""
    steps = asked(BackOff(), 400, -PLAIN_S / 50)
    first = steps.index(False)
    assert 10 <= first <= 30
    rest = steps[first:]
    assert rest[: SKIPPED[0] + 1] == [False] * SKIPPED[0] + [True]
    assert rest[-(SKIPPED[-1] + 1) :].count(True) == 1
    assert sum(rest) <= len(rest) / SKIPPED[-1]


def test_a_gain_is_followed_up() -> None:
    """One good draft wakes the drafters, and a new text does."""
    for is_new_text in (False, True):
        back_off = BackOff()
        asked(back_off, 100, -PLAIN_S / 50)
        while not back_off.should_draft():
            pass
        if is_new_text:
            back_off.begin()
        else:
            back_off.settle(PLAIN_S, 3 * PLAIN_S)
        assert all(asked(back_off, 10, -PLAIN_S / 50))


class Seldom(BackOff):
    """Asks in one step of four, whatever comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def should_draft(self) -> bool:
        self.n += 1
        return self.n % 4 == 1


@pytest.mark.parametrize("n_tokens", range(1, 14))
def test_drafters_miss_nothing(n_tokens: int) -> None:
    """Whenever they are asked they know the whole text, and so they do in the next turn."""
    backend = FakeBackend(HashModel(N_VOCAB), fake_limits(N_VOCAB))
    witness = Witness()
    session = Session(
        backend, [witness], 8, acceptance=AcceptanceModel(), pricing=CURVE, back_off=Seldom()
    )
    session.feed([1, 2, 3])
    sampler = Sampler(SamplingParams(temperature=0), N_VOCAB)
    for step in session.generate(sampler, n_tokens, lambda _: False):
        known = witness.text == session.tokens
        assert known or len(session.tokens) - len(witness.text) <= 3
        assert len(step.tree) == 1
    text = [*session.tokens, 5, 6]
    session.feed(text)
    assert witness.text == text
    model = HashModel(N_VOCAB)
    expected = [1, 2, 3]
    while len(expected) < 3 + n_tokens:
        expected.append(int(np.argmax(model.logits(expected))))
    assert text[:-2] == expected
