"""The text level: a loaded model, and texts being generated with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from specgen.core.cost.strict import ONE_ROW, WidthClass
from specgen.core.drafting.acceptance import shipped_priors
from specgen.core.drafting.builder import Builder
from specgen.core.drafting.schedule import BackOff
from specgen.core.drafting.speculator import Speculator
from specgen.core.knowledge.first_use import FirstUse, prices_of
from specgen.core.knowledge.learned import Learned
from specgen.core.knowledge.profile import (
    Profile,
    find_profile,
    keep_provisional,
    require_profile,
)
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.llama.draft_model import open_draft
from specgen.core.llama.exact import is_steady
from specgen.core.llama.library import library
from specgen.core.memory.plan import MemoryPlan
from specgen.core.text.stream import TextStream

from .config import ContextConfig, EngineConfig, context_of
from .errors import UsageError
from .generation import Generation
from .protocols import Drafter
from .sampling import Sampler
from .session import Session
from .stop import ShouldStop, never

if TYPE_CHECKING:
    from specgen.core.text.conversation import Conversation

_log = logging.getLogger("specgen.engine")

_HOST_S = 40e-6  # host time of a further row, see benchmarks/host_overhead.py


class Engine:
    """A model, its context and a session. A context manager; `close` frees everything.

    Args:
        path: a GGUF file.
        drafters: name what may come next; none means plain decoding.
        config: how to run it.
        learned: what earlier runs left; None neither uses nor keeps any of it.
        profile: what was measured of the model; None takes what is stored.
        should_stop: asked while the model is opened and while prompts are processed.

    Attributes:
        draft: the model that drafts, for a drafter to use, or None.
        planned: the memory that it was said to take, where somebody planned it.
        is_open: whether it was not closed yet.
        device_bytes: what llama.cpp says that it took on GPUs.

    Raises ModelError, BackendError, UsageError or Interrupted.
    """

    def __init__(
        self,
        path: Path,
        drafters: Sequence[Drafter],
        config: EngineConfig,
        learned: Learned | None = None,
        profile: Profile | None = None,
        should_stop: ShouldStop = never,
    ) -> None:
        self.path = path
        self._should_stop = should_stop
        self.planned: MemoryPlan | None = None
        self._open = ExitStack()
        self.is_open = True
        start = perf_counter()
        try:
            profile = profile or find_profile(path, config)
            if profile:
                config = profile.settled(config)
            self.strict = _strict(profile, config) if config.strict else None
            library().log.device_bytes = 0
            self.model = LlamaModel(path, config.gpu_layers, should_stop)
            self._open.callback(self.model.close)
            context = context_of(config, self.model, self.strict)
            follow = config.threads is None and (not self.strict or is_steady(path, context))
            context = replace(context, follow_threads=follow)
            self.backend = LlamaBackend(self.model, context, should_stop)
            self._open.callback(self.backend.close)
            self.draft = self._open_draft(config, context)
            self.device_bytes = library().log.device_bytes
            _require_branches(self.model, self.backend, config, self.strict)
        except BaseException:
            self._open.close()
            raise
        self.vocab = self.model.vocab
        self.config = config
        self.profile = profile
        self.session = Session(self.backend)
        self.renew(drafters, learned)
        self.load_s = perf_counter() - start
        if self.strict == ONE_ROW:
            _log.warning("no widths are known to round alike: --strict means one row a call")
        _log.info("%s", _describe(self.model, self.backend, config, self.strict))

    def _open_draft(self, config: EngineConfig, context: ContextConfig) -> LlamaBackend | None:
        """The draft model that the configuration asks for."""
        if config.draft is None:
            return None
        return open_draft(
            config.draft,
            self.model,
            context,
            config.gpu_layers,
            self._open,
            should_stop=self._should_stop,
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and the weights."""
        if self.is_open and self.backend.n_calls:
            n, reused = self.backend.n_calls, self.backend.n_reused
            _log.info("llama.cpp took its graph again in %d of %d calls", reused, n)
        self.is_open = False
        self._open.close()

    def _require_open(self) -> None:
        if not self.is_open:
            raise UsageError("the model is closed", "load it again")

    @property
    def n_ctx(self) -> int:
        """Tokens that a text may have."""
        return self.session.n_ctx

    @property
    def can_branch(self) -> bool:
        """Whether drafts may have side branches here."""
        limits, strict = self.backend.limits, self.strict
        return limits.can_branch and (strict is None or strict.branch)

    def renew(
        self,
        drafters: Sequence[Drafter],
        learned: Learned | None = None,
        *,
        tree: bool | None = None,
        strict: bool | None = None,
    ) -> None:
        """Begin anew with other drafters: the cache is empty, and nothing is known of any text.

        `tree` and `strict` are those of the configuration, unless given.

        Raises UsageError for strict decoding where the model was not measured.
        """
        self.session.end()  # its call may be under way
        self.backend.rewind(0)
        self._learned = learned
        padding = self.strict
        if strict is not None:
            padding = _strict(self.profile, self.config) if strict else None
        branch = (self.config.tree if tree is None else tree) is not False
        self.session = self._session(drafters, learned, padding, branch=branch)

    def _session(
        self,
        drafters: Sequence[Drafter],
        learned: Learned | None,
        strict: WidthClass | None,
        *,
        branch: bool,
    ) -> Session:
        """A single drafter drafts as it likes; several are weighed by what their drafts cost."""
        self._first_use: FirstUse | None = None
        make = partial(
            Builder,
            self.backend.limits,
            self.config.max_drafts,
            branch=branch,
            eog=self.vocab.eog,
            strict=strict,
        )
        if len(drafters) < 2:
            speculator = Speculator(make(), drafters)
        else:
            prices = prices_of(self.profile)
            if self.profile is None:
                self._first_use = FirstUse(self.backend, prices, self._should_stop)
            builder = make(
                acceptance=learned.acceptance if learned else shipped_priors(),
                pricing=prices,
                host_s=_HOST_S,
            )
            speculator = Speculator(builder, drafters, BackOff())
        return Session(self.backend, speculator, strict=strict)

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a raw prompt, control tokens in it included, as llama.cpp reads one.

        Raises ContextFull for a text that cannot fit, however it is tokenized.
        """
        self._require_open()
        self.vocab.require_room(self.n_ctx, len(text.encode("utf-8", "replace")))
        return self.vocab.tokenize(text, add_bos=True, special=True)

    def conversation(self, template: str | None = None, system: str | None = None) -> Conversation:
        """A chat on `template` (Jinja source), or on the model's own where it is None.

        Raises ModelError if the model has none.
        """
        from specgen.core.text.conversation import Conversation
        from specgen.core.text.template import ChatTemplate

        self._require_open()
        vocab = self.vocab
        source = template if template is not None else self.model.chat_template()
        return Conversation(
            vocab,
            ChatTemplate(source, vocab.bos_text, vocab.eos_text, self._should_stop),
            vocab.marks(),
            system,
            partial(vocab.require_room, self.n_ctx),
        )

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        on_chunk: Callable[[int, int], None] | None = None,
    ) -> Generation:
        """A text that continues `prompt`; nothing is done until it is iterated over.

        `max_tokens` None means until the text ends. `on_chunk(done, total)` is told how much
        of the prompt is processed, and may raise to stop.
        """
        return Generation(
            self.session,
            TextStream(self.vocab, stop),
            prompt,
            sampler,
            max_tokens,
            on_chunk,
            partial(self._measure, max_tokens),
        )

    def _measure(self, max_tokens: int | None, prompt_s: float) -> None:
        """At the first use of a model on a machine: find out what calls cost, behind the prompt."""
        if self._first_use is None:
            return
        spent_s = self.load_s + prompt_s
        found = self._first_use.measure(self.session.tokens, max_tokens, spent_s)
        if found is not None:
            self.profile, self._first_use = found, None
            keep_provisional(self.path, self.config, found)

    def keep(self, generation: Generation) -> None:
        """Let later runs profit from a text that was generated, unless nothing is to be learnt."""
        if self._learned is not None and generation.tokens:
            self._learned.add(generation.tokens)
            self._learned.keep()


def _strict(profile: Profile | None, config: EngineConfig) -> WidthClass:
    """What calls are padded to. Raises UsageError where the model was not measured."""
    return require_profile(profile).strict.within(config.max_rows)


def _require_branches(
    model: LlamaModel, backend: LlamaBackend, config: EngineConfig, strict: WidthClass | None
) -> None:
    """Raise UsageError if trees were asked for in vain."""
    if not config.tree:
        return
    hint = "with --tree auto specgen drafts what can be had"
    if not backend.limits.can_branch:
        window = not (model.is_recurrent or model.is_hybrid)
        reason, hint = _obstacle(model), "use --swa-full on" if window else hint
    elif strict and not strict.branch:
        reason = "with --strict, side branches would round otherwise than chains here"
    else:
        return
    raise UsageError(f"--tree on is not possible: {reason}", hint)


def _obstacle(model: LlamaModel) -> str:
    """Why a model cannot branch."""
    if model.is_recurrent or model.is_hybrid:
        return f"a {'recurrent' if model.is_recurrent else 'hybrid'} model cannot branch"
    return "a sliding window without the full cache cannot branch"


def _describe(
    model: LlamaModel, backend: LlamaBackend, config: EngineConfig, strict: WidthClass | None
) -> str:
    """What the model and the settings allow, for `-v`."""
    limits = backend.limits
    max_rows = min(limits.max_rows, strict.largest) if strict else limits.max_rows
    branches = limits.can_branch and config.tree is not False and (not strict or strict.branch)
    if max_rows == 1:
        drafts = "decodes plainly"
    elif branches:
        drafts = "drafts are verified as trees"
    else:
        drafts = f"drafts are verified as chains of up to {max_rows - 1} tokens"
    if not limits.can_branch:
        drafts += f": {_obstacle(model)}"
    if config.draft:
        drafts += f"; {config.draft.name} drafts, too, where a pass of it pays"
    if strict:
        drafts += f"; calls have {' or '.join(map(str, strict.widths))} rows"
    return f"context {limits.n_ctx - (strict.slack if strict else 0)} tokens; {drafts}"
