"""`specgen chat` on a tiny model: its commands in this process, its keys on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from specgen.cli.chat import HELP, Repl
from specgen.cli.interrupt import Interrupts
from specgen.cli.options import OutputOptions, TextOptions
from specgen.cli.run import Job
from specgen.core.config import EngineConfig
from specgen.core.llama import LlamaBackend
from specgen.core.sampling import SamplingParams
from specgen.core.template import Message

from .command import READY, TIMEOUT_S, run, start, text_of

pytestmark = pytest.mark.llama

CTRL_C, CTRL_D = "\x03", "\x04"
ESCAPE = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")
PROMPT_IS_READY = b"\x1b[?2004h"  # asks for pastes in brackets, once keys are its own
N_TOKENS = 12
GREEDY = ("--greedy", "-n", str(N_TOKENS))
FIGURES = re.compile(r"first token \d+ ms \(prompt (\d+) @ \d+ t/s, (\d+) cached\)")


@dataclass(frozen=True)
class Talk:
    """What was said in a chat, and shown on stdout and stderr."""

    messages: list[Message]
    out: str
    err: str

    @property
    def told(self) -> str:
        """stderr, which is wrapped, as one line."""
        return " ".join(self.err.split())

    @property
    def answers(self) -> list[str]:
        """The model's messages."""
        return [message.content for message in self.messages if message.role == "assistant"]


@pytest.fixture
def talk(endless: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Talk]:
    """`talk(line, line...)` is a chat in which these lines were typed, then Ctrl-D."""

    def chat(*lines: str, n: int = N_TOKENS, ctx: int = 512, **how: Any) -> Talk:
        output = OutputOptions(stats=how.get("stats", False))
        config = EngineConfig(n_ctx=ctx, threads=1)
        params = SamplingParams(temperature=0, seed=1)
        job = Job(str(endless), TextOptions(n), output, params, config, "none")
        with (
            create_pipe_input() as keys,
            create_app_session(input=keys, output=DummyOutput()),
            Interrupts() as interrupts,
            job.open(interrupts) as engine,
        ):
            keys.send_text("".join(f"{line}\r" if line[-1] >= " " else line for line in lines))
            keys.send_text(CTRL_D)
            conversation = engine.conversation(how.get("template"), how.get("system"))
            capfd.readouterr()
            Repl(job, engine, conversation, interrupts).run()
        return Talk(conversation.messages, *capfd.readouterr())

    return chat


def say_so_far(question: str, model: Path, *options: str) -> str:
    """What the model answers to a first message."""
    return text_of(model, question, "--chat", *GREEDY, *options)


def test_without_a_terminal(endless: Path) -> None:
    """stdin is one message; the answer is all that is written, and the command ends."""
    outcome = run("chat", endless, "-t", "1", *GREEDY, stdin="who was he\n")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == say_so_far("who was he", endless)
    with_system = run("chat", endless, "-t", "1", *GREEDY, "-sys", "be her", stdin="who was he")
    assert with_system.out == say_so_far("who was he", endless, "-sys", "be her") != outcome.out
    with_stats = run("chat", endless, "-t", "1", *GREEDY, "--stats", stdin="who was he")
    assert with_stats.out == outcome.out
    assert with_stats.err.startswith(f"[specgen] {N_TOKENS} tokens")


def test_turns(talk: Callable[..., Talk], endless: Path) -> None:
    """Answers come in turn on stdout, each to the whole conversation before it."""
    chat = talk("who was he", "who was he")
    first, second = chat.answers
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 2
    assert first == say_so_far("who was he", endless) != second
    assert chat.out == f"{first}\n{second}\n"


def test_blank_lines_are_no_messages(talk: Callable[..., Talk]) -> None:
    """Enter alone asks nothing, and spaces around a message are not part of it."""
    chat = talk("\r", "  \r", "  who was he ")
    assert [m.content for m in chat.messages if m.role == "user"] == ["who was he"]


