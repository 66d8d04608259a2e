"""Measuring: on a backend whose calls take what the test says, and on llama.cpp itself."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from specgen.core.config import ContextConfig, EngineConfig
from specgen.core.cost.comparison import compare
from specgen.core.cost.gear import FREE, Gear
from specgen.core.cost.measure import NOISY, measure
from specgen.core.cost.model import load_curve
from specgen.core.cost.rounding import exact_branches, exact_classes
from specgen.core.cost.strict import ONE_ROW
from specgen.core.cost.timed import TimedBackend
from specgen.core.errors import BackendError, ModelError
from specgen.core.knowledge.profile import find_profile, fingerprint, keep_profile, profile_key
from specgen.core.knowledge.profiling import measure_profile, measure_subjects, settings_to_measure
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.llama.library import device_names, library_version
from specgen.core.protocols import Change, Limits, Logits, Tokens
from specgen.core.stop import ShouldStop
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from tests.conftest import TinyModel
from tests.support import own_kernels
from tests.support.tiny import Quantization

TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]
SIZES = (1, 4, 8, 2, 24)
CONTEXTS = (8, 32, 64)
LIMITS = fake_limits(16, n_ctx=128)


def cost(n: int, context: int) -> float:
    """What a call takes: a stair at four rows, rising with the context."""
    return 1e-3 * (1.0 + -(-n // 4)) * (1 + context / 100)


class ClockedBackend(FakeBackend):
    """Its calls move a clock; `load(calls)` slows them down."""

    def __init__(
        self,
        limits: Limits = LIMITS,
        *,
        factor: float = 1.0,
        load: Callable[[int], float] = lambda calls: 1.0,
        clock: list[float] | None = None,
        prefill_s: float = 1e-4,
    ) -> None:
        super().__init__(HashModel(limits.n_vocab), limits)
        self.now = [0.0] if clock is None else clock
        self.widths: list[int] = []
        self._factor = factor
        self._load = load
        self._prefill_s = prefill_s

    def timed(self) -> TimedBackend:
        """This backend, a text and its clock."""
        return TimedBackend(self, TEXT, lambda: self.now[0])

    def prefill(self, tokens: Tokens) -> None:
        super().prefill(tokens)
        self.now[0] += self._prefill_s * len(tokens) * self._factor

    def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
        self.widths.append(len(tree))
        self.now[0] += cost(len(tree), self.length) * self._factor * self._load(self.calls)
        return super().score(tree, pending)


def test_a_quiet_backend_is_measured_exactly() -> None:
    """Every size at every context; large sizes in proportion at those between."""
    found = measure(ClockedBackend().timed(), 1e6, SIZES, CONTEXTS)
    assert found.noise == pytest.approx(1.0)
    assert found.samples == 7
    assert (found.curve.sizes, found.curve.contexts) == ((1, 2, 4, 8, 24), CONTEXTS)
    for context, times in zip(CONTEXTS, found.curve.times, strict=True):
        expected = [cost(n, context) for n in found.curve.sizes]
        assert times == pytest.approx(expected)


@pytest.mark.parametrize("every", [6, 17])
def test_load_now_and_then_does_not_show(every: int) -> None:
    """One call in so many is ten times slower."""
    busy = ClockedBackend(load=lambda calls: 10.0 if calls % every == 0 else 1.0)
    found = measure(busy.timed(), 1e6, SIZES, CONTEXTS)
    quiet = measure(ClockedBackend().timed(), 1e6, SIZES, CONTEXTS)
    assert found.curve.times == tuple(map(pytest.approx, quiet.curve.times))
    assert every < 10 or found.noise == pytest.approx(1.0)  # a call in six is not now and then


def test_load_most_of_the_time_is_told() -> None:
    """Then no figure can be trusted, and the noise says so."""
    busy = ClockedBackend(load=lambda calls: 1.0 if calls % 7 == 0 else 10.0)
    assert measure(busy.timed(), 1e6, SIZES, CONTEXTS).noise > 1.5


def test_a_busy_spell_does_not_show() -> None:
    """A context that was measured under load is no slower than the next longer one."""
    spell = range(70, 120)
    busy = ClockedBackend(load=lambda calls: 30.0 if calls in spell else 1.0)
    found = measure(busy.timed(), 1e6, SIZES, CONTEXTS)
    for shorter, longer in zip(found.curve.times, found.curve.times[1:], strict=False):
        assert all(a <= 1.2 * b for a, b in zip(shorter, longer, strict=True))


def test_sizes_take_turns() -> None:
    """Those that matter are known before others are tried; calls of a size come in a row.

    In threes, until it is known that the second takes no longer than the third.
    """
    backend = ClockedBackend()
    measure(backend.timed(), 1e6, SIZES, (8,))
    others = [2, 2, 24, 24] * 2 + [2, 2]  # large ones twice only
    # Behind a call to warm up, on the way up and on the way down; then rounds of all that is known.
    learning = [1, 1, 1, 4, 4, 4, 8, 8, 8] * 2 + [1, 1, 4, 4, 8, 8]
    assert backend.widths == [*learning, 1, *others, *4 * [1, 1, 4, 4, 8, 8, 2, 2]]


class Rebuilding(ClockedBackend):
    """A graph is built anew where the width changes, and captured at the second call."""

    change = Change(7e-3, 3e-3)
    gear = Gear()

    def prefill(self, tokens: Tokens) -> None:
        super().prefill(tokens)
        self.gear = Gear()

    def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
        extra_s = self.gear.extra_s(len(tree), self.change)
        self.gear = self.gear.after(len(tree))
        self.now[0] += extra_s * self._load(self.calls)
        return super().score(tree, pending)


@pytest.mark.parametrize("rewind", [True, False])
@pytest.mark.parametrize("change", [FREE, Change(7e-3), Change(7e-3, 3e-3), Change(0.0, 3e-3)])
def test_what_a_change_takes_is_kept_apart(change: Change, rewind: bool) -> None:
    """T is of calls in a run, and the change what the first two of a run take more."""
    limits = fake_limits(16, n_ctx=2048, rewind=rewind, branch=rewind)
    backend = Rebuilding(limits)
    backend.change = change
    found = measure(backend.timed(), 1e6, SIZES, (8, 512)).curve
    assert found.change == pytest.approx(change, abs=1e-4 if not rewind else 1e-9)
    for context, times in zip(found.contexts, found.times, strict=True):
        drift = 1.0 if rewind else 1.8  # where nothing can be dropped, the text grows
        for n, seconds in zip(found.sizes, times, strict=True):
            assert cost(n, context) <= seconds * (1 + 1e-9) <= drift * cost(n, context) + 1e-9


@pytest.mark.parametrize("every", [5, 17])
def test_load_is_no_change(every: int) -> None:
    """One call in so many is ten times slower: neither T nor a change shows it."""
    backend = Rebuilding(load=lambda calls: 10.0 if calls % every == 0 else 1.0)
    found = measure(backend.timed(), 1e6, SIZES, CONTEXTS).curve
    assert found.change.first_s == pytest.approx(7e-3, rel=0.2)
    assert found.change.second_s == pytest.approx(3e-3, rel=0.2)
    assert found.seconds(4, 8) == pytest.approx(cost(4, 8))


def test_a_prompt_ends_a_run() -> None:
    """Graphs are built and captured anew behind it, and that is no sample."""
    timed = Rebuilding().timed()
    for context in (8, 32):
        timed.go_to(context)
        for _ in range(3):
            timed.time(1)
        assert timed.sample(1) == pytest.approx(cost(1, context))
        timed.go_to(context + 4)
        assert timed.sample(1) == pytest.approx(cost(1, context + 4))


def test_slow_calls_need_no_runs() -> None:
    """A change is within the noise there, and time is better spent on another sample."""
    backend = Rebuilding(factor=100.0)
    found = measure(backend.timed(), 1e6, SIZES, (8,))
    assert backend.widths[:7] == [1, 1, 4, 8, 1, 4, 8]
    assert found.curve.change == FREE
    assert found.curve.seconds(4, 8) == pytest.approx(100 * cost(4, 8), rel=0.05)


def test_the_deadline_costs_contexts_rounds_and_sizes() -> None:
    """Less time means fewer repetitions and fewer points, each of them right."""
    calls, n_points = [], []
    for deadline_s in (1.0, 0.5, 0.25, 0.12, 0.06):
        backend = ClockedBackend()
        found = measure(backend.timed(), deadline_s, SIZES, CONTEXTS)
        calls.append(backend.calls)
        n_points.append((len(found.curve.contexts), len(found.curve.sizes)))
        assert backend.now[0] <= deadline_s + 0.02
        assert (found.samples >= 3) == (deadline_s > 0.1)
        for context, times in zip(found.curve.contexts, found.curve.times, strict=True):
            assert times == pytest.approx([cost(n, context) for n in found.curve.sizes])
    assert calls == sorted(calls, reverse=True)
    assert n_points[0] == (3, 5)
    assert n_points[-1] == (1, 3)


def test_sizes_that_matter_have_more_time() -> None:
    """Three samples of each, late if they may be; a call that takes longer ends it."""
    found = measure(ClockedBackend().timed(), 1e-3, SIZES, CONTEXTS, latest_s=0.1)
    assert found.samples == 3
    assert (found.curve.sizes, found.curve.contexts) == ((1, 4, 8), (8,))
    found = measure(ClockedBackend().timed(), 1e-3, SIZES, CONTEXTS)
    assert found.samples == 0
    assert found.curve.sizes == (1,)


def test_a_slow_prefill_costs_contexts() -> None:
    """Text that is only there to be long gets part of the time."""
    found = measure(ClockedBackend(prefill_s=5e-3).timed(), 0.5, SIZES, CONTEXTS)
    assert found.curve.contexts == (8, 32)


@pytest.mark.parametrize(
    ("n_ctx", "contexts"), [(128, CONTEXTS), (48, (8,)), (12, (8,)), (10, (3,)), (2, (0,))]
)
def test_small_contexts(n_ctx: int, contexts: tuple[int, ...]) -> None:
    """What does not fit is left out."""
    timed = ClockedBackend(fake_limits(16, n_ctx=n_ctx)).timed()
    curve = measure(timed, 1e6, SIZES, CONTEXTS).curve
    assert curve.contexts == contexts
    assert max(curve.sizes) <= max(1, n_ctx // 2)


def test_a_backend_that_cannot_rewind() -> None:
    """Its contexts are measured upwards, a row is kept each time, and widths are not compared."""
    limits = fake_limits(16, n_ctx=512, rewind=False, branch=False, max_rows=8)
    timed = ClockedBackend(limits).timed()
    curve = measure(timed, 1e6, SIZES, (8, 200)).curve
    assert (curve.sizes, curve.contexts) == ((1, 2, 4, 8), (8, 200))
    assert exact_classes(timed, 8, 1e6) == ()


def test_comparing_settings() -> None:
    """The clock is shared, and load falls on all alike."""
    clock = [0.0]
    first = ClockedBackend(clock=clock)
    second = ClockedBackend(clock=clock, factor=1.5)
    found = compare([first.timed(), second.timed()], 1e6, (8, 64))
    assert found.contexts == (8, 64)
    assert found.steps == pytest.approx((1.0, 1.5))
    assert found.prefill == pytest.approx((1.0, 1.5))
    assert found.apart == (False, True)
    assert first.widths[1:] == second.widths  # but for the call that told what there is time for


def test_comparing_in_no_time() -> None:
    """What could be timed once only says nothing."""
    clock = [0.0]
    subjects = [ClockedBackend(clock=clock, factor=f).timed() for f in (2.0, 1.0)]
    found = compare(subjects, 0.02, (8, 64))
    assert (found.contexts, found.steps, found.apart) == ((), (1.0, 1.0), (False, False))
    assert clock[0] <= 0.02


# ---- a busy machine: a model of real costs, on a clock that other programs slow down

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


def test_times_that_change_half_way_are_noise() -> None:
    """Though all sizes change alike, so that the curve has the right shape."""
    busy = ClockedBackend(load=lambda calls: 1.0 if calls < 24 else 1.5)
    found = measure(busy.timed(), 1e6, (1, 4, 8), (8,))
    assert found.noise == pytest.approx(1.5)
    assert found.samples == 7


@pytest.mark.parametrize(
    ("spread", "saved", "on"), [(1.0, 0.9, False), (1.0, 0.97, True), (1.3, 0.9, True)]
)
def test_flash_attention_stays_on_in_doubt(spread: float, saved: float, on: bool) -> None:
    """It goes off where that saves 5 % or more, and more than repetitions differ by."""
    clock = [0.0]
    limits = fake_limits(16, n_ctx=300)
    rng = random.Random(1)
    subjects = {
        setting: ClockedBackend(
            limits, clock=clock, factor=factor, load=lambda calls: rng.choice((1.0, spread))
        ).timed()
        for setting, factor in ((True, 1.0), (False, saved))
    }
    profile = measure_subjects(subjects, 1e5, lambda *_: None)
    assert profile.flash_attention is on
    assert profile.comparison is not None
    assert profile.comparison.apart == (False, spread == 1.0)
    assert profile.comparison.steps[1] == pytest.approx(saved, abs=0.02)


def test_a_falling_curve_is_no_curve() -> None:
    """Whatever repetitions say: rows cannot cost less than fewer rows, nor more than one by one."""
    for bad in ({1: 3.0}, {4: 3.0}, {8: 1 / 3}, {8: 4.0}, {4: 6.0}):

        class Odd(ClockedBackend):
            factors = bad

            def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
                factor = self.factors.get(len(tree), 1.0)
                self.now[0] += cost(len(tree), self.length) * (factor - 1)
                return super().score(tree, pending)

        assert measure(Odd().timed(), 1e6, SIZES, CONTEXTS).noise > NOISY, bad


@pytest.mark.parametrize("curve", ["cpu2", "mi50", "flat", "unknown"])
def test_curves_of_real_machines_are_no_noise(curve: str) -> None:
    """Stairs, dips and other kernels for other sizes are what a curve is measured for."""
    model = load_curve(curve)

    class Real(ClockedBackend):
        def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
            took = model.seconds(len(tree), self.length) - cost(len(tree), self.length)
            self.now[0] += took
            return super().score(tree, pending)

    assert measure(Real().timed(), 1e6, SIZES, CONTEXTS).noise == pytest.approx(1.0)


class RoundingBackend(ClockedBackend):
    """Rows in full groups of four round otherwise, as do all beyond a context of 40."""

    def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
        logits = super().score(tree, pending).copy()
        logits[: len(tree) // 4 * 4] += np.float32(1e-3)
        if self.length >= 40 and len(tree) == 1:
            logits += np.float32(2e-3)
        return logits


def test_exact_classes() -> None:
    """Widths are in a class if a text decoded in either has the same logits all along."""
    timed = RoundingBackend().timed()
    widths = (1, 8, 4, 2, 16, 3, 6, 5, 24)
    # 8 leaves a half group at the end of no text: the second call of 24 is cut off after 8 rows.
    assert exact_classes(timed, 8, 1e6, widths) == ((1, 2, 3), (4, 8, 16, 24), (5,), (6,))
    assert exact_classes(timed, 64, 1e6, widths)[:2] == ((1,), (2, 3))
    assert timed.backend.length == 64


def test_exact_classes_in_time() -> None:
    """What was not compared is in no class."""
    assert exact_classes(ClockedBackend().timed(), 8, 1e-4, (4, 8, 1)) == ()
    # 8 calls with 4 rows take 18 ms, and no width may take longer than three deadlines
    assert exact_classes(ClockedBackend().timed(), 8, 7e-3, (4, 8, 1)) == ((4,),)


def test_exact_branches() -> None:
    """A width is exact if its side branches round as a chain does, wherever they are tried."""

    class Branching(ClockedBackend):
        """From 6 rows on side branches round otherwise, with 8 rows only at one place."""

        def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
            logits = super().score(tree, pending).copy()
            if len(tree) >= 6 and (len(tree) != 8 or self.length == 16):
                logits[tree.n_main :] += np.float32(1e-3)
            return logits

    timed = Branching().timed()
    assert exact_branches(timed, 8, 1e6, (3, 4, 5, 6, 8, 12)) == {
        3: True, 4: True, 5: True, 6: False, 8: False, 12: False
    }  # fmt: skip
    assert timed.backend.length == 8
    assert exact_branches(Branching().timed(), 40, 1e6, (3, 8)) == {3: True, 8: True}
    assert exact_branches(Branching().timed(), 8, 0.0, (6, 4)) == {6: False}
    assert exact_branches(Branching().timed(), 8, 1e-4, (4, 6)) == {}
    chains = ClockedBackend(fake_limits(16, branch=False)).timed()
    assert exact_branches(chains, 8, 1e6) == {}


def test_fingerprints_tell_files_apart(tmp_path: Path) -> None:
    """By size, head and blocks; the name does not matter."""
    data = bytearray(3 << 20)
    files = [tmp_path / name for name in ("a", "b", "c", "d", "e")]
    for file, change in zip(files, (None, None, 0, len(data) - 1, "longer"), strict=True):
        changed = bytearray(data + b"\0" if change == "longer" else data)
        if isinstance(change, int):
            changed[change] = 1
        file.write_bytes(changed)
    prints = [fingerprint(file) for file in files]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    with pytest.raises(ModelError, match="missing"):
        fingerprint(tmp_path / "missing")


CONFIG = EngineConfig(n_ctx=256, threads=1)


@pytest.mark.llama
def test_what_a_profile_depends_on(tiny_model: TinyModel) -> None:
    """Weights, settings, devices and the build of llama.cpp, but not the length of the context."""
    path = tiny_model()
    key = profile_key(path, CONFIG)
    assert library_version().startswith("ggml ")
    assert any("CPU" in name for name in device_names())
    assert key["devices"] and key["llama_cpp"]
    assert profile_key(path, dataclasses.replace(CONFIG, n_ctx=128, max_drafts=3)) == key
    for change in (
        {"threads": 2},
        {"flash_attention": True},
        {"gpu_layers": 0},
        {"swa_full": False},
    ):
        assert profile_key(path, dataclasses.replace(CONFIG, **change)) != key
    assert profile_key(tiny_model(quantization="Q8_0"), CONFIG) != key


@pytest.mark.llama
def test_a_profile_is_kept(tiny_model: TinyModel) -> None:
    """Under what was asked for, and under the setting that was chosen."""
    path = tiny_model(quantization="Q4_0")
    assert find_profile(path, CONFIG) is None
    stages: list[str] = []
    profile = measure_profile(path, CONFIG, 1.5, lambda stage, share: stages.append(stage))
    assert profile.comparison is not None
    assert stages[0] == "loading the model"
    kept = keep_profile(path, CONFIG, profile)
    assert kept is not None
    found = find_profile(path, CONFIG)
    assert found is not None
    assert found.record() == profile.record()
    chosen = dataclasses.replace(CONFIG, flash_attention=profile.flash_attention)
    other = dataclasses.replace(CONFIG, flash_attention=not profile.flash_attention)
    by_name = find_profile(path, chosen)
    assert by_name is not None and by_name.curve == found.curve
    assert find_profile(path, other) is None


@pytest.mark.llama
def test_a_profile_that_is_none(tiny_model: TinyModel) -> None:
    """A file that holds something else is set aside."""
    path = tiny_model()
    profile = measure_profile(path, dataclasses.replace(CONFIG, flash_attention=False), 0.2)
    assert (profile.flash_attention, profile.comparison) == (False, None)
    kept = keep_profile(path, CONFIG, profile)
    assert kept is not None
    kept.write_text(kept.read_text().replace('"sizes"', '"seizes"'))
    assert find_profile(path, CONFIG) is None
    assert not kept.exists()


@pytest.mark.llama
@pytest.mark.parametrize("architecture", ["gemma3", "mamba", "lfm2", "granitehybrid"])
def test_every_kind_of_model(tiny_model: TinyModel, architecture: str) -> None:
    """Those that cannot rewind get a curve, too."""
    path = tiny_model(architecture)  # type: ignore[arg-type]
    profile = measure_profile(path, CONFIG, 0.5)
    assert profile.curve.seconds(1, 100) > 0


@pytest.mark.llama
def test_a_model_without_flash_attention(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting that works is taken; where none does, the error is llama.cpp's."""

    class Picky(LlamaBackend):
        def __init__(
            self, model: LlamaModel, config: ContextConfig, should_stop: ShouldStop
        ) -> None:
            if config.flash_attention is not works:
                raise BackendError("no such attention")
            super().__init__(model, config, should_stop)

    monkeypatch.setattr("specgen.core.knowledge.profiling.LlamaBackend", Picky)
    works: bool | None = False
    assert measure_profile(tiny_model(), CONFIG, 0.2).flash_attention is False
    works = None
    with pytest.raises(BackendError, match="no such attention"):
        measure_profile(tiny_model(), CONFIG, 0.2)


