"""Strict decoding: on a model whose bits depend on the widths of calls, the text does not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from specgen.core.cost.model import CostModel, load_curve
from specgen.core.cost.online import CostTracker
from specgen.core.cost.strict import ONE_ROW, StrictPrices, WidthClass, strict_widths
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.errors import ContextFull
from specgen.core.protocols import Drafter, Limits, Tokens
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from specgen.drafters.prompt_lookup import PromptLookup
from tests.support.drafting import session_of
from tests.support.guessers import AsksAtRandom, Oracle, RandomTree
from tests.support.lossless import random_params

CLASSES = (
    WidthClass((2, 3, 4, 5, 8, 12, 16), branch=True),
    WidthClass((4,), branch=True),
    WidthClass((8, 12, 16), branch=False),
    WidthClass((2, 3), branch=False),
    ONE_ROW,
)
STEEP = CostModel((1, 2), (0,), ((1.0, 2.0),))


class Rounding(FakeBackend):
    """A fake model that rounds: what a cell holds depends on how wide the call was that made it.

    Args:
        exact: widths that round alike; with `branch` so do their side branches.
    """

    def __init__(self, model: HashModel, limits: Limits, exact: WidthClass) -> None:
        super().__init__(model, limits)
        self.widths: list[int] = []
        self._exact = exact

    @property
    def cached(self) -> list[int]:
        """The committed tokens."""
        return [token % self.limits.n_vocab for token in super().cached]

    def prefill(self, tokens: Tokens) -> None:
        """See Backend."""
        super().prefill(tokens + self.limits.n_vocab * (1000 + len(tokens)))

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """See Backend."""
        n = len(pending) + len(tree)
        self.widths.append(n)
        kernel = 0 if n in self._exact.widths else n
        main = [token + self.limits.n_vocab * kernel for token in (*pending, *tree.tokens)]
        if not self._exact.branch:
            for node in range(tree.n_main, len(tree)):
                main[len(pending) + node] += self.limits.n_vocab * 500
        super().submit(replace(tree, tokens=tuple(main[len(pending) :])), main[: len(pending)])


def drafters(name: str, truth: Sequence[int], n_vocab: int, seed: int) -> list[Drafter]:
    """Drafters that are right, wrong, or both."""
    made: dict[str, list[Drafter]] = {
        "none": [],
        "random": [RandomTree(seed, n_vocab, 3)],
        "oracle": [Oracle(truth, n_vocab, decoys=0)],
        "side oracle": [Oracle(truth, n_vocab, decoys=1)],
        "crowd": [Oracle(truth, n_vocab, decoys=2), PromptLookup(), RandomTree(seed, n_vocab, 2)],
    }
    return made[name]


def talk(seed: int, strict: WidthClass | None, name: str, truth: Sequence[int] = ()) -> list[int]:
    """Two answers in one text, all at random from `seed` but for the drafter; its tokens."""
    rng = random.Random(seed)
    n_vocab = rng.randint(2, 9)
    exact = rng.choice(CLASSES) if strict is None else strict
    slack = exact.slack
    limits = fake_limits(n_vocab, n_ctx=rng.choice((24, 60)) + slack, max_rows=24)
    backend = Rounding(HashModel(n_vocab, rng.randint(4, 9), seed), limits, exact)
    params = random_params(rng)
    questions = [[rng.randrange(n_vocab) for _ in range(rng.randint(1, 12))] for _ in range(2)]
    length = rng.choice((1, 5, 20))
    judged = rng.random() < 0.5
    session = session_of(
        backend,
        drafters(name, truth, n_vocab, seed),
        rng.choice((1, 5, 16)),
        acceptance=AcceptanceModel() if judged else None,
        pricing=CostTracker(load_curve("mi50")) if judged else None,
        back_off=AsksAtRandom(seed) if rng.random() < 0.3 else None,
        strict=strict,
    )
    sampler = Sampler(params, n_vocab)
    for question in questions:
        try:
            session.feed([*session.tokens, *question])
            for _ in session.generate(sampler, length, lambda _: False):
                assert backend.cached == session.tokens[: backend.length]
        except ContextFull:
            break
    if strict:
        assert set(backend.widths) <= set(strict.widths)
    return session.tokens


@pytest.mark.parametrize("strict", CLASSES, ids=lambda strict: str(strict.widths))
def test_text_is_the_same_with_every_drafter(strict: WidthClass) -> None:
    """Nothing shows of the drafts: not in an answer, nor in the one after it."""
    for seed in range(60):
        plain = talk(seed, strict, "none")
        for name in ("random", "oracle", "side oracle", "crowd"):
            assert talk(seed, strict, name, plain) == plain, (seed, name)


def test_model_rounds() -> None:
    """Without strict decoding the drafts do show, or the test above would prove nothing."""
    different = 0
    for seed in range(60):
        plain = talk(seed, None, "none")
        different += talk(seed, None, "oracle", plain) != plain
    assert different > 20


def test_context_is_not_cut() -> None:
    """The text may have as many tokens as without padding."""
    n_ctx = 20
    lengths = []
    for strict in CLASSES:
        limits = fake_limits(5, n_ctx=n_ctx + strict.slack, max_rows=24)
        session = session_of(FakeBackend(HashModel(5), limits), [PromptLookup()], 8, strict=strict)
        session.feed([1, 2, 3])
        with pytest.raises(ContextFull, match="20 tokens"):
            list(session.generate(Sampler(SamplingParams(seed=1), 5), None, lambda _: False))
        lengths.append(len(session.tokens))
    assert lengths == [n_ctx + 1] * len(CLASSES)


def test_padding() -> None:
    """A call gets the next width of its class; slack is the most that is added."""
    strict = WidthClass((4, 8, 12, 16, 24, 32), branch=True)
    assert [strict.padded(n) for n in (1, 4, 5, 8, 9, 17, 32)] == [4, 4, 8, 8, 12, 24, 32]
    assert (strict.largest, strict.slack) == (32, 7)
    assert (ONE_ROW.padded(1), ONE_ROW.slack) == (1, 0)


FLAT = CostModel((1, 64), (0,), ((1.0, 1.1),))


@pytest.mark.parametrize(
    ("classes", "curve", "widths"),
    [
        ({128: ((1, 2, 4, 8),), 1024: ((1,), (2, 4, 8))}, STEEP, (2, 4, 8)),
        ({128: ((1, 2, 3), (4,), (8, 12))}, STEEP, (1, 2, 3)),
        ({128: ((1, 2, 3), (4,), (8, 12)), 1024: ((1,), (2, 3), (4,), (8, 12))}, STEEP, (2, 3)),
        ({128: ((1, 2, 3), (4,), (8, 12)), 1024: ((1,), (2, 3), (4,), (8, 12))}, FLAT, (8, 12)),
        ({128: ((1,), (2,), (4,))}, STEEP, (2,)),
        ({128: ((1, 2), (4,)), 1024: ((1, 4), (2,))}, FLAT, (4,)),
        ({128: ((1,),)}, FLAT, (1,)),
        ({128: ()}, FLAT, (1,)),
        ({}, FLAT, (1,)),
    ],
)
def test_fastest_class_that_holds_at_every_context(
    classes: dict[int, tuple[tuple[int, ...], ...]], curve: CostModel, widths: tuple[int, ...]
) -> None:
    """Widths that round alike at one context only are no class."""
    assert strict_widths(classes, {}, curve).widths == widths


def test_branches_are_exact_in_every_width_tried() -> None:
    """One width whose side branches round otherwise is enough for chains."""
    classes = {128: ((1, 2, 4, 8),), 1024: ((1, 2, 4, 8),)}

    def branch(at_128: dict[int, bool], at_1024: dict[int, bool]) -> bool:
        return strict_widths(classes, {128: at_128, 1024: at_1024}, STEEP).branch

    assert branch({4: True, 8: True}, {4: True, 16: False})
    assert not branch({4: True, 8: True}, {4: True, 8: False})
    assert not branch({4: True}, {16: True})
    assert not branch({}, {})
    assert not strict_widths(classes, {}, STEEP).branch


def test_prices_are_those_of_padded_calls() -> None:
    """A row costs what the call costs that it is padded to; beyond the class nothing is had."""
    prices = StrictPrices(load_curve("cpu2"), WidthClass((4, 8), branch=True))
    ms = [1e3 * seconds for seconds in prices.costs(0)[:9]]
    assert ms == pytest.approx([15.3] * 4 + [23.0] * 4 + [float("inf")])
    assert prices.explore(0, 64) is None
