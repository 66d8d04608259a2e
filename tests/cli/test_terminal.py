"""What reaches a terminal: no control characters of a model or a file, in whatever encoding."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.cli import main as main_module
from specgen.cli.bench.format import Report, print_report
from specgen.cli.choices import Format
from specgen.cli.main import main
from specgen.cli.terminal import (
    LONGEST_LINE,
    Harmless,
    NoteHandler,
    Writer,
    clean,
    harmless,
    in_one_line,
    print_table,
    say_unexpected,
    show,
    shown_progress,
    write,
)
from specgen.core.errors import ModelError
from tests.support.command import ROOT, TIMEOUT_S, finish, start
from tests.support.made_up import benchmark

CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"
EVIL = f"a{CLIPBOARD}b\x1b[2Jc\x9b31md\x07\x08\x7f\re\x1bP1$r\x1b\\f\x1b(Bg\x85h"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
OURS = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")  # Rich's, and those that clear a line

# What a sequence is, as ECMA-48 says, and that two characters begin one that is cut off.
ORACLE = re.compile(
    r"(?:\x1b\[|\x9b)[\x30-\x3f]*[\x20-\x2f]*[\x40-\x7e]"
    r"|(?:\x1b[]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x18\x1a\x1b\x80-\x9f]*(?:\x07|\x9c|\x1b\\)"
    r"|\x1b[\x20-\x2f]*[\x30-\x7e]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_SINGLE = "\x1b[]P\\;m(B \n\t\r\x07\x9b\x9d\x9c\x90\x18\x7f\x00\x85a3é🙂ש"
_SEQUENCES = (CLIPBOARD, "\x1b]0;t\x1b\\", "\x1b[1;31m", "\x1bP1$r\x1b\\", "\x1b_x\x9c")
PARTS = st.lists(st.sampled_from([*_SINGLE, *_SEQUENCES]), max_size=12).map("".join)


def in_pieces(text: str, *cuts: int) -> str:
    """The text without control characters, told in pieces."""
    filtered = Harmless()
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    return "".join([*map(filtered, pieces), filtered.rest()])


@given(PARTS)
def test_it_is_the_same_however_it_is_cut(text: str) -> None:
    """In one piece, in two, and in three, at all places: what the oracle says of the whole."""
    wanted = ORACLE.sub("", text)
    n = len(text)
    assert harmless(text) == wanted
    assert all(in_pieces(text, a) == wanted for a in range(n + 1))
    assert all(in_pieces(text, a, b) == wanted for a in range(n + 1) for b in range(a, n + 1))
    assert in_pieces(text, *range(1, n)) == wanted


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    """And whatever has no control characters stays as it is, from right to left as well."""
    assert not CONTROL.search(harmless(text))
    bare = CONTROL.sub("", text)
    assert harmless(bare) == bare


def test_sequences_go_as_a_whole() -> None:
    """Nothing of them is left to be read."""
    assert harmless(EVIL) == "abcdefgh"
    assert harmless("one\ttwo\nthree") == "one\ttwo\nthree"
    assert harmless("\u202eשלום\u202c عربى\u200f") == "\u202eשלום\u202c عربى\u200f"


@pytest.mark.parametrize("begin", ["\x1b]", "\x9d", "\x1bP", "\x1b[", "\x1b[1;", "\x1b"])
def test_a_sequence_without_an_end_holds_little_back(begin: str) -> None:
    """The text behind it is shown before the answer ends, all but the last few thousand."""
    rest = "5" * 20_000
    filtered = Harmless()
    shown = "".join(map(filtered, begin + rest))
    assert len(shown) > len(rest) - 10_000
    assert len(shown) + len(filtered.rest()) >= len(rest) - 1


def test_a_string_that_is_just_short_enough() -> None:
    """One of 4,096 characters is dropped; of a longer one, what it says is shown."""
    for n, left in ((4096, ""), (4097, "x" * 4097)):
        text = f"\x1b]{'x' * n}\x07"
        assert harmless(text) == left
        assert in_pieces(text, *range(len(text))) == left


def test_a_cell_is_one_line() -> None:
    """Of letters, spaces and what joins letters; marks that turn what follows are shown as such."""
    assert clean("a\tb\nc\u00a0d\u3000e\u2028f") == "a b c d e f"
    assert clean("👩\u200d🚀 \u200fשלום") == "👩\u200d🚀 \u200fשלום"
    assert clean(f"x{CLIPBOARD}\u202ey\udce9") == "x\N{REPLACEMENT CHARACTER}y" + "\ufffd"


def test_a_message_is_one_line() -> None:
    """The first that says anything, and no more than a person reads."""
    assert in_one_line("\n \r\n what\x0bever\nmore") == "what"
    assert in_one_line("") == ""
    assert len(in_one_line("x" * 10**6)) == LONGEST_LINE


class Stream(io.TextIOWrapper):
    """A stdout or stderr that says it is a terminal, or not."""

    def __init__(self, is_terminal: bool, encoding: str = "utf-8") -> None:
        self.written = io.BytesIO()
        self.is_terminal = is_terminal
        super().__init__(self.written, encoding=encoding, errors="strict")

    def isatty(self) -> bool:
        """As was said."""
        return self.is_terminal

    def fileno(self) -> int:
        """Of nothing, for whoever wants to leave it."""
        return os.open(os.devnull, os.O_WRONLY)

    @property
    def data(self) -> bytes:
        """All of it."""
        self.flush()
        return self.written.getvalue()

    @property
    def text(self) -> str:
        """All of it, without what Rich and specgen draw with."""
        return OURS.sub("", self.data.decode(self.encoding)).replace("\r", "")


Streams = Callable[[], tuple[Stream, Stream]]


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def streams(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Streams:
    """`streams()` are stdout and stderr from then on, both terminals or both not."""

    def put() -> tuple[Stream, Stream]:
        out, err = Stream(request.param), Stream(request.param)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    return put


def test_texts(streams: Streams) -> None:
    """A terminal gets them without control characters, a pipe byte for byte."""
    out, _ = streams()
    writer = Writer()
    for char in EVIL:
        writer(char)
    writer.close()
    write(f"{EVIL}\n")
    show(EVIL, end="")
    if out.is_terminal:
        assert out.data.decode() == "abcdefghabcdefgh\nabcdefgh"
    else:
        assert out.data.decode() == f"{EVIL}{EVIL}\n{EVIL}"


def test_what_is_logged(streams: Streams) -> None:
    """Of llama.cpp's log and of warnings each is one line, and quotes no control characters."""
    _, err = streams()
    logger = logging.Logger("test")
    logger.addHandler(NoteHandler())
    logger.warning("general.name = %s", EVIL.replace("\r", "").replace("\x85", ""))
    logger.warning("first\nsecond")
    lines = err.data.decode().splitlines()
    assert lines[1:] == ["specgen: first"]
    assert lines[0].startswith("specgen: general.name = a")
    assert (CONTROL.search(lines[0]) is None) == err.is_terminal


