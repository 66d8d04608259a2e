"""What the system says about available memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.core import host
from specgen.core.host import available_memory_bytes
from specgen.core.resident import own_bytes


def test_what_the_process_has_counts_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can have it, and a plan counts all that the process will have."""
    before = available_memory_bytes()
    monkeypatch.setattr(host, "own_bytes", lambda: None)
    without = available_memory_bytes()
    if before is not None and without is not None:
        assert before - without == pytest.approx(own_bytes(), abs=512 << 20)


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
    monkeypatch.setattr(host, "own_bytes", lambda: 7_000)
    assert available_memory_bytes() == 7_000
