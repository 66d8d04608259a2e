"""Where llama.cpp gives up: one line, an exit code, and all that was written before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TinyModel
from tests.support.command import ROOT, Outcome, finish, start
from tests.support.mutations import Entry, Model

_START = """
import ctypes, sys, threading
from pathlib import Path
from specgen.core.llama.ggml import needed
from specgen.core.llama.library import library

lib = library()
text = ctypes.c_char_p

def abort():
    give_up = needed(lib.ggml, "ggml_abort", None, text, ctypes.c_int, text)
    give_up(b"/home/somebody/llama.cpp/src/llama-model.cpp", 7, b"GGML_ASSERT(1 >\\n 2) failed")

def throw():
    needed(lib.ggml, "_ZSt9terminatev", None)()

def elsewhere():
    thread = threading.Thread(target=abort)
    thread.start()
    thread.join()

print("what was written", end="")
"""
_OPENING = "with lib.last_words.opening(Path('m\\udcef.gguf')): "
_SOURCE = "llama-model.cpp:7: GGML_ASSERT(1 > 2) failed"

has_terminate = pytest.mark.skipif(sys.platform == "win32", reason="has another C++ library")


def python(code: str) -> Outcome:
    """What `code` does behind _START, in a process of its own."""
    command = [sys.executable, "-c", _START + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("call", ["abort()", "elsewhere()"])
@pytest.mark.parametrize("opening", [True, False])
def test_abort(call: str, opening: bool) -> None:
    """Exit code 3 and the file while one is opened, else 1; from whatever thread."""
    outcome = python((_OPENING if opening else "") + call)
    subject = "cannot run m\ufffd.gguf" if opening else "gave up"
    assert (outcome.code, outcome.out) == (3 if opening else 1, "what was written")
    assert outcome.err.startswith(f"specgen: error: llama.cpp {subject}: {_SOURCE} (")
    assert outcome.err.count("\n") == 1


@has_terminate
@pytest.mark.parametrize("opening", [True, False])
def test_exception(opening: bool) -> None:
    """A C++ exception that nobody catches ends the process in the same way."""
    outcome = python((_OPENING if opening else "") + "throw()")
    assert (outcome.code, outcome.out) == (3 if opening else 1, "what was written")
    assert outcome.err.count("\n") == 1
    assert "an exception that it does not catch" in outcome.err


def test_after_opening() -> None:
    """The file is to blame only while it is opened."""
    outcome = python(_OPENING + "pass\nabort()")
    assert (outcome.code, "gave up" in outcome.err) == (1, True)


def test_no_debugger() -> None:
    """Nothing is to write to our streams beside us; what somebody has set is left as it is."""
    ask = "import os; print(os.environ.get('GGML_NO_BACKTRACE'))"
    assert python(ask).out == "what was written1\n"
    done = subprocess.run(
        [sys.executable, "-c", _START + ask],
        cwd=ROOT,
        env=os.environ | {"GGML_NO_BACKTRACE": "yes"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout == "what was writtenyes\n"


@pytest.mark.skipif(sys.platform == "win32", reason="has no termios")
def test_terminal() -> None:
    """A terminal has its echo again, which is off while an answer is written."""
    import pty
    import termios

    terminal, stdin = pty.openpty()
    code = "settings = termios.tcgetattr(0); settings[3] &= ~termios.ECHO\n"
    code += "termios.tcsetattr(0, termios.TCSANOW, settings); print(flush=True); sys.stdin.read(1)"
    command = [sys.executable, "-c", f"{_START}import termios\n{code}\nabort()"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=stdin, stdout=-1, stderr=-1)
    assert process.stdout
    process.stdout.readline()
    assert not termios.tcgetattr(stdin)[3] & termios.ECHO
    os.write(terminal, b"x\n")
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert termios.tcgetattr(stdin)[3] & termios.ECHO
    os.close(terminal)
    os.close(stdin)


def with_doubled_token(model: Model) -> None:
    tokens = model.keys["tokenizer.ggml.tokens"].value
    tokens[-1] = tokens[-2]


def with_wide_rotation(model: Model) -> None:
    entry: Entry = model.keys["lfm2.rope.dimension_count"]
    entry.value = 64  # of heads of 32


def test_a_file_that_llama_cpp_gives_up_on(tiny_model: TinyModel, tmp_path: Path) -> None:
    """What the header does not tell: a vocabulary with the same token twice."""
    model = Model.read(tiny_model())
    with_doubled_token(model)
    path = model.write(tmp_path / "m.gguf")
    outcome = finish(start("generate", path, "he was", "-n", "5", "-t", "1"))
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith(f"specgen: error: llama.cpp cannot run {path}: llama-vocab.cpp:")
    assert outcome.err.count("\n") == 1


def test_a_file_that_it_gives_up_on_later(tiny_model: TinyModel, tmp_path: Path) -> None:
    """What is found out at the first token only: more dimensions to rotate than heads have."""
    model = Model.read(tiny_model("lfm2"))
    with_wide_rotation(model)
    path = model.write(tmp_path / "m.gguf")
    outcome = finish(start("generate", path, "he was", "-n", "5", "-t", "1"))
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("specgen: error: llama.cpp gave up: ops.cpp:")
    assert outcome.err.count("\n") == 1
