"""What generate and chat share: open a model, write a text to stdout, tell how it went."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from specgen.core.config import EngineConfig
from specgen.core.engine import Engine
from specgen.core.errors import SpecgenError, UsageError
from specgen.core.generation import Generation
from specgen.core.host.paths import path_text
from specgen.core.knowledge.profile import Profile, find_profile
from specgen.core.logprobs import RecordingSampler
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.stop import Interrupted
from specgen.core.text import sandbox
from specgen.core.text.encoding import without_mark
from specgen.opening import Wanted, open_engine

from .interrupt import Interrupts
from .options import EngineOptions, OutputOptions, SamplingOptions, TextOptions
from .output import PromptProgress, end_text, stats_line, write_json
from .prepare import ensure_model, ensure_profile
from .prompt import read_file
from .terminal import Writer, note

if TYPE_CHECKING:
    from specgen.core.text.conversation import Conversation

_log = logging.getLogger("specgen.run")


@dataclass(frozen=True, slots=True)
class Job:
    """All that a command was asked to do, but for the prompt."""

    model: str | None
    text: TextOptions
    output: OutputOptions
    params: SamplingParams
    config: EngineConfig
    drafters: str  # names
    draft: str | None = None  # the draft model, as `model` is given
    predicted: Path | None = None  # a file
    learn: bool = False
    learn_answers: bool = False
    memory_budget: str | None = None
    interface: int = 0  # bytes that the command takes beyond what `generate` does

    @classmethod
    def of(
        cls,
        model: str | None,
        text: TextOptions,
        output: OutputOptions,
        sampling: SamplingOptions,
        engine: EngineOptions,
    ) -> Job:
        """The job that options ask for. Raises UsageError."""
        return cls(
            model,
            text,
            output,
            sampling.params(),
            engine.config(),
            engine.drafters(),
            engine.model_draft,
            engine.predicted_output,
            engine.learn,
            engine.learn_answers,
            engine.memory_budget,
        )

    def open(self, interrupts: Interrupts) -> Engine:
        """The model, fetched first if need be, and measured for --strict.

        Raises SpecgenError, and Interrupted.
        """
        path = ensure_model(self.model)
        draft = None if self.draft is None else ensure_model(self.draft)
        config = replace(self.config, draft_model=draft)
        if config.strict:
            profile: Profile | None = ensure_profile(
                path, config, self.memory_budget, interrupts.came
            )
        else:
            profile = find_profile(path, config)
        if draft and profile is None:
            name = draft.name
            _log.warning("whether %s pays is not known: `specgen calibrate %s` tells", name, path)
        wanted = Wanted(
            path,
            config,
            self.drafters,
            self.memory_budget,
            learn=self.learn,
            answers=self.learn_answers,
            is_predicted=self.predicted is not None,
            interface=self.interface,
        )
        text = read_file(self.predicted, "predicted output") if self.predicted else None
        return open_engine(wanted, profile, predicted=text, should_stop=interrupts.came)


Prompt = Callable[[Engine], list[int]]


def as_text(text: str) -> Prompt:
    """A prompt that is continued as it stands."""
    return lambda engine: engine.tokenize(text)


def as_message(text: str, system: str | None, template: Path | None) -> Prompt:
    """A prompt that is a user's message, to be answered."""

    def ask(engine: Engine) -> list[int]:
        tokens = open_conversation(engine, system, template).ask(text)
        sandbox.end()  # there will be no other message
        return tokens

    return ask


def open_conversation(engine: Engine, system: str | None, template: Path | None) -> Conversation:
    """A conversation with the model's own template or the one in a file. Raises UsageError."""
    source = None if template is None else read_file(template, "chat template")
    if template is not None and source is not None and not source.strip():
        empty = f"the chat template {path_text(template)} is empty"
        raise UsageError(empty, "give a Jinja template")
    return engine.conversation(source, system and without_mark(system))


def complete(job: Job, prompt: Prompt) -> None:
    """One text to stdout.

    Raises SpecgenError, and typer.Exit(128 + signal) after an interrupt; in both cases the
    text so far was written.
    """
    with Interrupts() as interrupts, job.open(interrupts) as engine:
        sampler = _sampler(job, engine.vocab.n_vocab)
        generation, error = answer(job, engine, prompt(engine), sampler, interrupts)
        if job.output.as_json:
            write_json(engine, generation, error)
        else:
            end_text()
        if job.output.stats:
            note(stats_line(generation, engine))
        engine.keep(generation)
        if error:
            raise error
        interrupts.check()


def _sampler(job: Job, n_vocab: int) -> Sampler:
    """What the job asks for; only one that is asked to takes down log-probabilities."""
    n_top = job.output.logprobs
    if n_top is None:
        return Sampler(job.params, n_vocab)
    return RecordingSampler(job.params, n_vocab, n_top)


def answer(
    job: Job, engine: Engine, prompt: Sequence[int], sampler: Sampler, interrupts: Interrupts
) -> tuple[Generation, SpecgenError | None]:
    """The generation that the job asks for, its text written to stdout unless that is for JSON.

    An interrupt ends it and an error is returned; in both cases the text so far was written.
    """
    with PromptProgress() as progress, closing(Writer()) as writer:

        def on_chunk(done: int, total: int) -> None:
            progress(done, total)
            interrupts.check()

        generation = engine.generate(
            prompt,
            sampler,
            max_tokens=None if job.text.n_predict < 0 else job.text.n_predict,
            stop=job.text.stop or (),
            on_chunk=on_chunk,
        )
        show = str if job.output.as_json else writer
        return generation, _stream(generation, interrupts, show)


def _stream(
    generation: Generation, interrupts: Interrupts, show: Callable[[str], object]
) -> SpecgenError | None:
    try:
        interrupts.check()
        for piece in generation:
            show(piece)
            interrupts.check()
    except Interrupted:
        show(generation.rest())
    except SpecgenError as error:
        show(generation.rest())
        return error
    return None