@pytest.mark.llama
@pytest.mark.parametrize(
    "quantization", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "IQ4_XS"]
)
def test_exact_classes_of_llama_cpp(tiny_model: TinyModel, quantization: Quantization) -> None:
    """Formats of our kernels round alike in every width, with flash attention and a short text."""
    if quantization not in ("Q4_0", "Q4_1", "Q8_0") and not own_kernels.multiplies():
        pytest.skip("llama.cpp's kernels for it depend on the width")
    model = LlamaModel(tiny_model(quantization=quantization))
    backend = LlamaBackend(model, ContextConfig(256, threads=1, flash_attention=True))
    try:
        widths = (1, 2, 5, 8, 17, 63)
        timed = TimedBackend(backend, TEXT)
        assert exact_classes(timed, 16, 60.0, widths) == (widths,)
        assert exact_branches(timed, 16, 60.0, (3, 8)) == {3: True, 8: True}
    finally:
        backend.close()
        model.close()


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (EngineConfig(), (True, False)),
        (EngineConfig(flash_attention=False), (False,)),
        (EngineConfig(type_k="q8_0"), (True, False)),
        (EngineConfig(type_v="q8_0"), (True,)),
    ],
    ids=str,
)
def test_settings_that_are_measured(config: EngineConfig, settings: tuple[bool, ...]) -> None:
    """Flash attention on and off, where nobody chose and values do not need it."""
    assert settings_to_measure(config) == settings


@pytest.mark.llama
def test_a_slow_machine_measures_a_long_context_too(tiny_model: TinyModel) -> None:
    """There is no time for it, but what holds in a short one need not hold there."""
    path = tiny_model(quantization="Q4_1")
    profile = measure_profile(path, EngineConfig(threads=1), deadline_s=0.01)
    assert min(profile.classes) <= 128
    assert max(profile.classes) >= 576
    assert profile.branching.keys() == profile.classes.keys()
