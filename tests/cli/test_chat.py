"""`specgen chat` on a tiny model: its commands in this process, its keys on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
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
from specgen.core.errors import BackendError
from specgen.core.llama.backend import LlamaBackend
from specgen.core.llama.library import library
from specgen.core.sampling import SamplingParams
from specgen.core.text import sandbox
from specgen.core.text.template import ChatTemplate, Message
from tests.support.command import READY, ROOT, TIMEOUT_S, run, shell_words, start, text_of

pytestmark = pytest.mark.llama

CTRL_C, CTRL_D, CTRL_Z, BACKSPACE = "\x03", "\x04", "\x1a", "\x7f"
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


@pytest.mark.parametrize(
    "line",
    ["/hlep", "/Help", "/regenerate now", "/", "/exti", "/statsx", "/sytem be her", "/help?"],
)
def test_slips_of_the_finger(talk: Callable[..., Talk], line: str) -> None:
    """What is nearly a command is not sent to the model; it is said how to send it."""
    chat = talk(line)
    name = line.split()[0]
    assert (
        f"there is no command {name}; /help lists them, /{name} sends it as a message" in chat.told
    )
    assert chat.messages == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("//help", "/help"),
        ("//exit now", "/exit now"),
        ("///", "//"),
        ("// is a comment", "/ is a comment"),
        ("/etc/hosts has what", "/etc/hosts has what"),
        ("/nonsense", "/nonsense"),
        ("/exit/code", "/exit/code"),
        ("/* of */", "/* of */"),
        ("/0-9/ is what", "/0-9/ is what"),
    ],
)
def test_messages_that_begin_with_a_slash(
    talk: Callable[..., Talk], endless: Path, line: str, message: str
) -> None:
    """Two slashes send one; what looks like no command needs no second."""
    chat = talk(line)
    assert [m.content for m in chat.messages if m.role == "user"] == [message]
    assert chat.answers == [say_so_far(message, endless)]


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
    refuses = "{% if 'no' in messages[-1].content %}{{ raise_exception('not so') }}{% endif %}"
    refuses += "{{ messages[-1].content }}->"
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
    signal_at(monkeypatch, "submit", 5, signal.SIGINT)
    chat = talk("who was he", "/stats", "and she", "/stats", "/regen")
    first, second = chat.answers
    assert chat.out == f"{first}\n{second}\n{second}\n"
    assert "(stopped)" in chat.err
    assert "[specgen] 5 tokens" in chat.err
    (prompt, _), (_, cached) = FIGURES.findall(chat.told)
    assert int(cached) + 1 >= int(prompt) + 5


UNANSWERED = "the message was not answered and is not in the conversation"


def questions(chat: Talk) -> list[str]:
    """The user's messages in a conversation."""
    return [m.content for m in chat.messages if m.role == "user"]


