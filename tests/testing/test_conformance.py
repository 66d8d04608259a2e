"""Every drafter keeps the contract; and its test is tested: broken promises must be caught."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from specgen.core.protocols import Candidate, Drafter, Logits, Tokens
from specgen.core.testing.conformance import check_drafter, repeating_text
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from specgen.drafters import REGISTRY
from specgen.drafters.draft_model import DraftModel
from specgen.drafters.past import Past
from specgen.drafters.predicted import Predicted
from tests.support.drafting import begun, observe

PREDICTED = repeating_text(60, 12, 9)


def draft_backend() -> FakeBackend:
    """A model that some of the texts are too long for."""
    return FakeBackend(HashModel(12), fake_limits(12, n_ctx=256, max_rows=4, branch=False))


MAKERS: dict[str, Callable[[], Drafter]] = {
    **{name: partial(spec.create, standalone=False) for name, spec in REGISTRY.items()},
    **{f"{name} alone": partial(spec.create, standalone=True) for name, spec in REGISTRY.items()},
    "predicted": lambda: Predicted(PREDICTED),
    "predicted alone": lambda: Predicted(PREDICTED, standalone=True),
    "predicted nothing": lambda: Predicted([]),
    "past": lambda: Past(np.array(PREDICTED, np.int32)),
    "draft model": lambda: DraftModel(draft_backend()),
    "draft model alone": lambda: DraftModel(draft_backend(), standalone=True),
    "past without answers": lambda: Past(np.array([], np.int32)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_conformance(make: Callable[[], Drafter]) -> None:
    """The drafter keeps every promise of protocols.Drafter."""
    check_drafter(make)


class Good:
    """Guesses the token after the last one; the broken ones below differ in one thing."""

    name = "good"
    effort = None
    reads_logits = False
    last = 0

    def begin(self, context: Tokens) -> None:
        self.last = int(context[-1]) if len(context) else 0

    def root(self) -> Any:
        return self.last

    def predict(self, state: Any) -> Sequence[Candidate]:
        return [Candidate((state + 1) % 12, (self.name, 0), 0.5)]

    def advance(self, state: Any, token: int) -> Any:
        return token

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        self.last = emitted[-1]


def _guessing(*guesses: Candidate) -> type[Good]:
    class Bad(Good):
        def predict(self, state: Any) -> Sequence[Candidate]:
            return guesses

    return Bad


class _Counts(Good):
    calls = 0

    def predict(self, state: Any) -> Sequence[Candidate]:
        self.calls += 1
        return [Candidate(self.calls % 12, (self.name, 0), 0.5)]


class _KeepsTheContext(Good):
    context: Tokens = np.zeros(0, np.int32)

    def begin(self, context: Tokens) -> None:
        self.context = context

    def root(self) -> Any:
        return int(self.context[-1]) if len(self.context) else 0


class _KeepsTheLogits(Good):
    logits: Logits = np.zeros((1, 1), np.float32)

    def root(self) -> Any:
        return int(self.logits[0].argmax())

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        self.logits = logits


class _ForgetsToForget(Good):
    length = 0

    def begin(self, context: Tokens) -> None:
        self.length += len(context)

    def root(self) -> Any:
        return self.length % 12


class _Random(Good):
    def root(self) -> Any:
        return random.randrange(12)


class _MutableState(Good):
    def root(self) -> Any:
        return [self.last]

    def predict(self, state: Any) -> Sequence[Candidate]:
        return [Candidate((state[-1] + 1) % 12, (self.name, 0), 0.5)]

    def advance(self, state: Any, token: int) -> Any:
        state.append(token)
        return state


class _FailsOnEmptyTexts(Good):
    def begin(self, context: Tokens) -> None:
        self.last = int(context[-1])


class _FailsLate(Good):
    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        if len(emitted) > 1 and len(tree) > 3:
            raise IndexError("deep in a text")
        self.last = emitted[-1]


BROKEN: dict[str, Callable[[], Drafter]] = {
    "twice": _guessing(Candidate(1, ("good",), 0.5), Candidate(1, ("good", 1), 0.5)),
    "out of range": _guessing(Candidate(12, ("good",), 0.5)),
    "negative": _guessing(Candidate(-1, ("good",), 0.5)),
    "no chance": _guessing(Candidate(1, ("good",), 0.0)),
    "too sure": _guessing(Candidate(1, ("good",), 1.5)),
    "nameless": _guessing(Candidate(1, ("bad",), 0.5)),
    "a NumPy token": _guessing(Candidate(np.int32(1), ("good",), 0.5)),  # type: ignore[arg-type]
    "not hashable": _guessing(Candidate(1, ("good", []), 0.5)),  # type: ignore[arg-type]
    "too many": _guessing(*[Candidate(t % 12, ("good",), 0.5) for t in range(70)]),
    "not deterministic": _Random,
    "changes when asked": _Counts,
    "changes its states": _MutableState,
    "keeps the context": _KeepsTheContext,
    "keeps the logits": _KeepsTheLogits,
    "forgets to forget": _ForgetsToForget,
    "fails on empty texts": _FailsOnEmptyTexts,
    "fails late": _FailsLate,
}


def test_a_good_drafter_passes() -> None:
    """What the broken drafters are derived from keeps the contract."""
    check_drafter(Good, n_long=1000)


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_broken_promise_is_caught(make: Callable[[], Drafter]) -> None:
    """Each of these breaks one promise, and the check raises."""
    with pytest.raises((AssertionError, IndexError)):
        check_drafter(make, n_long=1000)


def test_evidence_has_a_few_hundred_values_at_most() -> None:
    """Over long texts no drafter names more buckets than can be counted well."""
    for make in MAKERS.values():
        drafter = begun(make(), repeating_text(300, 12, 5))
        seen = set()
        for token in repeating_text(600, 12, 8):
            state = drafter.root()
            for _ in range(20):
                guesses = drafter.predict(state) if state is not None else ()
                seen |= {guess.evidence for guess in guesses}
                if not guesses:
                    break
                state = drafter.advance(state, guesses[0].token)
            observe(drafter, [token])
        assert len(seen) <= 300
