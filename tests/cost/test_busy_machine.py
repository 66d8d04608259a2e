"""Measuring a model of real costs, on a clock that other programs slow down."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import pytest

from specgen.core.cost.strict import ONE_ROW
from specgen.core.cost.timed import TimedBackend
from specgen.core.knowledge.profiling import measure_subjects
from specgen.core.protocols import Logits, Tokens
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from tests.support.clocked import TEXT, StairBackend

DEADLINE_S = 17.0
KINDS = ("quiet", "spikes", "spell", "all")


class BusyMachine:
    """A clock, and others' programs on the same processors.

    Args:
        kind: "quiet" but for jitter and a hiccup in 50 calls; "spikes" on some calls; a "spell" of
            load; or "all" the time.
        tells: whether it says how long threads wait.
    """

    def __init__(self, rng: random.Random, kind: str, *, tells: bool) -> None:
        self.now, self.waited, self.rng, self.kind, self._tells = 0.0, 0.0, rng, kind, tells
        self.factor = rng.uniform(2, 15)
        self._often = rng.uniform(0.1, 0.9)
        start = rng.uniform(0, DEADLINE_S)
        self._spell = (start, start + rng.uniform(0.2, 1) * DEADLINE_S)

    def work(self, seconds: float) -> None:
        """Let so much work be done."""
        slower = {
            "quiet": 1.5 if self.rng.random() < 0.02 else 1.0,
            "spikes": self.factor if self.rng.random() < self._often else 1.0,
            "spell": self.factor if self._spell[0] <= self.now < self._spell[1] else 1.0,
            "all": self.factor * self.rng.uniform(0.9, 1.1),
        }[self.kind]
        seconds *= self.rng.uniform(1, 1.06)
        self.now += slower * seconds
        self.waited += (slower - 1) * seconds

    def waits(self) -> dict[str, float]:
        """See host.thread_waits."""
        return {"7": self.waited} if self._tells else {}


class Simulated(FakeBackend):
    """A model of any size on such a machine; `factor` times as slow as the first of its kind."""

    def __init__(self, machine: BusyMachine, costs: tuple[float, float, float], factor: float):
        super().__init__(HashModel(16), fake_limits(16, n_ctx=700))
        self.machine, self.factor = machine, factor
        self._call_s, self._per_row, self._token_s = costs

    def cost(self, n: int, context: int) -> float:
        """Seconds of a call on a quiet machine: kernels for four rows, and a context to read."""
        rows = 1 + self._per_row * (n - 1) * (1.0 if n % 4 else 0.8)
        return self.factor * self._call_s * (0.6 + 0.4 * (1 + context / 2000)) * rows

    def prefill(self, tokens: Tokens) -> None:
        super().prefill(tokens)
        self.machine.work(self.factor * self._token_s * len(tokens))

    def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
        self.machine.work(self.cost(len(tree), self.length))
        return super().score(tree, pending)


@dataclasses.dataclass
class Trial:
    """A measurement of a model of unknown speed, with flash attention on and off."""

    seed: int
    kind: str
    tells: bool
    slowest_s: float = 2.0  # a call, at the worst of times

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        self.machine = BusyMachine(rng, self.kind, tells=self.tells)
        worst = 1.0 if self.kind == "quiet" else self.machine.factor
        call_s = 10 ** rng.uniform(-2, math.log10(self.slowest_s / worst))
        token_s = min(call_s * rng.uniform(0.01, 0.3), 0.04 / worst)  # 512 tokens in 20 s
        costs = call_s, rng.choice([0.05, 0.2, 0.5, 0.9]), token_s
        self.off = rng.choice([0.6, 0.9, 1.0, 1.05, 1.5])  # what flash attention saves
        self.backends = {
            setting: Simulated(self.machine, costs, factor)
            for setting, factor in ((True, 1.0), (False, self.off))
        }
        subjects = {
            setting: TimedBackend(backend, TEXT, lambda: self.machine.now, self.machine.waits)
            for setting, backend in self.backends.items()
        }
        self.profile = measure_subjects(subjects, DEADLINE_S, lambda *_: None)

    def error(self) -> float:
        """By what factor the worst T(n) / T(1) of the curve differs from the truth."""
        curve, truth = self.profile.curve, self.backends[bool(self.profile.flash_attention)].cost
        return max(
            abs(
                math.log(
                    curve.seconds(n, context)
                    / curve.seconds(1, context)
                    / (truth(n, context) / truth(1, context))
                )
            )
            for n in curve.sizes
            for context in curve.contexts
        )


FEW = [5, pytest.param(40, marks=pytest.mark.long)]  # models


@pytest.mark.parametrize("n", FEW)
@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_busy_machine_yields_is_not_trusted(kind: str, tells: bool, n: int) -> None:
    """Over models and loads of all kinds: a curve that is trusted is right, and does not fall.

    Flash attention goes off only where that is faster. A quiet machine is trusted.
    """
    trials = [Trial(seed, kind, tells) for seed in range(n)]
    trusted = [trial for trial in trials if trial.profile.prices]
    wrong = [trial.seed for trial in trusted if trial.error() > math.log(1.6)]
    chance = 0 if tells else n // 20  # load may meet just the samples of one size
    assert len(wrong) <= chance, wrong
    for trial in trusted:
        for times in trial.profile.curve.times:
            assert all(a <= 1.4 * b for i, a in enumerate(times) for b in times[i:])
        assert trial.profile.samples >= 3
    wrongly_off = [t.seed for t in trials if not t.profile.flash_attention and t.off >= 1]
    assert len(wrongly_off) <= chance, wrongly_off
    known = [trial for trial in trials if trial.profile.samples >= 3]
    if kind == "quiet":
        assert len(known) > n / 2
        assert all(trial.profile.noise < 1.25 for trial in known)
        assert len(trusted) == len(known)
        assert n < 40 or any(not t.profile.flash_attention for t in trials if t.off == 0.6)
    if kind == "all" and tells:
        assert not trusted


@pytest.mark.parametrize("n", FEW)
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_takes_no_more_than_twice_the_time(kind: str, n: int) -> None:
    """Comparison, curve, a second try and widths together, on slow models under load as well."""
    late = [s for s in range(n) if Trial(s, kind, s % 2 == 0).machine.now > 2 * DEADLINE_S]
    assert late == []


def test_a_slow_model_on_a_busy_machine() -> None:
    """A call of 2 s, 25 tokens of a prompt a second: time is kept, nothing is taken as known."""
    machine = BusyMachine(random.Random(1), "quiet", tells=True)
    backend = Simulated(machine, (2.0, 0.2, 20 / 512), 1.0)
    timed = TimedBackend(backend, TEXT, lambda: machine.now, machine.waits)
    profile = measure_subjects({True: timed}, DEADLINE_S, lambda *_: None)
    assert machine.now <= 2 * DEADLINE_S
    assert profile.prices is None
    assert "it takes 3 times" in profile.doubt
    assert max(profile.classes) >= 576  # where nothing was compared, so nothing is promised
    assert profile.strict == ONE_ROW


@pytest.mark.parametrize(
    ("spread", "saved", "on"), [(1.0, 0.9, False), (1.0, 0.97, True), (1.3, 0.9, True)]
)
def test_flash_attention_stays_on_in_doubt(spread: float, saved: float, on: bool) -> None:
    """It goes off where that saves 5 % or more, and more than repetitions differ by."""
    clock = [0.0]
    limits = fake_limits(16, n_ctx=300)
    rng = random.Random(1)
    subjects = {
        setting: StairBackend(
            limits, shared=clock, factor=factor, load=lambda calls: rng.choice((1.0, spread))
        ).timed()
        for setting, factor in ((True, 1.0), (False, saved))
    }
    profile = measure_subjects(subjects, 1e5, lambda *_: None)
    assert profile.flash_attention is on
    assert profile.comparison is not None
    assert profile.comparison.apart == (False, spread == 1.0)
    assert profile.comparison.steps[1] == pytest.approx(saved, abs=0.02)
