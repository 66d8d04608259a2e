"""SIGINT and SIGTERM from the first moment on, without a traceback; what is said behind a text."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from specgen.cli.interrupt import Interrupts
from specgen.core.stop import Interrupted
from tests.support.command import (
    ROOT,
    Outcome,
    finish,
    shell_words,
    start,
    text_of,
    wait_until_ready,
)

each_signal = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"]
)

# The `specgen` script, but a signal comes when a certain module is imported.
_EARLY = """
import sys

class Signal:
    def find_spec(self, name, path, target=None):
        if name == module:
            sys.meta_path.remove(self)
            signal.raise_signal(number)

from specgen.__main__ import main
import signal
module, number = sys.argv.pop(1), int(sys.argv.pop(1))
sys.meta_path.insert(0, Signal())
main()
"""


def early(module: str, number: int, *words: str | Path) -> Outcome:
    """`specgen WORDS`, to which a signal comes while it imports `module`."""
    command = [sys.executable, "-c", _EARLY, module, str(int(number)), *map(str, words)]
    pipe = subprocess.PIPE
    return finish(
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )
    )


@each_signal
@pytest.mark.parametrize(
    "module", ["typer", "numpy", "llama_cpp.llama_cpp", "specgen.core.engine", "specgen.cli.run"]
)
def test_a_signal_while_modules_are_imported(endless: Path, module: str, number: int) -> None:
    """Ends the process with 128 + its number, and not a word."""
    outcome = early(module, number, "generate", endless, "he was", "-n", "5", "-t", "1")
    assert outcome == Outcome(128 + number, "", "")


def test_an_early_signal_that_is_ignored(endless: Path) -> None:
    """As in the background of a script: nothing happens."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        outcome = early("typer", signal.SIGINT, "generate", endless, "he", "-n", "5", "--greedy")
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome == Outcome(0, text_of(endless, "he", "-n", "5", "--greedy"), "")


def test_signals_are_heard_before_anything_heavy_is_imported() -> None:
    """The module of the `specgen` script takes nothing but what sets them up, and built-in gc."""
    code = (
        "import sys, signal, os, gc; before = set(sys.modules); import specgen.__main__;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["specgen", "specgen.__main__"]


# ---- Interrupts


@each_signal
def test_interrupts(number: int) -> None:
    """A signal is noted, and asked for; what it stops ends with its exit code."""
    before = signal.getsignal(number)
    with pytest.raises(typer.Exit) as leaving, Interrupts() as interrupts:
        interrupts.check()
        assert not interrupts.came()
        signal.raise_signal(number)
        assert interrupts.came()
        assert signal.getsignal(number) == signal.SIG_DFL  # a second one ends the process
        interrupts.forget()
        assert not interrupts.came()
        signal.raise_signal(number)
        interrupts.check()
    assert leaving.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


@each_signal
def test_interrupts_at_once(number: int) -> None:
    """Python's own work is left where the signal comes, and others hear of it by the exit."""
    done = []
    with pytest.raises(typer.Exit) as leaving, Interrupts() as outer:
        with Interrupts(at_once=True):
            try:
                signal.raise_signal(number)
                done.append("more")
            finally:
                done.append("cleaned up")
        done.append("more")
    assert done == ["cleaned up"]
    assert leaving.value.exit_code == 128 + number
    assert not outer.came()


def test_a_failure_is_not_hidden() -> None:
    """What goes wrong after a signal came is told as what it is."""
    with pytest.raises(ZeroDivisionError), Interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError
    assert not issubclass(Interrupted, Exception)  # or a drafter that is stopped would count as bad


# ---- what is said behind a text


def into_one_file(place: Path, *words: str | Path) -> str:
    """What `specgen WORDS > FILE 2>&1` writes."""
    with place.open("wb") as file:
        subprocess.run(
            shell_words("generate", *words, "-t", "1"),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return place.read_text("utf-8")


@pytest.mark.llama
def test_figures_have_a_line_of_their_own(endless: Path, tmp_path: Path) -> None:
    """In a file that takes both streams; the text alone has no newline that it has not."""
    words = (endless, "he was", "-n", "9", "--greedy")
    text = text_of(*words)
    assert not text.endswith("\n")
    log = into_one_file(tmp_path / "log", *words, "--stats")
    assert log.startswith(f"{text}\n[specgen] 9 tokens")
    assert log.count("\n") == 2
    assert into_one_file(tmp_path / "log", *words) == text
    as_json = into_one_file(tmp_path / "log", *words, "--json", "--stats")
    assert [line[0] for line in as_json.splitlines()] == ["{", "["]


@pytest.mark.llama
def test_errors_have_a_line_of_their_own(endless: Path, tmp_path: Path) -> None:
    """As figures have."""
    words = (endless, "he was", "--greedy", "-c", "32")
    log = into_one_file(tmp_path / "log", *words)
    text, _, error = log.partition("\nspecgen: error: ")
    assert text and "available context size" in error
    assert text_of(*words, "-n", "20") == text[: len(text_of(*words, "-n", "20"))]


@pytest.mark.llama
def test_warnings_have_a_line_of_their_own(
    endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is said, and whenever."""
    words = (endless, "he was", "-n", "9", "--greedy")
    text = text_of(*words)
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "log"))  # where no folder can be
    log = into_one_file(tmp_path / "log", *words)
    assert log.startswith(f"{text}\nspecgen: cannot write to ")
    assert log.count("\n") == 2


@pytest.mark.llama
def test_streams_that_part_have_no_newline(endless: Path) -> None:
    """Where stdout and stderr go to two places, stdout has the text and stderr the figures."""
    words = (endless, "he was", "-n", "9", "--greedy")
    outcome = finish(start("generate", *words, "-t", "1", "--stats"))
    assert outcome.out == text_of(*words)
    assert outcome.err.startswith("[specgen] 9 tokens")


@pytest.mark.llama
def test_a_second_signal_while_a_prompt_is_read(endless: Path) -> None:
    """Ends the process at once."""
    words = ("generate", endless, "he was " * 50, "-t", "1")
    process = start(*words, hold="prefill,1,forever")
    assert process.stderr
    wait_until_ready(process.stderr)
    process.send_signal(signal.SIGTERM)
    wait_until_ready(process.stderr)
    process.send_signal(signal.SIGTERM)
    assert finish(process) == Outcome(-signal.SIGTERM, "", "")