def test_cache_is_reused(talk: Callable[..., Talk]) -> None:
    """A turn processes only what is new since the last one, as /stats shows."""
    chat = talk("/stats", "who was he", "/stats", "and she", "/stats")
    assert "there is no answer yet" in chat.err
    (prompt, none), (longer, cached) = [map(int, pair) for pair in FIGURES.findall(chat.told)]
    assert none == 0
    assert prompt + N_TOKENS <= cached + 1 < longer


def test_stats_after_each_answer(talk: Callable[..., Talk]) -> None:
    """--stats tells the figures of every answer unasked."""
    assert talk("he", "she", stats=True).err.count("[specgen]") == 2


def test_help(talk: Callable[..., Talk]) -> None:
    """/help shows every command there is."""
    shown = talk("/help").err
    assert HELP in shown
    for command in ("/help", "/exit", "/clear", "/regen", "/system", "/stats"):
        assert command in shown


@pytest.mark.parametrize("command", ["/exit", "/bye", "/quit"])
def test_leaving(talk: Callable[..., Talk], command: str) -> None:
    """/exit ends the chat: what comes after it is not read."""
    assert talk("he was", command, "she was").answers == talk("he was").answers


def test_clear(talk: Callable[..., Talk], endless: Path) -> None:
    """/clear forgets the conversation; the next answer is as in a new one."""
    chat = talk("tell her of him", "/clear", "who was he")
    assert chat.answers == [say_so_far("who was he", endless)]
    assert "forgotten" in chat.err


def test_regen(talk: Callable[..., Talk]) -> None:
    """/regen replaces the last answer by a new one, and needs one to replace."""
    chat = talk("/regen", "who was he", "/regen")
    assert "there is no answer to give again" in chat.err
    (answer,) = chat.answers
    assert chat.out == f"{answer}\n{answer}\n"  # greedy: the same again


def test_system(talk: Callable[..., Talk], endless: Path) -> None:
    """/system TEXT sets the system message and starts over; without a text it removes it."""
    chat = talk("he", "/system be her", "who was he")
    assert chat.answers == [say_so_far("who was he", endless, "-sys", "be her")]
    assert chat.messages[0] == Message("system", "be her")
    without = talk("/system", "who was he", system="be her")
    assert without.answers == [say_so_far("who was he", endless)]


@pytest.mark.parametrize("line", ["/nonsense", "/Help", "/regenerate now", "/"])
def test_unknown_command(talk: Callable[..., Talk], line: str) -> None:
    """What begins with a slash and is no command is not sent to the model."""
    chat = talk(line)
    assert f"there is no command {line.split()[0]}; /help lists them" in chat.err
    assert chat.messages == []


def test_full_context(talk: Callable[..., Talk], endless: Path) -> None:
    """A full context is explained, with the way out; the chat goes on, and /clear makes room."""
    chat = talk("who was he", "and she", "/clear", "who was he", n=-1, ctx=64)
    assert chat.told.count("available context size of 64") == 3
    assert chat.told.count("/clear starts over") == 3
    assert "exceeds the available context size" in chat.told
    (answer,) = chat.answers
    assert answer.startswith(say_so_far("who was he", endless))
    assert chat.out == f"{answer}\n{answer}\n"


def test_template_that_refuses(talk: Callable[..., Talk]) -> None:
    """A message that the template refuses is explained and taken back; the chat goes on."""
    refuses = "{% if 'no' in messages[-1].content %}{{ raise_exception('not so') }}{% endif %}->"
    chat = talk("he was", "no", "she was", template=refuses)
    assert "specgen: error: the model's chat template failed: not so" in chat.err
    assert [m.content for m in chat.messages if m.role == "user"] == ["he was", "she was"]
    assert len(chat.answers) == 2


def test_ctrl_c_at_the_prompt(talk: Callable[..., Talk]) -> None:
    """Ctrl-C at the prompt drops what is typed, says how to leave, and stays."""
    chat = talk("he wa" + CTRL_C, "she was")
    assert "Ctrl-D leaves" in chat.err.split("\n", 1)[1]
    assert [m.content for m in chat.messages if m.role == "user"] == ["she was"]


