"""The memory of this process, compared with memory that it really takes."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from specgen.core.host import process_memory as resident
from specgen.core.host.process_memory import (
    anonymous_bytes,
    peak_bytes,
    reset_peak,
    resident_bytes,
)

MIB = 1 << 20
TAKEN = 64 * MIB
SLACK = MIB  # Linux counts resident pages per CPU and adds them up now and then

# In a process of its own, whose peak nobody else has raised before.
_SCRIPT = f"""
from specgen.core.host.process_memory import peak_bytes, reset_peak
reset_peak()
before = peak_bytes()
block = b"x" * {TAKEN}
taken = peak_bytes()
del block
freed = peak_bytes()
reset_peak()
print(before, taken, freed, peak_bytes())
"""


@pytest.fixture(scope="module")
def peaks() -> tuple[int, ...]:
    """Peaks before TAKEN bytes are taken, with them, when they are freed, and after a reset."""
    command, root = [sys.executable, "-c", _SCRIPT], Path(__file__).parents[2]
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


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without /proc a reset does nothing, and the peak is since the start, or not known."""
    missing = tmp_path / "missing" / "file"
    monkeypatch.setattr(resident, "Path", lambda _: missing)
    monkeypatch.setattr(resident, "_STATUS", missing)
    reset_peak()
    peak = peak_bytes()
    assert peak > MIB
    assert resident_bytes() is anonymous_bytes() is None


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it")


@needs_proc
def test_what_is_in_files_is_told_apart(tmp_path: Path) -> None:
    """A mapped file counts as far as it was read; a block counts as our own."""
    path = tmp_path / "file"
    path.write_bytes(bytes(TAKEN))
    own, all_of_it = anonymous_bytes() or 0, resident_bytes() or 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        assert (anonymous_bytes() or 0) - own < TAKEN / 2
        assert (resident_bytes() or 0) - all_of_it > 0.9 * TAKEN
    # Not bytes: they may come from memory that was freed before, and is resident still.
    with mmap.mmap(-1, TAKEN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(bytes(TAKEN))
        assert (anonymous_bytes() or 0) - own > 0.9 * TAKEN


@needs_proc
def test_psutil_tells_what_linux_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems are asked through it, for the same figures."""
    told = resident_bytes() or 0, anonymous_bytes() or 0
    monkeypatch.setattr(resident, "portable", lambda: psutil)
    assert (resident_bytes(), anonymous_bytes()) == pytest.approx(told, rel=0.1)
