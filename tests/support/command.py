"""The `specgen` command as a user runs it: in this process, or as one of its own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from typer.testing import CliRunner

from specgen.core.knowledge.store import _warn

ROOT = Path(__file__).parents[2]
READY = "@ready"
TIMEOUT_S = 30  # only a hang takes as long

# Runs specgen, but call number N of a method of LlamaBackend first says READY on stderr and
# waits for a signal that is noted, or SIGUSR1; "forever" waits for one that ends the process.
_HOLDING = f"""
import fcntl, os, signal, sys, termios, time
from specgen.cli.interrupt import Interrupts
from specgen.cli.main import main
from specgen.core.llama.backend import LlamaBackend

if sys.stdin and sys.stdin.isatty() and os.getsid(0) == os.getpid():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that its Ctrl-C reaches us

method, number, how_long = sys.argv.pop(1).split(",")
note, work = Interrupts._note, getattr(LlamaBackend, method)
noted, n_calls = [], 0

def noting(*args):
    note(*args)
    noted.append(args)
    os.write(2, b"{READY}\\n")  # print may be what was interrupted

def holding(*args):
    global n_calls
    n_calls += 1
    if n_calls == int(number):
        os.write(2, b"{READY}\\n")
        while not noted or how_long == "forever":
            time.sleep(0.005)
    return work(*args)

signal.signal(signal.SIGUSR1, lambda *args: noted.append(args))
Interrupts._note = noting
setattr(LlamaBackend, method, holding)
main()
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> Any:
        """stdout as JSON, which must be one line."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1
        return json.loads(self.out)


def run(*words: str | Path, stdin: str | bytes = "") -> Outcome:
    """`specgen WORDS` in this process. An exception that it lets out is raised here."""
    from specgen.cli.main import app

    try:
        result = CliRunner().invoke(app, list(map(str, words)), input=stdin, prog_name="specgen")
    finally:
        for name in ("specgen", "specgen.llama"):  # their handlers hold the streams of this run
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).setLevel(logging.NOTSET)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def forget_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nobody has a home folder: there is no HOME, and the system knows no user."""

    def unknown(_: object) -> None:
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(f"pwd.{name}", unknown)
    _warn.cache_clear()  # another test may have been warned already


def assert_refused(outcome: Outcome, code: int, *messages: str) -> None:
    """One line on stderr, with all of `messages` in it; nothing on stdout."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("specgen: error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert not [message for message in messages if message not in outcome.err], outcome.err


def generate(*words: str | Path, stdin: str | bytes = "") -> Outcome:
    """`specgen generate` on one thread: tests run beside other work."""
    return run("generate", "-t", "1", *words, stdin=stdin)


def text_of(*words: str | Path, stdin: str | bytes = "") -> str:
    """The text of a `specgen generate` that must succeed and write nothing else."""
    outcome = generate(*words, stdin=stdin)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


def record_of(*words: str | Path, stdin: str | bytes = "") -> Any:
    """The JSON of a `specgen generate` that must succeed."""
    outcome = generate("--json", *words, stdin=stdin)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.record


def shell_words(*words: str | Path, hold: str = "") -> list[str]:
    """The command line of `specgen WORDS`, with `hold` as "METHOD,N,once" or "METHOD,N,forever"."""
    start = ["-c", _HOLDING, hold] if hold else ["-m", "specgen"]
    return [sys.executable, *start, *map(str, words)]


def start(
    *words: str | Path, hold: str = "", stdin: Any = subprocess.DEVNULL, **options: Any
) -> subprocess.Popen[str]:
    """`specgen WORDS` as a process of its own."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody answers where the cursor is
    }
    return subprocess.Popen(
        shell_words(*words, hold=hold), cwd=ROOT, env=environment, stdin=stdin, **options
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for the end of a process that `start` gave."""
    with process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Outcome(process.returncode, out or "", (err or "").replace(f"{READY}\n", ""))


def wait_until_ready(stream: IO[str]) -> None:
    """Read lines until a process says READY."""
    for line in stream:
        if line.strip() == READY:
            return
    raise AssertionError("the process ended before it was ready")
