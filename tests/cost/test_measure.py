"""Measuring: on a backend whose calls take what the test says."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from specgen.core.cost.comparison import compare
from specgen.core.cost.gear import FREE
from specgen.core.cost.measure import NOISY, measure
from specgen.core.cost.model import load_curve
from specgen.core.cost.rounding import exact_classes
from specgen.core.protocols import Change
from specgen.core.testing.fakes import fake_limits
from tests.support.clocked import ClockedBackend, StairBackend, stair

SIZES = (1, 4, 8, 2, 24)
CONTEXTS = (8, 32, 64)
LIMITS = fake_limits(16, n_ctx=128)


def test_a_quiet_backend_is_measured_exactly() -> None:
    """Every size at every context; large sizes in proportion at those between."""
    found = measure(StairBackend().timed(), 1e6, SIZES, CONTEXTS)
    assert found.noise == pytest.approx(1.0)
    assert found.samples == 7
    assert (found.curve.sizes, found.curve.contexts) == ((1, 2, 4, 8, 24), CONTEXTS)
    for context, times in zip(CONTEXTS, found.curve.times, strict=True):
        expected = [stair(n, context) for n in found.curve.sizes]
        assert times == pytest.approx(expected)


@pytest.mark.parametrize("every", [6, 17])
def test_load_now_and_then_does_not_show(every: int) -> None:
    """One call in so many is ten times slower."""
    busy = StairBackend(load=lambda calls: 10.0 if calls % every == 0 else 1.0)
    found = measure(busy.timed(), 1e6, SIZES, CONTEXTS)
    quiet = measure(StairBackend().timed(), 1e6, SIZES, CONTEXTS)
    assert found.curve.times == tuple(map(pytest.approx, quiet.curve.times))
    assert every < 10 or found.noise == pytest.approx(1.0)  # a call in six is not now and then


def test_load_most_of_the_time_is_told() -> None:
    """Then no figure can be trusted, and the noise says so."""
    busy = StairBackend(load=lambda calls: 1.0 if calls % 7 == 0 else 10.0)
    assert measure(busy.timed(), 1e6, SIZES, CONTEXTS).noise > 1.5


def test_a_busy_spell_does_not_show() -> None:
    """A context that was measured under load is no slower than the next longer one."""
    spell = range(70, 120)
    busy = StairBackend(load=lambda calls: 30.0 if calls in spell else 1.0)
    found = measure(busy.timed(), 1e6, SIZES, CONTEXTS)
    for shorter, longer in zip(found.curve.times, found.curve.times[1:], strict=False):
        assert all(a <= 1.2 * b for a, b in zip(shorter, longer, strict=True))


def test_sizes_take_turns() -> None:
    """Those that matter are known before others are tried; calls of a size come in a row.

    In threes, until it is known that the second takes no longer than the third.
    """
    backend = StairBackend()
    measure(backend.timed(), 1e6, SIZES, (8,))
    others = [2, 2, 24, 24] * 2 + [2, 2]  # large ones twice only
    # Behind a call to warm up, on the way up and on the way down; then rounds of all that is known.
    learning = [1, 1, 1, 4, 4, 4, 8, 8, 8] * 2 + [1, 1, 4, 4, 8, 8]
    assert backend.widths == [*learning, 1, *others, *4 * [1, 1, 4, 4, 8, 8, 2, 2]]


CHANGE = Change(7e-3, 3e-3)  # a graph is built anew, and captured at the second call


@pytest.mark.parametrize("rewind", [True, False])
@pytest.mark.parametrize("change", [FREE, Change(7e-3), Change(7e-3, 3e-3), Change(0.0, 3e-3)])
def test_what_a_change_takes_is_kept_apart(change: Change, rewind: bool) -> None:
    """T is of calls in a run, and the change what the first two of a run take more."""
    limits = fake_limits(16, n_ctx=2048, rewind=rewind, branch=rewind)
    backend = StairBackend(limits, change=change)
    found = measure(backend.timed(), 1e6, SIZES, (8, 512)).curve
    assert found.change == pytest.approx(change, abs=1e-4 if not rewind else 1e-9)
    for context, times in zip(found.contexts, found.times, strict=True):
        drift = 1.0 if rewind else 1.8  # where nothing can be dropped, the text grows
        for n, seconds in zip(found.sizes, times, strict=True):
            assert stair(n, context) <= seconds * (1 + 1e-9) <= drift * stair(n, context) + 1e-9


@pytest.mark.parametrize("every", [5, 17])
def test_load_is_no_change(every: int) -> None:
    """One call in so many is ten times slower: neither T nor a change shows it."""
    backend = StairBackend(change=CHANGE, load=lambda calls: 10.0 if calls % every == 0 else 1.0)
    found = measure(backend.timed(), 1e6, SIZES, CONTEXTS).curve
    assert found.change.first_s == pytest.approx(7e-3, rel=0.2)
    assert found.change.second_s == pytest.approx(3e-3, rel=0.2)
    assert found.seconds(4, 8) == pytest.approx(stair(4, 8))


def test_a_prompt_ends_a_run() -> None:
    """Graphs are built and captured anew behind it, and that is no sample."""
    timed = StairBackend(change=CHANGE).timed()
    for context in (8, 32):
        timed.go_to(context)
        for _ in range(3):
            timed.time(1)
        assert timed.sample(1) == pytest.approx(stair(1, context))
        timed.go_to(context + 4)
        assert timed.sample(1) == pytest.approx(stair(1, context + 4))


def test_slow_calls_need_no_runs() -> None:
    """A change is within the noise there, and time is better spent on another sample."""
    backend = StairBackend(change=CHANGE, factor=100.0)
    found = measure(backend.timed(), 1e6, SIZES, (8,))
    assert backend.widths[:7] == [1, 1, 4, 8, 1, 4, 8]
    assert found.curve.change == FREE
    assert found.curve.seconds(4, 8) == pytest.approx(100 * stair(4, 8), rel=0.05)


def test_the_deadline_costs_contexts_rounds_and_sizes() -> None:
    """Less time means fewer repetitions and fewer points, each of them right."""
    calls, n_points = [], []
    for deadline_s in (1.0, 0.5, 0.25, 0.12, 0.06):
        backend = StairBackend()
        found = measure(backend.timed(), deadline_s, SIZES, CONTEXTS)
        calls.append(backend.calls)
        n_points.append((len(found.curve.contexts), len(found.curve.sizes)))
        assert backend.clock() <= deadline_s + 0.02
        assert (found.samples >= 3) == (deadline_s > 0.1)
        for context, times in zip(found.curve.contexts, found.curve.times, strict=True):
            assert times == pytest.approx([stair(n, context) for n in found.curve.sizes])
    assert calls == sorted(calls, reverse=True)
    assert n_points[0] == (3, 5)
    assert n_points[-1] == (1, 3)


def test_sizes_that_matter_have_more_time() -> None:
    """Three samples of each, late if they may be; a call that takes longer ends it."""
    found = measure(StairBackend().timed(), 1e-3, SIZES, CONTEXTS, latest_s=0.1)
    assert found.samples == 3
    assert (found.curve.sizes, found.curve.contexts) == ((1, 4, 8), (8,))
    found = measure(StairBackend().timed(), 1e-3, SIZES, CONTEXTS)
    assert found.samples == 0
    assert found.curve.sizes == (1,)


def test_a_slow_prefill_costs_contexts() -> None:
    """Text that is only there to be long gets part of the time."""
    found = measure(StairBackend(token_s=5e-3).timed(), 0.5, SIZES, CONTEXTS)
    assert found.curve.contexts == (8, 32)


@pytest.mark.parametrize(
    ("n_ctx", "contexts"), [(128, CONTEXTS), (48, (8,)), (12, (8,)), (10, (3,)), (2, (0,))]
)
def test_small_contexts(n_ctx: int, contexts: tuple[int, ...]) -> None:
    """What does not fit is left out."""
    timed = StairBackend(fake_limits(16, n_ctx=n_ctx)).timed()
    curve = measure(timed, 1e6, SIZES, CONTEXTS).curve
    assert curve.contexts == contexts
    assert max(curve.sizes) <= max(1, n_ctx // 2)


def test_a_backend_that_cannot_rewind() -> None:
    """Its contexts are measured upwards, a row is kept each time, and widths are not compared."""
    limits = fake_limits(16, n_ctx=512, rewind=False, branch=False, max_rows=8)
    timed = StairBackend(limits).timed()
    curve = measure(timed, 1e6, SIZES, (8, 200)).curve
    assert (curve.sizes, curve.contexts) == ((1, 2, 4, 8), (8, 200))
    assert exact_classes(timed, 8, 1e6) == ()


def test_comparing_settings() -> None:
    """The clock is shared, and load falls on all alike."""
    clock = [0.0]
    first = StairBackend(shared=clock)
    second = StairBackend(shared=clock, factor=1.5)
    found = compare([first.timed(), second.timed()], 1e6, (8, 64))
    assert found.contexts == (8, 64)
    assert found.steps == pytest.approx((1.0, 1.5))
    assert found.prefill == pytest.approx((1.0, 1.5))
    assert found.apart == (False, True)
    assert first.widths[1:] == second.widths  # but for the call that told what there is time for


def test_comparing_in_no_time() -> None:
    """What could be timed once only says nothing."""
    clock = [0.0]
    subjects = [StairBackend(shared=clock, factor=f).timed() for f in (2.0, 1.0)]
    found = compare(subjects, 0.02, (8, 64))
    assert (found.contexts, found.steps, found.apart) == ((), (1.0, 1.0), (False, False))
    assert clock[0] <= 0.02


def test_times_that_change_half_way_are_noise() -> None:
    """Though all sizes change alike, so that the curve has the right shape."""
    busy = StairBackend(load=lambda calls: 1.0 if calls < 24 else 1.5)
    found = measure(busy.timed(), 1e6, (1, 4, 8), (8,))
    assert found.noise == pytest.approx(1.5)
    assert found.samples == 7


def test_a_falling_curve_is_no_curve() -> None:
    """Whatever repetitions say: rows cannot cost less than fewer rows, nor more than one by one."""
    for bad in ({1: 3.0}, {4: 3.0}, {8: 1 / 3}, {8: 4.0}, {4: 6.0}):

        def odd(n: int, context: int, factors: Mapping[int, float] = bad) -> float:
            return stair(n, context) * factors.get(n, 1.0)

        assert (
            measure(ClockedBackend(odd, LIMITS, token_s=1e-4).timed(), 1e6, SIZES, CONTEXTS).noise
            > NOISY
        ), bad


@pytest.mark.parametrize("curve", ["cpu2", "mi50", "flat", "unknown"])
def test_curves_of_real_machines_are_no_noise(curve: str) -> None:
    """Stairs, dips and other kernels for other sizes are what a curve is measured for."""
    real = ClockedBackend(load_curve(curve).seconds, LIMITS, token_s=1e-4)
    assert measure(real.timed(), 1e6, SIZES, CONTEXTS).noise == pytest.approx(1.0)
