"""specgen against llama-server's own speculation: the same prompts, in turns, in one run.

Both are given the same tokens, answer greedily up to the same length, and have the same threads,
context and flash attention. Each answer is timed by the program's own clock of decoding and by the
clock of whoever asks. Later turns of a conversation follow answers that specgen gave plainly, so
they are the same for all, too. Only one of them works at a time; the servers that are not asked
wait. They are started anew for each round of questions: `ngram-mod` keeps what it has read and
written, and would recite its answers.

    python -m benchmarks.peers [MODEL.gguf] [--rounds 3] [--per-task 1] [--tokens 128] [--save FILE]

The table is Markdown on stdout. The first time, llama-server is built into build/peers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Final, TypeVar

import typer

from specgen.cli.bench.format import print_report
from specgen.cli.choices import Format
from specgen.cli.files import check_place, save
from specgen.cli.interrupt import Interrupts
from specgen.cli.prepare import ensure_model, ensure_profile
from specgen.cli.terminal import note, say_error, set_up_logging, shown_progress
from specgen.core.config import EngineConfig
from specgen.core.engine import Engine
from specgen.core.errors import BackendError, ContextFull, SpecgenError, UsageError
from specgen.core.evaluation.benchmark import asking, task_name
from specgen.core.evaluation.card import Card
from specgen.core.evaluation.machine import card_of
from specgen.core.evaluation.tasks import Prompt, load_prompts, own_prompts, sampled
from specgen.core.generation import Generation
from specgen.core.host.limits import default_threads
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.stop import Interrupted
from specgen.drafters import AUTO
from specgen.drafters.ensemble import ensemble

from .llama_server import (
    MODES,
    PLAIN,
    WARM_UP,
    Reply,
    Server,
    Setup,
    built_server,
    existing_server,
    running,
    sources,
)
from .peers_report import LLAMA_SERVER, SPECGEN, Answer, Asked, Name, report

_SPECGEN_ARMS: Final = (PLAIN, AUTO, "prompt-lookup")
_FOLDER: Final = Path(__file__).parents[1] / "build" / "peers"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Question:
    """What every arm is asked.

    Attributes:
        asked: the task, the number of its prompt, and the turn, counted from 1.
        tokens: the whole prompt, chat template and earlier turns included.
    """

    asked: Asked
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of decoding: answers a prompt of tokens, with up to so many of its own."""

    name: Name
    answer: Callable[[Sequence[int], int], Reply]


class Servers:
    """The servers by mode, started when first asked. A context manager that ends them all.

    Args:
        one: have one process at a time, started anew for each answer, for models so big that
            memory has no room for all of them.
    """

    def __init__(self, setup: Setup, one: bool) -> None:
        self._setup = setup
        self._one = one
        self._open = ExitStack()
        self._servers: dict[str, Server] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.renew()

    def renew(self) -> None:
        """End all processes; what is asked next is started anew."""
        self._servers.clear()
        self._open.close()

    def answer(self, mode: str, prompt: Sequence[int], n_predict: int) -> Reply:
        """The answer of the server in a mode. Raises BackendError."""
        if self._one:
            self.renew()
        if mode not in self._servers:
            self._servers[mode] = self._open.enter_context(running(self._setup, mode))
        return self._servers[mode].ask(prompt, n_predict)


def generated(engine: Engine, drafts: str, prompt: Sequence[int], n_predict: int) -> Generation:
    """A text that specgen has generated greedily, knowing nothing of earlier ones."""
    engine.renew(() if drafts == PLAIN else ensemble(drafts))
    sampler = Sampler(SamplingParams(temperature=0.0), engine.vocab.n_vocab)
    generation = engine.generate(prompt, sampler, max_tokens=n_predict)
    for _ in generation:
        pass
    return generation


def specgen_answer(engine: Engine, drafts: str, prompt: Sequence[int], n_predict: int) -> Reply:
    """What specgen takes for an answer. Its clock starts before the first token is decoded."""
    start = perf_counter()
    stats = generated(engine, drafts, prompt, n_predict).stats
    return Reply(stats.tokens, stats.tokens, stats.total_s, perf_counter() - start)


def all_arms(engine: Engine, servers: Servers) -> list[Arm]:
    """llama-server in its modes, then specgen."""

    def of_server(mode: str) -> Arm:
        return Arm((LLAMA_SERVER, mode), lambda tokens, n: servers.answer(mode, tokens, n))

    def of_specgen(drafts: str) -> Arm:
        return Arm((SPECGEN, drafts), lambda tokens, n: specgen_answer(engine, drafts, tokens, n))

    return [*map(of_server, MODES), *map(of_specgen, _SPECGEN_ARMS)]


def all_questions(engine: Engine, prompts: Sequence[Prompt], n_predict: int) -> list[Question]:
    """All turns of the prompts. A conversation ends where the context has no room for an answer."""
    found = []
    for number, prompt in enumerate(prompts):
        ask = asking(engine)
        for turn, text in enumerate(prompt.turns, start=1):
            try:
                tokens, keep = ask(text)
            except ContextFull:
                break
            if len(tokens) + n_predict > engine.n_ctx:
                break
            found.append(Question((task_name(prompt, turn), number, turn), tokens))
            if turn < len(prompt.turns):
                keep(generated(engine, PLAIN, tokens, n_predict))
    return found


def turned(things: Sequence[_T], first: int) -> list[_T]:
    """All of them in turn, beginning with another one for each number."""
    start = first % len(things)
    return [*things[start:], *things[:start]]