def test_tables_and_reports(streams: Streams) -> None:
    """Their cells are clean wherever they go; CSV and JSON are for programs, and raw in pipes."""
    out, _ = streams()
    print_table(("a", "b"), [(f"{EVIL}\nX", "1")], right=(1,))
    assert "abcdef gh X" in out.text.replace("  ", " ") or "abcdefgh X" in out.text
    cells = [(f"t{EVIL}", f"d{EVIL}", f"f{EVIL}")]
    record = {"task": EVIL}
    report = Report([("model", EVIL)], ("t", "d", "f"), (), cells, [EVIL], [record], record)
    for format in (Format.table, Format.md):
        print_report(report, format)
    assert not CONTROL.search(out.text)
    assert all(name in out.text for name in ("tabcdef", "dabcdef", "fabcdef"))
    before = len(out.data)
    print_report(report, Format.csv)
    assert ("\x1b" in out.data[before:].decode()) != out.is_terminal
    before = len(out.data)
    print_report(report, Format.json)
    if not out.is_terminal:
        assert json.loads(out.data[before:])["task"] == EVIL


def test_columns_of_a_table(streams: Streams) -> None:
    """They are as wide as a terminal shows their letters; what looks like markup is text."""
    out, _ = streams()
    print_table(("name", "n[/b]\nin all"), [("数学", "1"), ("[red]", "12")], right=(1,))
    assert [line.rstrip() for line in OURS.sub("", out.text).splitlines()] == [
        "        n[/b]",
        "name   in all",
        "数学        1",
        "[red]      12",
    ]


def test_progress(streams: Streams) -> None:
    """Bars and lines."""
    _, err = streams()
    with shown_progress() as tell:
        tell(f"[/b] {CLIPBOARD}stage", 0.5)
    assert "52;c" not in err.text or not err.is_terminal
    assert "stage" in err.text


def run_main(
    monkeypatch: pytest.MonkeyPatch, words: Sequence[object], encoding: str, **how: Any
) -> tuple[int, Stream, Stream]:
    """`specgen WORDS` through its entry point, with streams of an encoding."""
    out, err = Stream(how.get("terminal", False), encoding), Stream(False, encoding)
    err.reconfigure(errors="backslashreplace")  # as Python has it
    for name, value in (("stdout", out), ("stderr", err), ("argv", ["specgen", *map(str, words)])):
        monkeypatch.setattr(sys, name, value)
    monkeypatch.setattr(sys, "stdin", Stream(False))
    with pytest.raises(SystemExit) as end:
        main()
    logging.getLogger("specgen").handlers.clear()
    code = end.value.code
    return code if isinstance(code, int) else 0, out, err


