"""`specgen chat`: a conversation on the model's own chat template."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from specgen.core.catalogue import NAMES
from specgen.core.errors import SpecgenError

from .grouping import grouped
from .model_choice import ModelChoice
from .options import (
    EngineOptions,
    OutputOptions,
    SamplingOptions,
    SystemPrompt,
    TemplateFile,
    TextOptions,
    Verbosity,
)

if TYPE_CHECKING:
    from specgen.core.conversation import Conversation
    from specgen.core.engine import Engine, Generation

    from .run import Job

_TERMINAL = 18 << 20  # bytes of prompt_toolkit and Jinja

_TYPED = "messages are typed at a terminal, or one comes on stdin"

HELP = """\
/help           show this
/exit           leave; Ctrl-D does, too
/clear          forget the conversation
/regen          answer the last message again
/system [TEXT]  set the system message, or remove it, and start over
/stats          figures of the last answer
Ctrl-C stops an answer and keeps what is there."""


@grouped
def chat(
    chosen: ModelChoice,
    system: SystemPrompt = None,
    template: TemplateFile = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="A line of figures on stderr after each answer.")
    ] = False,
    verbose: Verbosity = 0,
    *,
    text: TextOptions,
    sampling: SamplingOptions,
    engine: EngineOptions,
) -> None:
    """Talk with a model. Without a terminal: answer stdin once, and exit."""
    from .prompt import read_prompt
    from .run import Job, as_message, complete, open_conversation, require_model, set_up_logging

    set_up_logging(verbose)
    model = chosen.name
    job = Job.of(model, text.read_stops(), OutputOptions(stats=stats), sampling, engine)
    require_model(model, engine.model_draft, hint=f"{NAMES}; {_TYPED}")
    if not sys.stdin.isatty():
        complete(job, as_message(read_prompt(hint=_TYPED), system, template))
        return
    with replace(job, interface=_TERMINAL).open() as opened:
        Repl(job, opened, open_conversation(opened, system, template)).run()


class Repl:
    """Reads messages and commands from a terminal until the user leaves."""

    def __init__(self, job: Job, engine: Engine, conversation: Conversation) -> None:
        from specgen.core.sampling import Sampler

        self._job = job
        self._engine = engine
        self._conversation = conversation
        self._sampler = Sampler(job.params, engine.vocab.n_vocab)
        self._last: Generation | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._note(HELP),
            "/clear": lambda _: self._clear(),
            "/regen": lambda _: self._regenerate(),
            "/system": self._set_system,
            "/stats": lambda _: self._show_stats(),
        }

    def run(self) -> None:
        """The loop. Ctrl-D or /exit ends it, and so does SIGTERM during an answer."""
        from prompt_toolkit import PromptSession

        session: PromptSession[str] = PromptSession(">>> ")
        self._note("/help lists the commands, Ctrl-D leaves")
        while True:
            try:
                line = session.prompt().strip()
                if line in ("/exit", "/bye", "/quit"):
                    return
                if line:
                    self._handle(line)
                    self._note("")
            except KeyboardInterrupt:
                self._note("Ctrl-D leaves")
            except EOFError:
                return

    def _handle(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        try:
            if not line.startswith("/"):
                self._answer(self._conversation.ask(line))
            elif name in self._commands:
                self._commands[name](argument.strip())
            else:
                self._note(f"there is no command {name}; /help lists them")
        except SpecgenError as error:  # the template refuses the messages
            self._conversation.drop_question()
            self._explain(error)

    def _answer(self, prompt: list[int]) -> None:
        from .interrupt import Interrupts
        from .output import stats_line
        from .run import start, stream
        from .streams import write

        with Interrupts() as interrupts:
            generation = start(self._job, self._engine, prompt, self._sampler, interrupts)
            with _no_echo():
                error = stream(generation, interrupts)
            if generation.text and not generation.text.endswith("\n"):
                write("\n")
            if generation.tokens:
                self._conversation.answer(generation.text, prompt, generation.tokens)
                self._last = generation
                if self._job.output.stats:
                    self._note(stats_line(generation, self._engine))
                self._engine.keep(generation)
            else:
                self._conversation.drop_question()
        if interrupts.signal is not None:
            self._note("(stopped)")
        if interrupts.signal == signal.SIGTERM:
            raise typer.Exit(interrupts.exit_code)
        if error:
            self._explain(error)

    def _explain(self, error: SpecgenError) -> None:
        from .streams import error_line

        hint = error.hint
        if error.code == "context_length_exceeded":
            hint = "/clear starts over; -c sets a larger context"
        self._note(error_line(error.message, hint))

    def _clear(self) -> None:
        self._conversation.clear()
        self._note("the conversation is forgotten")

    def _regenerate(self) -> None:
        if self._conversation.drop_answer():
            self._answer(self._conversation.prompt())
        else:
            self._note("there is no answer to give again")

    def _set_system(self, text: str) -> None:
        self._conversation.system = text or None
        self._conversation.clear()
        self._note("the system message is " + ("set" if text else "removed") + "; starting over")

    def _show_stats(self) -> None:
        from .output import stats_line

        line = "there is no answer yet"
        if self._last:
            line = stats_line(self._last, self._engine)
        self._note(line)

    def _note(self, text: str) -> None:
        from .streams import note

        width = shutil.get_terminal_size().columns
        for line in text.split("\n"):
            note(textwrap.fill(line, width, break_on_hyphens=False))


@contextlib.contextmanager
def _no_echo() -> Iterator[None]:
    """Keep what is typed during an answer, Ctrl-C too, from being shown in the midst of it."""
    try:
        import termios
    except ImportError:  # Windows shows nothing
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
