"""What reaches the model is what the user gave: words, files and stdin, each once and whole."""

from __future__ import annotations

import contextlib
import io
import os
import random
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main

from specgen.cli.main import app
from specgen.cli.prompt import read_file, read_prompt
from specgen.cli.words import unescape
from specgen.core.errors import UsageError
from tests.support.command import (
    ROOT,
    TIMEOUT_S,
    Outcome,
    assert_refused,
    finish,
    generate,
    run,
    shell_words,
    start,
    text_of,
)

pytestmark = pytest.mark.llama

GREEDY = ("--greedy", "-n", "12")
MARK = b"\xef\xbb\xbf"
WAITING = "specgen: waiting for stdin to end; --no-stdin leaves it alone\n"
N_STRINGS = 2_000


class Stdin:
    """Bytes in the place of stdin, or a terminal."""

    def __init__(self, data: bytes | None) -> None:
        self.buffer = io.BytesIO(data or b"")
        self._is_terminal = data is None

    def isatty(self) -> bool:
        return self._is_terminal

    def fileno(self) -> int:
        raise io.UnsupportedOperation


@pytest.fixture
def prompt_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`prompt_of(data, argument, *files)` is the prompt, with `data` on stdin and files a, b, c."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        (tmp_path / name).write_text(f"text of {name}\n")

    def prompt(data: bytes | None, argument: str, *files: str, **how: Any) -> str:
        monkeypatch.setattr(sys, "stdin", Stdin(data))
        return read_prompt(argument, files, **how)

    return prompt


@pytest.mark.parametrize(
    ("stdin", "argument", "files", "expected"),
    [
        (b"in\n", "", (), "in"),
        (b"in\n", "arg", (), "in\n\narg"),
        (b"in\n", "arg", ("a", "b"), "in\n\ntext of a\n\ntext of b\n\narg"),
        (b"in\n", "", ("b", "a"), "in\n\ntext of b\n\ntext of a"),
        (b"", "", ("a", "a"), "text of a\n\ntext of a"),
        (b"in\n", "arg", ("-",), "in\n\narg"),
        (b"in\n", "arg", ("a", "-", "b"), "text of a\n\nin\n\ntext of b\n\narg"),
        (b"in\n", "", ("-", "-"), "in"),
        (b"in\n", "", ("-", "a", "/dev/stdin"), "in\n\ntext of a"),
        (b"in\n", "", ("/dev/fd/0", "a", "-"), "in\n\ntext of a"),
        (b"in\n", "", ("/proc/self/fd/0", "/dev/../dev/stdin"), "in"),
        (None, "arg", (), "arg"),
        (None, "arg", ("c",), "text of c\n\narg"),
        (None, "", ("-",), ""),
    ],
)
def test_order(
    prompt_of: Callable[..., str],
    stdin: bytes | None,
    argument: str,
    files: Sequence[str],
    expected: str,
) -> None:
    """stdin once: where a file is stdin, else first; then files in their order, then words."""
    if expected:
        assert prompt_of(stdin, argument, *files) == expected
    else:
        with pytest.raises(UsageError, match="the prompt is empty"):
            prompt_of(stdin, argument, *files)


def test_stdin_is_left_alone(prompt_of: Callable[..., str]) -> None:
    """--no-stdin reads none of it, and contradicts a file that is stdin."""
    assert prompt_of(b"in\n", "arg", "a", stdin=False) == "text of a\n\narg"
    assert sys.stdin.buffer.read() == b"in\n"
    for name in ("-", "/dev/stdin"):
        with pytest.raises(UsageError, match="--no-stdin"):
            prompt_of(b"in\n", "arg", "a", name, stdin=False)
    with pytest.raises(UsageError, match="the prompt is empty"):
        prompt_of(b"in\n", "", stdin=False)