COMMANDS = (
    *("generate", "chat", "pull", "list", "info", "calibrate", "cache", "bench", "verify", "plan"),
)


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp437", "cp1252", "koi8-r"])
def test_help_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """All of it is shown, in frames that the encoding has; what it lacks is replaced."""
    monkeypatch.setenv("COLUMNS", "100")
    for words in ([], *([name] for name in COMMANDS), ["cache", "clear"]):
        code, out, err = run_main(monkeypatch, [*words, "--help"], encoding)
        assert (code, err.data) == (0, b""), words
        assert "--help" in out.data.decode(encoding)


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> Path:
    """A model in a folder, and with a name, of letters that not every encoding has."""
    folder = tmp_path / "ünïcödé 数学"
    folder.mkdir()
    monkeypatch.setenv("SPECGEN_MODELS", str(folder))
    monkeypatch.setenv("SPECGEN_CACHE", str(folder / "cache"))
    path = folder / "m…é.gguf"
    path.write_bytes(tiny_model("llama", "Q4_1").read_bytes())
    return path


@pytest.mark.long
@pytest.mark.llama
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp437"])
def test_all_output_in_every_encoding(
    named: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, terminal: bool
) -> None:
    """No command ends for a character, on a terminal and in a pipe; JSON in a pipe is UTF-8."""
    saved = named.parent / "bench.json"
    saved.write_text(json.dumps(benchmark(tasks=("数学", "code")).record()), "utf-8")
    text = named.parent / "text.txt"
    text.write_text("One é two. " * 40, "utf-8")
    commands: tuple[Sequence[object], ...] = (
        *(["--version"], ["list"], ["list", "--json"], ["cache", "path"], ["cache", "clear"]),
        *(["info", named], ["info", named, "--metadata"], ["info", named, "--template"]),
        *(["plan", named], ["plan", named, "--json"]),
        *(["bench", "--load", saved, "-o", how] for how in Format),
        ["bench", "--compare", saved, saved],
        ["bench", named, "--replay", text],
        ["generate", named, "-p", "é 数学", "-n", "3", "--json", "--stats", "-t", "1"],
    )
    for words in commands:
        code, out, err = run_main(monkeypatch, words, encoding, terminal=terminal)
        assert code == 0, (words, err.data)
        assert out.data or words == ["cache", "clear"]
        if "--json" in words or "json" in words:
            json.loads(out.data.decode(encoding if terminal else "utf-8"))
    code, _, err = run_main(monkeypatch, ["info", named.with_name("数…é.gguf")], encoding)
    assert code == 3
    assert err.data.decode(encoding).count("\n") == 1


def test_a_path_that_is_no_text_comes_out_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the programs that read it."""
    monkeypatch.setenv("SPECGEN_CACHE", os.fsdecode(b"/tmp/caf\xe9"))
    _, out, _ = run_main(monkeypatch, ["cache", "path"], "utf-8")
    assert out.data == b"/tmp/caf\xe9\n"


class Odd(Exception):
    """An error whose text fails."""

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("first\nsecond"), "ValueError: first in "),
        (KeyError(), "KeyError in "),
        (AssertionError(""), "AssertionError in "),
        (Odd(), "Odd in "),
        (MemoryError(), "there is not enough memory"),
        (RecursionError("maximum"), "something is nested too deeply"),
        (ImportError(f"no module {CLIPBOARD}x"), "ImportError: no module "),
        (io.UnsupportedOperation("fileno"), "UnsupportedOperation: fileno in "),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "UnicodeEncodeError: 'ascii' codec"),
        (ModelError("first\nsecond", "a\nb"), "first\\nsecond (a)\n"),
        (ModelError("x" * 10**6), "x" * (LONGEST_LINE - 1) + "…\n"),
    ],
)
def test_whatever_goes_wrong_is_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit code 1, unless the error has another one, and how to report what is a fault."""

    def fail() -> None:
        raise error

    monkeypatch.setattr("specgen.core.knowledge.store.cache_folder", fail)
    code, out, err = run_main(monkeypatch, ["cache", "path"], "utf-8")
    text = err.data.decode()
    assert (code, out.data) == (getattr(error, "exit_code", 1), b"")
    assert text.startswith(f"specgen: error: {said}")
    assert text.count("\n") == 1
    others = ModelError | MemoryError | ImportError
    assert ("please report it" in text) == (not isinstance(error, others))
    assert ("install specgen again" in text) == isinstance(error, ImportError)


