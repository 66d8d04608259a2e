"""Measuring in a moment: a few sizes behind a text, on a clock that only calls move."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.cost.gear import FREE
from specgen.core.cost.measure import NOISY
from specgen.core.cost.model import UNKNOWN, CostModel, load_curve
from specgen.core.cost.quick import QUICK_SIZES, extended, measure_quickly
from specgen.core.cost.timed import TimedBackend
from specgen.core.protocols import Change
from specgen.core.stop import Interrupted
from specgen.core.testing.fakes import fake_limits
from tests.support.clocked import CurvedBackend

CPU = CostModel((1, 4, 8), (0,), ((8e-3, 10e-3, 14e-3),), Change(0.5e-3, 0.0))
GPU = CostModel((1, 2, 4, 8), (0,), ((3e-3, 3.2e-3, 4.1e-3, 5.8e-3),), Change(0.9e-3, 4.2e-3))


def timed(backend: CurvedBackend) -> TimedBackend:
    """The backend with its own clock and a text."""
    return TimedBackend(backend, range(9), backend.clock)


@pytest.mark.parametrize("truth", [CPU, GPU])
def test_four_sizes_and_a_change(truth: CostModel) -> None:
    """Calls of a size come in a row; the curve and the change are those of the machine."""
    backend = CurvedBackend(truth).filled(40)
    cached, start = backend.cached, backend.clock()
    found = measure_quickly(timed(backend), 2.0, 1000)
    assert found is not None
    assert backend.widths == [n for n in QUICK_SIZES for _ in range(4)]
    assert backend.cached == cached
    assert found.seconds == pytest.approx(backend.clock() - start)
    assert (found.curve.sizes, found.curve.contexts) == ((1, 2, 4, 8), (40,))
    assert found.curve.times[0] == pytest.approx([truth.seconds(n, 40) for n in (1, 2, 4, 8)])
    assert found.curve.change == pytest.approx(truth.change)
    assert found.noise == pytest.approx(1.0)


def test_what_comes_behind_the_prompt_is_no_change() -> None:
    """The first call of all takes longer than others of a new width."""
    slow = CurvedBackend(CPU, load=lambda call: 1.0 if call else 8.0).filled(8)
    found = measure_quickly(timed(slow), 9.0, 900, (1, 4))
    assert found is not None
    assert found.curve.change == pytest.approx(CPU.change)


@given(
    row_s=st.floats(1e-4, 3.0),
    shape=st.lists(st.floats(1.0, 2.5), min_size=3, max_size=3),
    limit_s=st.floats(0.0, 20.0),
    n_tokens=st.integers(0, 2000),
)
def test_time_is_kept(row_s: float, shape: list[float], limit_s: float, n_tokens: int) -> None:
    """At most a call over the limit, and over a part of what the answer takes."""
    times = [row_s]
    for factor in shape:
        times.append(times[-1] * factor)
    backend = CurvedBackend(CostModel((1, 2, 4, 8), (0,), (tuple(times),))).filled(8)
    start = backend.clock()
    found = measure_quickly(timed(backend), limit_s, n_tokens)
    over_s = backend.clock() - start - min(limit_s, n_tokens * row_s / 4)
    assert over_s <= (times[3] if backend.widths[1:] else row_s) + 1e-9
    for n in found.curve.sizes if found else ():
        assert backend.widths.count(n) == 4
        assert found and found.curve.seconds(n, 8) == pytest.approx(backend.curve.seconds(n, 8))
    if n_tokens < 32:
        assert not backend.widths


@pytest.mark.parametrize(
    ("limit_s", "n_tokens", "sizes"),
    [(2.0, 40, (1, 4)), (2.0, 57, (1, 2, 4)), (0.05, 900, ()), (0.08, 900, (1, 4)), (2.0, 9, ())],
)
def test_what_there_is_time_for(limit_s: float, n_tokens: int, sizes: tuple[int, ...]) -> None:
    """Sizes in the order of their importance, each with three samples, or none at all."""
    backend = CurvedBackend(CPU).filled(8)
    found = measure_quickly(timed(backend), limit_s, n_tokens)
    assert (found.curve.sizes if found else ()) == sizes


def test_what_does_not_fit_is_left_out() -> None:
    """A backend of few rows, and a context that is nearly full."""
    few = CurvedBackend(CPU, fake_limits(16, n_ctx=64, max_rows=5)).filled(8)
    full = CurvedBackend(CPU, fake_limits(16, n_ctx=64)).filled(61)
    for backend, sizes in ((few, (1, 2, 4)), (full, (1, 2))):
        found = measure_quickly(timed(backend), 9.0, 900)
        assert found is not None and found.curve.sizes == sizes
    assert measure_quickly(timed(CurvedBackend(CPU, fake_limits(16, max_rows=1))), 9.0, 900) is None


def test_load_shows_as_noise() -> None:
    """Calls that differ are no measurement; a slow one now and then does not count."""
    rng = random.Random(1)
    busy = CurvedBackend(CPU, load=lambda _: rng.choice((1.0, 3.0))).filled(8)
    found = measure_quickly(timed(busy), 9.0, 900)
    assert found is not None and found.noise > NOISY
    calm = CurvedBackend(CPU, load=lambda call: 3.0 if call % 4 == 2 else 1.0).filled(8)
    found = measure_quickly(timed(calm), 9.0, 900)
    assert found is not None and found.noise == pytest.approx(1.0)
    assert found.curve.times[0] == pytest.approx([CPU.seconds(n, 8) for n in (1, 2, 4, 8)])


@given(st.lists(st.floats(1e-3, 1.0), min_size=4, max_size=4))
def test_more_rows_never_cost_less(times: list[float]) -> None:
    """Whatever load made of the times."""
    odd = CostModel((1, 2, 4, 8), (0,), (tuple(times),))
    found = measure_quickly(timed(CurvedBackend(odd).filled(8)), 1e6, 10**6)
    assert found is not None
    assert all(a <= b for a, b in pairwise(found.curve.times[0]))


def test_it_can_be_stopped() -> None:
    """Between two calls, and the cache is as before."""
    backend = CurvedBackend(CPU).filled(8)
    stopped = TimedBackend(
        backend, range(9), backend.clock, should_stop=lambda: len(backend.widths) == 6
    )
    with pytest.raises(Interrupted):
        measure_quickly(stopped, 9.0, 900)
    assert (len(backend.widths), backend.length) == (6, 8)


@pytest.mark.parametrize("widest", [2, 4, 8])
def test_beyond_the_widest(widest: int) -> None:
    """As dear as on the dearest machine known, in proportion; what was measured stays."""
    sizes = tuple(n for n in (1, 2, 4, 8) if n <= widest)
    curve = CostModel(sizes, (40,), (tuple(GPU.seconds(n, 0) for n in sizes),), GPU.change)
    whole, unknown = extended(curve), load_curve(UNKNOWN)
    assert whole.change == GPU.change != FREE
    assert [whole.seconds(n, 40) for n in sizes] == pytest.approx(list(curve.times[0]))
    for n in (12, 16, 32, 64):
        factor = unknown.seconds(n, 40) / unknown.seconds(widest, 40)
        assert whole.seconds(n, 99) == pytest.approx(factor * GPU.seconds(widest, 0))
