"""What the system says about available memory, and about others who use the processors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from specgen.core.host import limits as host
from specgen.core.host.limits import (
    available_memory_bytes,
    default_threads,
    load,
    longest_wait_s,
    thread_waits,
    usable_cpus,
)
from specgen.core.host.process_memory import anonymous_bytes


def test_what_the_process_has_counts_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can have it, and a plan counts all that the process will have."""
    before = available_memory_bytes()
    monkeypatch.setattr(host, "anonymous_bytes", lambda: None)
    without = available_memory_bytes()
    if before is not None and without is not None:
        assert before - without == pytest.approx(anonymous_bytes(), abs=512 << 20)


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without /proc nothing is known."""
    monkeypatch.setattr(host, "Path", lambda _: tmp_path / "missing" / "file")
    assert available_memory_bytes() is None


def test_available_memory_is_plausible() -> None:
    """Some, and no more than the machine has; or the system does not say."""
    available = available_memory_bytes()
    lines = [line.split() for line in read_meminfo().splitlines()]
    total = next((1024 * int(words[1]) for words in lines if words[0] == "MemTotal:"), None)
    assert available is None if total is None else 0 < (available or 0) < total


def read_meminfo() -> str:
    """Linux's account of its memory, or nothing."""
    path = Path("/proc/meminfo")
    return path.read_text() if path.exists() else ""


def test_a_group_that_has_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left then, and what the process has it may keep."""
    monkeypatch.setattr(host, "_cgroup_memory", lambda *_: -5_000)
    monkeypatch.setattr(host, "anonymous_bytes", lambda: 7_000)
    assert available_memory_bytes() == 7_000


def test_waiting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each thread, as Linux writes it; the one that waited longest counts, new ones do not."""
    for thread, text in (("7", "100 2000000000 3\n"), ("8", "1 500000000 1\n"), ("9", "odd\n")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    monkeypatch.setattr(host, "Path", lambda _: tmp_path)
    waits = thread_waits()
    assert waits == {"7": 2.0, "8": 0.5}
    assert longest_wait_s({"7": 1.5, "8": 0.25, "5": 9.0}, {**waits, "6": 8.0}) == 0.5
    assert longest_wait_s({}, waits) == 0.0
    monkeypatch.setattr(host, "Path", lambda _: tmp_path / "missing")
    assert thread_waits() == {}


def test_a_thread_that_has_to_wait() -> None:
    """Beside another one on the same processor it cannot run all the time."""
    before = thread_waits()
    if not before or not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system does not tell")
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            start = time.process_time()
            while time.process_time() < start + 0.5:
                pass
            other.kill()
    finally:
        os.sched_setaffinity(0, cpus)
    assert longest_wait_s(before, thread_waits()) > 0


def test_the_load_is_told_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks and CPUs of the whole machine; None where a system has no such figure."""
    monkeypatch.setattr(os, "getloadavg", lambda: (3.5, 2.0, 1.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert load() == (3.5, 4)
    monkeypatch.delattr(os, "getloadavg")
    assert load() is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux tells it")
def test_psutil_tells_what_linux_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems are asked through it: for available memory, and for cores."""
    monkeypatch.setattr(host, "_cgroup_memory", lambda *_: None)
    monkeypatch.setattr(host, "_cgroup_cpus", lambda *_: None)
    available, threads = available_memory_bytes() or 0, default_threads()
    monkeypatch.setattr(host, "portable", lambda: psutil)
    assert available_memory_bytes() == pytest.approx(available, abs=512 << 20)
    assert threads <= default_threads() <= usable_cpus()