def test_what_fails_around_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Typer itself, say."""

    def fail() -> None:
        raise LookupError("odd")

    monkeypatch.setattr(main_module, "app", fail)
    code, _, err = run_main(monkeypatch, [], "utf-8")
    assert code == 1
    assert err.data.startswith(b"specgen: error: LookupError: odd in ")


@pytest.mark.parametrize("missing", ["typer", "specgen.core.models.catalogue", "rich"])
def test_what_fails_while_importing(missing: str) -> None:
    """Is one line as well, before there is a command."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['specgen', 'bench', '--help']\n"
        "from specgen.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(r"specgen: error: \w*Error: .*" + missing, done.stderr), done.stderr
    assert done.stderr.endswith("install specgen again)\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.llama
@pytest.mark.parametrize("data", [None, b"no library"])
def test_a_library_that_cannot_be_loaded(
    endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None
) -> None:
    """Is not a fault of ours: one line says which, and what to do."""
    if data:
        for suffix in ("so", "dylib", "dll"):
            (tmp_path / f"libllama.{suffix}").write_bytes(data)
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    outcome = finish(start("generate", endless, "he"))
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("specgen: error: llama.cpp cannot be loaded: ")
    assert outcome.err.endswith("(install llama-cpp-python again, on this machine)\n")
    assert outcome.err.count("\n") == 1


def test_the_traceback_is_shown_with_vv(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the line, and without control characters on a terminal."""
    _, err = streams()
    logger = logging.getLogger("specgen")
    for level, shown in ((logging.INFO, False), (logging.DEBUG, True)):
        monkeypatch.setattr(logger, "level", level)
        logger.manager._clear_cache()  # type: ignore[attr-defined]
        try:
            raise ValueError(CLIPBOARD)
        except ValueError as error:
            say_unexpected(error)
        assert ("Traceback" in err.data.decode()) == shown
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    assert ("\x1b" in err.data.decode()) != err.is_terminal


# Tokens are pieces of a text that writes to the clipboard, whatever the model says.
_SAYING = """
from specgen.cli.main import main
from specgen.core.text.stream import TextStream

pieces = ["\\x1b", "]52;c;", "QQ==", "\\x07Hi", " ש", "\\x1b[31", "mred", "\\x9b2Jx"]

def extend(self, new):
    self.said = getattr(self, "said", -1) + bool(new)
    self._ready += [pieces[self.said % len(pieces)]] * bool(new)

TextStream._extend = extend
main()
"""


def on_a_terminal(*words: str | Path, code: str) -> tuple[int, str]:
    """What a terminal is sent by a process with this code, and how that ended."""
    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=ROOT,
        env={**environment, "TERM": "xterm", "LC_ALL": "C.UTF-8", "PROMPT_TOOLKIT_NO_CPR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while chunk := _read(master):
        shown += chunk
    os.close(master)
    return process.wait(TIMEOUT_S), shown.decode("utf-8")


def _read(master: int) -> bytes:
    try:
        return os.read(master, 1 << 16)
    except OSError:  # nobody has the other side any more
        return b""


@pytest.mark.llama
def test_an_answer_cannot_write_the_clipboard(endless: Path) -> None:
    """On a terminal it is text alone; a pipe gets every byte."""
    # Greedy: only so the model's text never ends, and each token has text.
    options = ("-n", "18", "-t", "1", "--drafter", "none", "--greedy")
    words = ("generate", endless, "-p", "hello", *options)
    code, shown = on_a_terminal(*words, code=_SAYING)
    assert code == 0
    assert shown.replace("\r\n", "\n") == "Hi שredx" * 2 + "52;c;\n"  # its end never came
    piped = subprocess.run(
        [sys.executable, "-c", _SAYING, *map(str, words)], cwd=ROOT, capture_output=True
    )
    assert piped.returncode == 0
    assert piped.stdout.decode() == "\x1b]52;c;QQ==\x07Hi ש\x1b[31mred\x9b2Jx" * 2 + "\x1b]52;c;"


@pytest.mark.llama
def test_errors_of_a_template_on_a_terminal(endless: Path, tmp_path: Path) -> None:
    """They quote it: one line, without control characters."""
    template = tmp_path / "t.jinja"
    template.write_text("{{ raise_exception('no \\x1b]52;c;QQ==\\x07\\x9b2J\\nsecond\\rthird') }}")
    code, shown = on_a_terminal(
        *("generate", endless, "--chat", "-p", "x", "--chat-template-file", template),
        code="from specgen.cli.main import main; main()",
    )
    assert code in (2, 3)
    assert shown.count("\n") == 1
    assert "no " in shown and "second" not in shown
    assert not CONTROL.search(shown.removesuffix("\r\n"))
