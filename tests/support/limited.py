"""A command under a real limit of memory: a control group's, or else one of addresses."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .command import ROOT, Outcome, shell_words

_ROOT = Path("/sys/fs/cgroup")
# Addresses that a process reserves and does not use: stacks of threads, parts of heaps.
_UNUSED = 384 << 20


@dataclass(frozen=True, slots=True)
class Limited:
    """How a command fared.

    Attributes:
        peak: bytes of memory that it used, files it read first included; None if unknown.
    """

    outcome: Outcome
    peak: int | None


def run_limited(n_bytes: int, *words: str | Path, timeout_s: float = 300) -> Limited:
    """`specgen WORDS` in a process that gets no more than `n_bytes`, and is killed if it asks."""
    with _group(n_bytes) as group:
        if group is None:
            return Limited(_finish(_with_addresses(n_bytes, words), timeout_s), None)
        enter = f'echo $$ > "{group}/cgroup.procs" && exec "$@"'
        outcome = _finish(["sh", "-c", enter, "sh", *shell_words(*words)], timeout_s)
        return Limited(outcome, _peak(group))


def _with_addresses(n_bytes: int, words: tuple[str | Path, ...]) -> list[str]:
    kib = (n_bytes + _UNUSED) >> 10
    return ["sh", "-c", f'ulimit -v {kib} && exec "$@"', "sh", *shell_words(*words)]


def _finish(command: list[str], timeout_s: float) -> Outcome:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    return Outcome(done.returncode, done.stdout, done.stderr)


@contextmanager
def _group(n_bytes: int) -> Iterator[Path | None]:
    """A control group of its own with that limit (v1 or v2), or None where none can be made."""
    name = f"specgen-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    for parent, limit in ((_ROOT / "memory", "memory.limit_in_bytes"), (_ROOT, "memory.max")):
        group = parent / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(n_bytes))
        except OSError:
            group.rmdir()
            continue
        try:
            yield group
        finally:
            with suppress(OSError):
                group.rmdir()
        return
    yield None


def _peak(group: Path) -> int | None:
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        with suppress(OSError):
            return int((group / name).read_text())
    return None


def is_linux() -> bool:
    """Whether there are such limits."""
    return sys.platform == "linux"
