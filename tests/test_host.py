"""What the system says about memory, compared with memory that a process really takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from specgen.core import host
from specgen.core.host import available_memory_bytes, peak_memory_bytes, reset_peak_memory

MIB = 1 << 20
TAKEN = 64 * MIB
SLACK = MIB  # Linux counts resident pages per CPU and adds them up now and then

# In a process of its own, whose peak nobody else has raised before.
_SCRIPT = f"""
from specgen.core.host import peak_memory_bytes, reset_peak_memory
reset_peak_memory()
before = peak_memory_bytes()
block = b"x" * {TAKEN}
taken = peak_memory_bytes()
del block
freed = peak_memory_bytes()
reset_peak_memory()
print(before, taken, freed, peak_memory_bytes())
"""


@pytest.fixture(scope="module")
def peaks() -> tuple[int, ...]:
    """Peaks before TAKEN bytes are taken, with them, when they are freed, and after a reset."""
    command, root = [sys.executable, "-c", _SCRIPT], Path(__file__).parents[1]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return tuple(int(word) for word in run.stdout.split())


def can_reset() -> bool:
    """Whether this kernel lets a process reset its peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="the peak is not known there")
def test_memory_that_is_taken_raises_the_peak(peaks: tuple[int, ...]) -> None:
    """By as much as is taken, and it stays there when that is freed."""
    before, taken, freed, _ = peaks
    assert before > 0
    assert 0.9 * TAKEN < taken - before < 1.25 * TAKEN
    assert freed > taken - SLACK


def test_a_reset_forgets_what_was_freed(peaks: tuple[int, ...]) -> None:
    """After it the peak is what is resident now; where it is not allowed, nothing changes."""
    _, _, freed, after = peaks
    assert after < freed - 0.9 * TAKEN if can_reset() else after > freed - SLACK


def test_a_system_that_cannot_reset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without /proc a reset does nothing, and the peak is since the start, or not known."""
    monkeypatch.setattr(host, "Path", lambda _: tmp_path / "missing" / "file")
    reset_peak_memory()
    peak = peak_memory_bytes()
    assert peak == 0 if sys.platform == "win32" else peak > MIB
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
