"""When drafters are asked: while that pays, seldom while it does not; and they miss nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from specgen.core.cost.model import CostModel
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.drafting.schedule import SKIPPED, BackOff, DrafterPool
from specgen.core.protocols import Logits
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from tests.support.drafting import session_of
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
    session = session_of(
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


class SlowReader(Witness):
    """One whose look at the logits takes far more than a hundredth of a quick model's step."""

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        super().observe(emitted, tree, logits)
        if logits.size:
            sum(float(logits[0, 0]) for _ in range(2000))


def text_with(drafters: Sequence[Witness], plain_s: float | None, n_tokens: int = 30) -> list[int]:
    """What a model writes whose plain step is said to take so long."""
    backend = FakeBackend(HashModel(N_VOCAB), fake_limits(N_VOCAB))
    curve = CostModel((1, 64), (0,), ((plain_s, 10 * plain_s),)) if plain_s else None
    session = session_of(backend, drafters, 8, acceptance=AcceptanceModel(), pricing=curve)
    session.feed([1, 2, 3])
    sampler = Sampler(SamplingParams(temperature=0), N_VOCAB)
    for _ in session.generate(sampler, n_tokens, lambda _: False):
        pass
    return session.tokens


def test_one_whose_looks_take_too_long_is_no_longer_asked() -> None:
    """After five looks; those who look at the text alone are asked on, however long they take."""
    slow, quick, text_only = SlowReader("slow"), Witness("quick"), SlowReader("text only")
    text_only.reads_logits = False
    text = text_with([slow, quick, text_only], plain_s=1e-5)
    assert slow.looks == [True] * 5 and slow.n_asked == 5
    assert len(text_only.looks) == 30 and text_only.text == text
    del quick


@pytest.mark.parametrize("plain_s", [None, 100.0])
def test_next_to_a_large_model_every_look_is_cheap(plain_s: float | None) -> None:
    """And where nobody knows what a step takes, nobody is left out."""
    slow = SlowReader("slow")
    assert text_with([slow], plain_s) == slow.text
    assert slow.looks == [True] * 30


def test_who_was_not_asked_catches_up_later() -> None:
    """Also where a plain step turns out to be slow enough for its looks within a step."""
    slow = SlowReader("slow")
    pool = DrafterPool([slow], N_VOCAB)
    text = [1]
    pool.begin(np.array(text, np.int32))
    for step in range(40):
        pool.ready(text, 1e-6 if step % 3 else 100.0)
        tree = DraftTree.root(text[-1])
        text.append(step % N_VOCAB)
        pool.observe(text[-1:], tree, np.zeros((1, N_VOCAB), np.float32))
    pool.ready(text, 100.0)
    assert slow.text == text
