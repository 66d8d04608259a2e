"""Whatever is wrong, specgen says so in one line on stderr, with the exit code that fits."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.command import (
    ROOT,
    Outcome,
    assert_refused,
    finish,
    generate,
    run,
    shell_words,
    start,
    text_of,
    wait_until_ready,
)
from tests.support.tiny import write_tiny

pytestmark = pytest.mark.llama

LONG = "he was there " * 60  # more tokens than one chunk of prefill
FULL = Path("/dev/full")

needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
each_signal = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"]
)


@pytest.fixture
def here(endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files that are no models, and prompts that cannot be read."""
    monkeypatch.chdir(tmp_path)
    model = endless.read_bytes()
    for name, data in (
        ("text.txt", b"Once upon a time\n" * 20),
        ("text.gguf", b"Once upon a time\n" * 20),
        ("empty.gguf", b""),
        ("noise.gguf", bytes(range(256)) * 8),
        ("header.gguf", model[:5000]),
        ("cut.gguf", model[: len(model) // 2]),
        ("short.gguf", model[:-1]),
        ("latin1.txt", "naïve".encode("latin-1")),
        ("newline.txt", b"\n"),
        ("open.jinja", b"{% for m in messages %}"),
        ("empty.jinja", b"\n"),
        ("refuses.jinja", b"{{ raise_exception('not today') }}"),
        ("latin1.jinja", b"\xe4"),
        ("empty.jinja", b" \n"),
    ):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder").mkdir()
    write_tiny(tmp_path / "bare.gguf", template=None)
    return tmp_path


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("none.gguf", "no such file: none.gguf"),
        ("folder/none", "no such file: folder/none"),
        ("folder", "folder is a directory"),
        ("text.txt", "text.txt is not a GGUF file"),
        ("text.gguf", "text.gguf is not a GGUF file"),
        ("noise.gguf", "noise.gguf is not a GGUF file"),
        ("empty.gguf", "empty.gguf is empty"),
        ("header.gguf", "header.gguf is truncated"),
        ("cut.gguf", "cut.gguf is truncated"),
        ("short.gguf", "short.gguf is truncated"),
        ("llama-7b", "no model is called 'llama-7b'"),
        ("smollm2-135", "the nearest name is smollm2-135m"),
        ("", "no model is called ''"),
        ("a\0b", "no model is called"),
        ("x" * 5000, "no model is called"),
    ],
    ids=lambda value: value[:20].replace("\0", "0"),
)
def test_models(here: Path, command: str, model: str, message: str) -> None:
    """What is no model is refused with exit code 3 before the prompt is asked for."""
    assert_refused(run(command, model), 3, message)


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (("",), b"", "the prompt is empty"),
        (("-p", ""), b"", "the prompt is empty"),
        ((), b"", "the prompt is empty"),
        ((), b"\n", "the prompt is empty"),
        (("-f", "newline.txt"), b"", "the prompt is empty"),
        (("-f", "-"), b"", "the prompt is empty"),
        (("he", "-p", "was"), b"", "two prompts"),
        (("", "-p", ""), b"", "two prompts"),
        (("he", "was"), b"", "an argument too many: 'was'"),
        ((), b"he \xff\xfe", "stdin is not UTF-8: byte 3 is 0xff"),
        ((), b"he \xe2\x82", "stdin is not UTF-8: byte 3 is 0xe2"),
        (("-f", "latin1.txt"), b"", "latin1.txt is not UTF-8: byte 2 is 0xef"),
        (("-f", ""), b"", "cannot read the prompt file '': No such file"),
        (("-f", "none.txt"), b"", "cannot read the prompt file none.txt: No such file"),
        (("-f", "folder"), b"", "cannot read the prompt file folder: Is a directory"),
        (("he", "-sys", "be her"), b"", "need --chat"),
        (("he", "--chat", "--chat-template-file", "none"), b"", "chat template none: No such file"),
        (("he", "--chat", "--chat-template-file", "latin1.jinja"), b"", "is not UTF-8"),
        (("he", "--chat", "--chat-template-file", "empty.jinja"), b"", "empty.jinja is empty"),
    ],
)
def test_prompts(
    here: Path, endless: Path, words: Sequence[str], stdin: bytes, message: str
) -> None:
    """A prompt that is not there, or cannot be read, is refused with exit code 2."""
    assert_refused(generate(endless, *words, "-n", "1", stdin=stdin), 2, message)


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (("-n", "-2"), ("-n", "-1")),
        (("-n", "many"), ("-n", "'many' is no whole number (")),
        (("-c", "-1"), ("-c", "0")),
        (("-c", str(10**12)), ("1000000000000", "2048", "use -c 2048")),
        (("-c", "2049"), ("2049", "2048")),
        (("-t", "0"), ("-t", "1")),
        (("-t", str(10**9)), ("-t", "1024")),
        (("--temp", "-1"), ("temperature is -1",)),
        (("--temp", "nan"), ("temperature is nan",)),
        (("--temp", "inf"), ("temperature is inf",)),
        (("--temp", "hot"), ("--temp", "'hot' is no number (")),
        (("--top-k", "-1"), ("top_k is -1",)),
        (("--top-p", "2"), ("top_p is 2",)),
        (("--min-p", "nan"), ("min_p is nan",)),
        (("--typical", "-0.1"), ("typical_p is -0.1",)),
        (("--repeat-penalty", "0"), ("repeat_penalty is 0",)),
        (("--repeat-last-n", "-2"), ("repeat_last_n is -2",)),
        (("--presence-penalty", "inf"), ("presence_penalty is inf",)),
        (("--seed", "-5"), ("seed is -5",)),
        (("--seed", str(2**64)), ("seed is 18446744073709551616",)),
        (("--seed", "abc"), ("--seed",)),
        (("--draft-max", "-1"), ("--draft-max",)),
        (("--draft-max", "1000"), ("--draft-max", "63")),
        (("-ngl", "foo"), ("--gpu-layers is 'foo'", "'auto'")),
        (("-ngl", "-2"), ("--gpu-layers is '-2'", "-1")),
        (("-ngl", "٣"), ("--gpu-layers is '٣'",)),
        (("-ngl", "-3"), ("--gpu-layers is '-3'",)),
        (("-fa", "maybe"), ("-fa", "maybe")),
        (("--tree", "maybe"), ("--tree", "maybe")),
        (("--drafter", "oracle"), ("no drafter named 'oracle'", "prompt-lookup")),
        (("--drafter", ""), ("no drafter named ''",)),
        (("--drafter", "none,"), ("no drafter named ''",)),
        (("--drafter", "auto,none"), ("'auto,none'", "'none' goes with no other")),
        (("--drafter", "none,recycle"), ("'none,recycle'", "'none' goes with no other")),
        (("--memory-budget", "lots"), ("'lots'", "no size", "400M")),
        (("--stop", ""), ("a stop string is empty",)),
        (("--colour",), ("--colour",)),
        (("-n",), ("-n needs a value",)),
        (("--swa-full",), ("--swa-full needs a value", "choose from: on, off")),
        (("--strict=on",), ("--strict takes no value", "'on'")),
        (("-e=1",), ("-e takes no value", "'1'")),
        (("-n=5",), ("the value of -n is a word of its own, as in -n 5",)),
        (("–n", "5"), ("no option –n", "a hyphen, -, and not with –")),
        (("—temp", "1"), ("no option —temp", "a hyphen, -, and not with —")),
    ],
    ids=lambda value: " ".join(value),
)
def test_options(
    endless: Path, command: str, words: Sequence[str], messages: Sequence[str]
) -> None:
    """An option that means nothing is refused with exit code 2, its name and what it may be."""
    assert_refused(run(command, endless, *words, stdin="he was"), 2, *messages)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (("bake",), ("bake",)),
        (("bake\nme",), (r"bake\nme",)),
        (("--colour",), ("--colour",)),
        (("--colour\n",), (r"--colour\n",)),
        (("pull",), ("name",)),
        (("generat",), ("the nearest is generate",)),
        (("gen", "-p", "he"), ("the nearest is generate",)),
        (("run", "smollm2-135m"), ("specgen chat MODEL", "specgen generate MODEL TEXT")),
        (("serve",), ("no server",)),
        (("rm", "x"), ("specgen list --json",)),
        (("ls",), ("specgen list",)),
        (("show",), ("specgen info",)),
        (("ps",), ("as long as its command runs",)),
        (("stop",), ("as long as its command runs",)),
        (("create",), ("GGUF file",)),
        (("embed",), ("does not embed",)),
        (("complete",), ("specgen generate",)),
        (("download",), ("specgen pull",)),
        (("model.gguf", "he"), ("specgen generate MODEL TEXT",)),
        (("-m", "model.gguf", "-p", "he"), ("no option -m", "behind the command")),
        (("--temp", "1"), ("no option --temp", "behind the command")),
        (("--vversion",), ("no option --vversion", "the nearest is --version")),
        (("help", "bake"), ("no command bake",)),
        (("list", "--temp"), ("no option --temp", "`specgen generate` has it")),
        (("chat", "-p", "he"), ("no option -p", "`specgen generate` has it")),
        (("chat", "MODEL", "he"), ("an argument too many: 'he'", "messages are typed")),
        (("generate", "MODEL", "he", "was"), ("too many: 'was'", "quote a text of several words")),
        (("generate", "MODEL", "he", "--", "-n"), ("too many: '-n'", "options stand before --")),
        (("generate", "--temperatur", "1"), ("the nearest is --temperature",)),
        (("pull", "a", "b"), ("an argument too many: 'b'", "it takes one name")),
        (("cache", "path", "x"), ("an argument too many: 'x'",)),
        (("cache", "clean"), ("no command clean", "the nearest is clear")),
        (("cache", "rm"), ("no command rm (`specgen cache --help`",)),
        (("SmolLM2-135m", "he"), ("specgen generate MODEL TEXT",)),
        (("generate", "--draft", "4"), ("no option --draft", "--draft-max bounds")),
        (("models",), ("specgen list",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_commands(words: Sequence[str], messages: Sequence[str]) -> None:
    """So is a command that there is not, and an argument that is missing; help is pointed at."""
    assert_refused(run(*words), 2, *messages, "--help` shows the usage")


@pytest.mark.parametrize("command", [(), ("generate",), ("chat",), ("list",), ("cache", "clear")])
@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("-hf", "download the GGUF file"),
        ("-hf=user/model", "download the GGUF file"),
        ("-hfr", "download the GGUF file"),
        ("--hf-repo", "download the GGUF file"),
        ("-hff", "download the GGUF file"),
        ("-mu", "download the GGUF file"),
        ("-cnv", "specgen chat"),
        ("-i", "specgen chat"),
        ("-if", "specgen chat"),
        ("-no-cnv", "specgen generate"),
        ("-sysf", "-sys"),
        ("-mli", ""),
        ("-ub", ""),
        ("-st", ""),
        ("-co", ""),
        ("-he", ""),
        ("-hv", ""),
        ("-vh", ""),
        ("-ev", ""),
        ("-vvh", ""),
        ("-nope", ""),
        ("-phe", ""),
        ("-x=he", ""),
        ("-fprompt", ""),
        ("-ngl5", ""),
        ("-vv5", ""),
    ],
)
def test_words_that_are_no_option(command: Sequence[str], word: str, hint: str) -> None:
    """A word is an option as it is declared, never several letters that happen to be options."""
    name = word.partition("=")[0]
    assert_refused(run(*command, word, "x", stdin="he"), 2, f"no option {name} ", hint)