def signal_at(monkeypatch: pytest.MonkeyPatch, method: str, call: int, number: int) -> None:
    """Have a signal come during call number `call` of a method of the backend."""
    work, calls = getattr(LlamaBackend, method), iter(range(1, 10_000))

    def interrupted(*args: Any) -> Any:
        if next(calls) == call:
            signal.raise_signal(number)
        return work(*args)

    monkeypatch.setattr(LlamaBackend, method, interrupted)


def test_stopped_answer(talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends an answer; what there is of it stays in the conversation and in the cache."""
    signal_at(monkeypatch, "score", 5, signal.SIGINT)
    chat = talk("who was he", "/stats", "and she", "/stats", "/regen")
    first, second = chat.answers
    assert chat.out == f"{first}\n{second}\n{second}\n"
    assert "(stopped)" in chat.err
    assert "[specgen] 5 tokens" in chat.err
    (prompt, _), (_, cached) = FIGURES.findall(chat.told)
    assert int(cached) + 1 >= int(prompt) + 5


def test_stopped_before_the_answer(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the message is read takes it back: there is no answer to it."""
    signal_at(monkeypatch, "prefill", 1, signal.SIGINT)
    chat = talk("tell her of him", "who was he")
    assert [m.content for m in chat.messages if m.role == "user"] == ["who was he"]
    assert chat.answers == talk("who was he").answers
    assert chat.err.count("(stopped)") == 1


def test_terminated(talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM during an answer ends the chat, with the exit code that shells expect."""
    signal_at(monkeypatch, "score", 5, signal.SIGTERM)
    with pytest.raises(typer.Exit) as leaving:
        talk("who was he", "and she")
    assert leaving.value.exit_code == 143


class Terminal:
    """A pseudo-terminal with a chat in it."""

    def __init__(self, process: subprocess.Popen[str], keys: int) -> None:
        self._process = process
        self._keys = keys
        self._bytes = b""

    @property
    def shown(self) -> str:
        """All text so far."""
        return ESCAPE.sub("", self._bytes.decode("utf-8", "replace"))

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._keys, text.encode())

    def wait_for(self, text: str) -> None:
        """Read on until `text` was shown."""
        while text not in self.shown:
            assert self._read(), f"{text!r} was not shown: {self.shown}"

    def wait_for_prompt(self, number: int) -> None:
        """Read on until keys go to prompt `number`; what was typed before may be lost."""
        while self._bytes.count(PROMPT_IS_READY) < number:
            assert self._read(), f"there was no prompt number {number}: {self.shown}"

    def wait_for_end(self) -> int:
        """Read all, and return the exit code."""
        while self._read():
            pass
        return self._process.wait(TIMEOUT_S)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._keys], [], [], TIMEOUT_S)
        try:
            data = os.read(self._keys, 4096) if ready else b""
        except OSError:  # the other side is closed
            data = b""
        self._bytes += data
        return bool(data)


@contextmanager
def terminal(*words: str | Path, hold: str) -> Iterator[Terminal]:
    """`specgen WORDS` in a terminal."""
    ours, theirs = os.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = start(*words, hold=hold, start_new_session=True, **streams)
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_keys(endless: Path) -> None:
    """In a terminal, Ctrl-C stops an answer or drops a line, and Ctrl-D leaves."""
    with terminal("chat", endless, "-t", "1", *GREEDY, hold="score,5,once") as screen:
        screen.wait_for_prompt(1)
        screen.type("who was he\r")
        screen.wait_for(READY)
        screen.type(CTRL_C)
        screen.wait_for_prompt(2)
        screen.type("and she\r")
        screen.wait_for_prompt(3)
        screen.type("/stats\r")
        screen.wait_for_prompt(4)
        screen.type("he wa" + CTRL_C)
        screen.wait_for_prompt(5)
        screen.type(CTRL_D)
        assert screen.wait_for_end() == 0
    assert screen.shown.count("(stopped)") == 1
    assert f"[specgen] {N_TOKENS} tokens" in screen.shown
    assert "^C" not in screen.shown
    assert "Traceback" not in screen.shown