def measure(
    arms: Sequence[Arm],
    questions: Sequence[Question],
    rounds: int,
    n_predict: int,
    renew: Callable[[], None],
) -> Iterator[Answer]:
    """An answer of each arm to each question in each round, as it is given.

    `renew` is called before every round.
    """
    for number in range(rounds):
        renew()
        for i, question in enumerate(questions):
            for arm in turned(arms, number + i):
                reply = arm.answer(question.tokens, n_predict)
                yield Answer(arm.name, question.asked, number, reply)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options. Ends the process for one that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", help="as specgen takes it; else the default model")
    parser.add_argument("--server", type=Path, help="a llama-server that was built before")
    parser.add_argument("--data", type=Path, help="prompts of a file, as `specgen bench` takes it")
    parser.add_argument("--tasks", help="only these, with commas between")
    parser.add_argument("--per-task", type=_count, default=1, help="prompts of each task (1)")
    parser.add_argument("--rounds", type=_count, default=3, help="of all questions (3)")
    parser.add_argument("--tokens", type=_count, default=128, help="most of an answer (128)")
    parser.add_argument("--threads", type=_count)
    parser.add_argument("--ctx", type=_count, help="tokens of context")
    parser.add_argument("--one-at-a-time", action="store_true", help="servers, to save memory")
    parser.add_argument("--save", type=Path, help="all that was measured, as JSON")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of 1 or more")
    return int(text)


def chosen_prompts(options: argparse.Namespace) -> list[Prompt]:
    """The prompts that the options ask for. Raises UsageError if there are none."""
    prompts = load_prompts(options.data) if options.data else own_prompts()
    if options.tasks:
        wanted = options.tasks.split(",")
        known = {prompt.task for prompt in prompts}
        if not known.issuperset(wanted):
            raise UsageError(f"no such tasks: {options.tasks}", f"there are {sorted(known)}")
        prompts = [prompt for prompt in prompts if prompt.task in wanted]
    return sampled(prompts, options.per_task)


def run(options: argparse.Namespace) -> None:
    """Measure, print and save. An interrupt ends it with what there is.

    Raises SpecgenError, and typer.Exit(128 + signal) after an interrupt.
    """
    if options.save:
        check_place(options.save)
    prompts = chosen_prompts(options)
    binary = existing_server(options.server) if options.server else built_server(_FOLDER)
    path = ensure_model(options.model)
    config = EngineConfig(n_ctx=options.ctx, threads=options.threads)
    with Interrupts() as interrupts:
        profile = ensure_profile(path, config, should_stop=interrupts.came)
        with Engine(path, (), config, profile=profile, should_stop=interrupts.came) as engine:
            card = _card(engine)
            questions = _warmed_up(engine, prompts, options.tokens)
            setup = Setup(binary, path, engine.n_ctx, card.threads, card.flash_attention)
            with Servers(setup, options.one_at_a_time) as servers:
                answers = _measured(engine, servers, questions, options, interrupts)
        made = report(answers, card, _settings(options, questions))
        print_report(made, Format.md)
        if options.save:
            save(options.save, f"{json.dumps(made.whole)}\n".encode())
        interrupts.check()


def _warmed_up(engine: Engine, prompts: Sequence[Prompt], n_predict: int) -> list[Question]:
    """The questions; each way of decoding has begun to answer one."""
    questions = all_questions(engine, prompts, n_predict)
    if not questions:
        raise ContextFull(
            f"no question and its answer fit the context of {engine.n_ctx} tokens",
            "use a larger one (--ctx) or shorter answers (--tokens)",
        )
    left_out = sum(len(prompt.turns) for prompt in prompts) - len(questions)
    if left_out:
        note(f"left out, for want of context: {left_out} of the questions")
    for drafts in _SPECGEN_ARMS:
        generated(engine, drafts, questions[0].tokens, WARM_UP)
    return questions


def _measured(
    engine: Engine,
    servers: Servers,
    questions: Sequence[Question],
    options: argparse.Namespace,
    interrupts: Interrupts,
) -> list[Answer]:
    """All answers, or those before an interrupt."""
    arms = all_arms(engine, servers)
    answers: list[Answer] = []
    n_answers = len(arms) * len(questions) * options.rounds
    with shown_progress() as progress:
        try:
            for answer in measure(arms, questions, options.rounds, options.tokens, servers.renew):
                answers.append(answer)
                stage = f"round {answer.round + 1} of {options.rounds}"
                progress(stage, len(answers) / n_answers)
                interrupts.check()
        except (Interrupted, BackendError):  # a terminal's Ctrl-C ends the servers, too
            if not interrupts.came():
                raise
    return answers


def _card(engine: Engine) -> Card:
    return card_of(
        engine.path,
        threads=engine.config.threads or default_threads(),
        flash_attention=engine.config.flash_attention,
        n_ctx=engine.n_ctx,
        now=datetime.now(UTC),
    )


def _settings(options: argparse.Namespace, questions: Sequence[Question]) -> dict[str, str]:
    built = "given with --server" if options.server else f"built from the sources of {sources()}"
    anew = "answer" if options.one_at_a_time else "round"
    tasks = len({question.asked[0] for question in questions})
    return {
        "llama-server": f"{built}, started anew for each {anew}",
        "its modes": "; ".join(" ".join(mode) for mode in MODES.values() if mode),
        "questions": f"{len(questions)} of {tasks} tasks, {options.rounds} rounds, in turns",
        "answers": f"greedy, up to {options.tokens} tokens",
    }


def main() -> None:
    """Run, with errors as one line."""
    options = parsed()
    set_up_logging(0)
    try:
        run(options)
    except SpecgenError as error:
        say_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