def test_values_joined_to_options(endless: Path) -> None:
    """--option=value, -ngl=value and a number right behind a letter are values; -vv counts."""
    expected = text_of(endless, "-p", "he", "-n", "5", "--greedy", "-c", "64")
    words = ("-n5", "--greedy", "-c64", "-ngl=0", "--temp=0", "-s-1")
    assert text_of(endless, "--prompt=he", *words) == expected
    assert text_of(endless, "he", "-n", "5", "--greedy", "-c", "64", "-ngl", "-1") == expected
    told = [generate(endless, "he", "-n5", "--greedy", v).err.count("\n") for v in ("-v", "-vv")]
    assert told[1] > told[0] > 0


@pytest.mark.parametrize(
    "words", [(), ("generate",), ("info",), ("cache",), ("cache", "clear")], ids=" ".join
)
def test_help_as_a_command(words: Sequence[str]) -> None:
    """`help COMMAND` shows what `COMMAND --help` does."""
    outcome = run("help", *words)
    assert outcome == run(*words, "--help")
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (
            ("generate", "he was"),
            3,
            "no model is called",
            "to give a prompt without a model, use -p",
        ),
        (("generate", "-m", "he"), 3, "no model is called", "a path ends in .gguf"),
        (("chat", "he was"), 3, "no model is called", "messages are typed"),
        (("chat", "MODEL"), 2, "the prompt is empty", "messages are typed"),
        (("generate", "MODEL"), 2, "the prompt is empty", "with -p, with -f, or on stdin"),
        (("info", "he was"), 3, "no model is called", "a path ends in .gguf"),
        (("plan", "he was"), 3, "no model is called", "a path ends in .gguf"),
        (("bench", "he was"), 3, "no model is called", "a path ends in .gguf"),
        (("pull", "llama3"), 3, "no model is called", "`specgen list` shows the names"),
        (("pull", "x.gguf"), 2, "x.gguf is a path", "`specgen list` shows the names"),
        (
            ("pull", "https://a/b.gguf"),
            3,
            "https://a/b.gguf is an address",
            "download the GGUF file",
        ),
        (("info", "hf.co/user/model:Q4_0"), 3, "is an address", "download the GGUF file"),
        (("chat", "-m", "MODEL", "he"), 2, "the model is given with -m", "messages are typed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_hints_name_what_the_command_has(
    endless: Path, words: Sequence[str], code: int, message: str, hint: str
) -> None:
    """An option is hinted at where there is one, and no name that is not near."""
    outcome = run(*(str(endless) if word == "MODEL" else word for word in words))
    assert_refused(outcome, code, message, hint)
    assert (" -p" in outcome.err) == (" -p" in hint)
    assert "nearest" not in outcome.err
    if words[0] == "pull":
        assert "path ends" not in outcome.err


