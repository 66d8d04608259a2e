"""The Python API: load a model, then generate text, stream it, or answer messages.

Three levels, each usable alone: a Model (here), below it an Engine (core/engine.py: token ids,
any sampler, statistics), below that a Session (core/session.py: one backend, one text).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from specgen.core.config import DEFAULT_MAX_DRAFTS, EngineConfig
from specgen.core.engine import Engine
from specgen.core.errors import SpecgenError, UsageError
from specgen.core.generation import Generation
from specgen.core.knowledge.profile import find_profile
from specgen.core.models.catalogue import model_folder, resolve
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.stats import GenerationStats
from specgen.core.text.template import Message
from specgen.drafters import DEFAULT_DRAFTER, most_drafts
from specgen.opening import Wanted, open_engine


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen; names, defaults and bounds are those of SamplingParams."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    seed: int | None


@dataclass(frozen=True, slots=True)
class Result:
    """A text that was generated.

    Attributes:
        text: what was generated, without the prompt.
        tokens: its tokens.
        prompt_tokens: tokens of the prompt.
        finish_reason: "eog" (the model ended it), "stop" (a stop string), "length" (max_tokens),
            "context" (it was full), or "" where it was left early.
        stats: what the target's calls did; `stats.tokens_per_step` is 1.00 for plain decoding.
        prefill_s: seconds spent on the prompt.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: str
    stats: GenerationStats
    prefill_s: float


class Stream:
    """A text while it is generated: iterate once over its pieces, then ask for the `result`."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, none of them empty.

        Raises ContextFull, BackendError or UsageError; the text so far is in `result`.
        """
        made = self._generation
        try:
            for piece in made:
                if piece:
                    yield piece
        except SpecgenError:
            if piece := made.rest():  # in case a stop string or a character would complete
                yield piece
            raise
        except GeneratorExit:
            made.rest()
            raise

    @property
    def result(self) -> Result:
        """The text so far."""
        made = self._generation
        return Result(
            text=made.text,
            tokens=tuple(made.tokens),
            prompt_tokens=len(made.prompt),
            finish_reason=made.finish or "",
            stats=made.stats,
            prefill_s=made.prefill_s,
        )


class Model:
    """A loaded model. A context manager; one text at a time, from one thread.

    Attributes:
        engine: the level below.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self.engine.close()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Continue a text; nothing is done until the stream is iterated over.

        Args:
            prompt: text, in which control tokens count as such, or token ids.
            max_tokens: None goes on until the model ends the text or the context is full.
            stop: strings that end the text, and are not part of it.
            sampling: as in SamplingOptions; `temperature=0` always takes the likeliest token.

        Raises UsageError for a value out of bounds.
        """
        if max_tokens is not None and max_tokens < 0:
            raise UsageError(f"max_tokens is {max_tokens}", "give 0 or more, or None")
        engine = self.engine
        tokens = engine.tokenize(prompt) if isinstance(prompt, str) else self._ids(prompt)
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        sampler = Sampler(SamplingParams(**sampling), engine.vocab.n_vocab)
        return Stream(engine.generate(tokens, sampler, max_tokens=max_tokens, stop=stop))

    def _ids(self, tokens: Sequence[int]) -> list[int]:
        """Raises UsageError for what are no token ids of the model."""
        n_vocab = self.engine.vocab.n_vocab
        if isinstance(tokens, bytes) or not all(0 <= token < n_vocab for token in tokens):
            raise UsageError(f"a prompt is text, or token ids from 0 to {n_vocab - 1}")
        return list(map(int, tokens))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """Continue a text, see `stream`. Raises what it raises, and ContextFull or BackendError."""
        return _whole(self.stream(prompt, max_tokens=max_tokens, stop=stop, **sampling))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Answer messages with the model's own chat template.

        `messages` have a "role" ("system", "user" or "assistant") and a "content" each, the last
        one to be answered; what they have in common with the text before is taken from the cache.
        The rest is as for `stream`.

        Raises ModelError for a model without a template, or one that does not take the messages.
        """
        if not messages:
            raise UsageError("there are no messages", 'give one with a "role" and a "content"')
        prompt = self.engine.conversation().prompt(list(map(_message, messages)))
        return self.stream(prompt, max_tokens=max_tokens, stop=stop, **sampling)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """Answer messages, see `stream_chat`. Raises what it raises, and ContextFull."""
        return _whole(self.stream_chat(messages, max_tokens=max_tokens, stop=stop, **sampling))


def load(
    model: str | Path | None = None,
    *,
    drafter: str = DEFAULT_DRAFTER,
    memory_budget: str | None = None,
    n_ctx: int | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    draft_model: str | Path | None = None,
    max_drafts: int = DEFAULT_MAX_DRAFTS,
    strict: bool = False,
    learn: bool = False,
) -> Model:
    """A model, ready to generate.

    Args:
        model: a GGUF file or a name of `specgen list`, which is fetched where it is missing; None
            is the default model.
        drafter: who drafts, as for `specgen generate --drafter`; "none" decodes plainly.
        memory_budget: such as "2G" or "60%"; None takes what is free.
        n_ctx: tokens of context; None takes the model's own up to 8,192, 0 all of it.
        threads: CPU threads; None takes the physical cores, fewer while the machine is busy.
        gpu_layers: layers to offload; None offloads as many as fit.
        draft_model: a smaller model of the same family that drafts, or None.
        max_drafts: most draft tokens of a call; 0 decodes plainly.
        strict: the text depends on drafts in no bit; `specgen calibrate` must have run.
        learn: begin with what earlier runs on the model found out about drafts; what this program
            finds out is kept by `engine.keep(generation)` alone.

    Raises ModelError, MemoryBudgetError, BackendError, PullError or UsageError.
    """
    path, draft = _file(model), None if draft_model is None else _file(draft_model)
    config = EngineConfig(
        n_ctx=n_ctx,
        threads=threads,
        gpu_layers=gpu_layers,
        max_drafts=most_drafts(drafter, max_drafts, others=draft is not None),
        strict=strict,
        draft_model=draft,
    )
    wanted = Wanted(path, config, drafter, memory_budget, learn=learn)
    return Model(open_engine(wanted, find_profile(path, config)))


def _file(model: str | Path | None) -> Path:
    found = resolve(None if model is None else str(model))
    if isinstance(found, Path):
        return found
    from specgen.core.models.pull import pull  # which most programs never need

    return pull(found, model_folder())


def _message(message: Mapping[str, str]) -> Message:
    """Raises UsageError for what is no message."""
    role, content = (message.get(name) for name in ("role", "content"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise UsageError(f"a message is {message!r}", 'give each a "role" and a "content" of text')
    return Message(role, content)


def _whole(stream: Stream) -> Result:
    for _ in stream:
        pass
    return stream.result
