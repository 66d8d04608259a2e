"""`specgen chat`: a conversation on the model's own chat template."""

from __future__ import annotations

import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from specgen.core.errors import SpecgenError
from specgen.core.models.catalogue import NAMES
from specgen.core.stop import Interrupted

from .grouping import grouped
from .interrupt import Interrupts
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
from .terminal import set_up_logging
from .words import TYPED

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from specgen.core.engine import Engine
    from specgen.core.generation import Generation
    from specgen.core.text.conversation import Conversation

    from .run import Job

_TERMINAL = 24 << 20  # bytes of prompt_toolkit, and of the process that runs the template

HELP = """\
/help           show this
/exit           leave; Ctrl-D does, too
/clear          forget the conversation
/regen          answer the last message again
/system [TEXT]  set the system message, or remove it, and start over
/stats          figures of the last answer
//TEXT          send the message /TEXT; /etc/hosts, like no command, needs no //
Ctrl-C stops an answer and keeps what is there.
What is typed or pasted during an answer is the beginning of the next message."""

_UNANSWERED = "the message was not answered and is not in the conversation; arrow-up brings it back"
_ALIKE = 0.75  # of 1: a name as near to a command's is a slip of the finger


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("chat")(chat)


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
    from .prepare import require_model
    from .prompt import read_prompt
    from .run import Job, as_message, complete, open_conversation

    set_up_logging(verbose)
    model = chosen.alone(TYPED)
    job = Job.of(model, text.read_stops(), OutputOptions(stats=stats), sampling, engine)
    require_model(model, engine.model_draft, hint=f"{NAMES}; {TYPED}")
    if not sys.stdin.isatty():
        complete(job, as_message(read_prompt(hint=TYPED), system, template))
        return
    job = replace(job, interface=_TERMINAL)
    with Interrupts() as interrupts, job.open(interrupts) as opened:
        conversation = open_conversation(opened, system, template)
        interrupts.check()
        Repl(job, opened, conversation, interrupts).run()


class Repl:
    """Reads messages and commands from a terminal until the user leaves.

    Args:
        interrupts: those that the engine listens to; entered.
    """

    def __init__(
        self, job: Job, engine: Engine, conversation: Conversation, interrupts: Interrupts
    ) -> None:
        from specgen.core.sampling import Sampler

        from .keyboard import Keyboard

        self._job = job
        self._engine = engine
        self._conversation = conversation
        self._interrupts = interrupts
        self._keyboard = Keyboard()
        self._sampler = Sampler(job.params, engine.vocab.n_vocab)
        self._last: Generation | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._note(HELP),
            "/clear": lambda _: self._clear(),
            "/regen": lambda _: self._regenerate(),
            "/system": self._set_system,
            "/stats": lambda _: self._show_stats(),
            **dict.fromkeys(("/exit", "/bye", "/quit"), lambda _: self._leave()),
        }

    def run(self) -> None:
        """The loop. Ctrl-D or /exit ends it, and so does SIGTERM."""
        from prompt_toolkit import PromptSession

        session: PromptSession[str] = PromptSession(">>> ", enable_suspend=True)
        self._note("/help lists the commands, Ctrl-D leaves")
        with suppress(EOFError):
            while self._interrupts.signal != signal.SIGTERM:
                line = self._read(session)
                if line:
                    self._interrupts.forget()
                    with self._keyboard:
                        self._handle(line)
                    self._note("")
        if self._interrupts.signal == signal.SIGTERM:
            raise Interrupted

    def _read(self, session: PromptSession[str]) -> str:
        """What was entered; "" if it was dropped by Ctrl-C. Raises EOFError."""
        with Interrupts(at_once=True) as waiting:
            try:
                return session.prompt(default=self._keyboard.take()).strip()
            except KeyboardInterrupt:
                if waiting.signal == signal.SIGTERM:
                    raise
                self._note("Ctrl-D leaves")
                return ""

    def _handle(self, line: str) -> None:
        name, *rest = line.split(maxsplit=1)
        try:
            if name in self._commands:
                self._commands[name](*rest or ("",))
            elif line.startswith("//"):
                self._ask(line[1:])
            elif self._is_slip(name):
                self._note(
                    f"there is no command {name}; /help lists them, /{name} sends it as a message"
                )
            else:
                self._ask(line)
        except Interrupted:
            self._note("(stopped)")
        except SpecgenError as error:
            self._explain(error)

    def _is_slip(self, name: str) -> bool:
        """Whether a command was meant by a name that is none. /etc/hosts is a message."""
        word = name.lower().rstrip(".,;:!?")
        if not re.fullmatch(r"/\w*", word):
            return False
        is_longer = word.startswith(tuple(self._commands))
        return word == "/" or is_longer or bool(get_close_matches(word, self._commands, 1, _ALIKE))

    def _leave(self) -> NoReturn:
        raise EOFError

    def _ask(self, text: str) -> None:
        self._answer(lambda: self._conversation.ask(text), _UNANSWERED)

    def _regenerate(self) -> None:
        if self._conversation.turns:
            self._answer(self._conversation.again, "the last answer stays as it was")
        else:
            self._note("there is no answer to give again")

    def _answer(self, ask: Callable[[], list[int]], otherwise: str) -> None:
        """Answer what `ask` gives; `otherwise` is said where not a token comes of it."""
        from .run import answer

        generation: Generation | None = None
        error: SpecgenError | None = None
        try:
            prompt = ask()
            generation, error = answer(
                self._job, self._engine, prompt, self._sampler, self._interrupts
            )
        except Interrupted:
            pass  # it is told below what becomes of the message
        except SpecgenError as failure:  # the template refuses the messages
            error = failure
        if generation and generation.tokens:
            self._keep(generation)
            otherwise = ""
        if error:
            self._explain(error)
        stopped = "stopped" if self._interrupts.came() else ""
        if said := "; ".join(filter(None, (stopped, otherwise))):
            self._note(f"({said})")

    def _keep(self, generation: Generation) -> None:
        from .output import stats_line
        from .terminal import write

        if generation.text and not generation.text.endswith("\n"):
            write("\n")
        self._conversation.answer(generation.text, generation.prompt, generation.tokens)
        self._last = generation
        if self._job.output.stats:
            self._note(stats_line(generation, self._engine))
        self._engine.keep(generation)

    def _explain(self, error: SpecgenError) -> None:
        from .terminal import error_line

        hint = error.hint
        if error.code == "context_length_exceeded":
            hint = "/clear starts over; -c sets a larger context"
        self._note(error_line(error.message, hint))

    def _clear(self) -> None:
        self._conversation.clear()
        self._note("the conversation is forgotten")

    def _set_system(self, text: str) -> None:
        self._conversation.try_system(text)
        self._interrupts.check()
        self._conversation.start_over(text)
        self._note("the system message is " + ("set" if text else "removed") + "; starting over")

    def _show_stats(self) -> None:
        from .output import stats_line

        line = "there is no answer yet"
        if self._last:
            line = stats_line(self._last, self._engine)
        self._note(line)

    def _note(self, text: str) -> None:
        from .terminal import note

        width = shutil.get_terminal_size().columns
        for line in text.split("\n"):
            note(textwrap.fill(line, width, break_on_hyphens=False))
