"""Measuring memory bandwidth: what is read and for how long, never how fast it must be."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator

import pytest

from specgen.core.host import bandwidth
from specgen.core.host.bandwidth import measure_bandwidth

MIB = 1 << 20


class Clock:
    """Goes on by `step` seconds whenever it is read."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.step * self.reads


@pytest.fixture
def memory() -> Iterator[None]:
    """Python's and NumPy's allocations are counted."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_plausible_speed(threads: int) -> None:
    """Between a slow card reader and anything that exists."""
    assert 1e8 < measure_bandwidth(threads, 8 * MIB, 0.02) < 1e13


def test_bytes_per_second_of_the_best_round() -> None:
    """All bytes of the array count once a round, by the clock."""
    assert measure_bandwidth(2, 4 * MIB, 10.0, Clock(0.5)) == pytest.approx(8 * MIB)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 1), (1.0, 1), (4.0, 2), (21.0, 11)])
def test_rounds_go_on_until_the_deadline(seconds: float, rounds: int) -> None:
    """At least one round, and none begins after the deadline."""
    clock = Clock(1.0)  # between the two readings of a round; as much between rounds
    measure_bandwidth(1, MIB, seconds, clock)
    assert clock.reads == 1 + 2 * rounds


@pytest.mark.usefixtures("memory")
def test_memory_and_threads_are_given_back() -> None:
    """After the measurement nothing of it is left."""
    before, threads = tracemalloc.get_traced_memory()[0], threading.active_count()
    measure_bandwidth(2, 32 * MIB, 0.0)
    now, peak = tracemalloc.get_traced_memory()
    assert 32 * MIB <= peak - before < 33 * MIB
    assert now - before < MIB
    assert threading.active_count() == threads


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    ("asked", "available", "taken"),
    [(512, 400, 100), (512, 20, 64), (32, 20, 32), (80, 400, 80), (80, None, 80)],
)
def test_little_memory(
    asked: int, available: int | None, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of what is available (MiB), 64 MiB at least, and never more than asked for."""
    known = None if available is None else available * MIB
    monkeypatch.setattr(bandwidth, "available_memory_bytes", lambda: known)
    before = tracemalloc.get_traced_memory()[0]
    measure_bandwidth(1, asked * MIB, 0.0)
    peak = tracemalloc.get_traced_memory()[1] - before
    assert taken * MIB <= peak < (taken + 1) * MIB