def test_a_byte_order_mark_is_no_text(prompt_of: Callable[..., str], tmp_path: Path) -> None:
    """One at the start of stdin and of each file is dropped; elsewhere it is a character."""
    (tmp_path / "marked").write_bytes(MARK + "naïve\r\n".encode())
    (tmp_path / "inside").write_bytes(b"a" + MARK + b"b")
    (tmp_path / "only").write_bytes(MARK + b"\n")
    assert prompt_of(MARK + b"in", "arg", "marked") == "in\n\nnaïve\n\narg"
    assert read_file("marked", "x") == read_file(tmp_path / "marked", "x") == "naïve"
    assert read_file("inside", "x") == "a\ufeffb"
    assert prompt_of(MARK + MARK + b"in", "") == "\ufeffin"
    with pytest.raises(UsageError, match="the prompt is empty"):
        prompt_of(MARK, "", "only")


def test_a_byte_order_mark_in_a_word(endless: Path) -> None:
    """What "$(cat FILE)" makes of a file is the same text as the file's."""
    expected = text_of(endless, "he was", *GREEDY)
    assert text_of(endless, "-p", "\ufeffhe was", *GREEDY) == expected
    assert text_of("-m", endless, "\ufeffhe was", *GREEDY) == expected
    assert text_of(endless, "-e", "-p", r"\xef\xbb\xbfhe was", *GREEDY) == expected
    chat = (endless, "he", "--chat", *GREEDY, "-sys")
    assert text_of(*chat, "\ufeffwas") == text_of(*chat, "was")


@pytest.mark.parametrize("name", ["/dev/stdin", "-"])
@pytest.mark.parametrize(
    ("option", "what"),
    [("--chat-template-file", "chat template"), ("--predicted-output", "predicted output")],
)
def test_stdin_is_for_prompts(endless: Path, option: str, what: str, name: str) -> None:
    """What else is read from a file does not take the prompt's place, or find nothing left."""
    process = start(
        *("generate", endless, "he", "--chat", option, name, *GREEDY, "-t", "1"),
        stdin=subprocess.PIPE,
    )
    out, err = process.communicate("{{ messages[0].content }}", timeout=TIMEOUT_S)
    outcome = Outcome(process.returncode, out, err)
    assert_refused(outcome, 2, f"the {what} cannot come from stdin")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_encodings_are_named(
    prompt_of: Callable[..., str], tmp_path: Path, encoding: str
) -> None:
    """UTF-16 and UTF-32 are refused by their byte order marks, in files and on stdin."""
    data = "\ufeffhe was".encode(encoding) if encoding.endswith("be") else "he".encode(encoding)
    name = encoding.upper().removesuffix("-BE")
    (tmp_path / "wide").write_bytes(data)
    with pytest.raises(UsageError, match=f"stdin is {name}, not UTF-8"):
        prompt_of(data, "")
    with pytest.raises(UsageError, match=f"wide is {name}, not UTF-8"):
        prompt_of(b"", "", "wide")


@pytest.mark.parametrize("name", ["", "none", ".", "a\0b", "\ud800"])
def test_files_that_cannot_be_read(prompt_of: Callable[..., str], name: str) -> None:
    """Whatever a file is called, the error is about the prompt file."""
    with pytest.raises(UsageError, match="cannot read the prompt file"):
        prompt_of(b"", "", name)


def test_nuls_are_text(prompt_of: Callable[..., str], endless: Path) -> None:
    """A NUL ends no prompt: what is behind it counts."""
    assert prompt_of(b"he\0was", "") == "he\0was"
    texts = {text_of(endless, *GREEDY, stdin=text) for text in (b"he\0was", b"he\0her", b"he")}
    assert len(texts) == 3