@pytest.mark.parametrize("command", ["generate", "chat", "plan", "bench"])
@pytest.mark.parametrize(
    ("draft", "message"), [("none", "no model"), ("none.gguf", "no such file")]
)
def test_draft_models_that_are_not_there(
    endless: Path, command: str, draft: str, message: str
) -> None:
    """A draft model that is not there is all that is spoken of."""
    assert_refused(run(command, endless, "-md", draft, stdin="he"), 3, message, draft)


@pytest.mark.parametrize("words", [("calibrate", "--seconds"), ("verify", "--gap")], ids=" ".join)
def test_numbers_that_are_none(endless: Path, words: Sequence[str]) -> None:
    """What is no number is within no bounds, and nothing is endless."""
    command, option = words
    for value in ("nan", "-nan", "many", "inf", "1e400"):
        assert_refused(run(command, endless, option, value), 2, option)


def test_no_command() -> None:
    """`specgen` alone shows the help, with the exit code of a command line that is incomplete."""
    outcome = run()
    assert outcome.code == 2
    assert "generate" in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("-c", "1"), 5, "exceeds the available context size of 1"),
        (("-c", "3"), 5, "exceeds the available context size of 3"),
    ],
)
def test_contexts(endless: Path, words: Sequence[str], code: int, message: str) -> None:
    """A context too small for the prompt is refused with exit code 5."""
    assert_refused(generate(endless, "he was there", *words), code, message)


