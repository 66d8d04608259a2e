"""Calls that are computed while their caller does other things, on a fake backend.

That texts are the same is tested with all others, see tests/support/lossless.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from specgen.core.cost.model import load_curve
from specgen.core.cost.online import EXPLORED, CostTracker
from specgen.core.errors import BackendError
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.stats import Step
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from tests.support.drafting import session_of
from tests.support.guessers import RandomTree

N_VOCAB = 12
PROMPT = [1, 2, 3, 4, 5]


class Failing(FakeBackend):
    """Raises `error` at call number `at`."""

    def __init__(self, *, behind: bool = True) -> None:
        limits = fake_limits(N_VOCAB, computes_behind=behind)
        super().__init__(HashModel(N_VOCAB, 2, 7), limits)
        self.at = 0
        self.error: BaseException = BackendError("out of memory")

    @property
    def in_flight(self) -> bool:
        """Whether a call was submitted and not committed yet."""
        return self._scored is not None

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """See Backend."""
        super().submit(tree, pending)
        if self.calls == self.at:
            self._scored = None
            self._drop_beyond(self._length)
            raise self.error


def begun(backend: FakeBackend) -> Session:
    """A session at the end of the prompt."""
    session = session_of(backend, [RandomTree(1, N_VOCAB, 3)], 4)
    session.feed(PROMPT)
    return session


def sampler() -> Sampler:
    """Greedy."""
    return Sampler(SamplingParams(temperature=0), N_VOCAB)


def never(_: int) -> bool:
    """No token ends the text."""
    return False


def text_of(backend: FakeBackend, n: int = 30) -> list[int]:
    """The next tokens of a session that nothing happens to."""
    return [t for step in begun(backend).generate(sampler(), n, never) for t in step.tokens]


@pytest.mark.parametrize("behind", [True, False])
def test_the_next_call_is_under_way_while_a_step_is_looked_at(behind: bool) -> None:
    """But for the last one; on other backends, never."""
    backend = Failing(behind=behind)
    seen = [backend.in_flight for _ in begun(backend).generate(sampler(), 20, never)]
    assert seen == [behind] * (len(seen) - 1) + [False]


def test_who_leaves_early_leaves_a_clean_cache() -> None:
    """And may go on with the text, or begin another one."""
    backend = Failing()
    session = begun(backend)
    steps: Any = session.generate(sampler(), 30, never)
    found = [*next(steps).tokens, *next(steps).tokens]
    steps.close()
    assert not backend.in_flight
    assert backend.cached == session.tokens[: backend.length]
    found += [
        t for step in session.generate(sampler(), 30 - len(found), never) for t in step.tokens
    ]
    assert found == text_of(Failing())


def test_another_text_in_the_middle() -> None:
    """The call under way is given up, and whoever waits for more is told."""
    backend = Failing()
    session = begun(backend)
    steps = session.generate(sampler(), 30, never)
    next(steps)
    session.feed([*PROMPT, 6])
    assert backend.cached == [*PROMPT][: backend.length]
    with pytest.raises(Exception, match="another text was begun"):
        next(steps)
    assert not backend.in_flight


def test_the_same_text_by_two_generators() -> None:
    """The second goes on where the first has got to."""
    backend = Failing()
    session = begun(backend)
    first = session.generate(sampler(), 30, never)
    found = list(next(first).tokens)
    second = session.generate(sampler(), 30 - len(found), never)
    found += [t for step in second for t in step.tokens]
    assert found == text_of(Failing())


@pytest.mark.parametrize("error", [BackendError("out of memory"), KeyboardInterrupt()])
def test_a_step_is_not_lost_with_the_next_call(error: BaseException) -> None:
    """It is handed over before the error comes, and the session stays usable."""
    backend = Failing()
    backend.at, backend.error = 4, error
    session = begun(backend)
    steps: list[Step] = []
    with pytest.raises(type(error)):
        for step in session.generate(sampler(), 30, never):
            steps.append(step)
    found = [t for step in steps for t in step.tokens]
    assert len(steps) == 3
    assert session.tokens == [*PROMPT, *found]
    rest = session.generate(sampler(), 30 - len(found), never)
    found += [t for step in rest for t in step.tokens]
    assert found == text_of(Failing())


def test_a_session_that_was_ended_touches_nothing() -> None:
    """Though its generator is closed later."""
    backend = Failing()
    old = begun(backend)
    steps: Any = old.generate(sampler(), 30, never)
    next(steps)
    old.end()
    backend.rewind(0)
    session = begun(backend)
    others = session.generate(sampler(), 30, never)
    next(others)
    steps.close()
    assert backend.in_flight
    assert next(others).tokens


def test_a_time_that_nobody_knows() -> None:
    """The width is followed; a size that was tried is not tried again and again."""
    tracker = CostTracker()
    for _ in range(1000):
        tracker.observe(1, 10, 0.01)
    size = tracker.explore(10, 64)
    assert size == EXPLORED[0]
    tracker.observe(size, 10, None, explored=True)
    assert tracker.explore(10, 64) != size
    known = CostTracker(load_curve("h100-8b"))
    for _ in range(3):
        known.observe(4, 10, None)
    assert known._gear.width == 4
