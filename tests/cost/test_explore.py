"""Sizes that nobody measured are tried: for a hundredth of the time, the text being the same.

Time is a clock that only the target's calls move, by a curve that the tracker is not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest

import specgen.core.session as session_module
from specgen.core.cost.model import CostModel, load_curve
from specgen.core.cost.online import EXPLORED, CostTracker
from specgen.core.protocols import Drafter
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.stats import Step
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from tests.support.drafting import session_of
from tests.support.guessers import Oracle, RandomTree

N_VOCAB = 9
N_NEW = 40
SHARE = 0.01
PROMPT = [0, 1, 0]
MODEL = HashModel(N_VOCAB, 2, 3)
STEEP = CostModel((1, 2), (0,), ((1.0, 4.0),))  # dearer than what is assumed of unknown machines


class Clock:
    """Stands still but for what is added to it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


class Timed(FakeBackend):
    """A fake model whose calls take what `curve` says, the first one much longer."""

    def __init__(self, curve: CostModel, clock: Clock, branch: bool) -> None:
        super().__init__(MODEL, fake_limits(N_VOCAB, max_rows=40, branch=branch))
        self.curve = curve
        self._clock = clock

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """See Backend."""
        seconds = self.curve.seconds(len(pending) + len(tree), self.length)
        self._clock.now += seconds if self.calls else 1000 * seconds
        super().submit(tree, pending)


@dataclass(frozen=True)
class Call:
    """One call of the target."""

    step: Step
    rows: int
    context: int
    is_padded: bool  # to see what so many rows cost


class Run:
    """One text after another, always the same one, and all calls that this took."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        curve: CostModel,
        drafters: Sequence[Drafter] = (),
        *,
        tracker: CostTracker | None = None,
        max_drafts: int = 16,
        branch: bool = True,
    ) -> None:
        clock = Clock()
        patch.setattr(session_module, "perf_counter", clock)
        self.tracker = tracker or CostTracker()
        self.calls: list[Call] = []
        self._is_padded = False
        observe = self.tracker.observe

        def watch(n: int, context: int, seconds: float, *, explored: bool = False) -> None:
            self._is_padded = explored
            observe(n, context, seconds, explored=explored)

        patch.setattr(self.tracker, "observe", watch)
        self._backend = Timed(curve, clock, branch)
        self._session = session_of(self._backend, drafters, max_drafts, pricing=self.tracker)

    def text(self) -> list[int]:
        """The text once more."""
        self._session.feed(PROMPT)
        sampler = Sampler(SamplingParams(seed=1), N_VOCAB)
        context, n_tokens = self._backend.length, len(PROMPT)
        for step in self._session.generate(sampler, N_NEW, lambda _: False):
            rows = n_tokens - context - 1 + len(step.tree)
            self.calls.append(Call(step, rows, context, self._is_padded))
            context, n_tokens = self._backend.length, len(self._session.tokens)
        return self._session.tokens

    def check_share(self) -> None:
        """What padded calls took beyond one row was at no time over a hundredth of all."""
        curve = self._backend.curve
        extra = total = 0.0
        for call in self.calls:
            seconds = curve.seconds(call.rows, call.context)
            total += seconds
            if call.is_padded:
                extra += seconds - curve.seconds(1, call.context)
            assert extra <= SHARE * total


@cache
def plain() -> list[int]:
    """The text, by a loop that knows nothing of drafts."""
    sampler, text = Sampler(SamplingParams(seed=1), N_VOCAB), list(PROMPT)
    sampler.begin(text)
    while len(text) < len(PROMPT) + N_NEW:
        text.append(sampler.next(MODEL.logits(text)))
    return text


@pytest.mark.long
@pytest.mark.parametrize("max_drafts", [1, 16, 39])
@pytest.mark.parametrize("curve", ["cpu2", "mi50", "flat", "unknown"])
def test_sizes_are_tried_and_then_known(
    monkeypatch: pytest.MonkeyPatch, curve: str, max_drafts: int
) -> None:
    """Each that fits twice, within the share; then the row says what they truly cost."""
    truth = load_curve(curve)
    run = Run(monkeypatch, truth, max_drafts=max_drafts)
    for _ in range(160):
        assert run.text() == plain()
    run.check_share()
    tried = sorted(call.rows for call in run.calls if call.rows > 1)
    fitting = [n for n in EXPLORED if n <= max_drafts + 1]
    assert tried == sorted(fitting * 2)
    row = run.tracker.costs(20)
    for n in (1, *fitting):
        assert row[n - 1] == pytest.approx(truth.seconds(n, 20), rel=0.05)


@pytest.mark.parametrize("branch", [True, False])
def test_guesses_are_padded(monkeypatch: pytest.MonkeyPatch, branch: bool) -> None:
    """Trees with right and wrong guesses grow to the size, and the text is the same."""
    drafters: list[Drafter] = [Oracle(plain()[:30], N_VOCAB, 1), RandomTree(1, N_VOCAB, 2)]
    run = Run(monkeypatch, load_curve("mi50"), drafters, branch=branch)
    for _ in range(150):
        assert run.text() == plain()
    run.check_share()
    padded = [call for call in run.calls if call.is_padded]
    assert padded and {call.rows for call in padded} <= set(EXPLORED)
    assert any(call.step.tree.evidence[1] != (("padding",),) for call in padded)


def test_a_dear_surprise_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size dearer than thought may be over the share once, and is then made up for."""
    run = Run(monkeypatch, STEEP)
    for _ in range(90):
        run.text()
    tried = [i for i, call in enumerate(run.calls) if call.is_padded]
    assert len(tried) >= 2
    for i in tried:
        before = run.calls[1:i]
        extra = sum(STEEP.seconds(call.rows, 0) - 1.0 for call in before)
        assert extra <= SHARE * sum(STEEP.seconds(call.rows, 0) for call in before)


@pytest.mark.parametrize("tracker", [CostTracker(STEEP), CostTracker(explored=())])
def test_what_was_measured_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, tracker: CostTracker
) -> None:
    """Where there is a profile, no call is padded."""
    run = Run(monkeypatch, STEEP, tracker=tracker)
    for _ in range(50):
        run.text()
    assert {call.rows for call in run.calls} == {1}