def test_huge_numbers_that_mean_all(endless: Path) -> None:
    """Numbers beyond what there is to take are no error."""
    few = text_of(endless, "he was", "-n", "5", "--greedy")
    huge = ("-ngl", str(10**14), "--top-k", str(10**20), "--repeat-last-n", str(10**12))
    assert text_of(endless, "he was", "-n", "5", "--greedy", *huge) == few


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bare.gguf", "he"), "the model has no chat template"),
        (("--chat-template-file", "open.jinja"), "chat template failed: line 1"),
        (("--chat-template-file", "refuses.jinja"), "not today"),
    ],
)
def test_templates(here: Path, endless: Path, words: Sequence[str], message: str) -> None:
    """No template, or one that does not work, is an error that names the option for another."""
    model = () if "bare.gguf" in words else (endless, "he")
    assert_refused(generate(*model, *words, "--chat"), 3, message, "--chat-template-file")


def test_reader_that_leaves(endless: Path) -> None:
    """Whoever reads stdout may leave at any time: no complaint, exit code 141 as of SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    for words in (
        ("generate", endless, "he was", "-t", "1"),
        ("list",),
        ("--help",),
        ("list", "-h"),
    ):
        assert finish(start(*words, stdout=writer)) == Outcome(141, "", "")
    os.close(writer)


def test_reader_that_leaves_midway(endless: Path) -> None:
    """The same after some of the text was read."""
    process = start("generate", endless, "he was", "-t", "1", hold="submit,9,once", bufsize=0)
    assert process.stdout
    assert process.stderr
    wait_until_ready(process.stderr)
    assert len(os.read(process.stdout.fileno(), 10)) > 0
    process.stdout.close()
    process.send_signal(signal.SIGUSR1)
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 141


@needs_full_disk
@pytest.mark.parametrize(
    "words",
    [
        ("generate", "MODEL", "he was", "-n", "5", "-t", "1"),
        ("generate", "MODEL", "he was", "-n", "5", "-t", "1", "--json"),
        ("list",),
        ("--help",),
    ],
    ids=lambda words: " ".join(words[::6]),
)
def test_full_disk(endless: Path, words: Sequence[str]) -> None:
    """Where stdout cannot be written, one line says why, and Python has nothing to add at exit."""
    with FULL.open("w") as full:
        words = [str(endless) if word == "MODEL" else word for word in words]
        outcome = finish(start(*words, stdout=full))
    assert_refused(outcome, 1, "cannot write the output: No space left on device")


@needs_full_disk
def test_full_disk_for_messages(endless: Path) -> None:
    """Where stderr cannot be written, the text still is, and the exit code tells."""
    with FULL.open("w") as full:
        words = ("generate", endless, "he was", "-n", "5", "--greedy", "-t", "1", "--stats")
        outcome = finish(start(*words, stderr=full))
    assert (outcome.code, outcome.out) == (1, text_of(endless, "he was", "-n", "5", "--greedy"))


def test_closed_streams(endless: Path) -> None:
    """Streams that the parent closed count as empty, and no file of ours takes their place."""
    words = ("he was", "-n", "5", "--greedy")
    command = shell_words("generate", endless, *words, "-t", "1", "--stats")
    shell = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *command]
    done = subprocess.run(shell, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == text_of(endless, *words)


@each_signal
@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
def test_signal_in_decode(endless: Path, number: signal.Signals, json: bool) -> None:
    """The text so far stays on stdout, or makes a valid record; the exit code is 128 + signal."""
    words = ("he was", "--greedy", "--drafter", "none")
    text = text_of(endless, *words, "-n", "20")
    held = ("--stop", text[-3:] + "%")  # the end might become this when the signal comes
    options = ("-t", "1", *held, *(["--json"] * json))
    process = start("generate", endless, *words, *options, hold="submit,20,once")
    assert process.stderr
    wait_until_ready(process.stderr)
    process.send_signal(number)
    outcome = finish(process)
    assert (outcome.code, outcome.err) == (128 + number, "")
    if not json:
        assert outcome.out == text
        return
    record = outcome.record
    assert record["choices"][0]["text"] == text
    assert record["choices"][0]["finish_reason"] == "abort"
    assert record["usage"]["completion_tokens"] == 20


@each_signal
@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
def test_signal_in_prefill(endless: Path, number: signal.Signals, json: bool) -> None:
    """The prompt is not processed to its end: nothing is generated, and the exit code tells."""
    words = ["generate", str(endless), LONG, "-t", "1", *(["--json"] * json)]
    process = start(*words, hold="prefill,1,once")
    assert process.stderr
    wait_until_ready(process.stderr)
    process.send_signal(number)
    outcome = finish(process)
    assert (outcome.code, outcome.err) == (128 + number, "")
    if json:
        assert outcome.record["usage"]["completion_tokens"] == 0
        assert outcome.record["choices"][0]["finish_reason"] == "abort"
    else:
        assert outcome.out == ""


def test_second_interrupt(endless: Path) -> None:
    """A second Ctrl-C ends the process at once, in the midst of a step."""
    process = start("generate", endless, "he was", "-t", "1", hold="submit,20,forever")
    assert process.stderr
    wait_until_ready(process.stderr)
    process.send_signal(signal.SIGINT)
    wait_until_ready(process.stderr)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert (outcome.code, outcome.err) == (-signal.SIGINT, "")
    assert outcome.out != ""


def test_ignored_interrupt(endless: Path) -> None:
    """A process that was started to ignore SIGINT, as shells start background jobs, does so."""
    words = ("he was", "--greedy", "-n", "30")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start("generate", endless, *words, "-t", "1", hold="submit,20,once")
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stderr
    wait_until_ready(process.stderr)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGUSR1)
    assert finish(process) == Outcome(0, text_of(endless, *words), "")