def test_stopped_before_the_answer(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the message is read takes it back and says so: there is no answer to it."""
    signal_at(monkeypatch, "prefill", 1, signal.SIGINT)
    chat = talk("tell her of him", "who was he")
    assert questions(chat) == ["who was he"]
    assert chat.answers == talk("who was he").answers
    assert chat.told.count(f"(stopped; {UNANSWERED}; arrow-up brings it back)") == 1


def in_llama_cpp(
    monkeypatch: pytest.MonkeyPatch, name: str, call: int, do: Callable[[], object]
) -> None:
    """Have something happen in call number `call` of a function of llama.cpp."""
    api = library().api
    work, calls = getattr(api, name), iter(range(1, 10_000))

    def disturbed(*args: Any) -> Any:
        if next(calls) == call:
            do()
        return work(*args)

    monkeypatch.setattr(api, name, disturbed)


@pytest.mark.parametrize("place", ["llama_tokenize", "llama_decode"])
def test_stopped_while_a_message_is_read(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """In the midst of llama.cpp's work: the next answer is that of a chat without the message."""
    long = "tell her of him " * 20
    expected = talk("who was he", "and she").answers
    where = _calls_of(talk, monkeypatch, place, "who was he", long)
    in_llama_cpp(monkeypatch, place, where, lambda: signal.raise_signal(signal.SIGINT))
    chat = talk("who was he", long, "and she")
    assert questions(chat) == ["who was he", "and she"]
    assert chat.answers == expected
    assert chat.told.count(f"(stopped; {UNANSWERED}") == 1


def _calls_of(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch, place: str, *lines: str
) -> int:
    """The number of the first call of `place` that the last line leads to."""
    calls = []
    for known in (lines[:-1], lines):
        count = [0]
        with monkeypatch.context() as patch:
            api, work = library().api, getattr(library().api, place)
            patch.setattr(
                api, place, lambda *a, n=count, f=work: (n.__setitem__(0, n[0] + 1), f(*a))[1]
            )
            talk(*known)
        calls.append(count[0])
    assert calls[1] > calls[0]
    return calls[0] + 1


def test_stopped_while_a_template_is_rendered(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is heard as soon as it is: a question is not asked, a system message not set."""
    render, calls = ChatTemplate.render, iter(range(1, 100))

    def interrupted(*args: Any) -> str:
        if next(calls) in (2, 3):
            signal.raise_signal(signal.SIGINT)
        return render(*args)

    expected = talk("who was he", "and she", system="be him").answers
    monkeypatch.setattr(ChatTemplate, "render", interrupted)
    chat = talk("who was he", "tell me", "/system be her", "and she", system="be him")
    assert chat.messages[0] == Message("system", "be him")
    assert questions(chat) == ["who was he", "and she"]
    assert chat.answers == expected
    assert chat.told.count(f"(stopped; {UNANSWERED}") == 1
    assert chat.told.count("(stopped)") == 1


def test_stopped_while_a_template_hangs(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it: Ctrl-C ends it, and the chat goes on."""
    source = (
        "{% set ns = namespace(a=[0], b=[0]) %}{% if 'tell' in messages[-1].content %}"
        "{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}"
        "{% endfor %}{% endif %}"
        "{% if ns.a != ns.b %}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    work = sandbox._talk

    def interrupted(process: Any, request: bytes, answer: bytearray) -> None:
        if b"tell me" in request:
            signal.raise_signal(signal.SIGINT)
        work(process, request, answer)

    monkeypatch.setattr(sandbox, "_talk", interrupted)
    chat = talk("who was he", "tell me", "/system tell me", "and she", template=source)
    assert questions(chat) == ["who was he", "and she"]
    assert chat.told.count(f"(stopped; {UNANSWERED}") == 1
    assert "chat template failed" not in chat.told


def test_regen_that_is_stopped(talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first token it leaves question and answer; later it replaces the answer."""
    expected = talk("who was he", "and she").answers
    with monkeypatch.context() as patch:
        signal_at(patch, "submit", N_TOKENS + 3, signal.SIGINT)
        (answer,) = talk("who was he", "/regen").answers
    assert expected[0].startswith(answer) and len(answer) < len(expected[0])
    monkeypatch.setattr(Repl, "_regenerate", _stopped_at_once(Repl._regenerate))
    chat = talk("who was he", "/regen", "and she")
    assert chat.answers == expected
    assert "(stopped; the last answer stays as it was)" in chat.told


def _stopped_at_once(work: Callable[[Repl], None]) -> Callable[[Repl], None]:
    def stopped(repl: Repl) -> None:
        signal.raise_signal(signal.SIGINT)
        work(repl)

    return stopped


def test_regen_that_fails(talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch) -> None:
    """An error before its first token leaves question and answer, and is explained."""
    expected = talk("who was he", "and she")

    def fail() -> None:
        raise BackendError("llama.cpp failed")

    where = _calls_of(talk, monkeypatch, "llama_decode", "who was he", "/regen")
    in_llama_cpp(monkeypatch, "llama_decode", where, fail)
    chat = talk("who was he", "/regen", "and she")
    assert chat.answers == expected.answers
    assert "specgen: error: llama.cpp failed (the last answer stays as it was)" in chat.told


def test_a_message_that_fails(talk: Callable[..., Talk]) -> None:
    """What does not fit the context is not in the conversation, and that is said."""
    chat = talk("who was he", "tell her of him " * 40, "and she", ctx=128)
    assert questions(chat) == ["who was he", "and she"]
    assert chat.answers == talk("who was he", "and she", ctx=128).answers
    assert "exceeds the available context size of 128" in chat.told
    assert chat.told.count(f"({UNANSWERED}; arrow-up brings it back)") == 1


def test_a_system_message_that_is_refused(talk: Callable[..., Talk]) -> None:
    """The conversation goes on as before."""
    refuses = (
        "{% for m in messages %}{% if 'no' in m.content %}{{ raise_exception('not so') }}"
        "{% endif %}{{ m.role }} {{ m.content }} {% endfor %}->"
    )
    chat = talk("he was", "/system no", "she was", template=refuses, system="yes")
    assert "chat template failed: not so" in chat.told
    assert chat.messages == talk("he was", "she was", template=refuses, system="yes").messages


def test_terminated(talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM during an answer ends the chat, with the exit code that shells expect."""
    signal_at(monkeypatch, "submit", 5, signal.SIGTERM)
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
    def raw(self) -> str:
        """All that was sent to the terminal so far."""
        return self._bytes.decode("utf-8", "replace")

    @property
    def shown(self) -> str:
        """All text so far."""
        return ESCAPE.sub("", self.raw)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._keys)[3] & termios.ECHO)

    def go_on(self) -> None:
        """Let a call go on that is held."""
        self._process.send_signal(signal.SIGUSR1)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

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
    with terminal("chat", endless, "-t", "1", *GREEDY, hold="submit,5,once") as screen:
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


def test_keys_during_an_answer(endless: Path) -> None:
    """They are not shown in the midst of it, and begin the next message; Enter sends nothing."""
    with terminal("chat", endless, "-t", "1", *GREEDY, hold="submit,5,once") as screen:
        screen.wait_for_prompt(1)
        screen.type("who was he\r")
        screen.wait_for(READY)
        screen.type("and thxx" + 2 * BACKSPACE + "ey\r")
        screen.go_on()
        screen.wait_for_prompt(2)
        screen.wait_for("and they")
        assert not screen.shown.partition(READY)[2].partition(">>> ")[0].count("th")
        screen.type(" were\r")
        screen.wait_for_prompt(3)
        screen.type("/stats\r")
        screen.wait_for_prompt(4)
        screen.type(CTRL_D)
        assert screen.wait_for_end() == 0
    (prompt, cached) = FIGURES.findall(" ".join(screen.shown.split()))[0]
    assert int(prompt) > int(cached) > 0
    assert "and they were" in screen.shown


@pytest.mark.parametrize("typed", [CTRL_D, "an" + 2 * BACKSPACE + CTRL_D])
def test_leaving_during_an_answer(endless: Path, typed: str) -> None:
    """Ctrl-D leaves behind the answer, if no message was begun."""
    with terminal("chat", endless, "-t", "1", *GREEDY, hold="submit,5,once") as screen:
        screen.wait_for_prompt(1)
        screen.type("who was he\r")
        screen.wait_for(READY)
        screen.type(typed)
        screen.go_on()
        assert screen.wait_for_end() == 0
    shown = screen.shown.replace("\r", "").replace(f"{READY}\n", "")
    assert say_so_far("who was he", endless) in shown


def test_a_paste_during_an_answer(endless: Path, talk: Callable[..., Talk]) -> None:
    """However long, it is one message, with all its lines."""
    lines = [f"line {i} of what he was and she is" for i in range(400)]
    too_long = re.compile(r"the prompt of ([\d,]+) bytes has at least")
    pasted = "\n".join(lines)
    chat = talk("who was he", f"\x1b[200~{pasted}\x1b[201~")
    expected = too_long.findall(chat.told)
    assert len(expected) == 1 and len(pasted) > 3 * 4096
    words = ("chat", endless, "-t", "1", "-c", "512", *GREEDY, "--drafter", "none")
    with terminal(*words, hold="submit,5,once") as screen:
        screen.wait_for_prompt(1)
        screen.type("who was he\r")
        screen.wait_for(READY)
        screen.type(pasted.replace("\n", "\r"))
        screen.go_on()
        screen.wait_for_prompt(2)
        screen.type("\r")
        screen.wait_for_prompt(3)
        screen.type(CTRL_D)
        assert screen.wait_for_end() == 0
    assert too_long.findall(" ".join(screen.shown.split())) == expected


def test_progress_is_erased(endless: Path) -> None:
    """How much of a prompt is read is not left in the line in which its end is told."""
    words = ("chat", endless, "-t", "1", "-c", "2048", *GREEDY)
    with terminal(*words, hold="prefill,2,once") as screen:
        screen.wait_for_prompt(1)
        screen.type(f"\x1b[200~{'he was it ' * 250}\x1b[201~\r")
        screen.wait_for(READY)
        screen.type(CTRL_C)
        screen.wait_for_prompt(2)
        screen.type(CTRL_D)
        assert screen.wait_for_end() == 0
    shown = screen.raw
    start = shown.rindex("prompt: 512/")
    line = shown[start : shown.index("(stopped", start)]
    assert "\r\x1b[K" in line.replace(f"{READY}\r\n", "")
    assert ESCAPE.sub("", line.rpartition("\r\x1b[K")[2]).strip() == ""


def test_terminated_at_the_prompt(endless: Path) -> None:
    """SIGTERM ends a chat that waits for a message, and the terminal is as it was."""
    with terminal("chat", endless, "-t", "1", hold="submit,1,once") as screen:
        screen.wait_for_prompt(1)
        assert not screen.echoes
        screen.terminate()
        assert screen.wait_for_end() == 143
        assert screen.echoes
    assert "Traceback" not in screen.shown


# A shell for one job: runs it in the foreground, takes the terminal when it stops, as shells do,
# and gives it back. Says what it sees on a pipe.
_SHELL = r"""
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
told, heard = int(sys.argv[1]), int(sys.argv[2])
usual = termios.tcgetattr(0)
job = os.fork()
if job == 0:
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.setpgid(0, 0)
    os.read(heard, 1)
    os.execv(sys.argv[3], sys.argv[3:])
os.setpgid(job, job)
os.tcsetpgrp(0, job)
os.write(told, b"j%d\n" % job)
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    echo = termios.tcgetattr(0)[3] & (termios.ECHO | termios.ICANON)
    os.tcsetpgrp(0, os.getpgrp())
    os.write(told, b"stopped %d\n" % (echo == termios.ECHO | termios.ICANON))
    os.read(heard, 1)
    termios.tcsetattr(0, termios.TCSADRAIN, usual)
    os.tcsetpgrp(0, job)
    os.kill(job, signal.SIGCONT)
"""


def test_stopped_and_continued(endless: Path) -> None:
    """Ctrl-Z in an answer or at the prompt gives the shell its terminal; after fg, keys are not
    shown again in the answer, and the message is still there.
    """
    ours, theirs = os.openpty()
    (told, tell), (heard, hear) = os.pipe(), os.pipe()
    words = shell_words("chat", endless, "-t", "1", *GREEDY, hold="submit,5,once")
    shell = subprocess.Popen(
        [sys.executable, "-c", _SHELL, str(tell), str(heard), *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        pass_fds=(tell, heard),
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        text=True,
    )
    for file in (theirs, tell, heard):
        os.close(file)
    screen, job = Terminal(shell, ours), 0
    try:
        job = int(os.read(told, 100)[1:])
        os.write(hear, b"g")
        screen.wait_for_prompt(1)
        screen.type("who was he\r")
        screen.wait_for(READY)
        assert not screen.echoes
        screen.type(CTRL_Z)
        assert os.read(told, 100) == b"stopped 1\n"
        os.write(hear, b"g")
        wait_until(lambda: not screen.echoes)
        screen.type("and th")
        os.kill(job, signal.SIGUSR1)
        screen.wait_for_prompt(2)
        screen.wait_for("and th")
        assert "th" not in screen.shown.partition(READY)[2].partition(">>> ")[0]
        screen.type(CTRL_Z)  # at the prompt
        assert os.read(told, 100) == b"stopped 1\n"
        os.write(hear, b"g")
        screen.wait_for_prompt(3)
        screen.type(CTRL_C)
        screen.wait_for_prompt(4)
        screen.type(CTRL_D)
        assert screen.wait_for_end() == 0
    finally:
        if job:
            with suppress(ProcessLookupError):
                os.kill(job, signal.SIGKILL)
        shell.kill()
        shell.wait()
        for file in (ours, told, hear):
            os.close(file)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Look again and again."""
    end = monotonic() + TIMEOUT_S
    while not is_so():
        assert monotonic() < end, "it never was"
        sleep(0.01)
