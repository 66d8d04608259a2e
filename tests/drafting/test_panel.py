"""The panel: drafters that do not earn the time they take rest, and miss nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from specgen.core.cost.model import CostModel
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.drafting.pace import BackOff
from specgen.core.drafting.panel import ALLOWANCE, LOOK_SHARE, START, WAKE, DrafterPool, Looks
from specgen.core.protocols import Candidate, DraftCost, Logits
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from tests.support.guessers import Witness

N_VOCAB = 30
PLAIN_S = 0.005
ROW_S = 0.001
CURVE = CostModel((1, 64), (0,), ((PLAIN_S, 10 * PLAIN_S),))


class Costly(Witness):
    """One whose answers take time."""

    @property
    def effort(self) -> DraftCost:
        return DraftCost(1.0, 0.5, 0.0)


def guess_of(*names: str) -> DraftTree:
    """A tree with one guess, made by all of `names`."""
    return DraftTree((1, 2), (-1, 0), (1.0, 0.5), ((), tuple((name, 3) for name in names)))


def asked(
    drafters: Sequence[Witness],
    seconds: dict[str, float],
    tree: DraftTree,
    *,
    right: bool,
    n_steps: int = 400,
) -> dict[str, int]:
    """In how many steps each was asked, where asking takes so long.

    It brings `tree`, unless one rests.
    """
    pool = DrafterPool(drafters, N_VOCAB)
    pool.begin(np.array([1], np.int32))
    text = [1]
    counts = {drafter.name: 0 for drafter in drafters}
    for _ in range(n_steps):
        paused = pool.catch_up(text)
        for drafter in pool.drafters:
            counts[drafter.name] += drafter not in paused
        shown = tree if not paused else DraftTree.root(1)
        text.append(1)
        pool.observe([1], shown, np.empty((len(shown), 0), np.float32))
        for drafter in pool.drafters:  # what really was measured
            drafter.seconds = 0.0 if drafter in paused else seconds[drafter.name]
        pool.settle(shown, (1,) if right else (), PLAIN_S, ROW_S)
    assert all(drafter.text == text[: len(drafter.text)] for drafter in drafters)
    return counts


def test_who_earns_the_time_is_always_asked() -> None:
    """A right guess saves a call, which pays for a lot of time."""
    drafters = [Witness("a"), Witness("b")]
    counts = asked(drafters, {"a": 0.0, "b": PLAIN_S / 2}, guess_of("b"), right=True)
    assert counts == {"a": 400, "b": 400}


@pytest.mark.parametrize(
    ("tree", "right"),
    [
        (DraftTree.root(1), True),  # no guesses
        (guess_of("b"), False),  # wrong ones
        (guess_of("a", "b"), True),  # what the first one guessed, too
        (guess_of("b", "a"), True),
    ],
)
def test_who_does_not_earn_it_takes_the_allowance(tree: DraftTree, right: bool) -> None:
    """Over many steps no more than that, but for what it began with."""
    cost = PLAIN_S / 50
    drafters = [Witness("a"), Witness("b")]
    counts = asked(drafters, {"a": cost, "b": cost}, tree, right=right)
    assert counts["a"] == 400 and counts["b"] <= len(drafters[1].looks) < 200  # it catches up, too
    spent = counts["b"] * cost / PLAIN_S
    assert WAKE < spent <= START + WAKE + 400 * ALLOWANCE + 2 * cost / PLAIN_S


def test_next_to_a_large_model_nobody_rests() -> None:
    """The allowance is a share of a plain step."""
    drafters = [Witness("a"), Witness("b")]
    cost = 0.9 * ALLOWANCE * PLAIN_S
    assert asked(drafters, {"a": cost, "b": cost}, DraftTree.root(1), right=True)["b"] == 400


def test_of_several_the_earlier_one_is_credited() -> None:
    """The one that only repeats what was guessed already rests."""
    seconds = dict.fromkeys("abc", PLAIN_S / 50)
    counts = asked([Witness(name) for name in "abc"], seconds, guess_of("c", "b"), right=True)
    assert counts["b"] == 400 and counts["c"] < 100


def test_one_whose_answers_take_time_goes_by_its_own_rules() -> None:
    """A draft model is asked where the builder says so."""
    drafters = [Witness("a"), Costly("b")]
    counts = asked(drafters, {"a": 0.0, "b": PLAIN_S}, DraftTree.root(1), right=True)
    assert counts["b"] == 400


def test_it_wakes_when_it_would_have_earned() -> None:
    """Rests are short enough that a drafter which becomes useful is found out, and stays."""
    drafters = [Witness("a"), Witness("b")]
    pool = DrafterPool(drafters, N_VOCAB)
    pool.begin(np.array([1], np.int32))
    states = []
    for step in range(400):
        paused = pool.drafters[1] in pool.catch_up([1])
        states.append(paused)
        pool.drafters[1].seconds = 0.0 if paused else PLAIN_S / 25
        useful = step >= 200 and not paused
        pool.settle(guess_of("b") if useful else DraftTree.root(1), (1,), PLAIN_S, ROW_S)
    assert states[:200].count(True) > 150
    first = states.index(False, 200)
    assert first <= 200 + 3 * WAKE / ALLOWANCE and not any(states[first:])


@pytest.mark.parametrize("n_turns", [1, 2])
def test_who_rests_misses_nothing(n_turns: int) -> None:
    """When it is asked again it knows the whole text, and so it does in the next turn."""

    class Slow(Witness):
        def predict(self, state: int) -> Sequence[Candidate]:
            sum(range(20_000))  # far more than CURVE allows
            assert self.text == session.tokens
            return ()

    backend = FakeBackend(HashModel(N_VOCAB), fake_limits(N_VOCAB))
    cheap = CostModel((1, 64), (0,), ((1e-3, 1e-2),))
    first, slow = Witness("first"), Slow("slow")
    session = Session(
        backend, [first, slow], 8, acceptance=AcceptanceModel(), pricing=cheap, back_off=Always()
    )
    sampler = Sampler(SamplingParams(temperature=0), N_VOCAB)
    text = [1, 2, 3]
    for _ in range(n_turns):
        session.feed(text)
        assert first.text == slow.text == text
        n_steps = sum(1 for _ in session.generate(sampler, 200, lambda _: False))
        assert n_steps == 200
        text = [*session.tokens, 5]
    assert first.n_asked == 199 * n_turns  # nothing is drafted for the last token
    assert 2 <= slow.n_asked < 100 * n_turns


def test_without_a_pace_all_are_asked() -> None:
    """In a replay time is not real, and figures are the same on every machine."""
    backend = FakeBackend(HashModel(N_VOCAB), fake_limits(N_VOCAB))
    drafters = [Witness("a"), Witness("b")]
    session = Session(backend, drafters, 8, acceptance=AcceptanceModel(), pricing=CURVE)
    session.feed([1, 2, 3])
    sampler = Sampler(SamplingParams(temperature=0), N_VOCAB)
    assert sum(1 for _ in session.generate(sampler, 300, lambda _: False)) == 300
    assert [drafter.n_asked for drafter in drafters] == [299, 299]  # but for the last token


def test_dear_looks_are_given_up() -> None:
    """The quickest of the last ones is compared with a plain step, which may grow."""
    looks = Looks()
    for _ in range(5):
        assert looks.affordable(PLAIN_S)
        looks.took(2 * LOOK_SHARE * PLAIN_S)
    assert not looks.affordable(PLAIN_S)
    assert looks.affordable(3 * PLAIN_S)
    looks.took(0.5 * LOOK_SHARE * PLAIN_S)
    assert looks.affordable(PLAIN_S)


def test_looks_that_take_long_end() -> None:
    """The drafter goes on with the text alone; nothing of it is lost."""

    class Slow(Witness):
        def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
            super().observe(emitted, tree, logits)
            if logits.size:
                total = 0.0
                for _ in range(2000):  # far more than a hundredth of PLAIN_S / 1000
                    total += float(logits[0, 0])

    slow, quick = Slow(), Witness()
    quick.name = "quick"
    backend = FakeBackend(HashModel(N_VOCAB), fake_limits(N_VOCAB))
    cheap = CostModel((1, 64), (0,), ((PLAIN_S / 1000, PLAIN_S / 100),))
    session = Session(backend, [slow, quick], 8, acceptance=AcceptanceModel(), pricing=cheap)
    session.feed([1, 2, 3])
    sampler = Sampler(SamplingParams(temperature=0), N_VOCAB)
    for _ in session.generate(sampler, 30, lambda _: False):
        pass
    assert slow.text == quick.text == session.tokens
    assert slow.looks[:5] == [True] * 5
    assert not any(slow.looks[5:])


class Always(BackOff):
    """Asks in every step."""

    def should_draft(self) -> bool:
        return True
