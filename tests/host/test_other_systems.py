"""Commands work on a system that lacks what only Linux, or only POSIX, has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from specgen.core.host.process_memory import trim_heap
from specgen.core.llama.last_words import LastWords
from tests.support.command import ROOT, TIMEOUT_S, Outcome, assert_refused

_RUN = """
from specgen.__main__ import main
main()
"""
_NO_FILES = """
import io, os
def refusing(call):
    def refuse(path, *args, **options):
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return call(path, *args, **options)
    return refuse
for module, name in ((io, "open"), (os, "listdir"), (os, "scandir")):
    setattr(module, name, refusing(getattr(module, name)))
del os.sched_getaffinity
"""
# After the modules of others that look for these as they are imported.
_NO_POSIX = """
import ctypes, os, signal, subprocess, sys, tempfile
import filelock, platformdirs
platformdirs.user_cache_path()
for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
for module, names in {
    os: "fork getegid geteuid getgid getloadavg getpgid getpgrp getuid killpg setsid tcgetpgrp",
    signal: "SIGCONT SIGHUP SIGPIPE SIGQUIT SIGTSTP SIGUSR1 alarm pthread_sigmask setitimer",
}.items():
    for name in names.split():
        delattr(module, name)
load = ctypes.CDLL.__init__
def __init__(self, name, *args, **options):
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    load(self, name, *args, **options)
ctypes.CDLL.__init__ = __init__
"""
macos = pytest.param(_NO_FILES, id="macOS")
windows = pytest.param(_NO_FILES + _NO_POSIX, id="Windows")


def run_without(lacking: str, *words: str | Path, stdin: str = "") -> Outcome:
    """`specgen WORDS` in a process that has first lost what `lacking` takes away."""
    command = [sys.executable, "-c", lacking + _RUN, *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.llama
@pytest.mark.parametrize("lacking", [macos, windows])
def test_text_is_the_same(lacking: str, endless: Path) -> None:
    """Drafts, kept knowledge, a memory budget and statistics included."""
    words = (
        "generate",
        endless,
        "-t",
        "1",
        "-n",
        "20",
        "--greedy",
        "--no-stdin",
        "-p",
        "he was he",
    )
    known = run_without("", *words)
    other = run_without(lacking, *words, "--memory-budget", "300M")
    assert other == known
    assert (known.code, known.err) == (0, "")
    assert known.out


@pytest.mark.llama
@pytest.mark.parametrize("lacking", [macos, windows])
def test_a_chat(lacking: str, endless: Path) -> None:
    """The template runs in a process of its own, bounded by time alone."""
    words = ("chat", endless, "-t", "1", "-n", "5", "--greedy")
    known = run_without("", *words, stdin="Hello\n")
    assert run_without(lacking, *words, stdin="Hello\n") == known
    assert known.code == 0


@pytest.mark.parametrize("lacking", [macos, windows])
def test_a_command_without_a_model(lacking: str) -> None:
    """It says what it says on Linux."""
    known = run_without("", "list")
    assert run_without(lacking, "list") == known
    assert known.code == 0


@pytest.mark.llama
@pytest.mark.parametrize("lacking", [macos, windows])
def test_a_part_of_unknown_memory(lacking: str, endless: Path) -> None:
    """Nobody tells how much there is, so a budget in per cent is refused in one line."""
    words = ("generate", endless, "he", "-n", "1", "--memory-budget", "50%", "--no-stdin")
    assert_refused(run_without(lacking, *words), 4, "does not tell how much memory", "such as 2G")


def test_no_c_library_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has none: nothing is trimmed, and nothing is raised."""

    def refuse(name: str | None, **_: object) -> object:
        raise TypeError("argument of type 'NoneType' is not iterable")

    monkeypatch.setattr("specgen.core.host.process_memory.ctypes.CDLL", refuse)
    trim_heap()


def test_no_terminal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without termios there are none to restore."""
    monkeypatch.setitem(sys.modules, "termios", None)
    assert LastWords()._terminal is None