def test_files_with_marks(endless: Path, tmp_path: Path) -> None:
    """Prompts, templates and predicted outputs mean the same with a byte order mark."""
    files = {
        "prompt": "he was",
        "template": "{% for m in messages %}[{{ m.content }}]{% endfor %}",
        "predicted": text_of(endless, "he was", *GREEDY),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / f"{name}-marked").write_bytes(MARK + text.encode())

    def words(mark: str) -> Sequence[str | Path]:
        template, predicted = tmp_path / f"template{mark}", tmp_path / f"predicted{mark}"
        files = ("--chat-template-file", template, "--predicted-output", predicted)
        return (endless, "--chat", "-f", tmp_path / f"prompt{mark}", *files, *GREEDY)

    assert (
        text_of(*words("-marked")) == text_of(*words("")) == text_of(endless, "[he was][", *GREEDY)
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_stdin_by_its_names(endless: Path, tmp_path: Path, name: str, kind: str) -> None:
    """stdin is read once, whatever it is and is called."""
    file = tmp_path / "prompt"
    file.write_text("he was")
    words = ("generate", endless, "-f", name, "-f", name, *GREEDY, "-t", "1")
    if kind == "file":
        with file.open() as stdin:
            outcome = finish(start(*words, stdin=stdin))
    else:
        process = start(*words, stdin=subprocess.PIPE)
        out, err = process.communicate("he was", timeout=TIMEOUT_S)
        outcome = Outcome(process.returncode, out, err)
    assert outcome == Outcome(0, text_of(endless, "he was", *GREEDY), "")


def test_a_named_pipe_that_is_stdin(endless: Path, tmp_path: Path) -> None:
    """The same by the name of the pipe: nobody else could read it a second time."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    both = os.open(pipe, os.O_RDWR)  # so that opening it waits for nobody
    try:
        with pipe.open() as stdin:
            words = ("generate", endless, "-f", pipe, *GREEDY, "-t", "1")
            process = start(*words, stdin=stdin)
        os.write(both, b"he was")
    finally:
        os.close(both)
    assert finish(process) == Outcome(0, text_of(endless, "he was", *GREEDY), "")


@pytest.mark.long
@pytest.mark.parametrize("words", [("-p", "her"), ("her",), ("-f", "FILE")], ids=" ".join)
def test_an_open_pipe(endless: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """With a prompt at hand, a pipe that does not end is waited for, but not without a word."""
    (tmp_path / "file").write_text("her")
    given = [str(tmp_path / "file") if word == "FILE" else word for word in words]
    process = start("generate", endless, *given, *GREEDY, "-t", "1", stdin=subprocess.PIPE)
    assert process.stderr
    assert select.select([process.stderr], [], [], TIMEOUT_S)[0]
    assert process.stderr.readline() == WAITING
    assert process.poll() is None
    out, err = process.communicate("he was\n", timeout=TIMEOUT_S)
    assert (process.returncode, err) == (0, "")
    assert out == text_of(endless, "he was\n\nher", *GREEDY)


def test_an_open_pipe_that_is_left_alone(endless: Path) -> None:
    """With --no-stdin nobody waits for it."""
    words = ("generate", endless, "her", "--no-stdin", *GREEDY, "-t", "1")
    process = start(*words, stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.read() == text_of(endless, "her", *GREEDY)
    with process:
        assert process.wait(TIMEOUT_S) == 0


def test_a_loop_keeps_its_lines(endless: Path, tmp_path: Path) -> None:
    """`while read` gives every line to a run of its own if that leaves stdin alone."""
    (tmp_path / "lines").write_text("he was\nher\n")
    command = f"{sys.executable} -m specgen generate {endless} --no-stdin {' '.join(GREEDY)} -t 1"
    loop = f'while read -r line; do {command} -p "$line"; echo; done < {tmp_path / "lines"}'
    done = subprocess.run(["sh", "-c", loop], capture_output=True, text=True, check=True)
    expected = [text_of(endless, text, *GREEDY) + "\n" for text in ("he was", "her")]
    assert done.stdout == "".join(expected)


COMMANDS = ("generate", "chat", "info", "plan", "bench", "verify", "calibrate")


@pytest.mark.parametrize("option", ["-m", "--model", "-m=", "--model="])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_model_as_an_option(command: str, option: str) -> None:
    """Every command that takes MODEL takes it with -m, too, and reads it as a path or a name."""
    for model, message in (("none.gguf", "no such file: none.gguf"), ("x", "is called 'x'")):
        words = [f"{option}{model}"] if option == "--model=" else [option.rstrip("="), model]
        assert_refused(run(command, *words, stdin="he"), 3, message)


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_the_model_twice(endless: Path, command: str) -> None:
    """As an argument and as an option is once too often, even if it is the same."""
    for words in ((endless, "-m", endless), ("-m", endless, endless)):
        assert_refused(
            run(command, *words, stdin="he"), 2, "the model is given with -m", str(endless)
        )


def test_prompts_beside_the_model_as_an_option(endless: Path) -> None:
    """Behind -m the only argument is the prompt, wherever -m stands."""
    expected = text_of(endless, "he was", *GREEDY)
    assert text_of("-m", endless, "he was", *GREEDY) == expected
    assert text_of("he was", *GREEDY, "--model", endless) == expected
    assert text_of("-m", endless, "-p", "he was", *GREEDY) == expected
    assert text_of("-m", endless, *GREEDY, stdin="he was") == expected
    for words in (("he", "was"), (str(endless), "he was")):
        assert_refused(generate("-m", endless, *words), 2, "with -m", words[0], words[1])
    assert_refused(generate("-m", endless, "he", "-p", "was"), 2, "two prompts")


def test_texts_that_begin_with_a_dash(endless: Path, tmp_path: Path) -> None:
    """Behind -- all is text, and so is the value of an option; else an error tells of --."""
    (tmp_path / "file").write_text("- item")
    expected = text_of(endless, "-f", tmp_path / "file", *GREEDY)
    assert text_of(endless, *GREEDY, "--", "- item") == expected
    assert text_of(*GREEDY, "-m", endless, "--", "- item") == expected
    assert text_of(*GREEDY, "--", str(endless), "- item") == expected
    assert text_of(endless, *GREEDY, "-p", "- item") == expected
    assert text_of(endless, *GREEDY, "--prompt=- item") == expected
    assert_refused(generate(endless, "- item"), 2, "no option - item", "behind --")
    assert_refused(generate(endless, "-- item"), 2, "no option -- item", "behind --")


@pytest.mark.parametrize(
    "words", [("-p", "a", "-p", "b"), ("-p", "a", "--prompt=a"), ("-p", "a", "-p", "")]
)
def test_two_prompts(endless: Path, words: Sequence[str]) -> None:
    """None of two prompts is dropped unsaid, in whatever way the option is spelled."""
    assert_refused(generate(endless, *words), 2, words[2].partition("=")[0], "given twice")


@pytest.mark.parametrize(
    "option", ["-sys", "--system-prompt", "--chat-template-file", "--predicted-output"]
)
def test_two_of_what_the_model_reads(endless: Path, option: str) -> None:
    """Nor of two other texts."""
    words = (endless, "he", "--chat", option, "a", option, "b")
    assert_refused(generate(*words), 2, option, "given twice")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (r"a\nb", "a\nb"),
        (r"\r\t", "\r\t"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        (r"\'\"", "'\""),
        (r"\x41\x0a", "A\n"),
        (r"na\xc3\xafve", "naïve"),
        (r"\xE2\x82\xac", "€"),
        (r"\x4", r"\x4"),
        (r"\xg1", r"\xg1"),
        (r"\q\e\0", r"\q\e\0"),
        ("\\", "\\"),
        (r"a\ ".strip(), "a\\"),
        (r"\x00", "\0"),
        (r"日\n本", "日\n本"),
        (r"\\x41", r"\x41"),
        ("", ""),
    ],
)
def test_escapes(word: str, text: str) -> None:
    """They are llama.cpp's: what is no escape stays as it is."""
    assert unescape(word, "x") == text


def test_escapes_that_make_no_text(endless: Path) -> None:
    """Bytes that are not UTF-8 are refused as in a file."""
    words = (endless, "-e", "-p")
    assert_refused(generate(*words, r"he\xff"), 2, "the prompt", "not UTF-8: byte 2 is 0xff")
    refused = generate(*words, "he", "--stop", r"\xc3")
    assert_refused(refused, 2, "--stop", "not UTF-8: byte 0 is 0xc3")


def test_escapes_where_they_are_asked_for(endless: Path, tmp_path: Path) -> None:
    """-e is for prompts and stop strings among the words; without it nothing is changed."""
    (tmp_path / "lines").write_text("he\nwas")
    (tmp_path / "plain").write_text(r"he\nwas")
    lines, plain = (text_of(endless, "-f", tmp_path / n, *GREEDY) for n in ("lines", "plain"))
    assert lines != plain
    for words in ((r"he\nwas",), ("-p", r"he\nwas")):
        assert text_of(endless, *words, *GREEDY) == plain
        assert text_of(endless, *words, *GREEDY, "-e") == lines
        assert text_of(endless, *words, *GREEDY, "--escape") == lines
    assert text_of("-m", endless, r"he\nwas", *GREEDY, "-e") == lines
    assert text_of(endless, "-f", tmp_path / "plain", *GREEDY, "-e") == plain
    stop = lines[3:5]
    escaped = "".join(f"\\x{byte:02x}" for byte in stop.encode())
    assert (
        text_of(endless, "-f", tmp_path / "lines", *GREEDY, "-e", "--stop", escaped)
        == (lines[: lines.index(stop)])
    )
    assert text_of(endless, "-f", tmp_path / "lines", *GREEDY, "--stop", escaped) == lines


TEXTS = {
    "generate -p": ("generate", "-m", "none.gguf", "-p", "TEXT"),
    "generate --prompt=": ("generate", "-m", "none.gguf", "--prompt=TEXT"),
    "generate PROMPT": ("generate", "none.gguf", "--", "TEXT"),
    "generate -m PROMPT": ("generate", "-m", "none.gguf", "--", "TEXT"),
    "generate -e": ("generate", "-m", "none.gguf", "-e", "--stop", "TEXT", "-p", "TEXT"),
    "generate -sys": ("generate", "none.gguf", "he", "--chat", "-sys", "TEXT"),
    "generate --stop": ("generate", "none.gguf", "he", "--stop", "he", "-r", "TEXT"),
    "generate --drafter": ("generate", "none.gguf", "he", "--drafter", "TEXT"),
    "generate -ngl": ("generate", "none.gguf", "he", "-ngl", "TEXT"),
    "generate --memory-budget": ("generate", "none.gguf", "he", "--memory-budget", "TEXT"),
    "chat -sys": ("chat", "none.gguf", "--system-prompt", "TEXT"),
    "chat --stop": ("chat", "none.gguf", "-e", "--stop=TEXT"),
    "plan --drafter": ("plan", "none.gguf", "--drafter=TEXT"),
    "bench --drafter": ("bench", "none.gguf", "--drafter", "TEXT"),
    "verify --drafter": ("verify", "none.gguf", "--drafter", "TEXT"),
    "pull": ("pull", "--", "TEXT"),
}
NAMES = {
    "generate MODEL": ("generate", "--no-stdin", "--", "TEXT"),
    "generate -m": ("generate", "--no-stdin", "-m", "TEXT"),
    "generate -md": ("generate", "-p", "he", "-md", "TEXT"),
    "generate -f": ("generate", "none.gguf", "-f", "TEXT"),
    "generate --predicted-output": ("generate", "none.gguf", "he", "--predicted-output", "TEXT"),
    "bench --curve": ("bench", "none.gguf", "--replay", "none.jsonl", "--curve", "TEXT"),
    "bench --load": ("bench", "--load", "TEXT"),
    "bench --save": ("bench", "none.gguf", "--save", "TEXT"),
    "a word": ("generate", "none.gguf", "TEXT", "-n", "1"),
    "a command": ("TEXT",),
}


def with_text(words: Sequence[str], text: str) -> list[str]:
    """The words, with `text` where it says TEXT."""
    return [word.replace("TEXT", text) for word in words]


@pytest.mark.parametrize("place", TEXTS)
@pytest.mark.parametrize(
    ("data", "place_of_byte"),
    [(b"caf\xe9 x", 3), (b"\xff", 0), (b"he \xe2\x82", 3), (b"\xc3\xa9\xed\xa0\x80", 2)],
)
def test_words_that_are_not_utf8(place: str, data: bytes, place_of_byte: int) -> None:
    """A text of other bytes is refused with the first of them, wherever it stands."""
    outcome = run(*with_text(TEXTS[place], os.fsdecode(data)))
    message = f"not UTF-8: byte {place_of_byte} is 0x{data[place_of_byte]:02x}"
    assert_refused(outcome, 2, message)


def test_the_locale_changes_no_word(endless: Path, tmp_path: Path) -> None:
    """Text is UTF-8 and paths are bytes, also where the locale has ASCII alone."""
    model = tmp_path / "modèle 数.gguf"
    model.symlink_to(endless)
    text = "hé 数"
    expected = text_of(endless, text, *GREEDY)
    assert expected != text_of(endless, "h? ?", *GREEDY)
    stop = expected[5:]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in ((model, text), ("-m", model, text), (model, f"--prompt={text}", "-e")):
        done = subprocess.run(
            shell_words("generate", *words, *GREEDY, "-t", "1", "--no-stdin", "--stop", stop),
            cwd=ROOT,
            env=environment,
            capture_output=True,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode() == expected[:5]
    missing = subprocess.run(
        shell_words("info", "modèle"), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "no model is called 'mod\\xe8le' (" in missing.stderr


def test_paths_may_have_any_bytes(endless: Path, tmp_path: Path) -> None:
    """What names a file is no text."""
    prompt = tmp_path / os.fsdecode(b"\xfe")
    prompt.write_text("he was")
    expected = text_of(endless, "he was", *GREEDY)
    assert text_of(endless, "-f", str(prompt), *GREEDY) == expected
    assert text_of(endless, "he was", "--predicted-output", prompt, *GREEDY) == expected
    missing = os.fsdecode(b"\xff.gguf")
    for words in ((missing,), ("-m", missing), (endless, "-md", missing)):
        assert_refused(generate(*words, "-f", str(prompt)), 3, "no such file: \ufffd.gguf")


PIECES = (
    *(
        b"\\",
        b"\\n",
        b"\\x",
        b"\\xff",
        b"-",
        b"--",
        b"-hf",
        b"-p",
        b"=",
        b",",
        b"%",
        b"/",
        b".gguf",
    ),
    *(b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xc0\x80", b"\xf8", MARK),
    *("é".encode(), "日本".encode(), "😀".encode(), "\u202e".encode(), "\u2028".encode()),
    *(b"\n", b"\r\n", b"\t", b"\x1b[2J", b"\x1b]52;c;eA==\x07", b"\x7f", b" ", b"", b"he was"),
    *(b"0", b"1", b"-1", b"9" * 40, b"nan", b"inf", b"1e9", b"4/8", b"100M", b"none", b"auto"),
    *(b"<s>", b"</s>", b"<|im_start|>", b"{{", b"%}", b"'", b'"', b"$(x)", b"../", b"~"),
)


def strings() -> list[str]:
    """Words as Python makes them of bytes: pieces that mean something, noise, long ones."""
    chance = random.Random(16)
    found = []
    for number in range(N_STRINGS):
        if number % 4 == 0:
            data = chance.randbytes(chance.randrange(40)).replace(b"\0", b"")
        elif number % 100 == 1:
            data = chance.choice(PIECES) * chance.randrange(1, 5_000)
        else:
            data = b"".join(chance.choices(PIECES, k=chance.randrange(5)))
        found.append(os.fsdecode(data))
    return found


@pytest.mark.long
@pytest.mark.parametrize("place", [*TEXTS, *NAMES])
def test_any_word(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in a place for a word, the outcome is one line and its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Stdin(b""))
    command = typer.main.get_command(app)
    shown = ["generate", "-h"], ["-h"], ["--help"], ["--version"]
    for text in strings():
        words = with_text({**TEXTS, **NAMES}[place], text)
        error = io.StringIO()
        with (
            contextlib.redirect_stderr(error),
            contextlib.redirect_stdout(io.StringIO()),
            pytest.raises(SystemExit) as end,
        ):
            command.main(words, prog_name="specgen")
        line = error.getvalue()
        if end.value.code == 0:
            assert words in shown, words
            continue
        assert end.value.code in (2, 3, 4), (words, line)
        assert line.startswith("specgen: error: "), (words, line)
        assert line.count("\n") == 1 and line.endswith("\n"), (words, line)
        assert line.rstrip("\n").isprintable(), (words, line)


@pytest.mark.long
def test_any_prompt(endless: Path) -> None:
    """A prompt of any characters is continued, or refused in one line."""
    for text in strings()[: N_STRINGS // 20]:
        outcome = generate(endless, "-n", "1", "-e", "--stop", "x" + text, "-p", text)
        if outcome.code:
            assert_refused(outcome, outcome.code)
            assert outcome.code in (2, 5), outcome
        else:
            assert outcome.err == ""
