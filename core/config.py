"""How to run a model, as asked for. Imports nothing heavy: `specgen --help` shows defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from .errors import UsageError

if TYPE_CHECKING:
    from .cost.strict import WidthClass

# Longest context that is taken unasked: its cache costs memory whether it is used or not.
DEFAULT_CONTEXT = 8192

DEFAULT_MAX_DRAFTS = 16

DEFAULT_CACHE_TYPE = "f16"

# Rows of logits of a call of the draft model: it looks at one, and a step leaves few tokens that
# it has not read.
DRAFT_ROWS = 4

_MOST_ROWS = 64
_PENDING = 4
# Each is a sequence that all cells of the text belong to; more leaves bring next to nothing.
MOST_LEAVES = 8
_SNAPSHOTS = 8  # states that are kept, so that as many tokens can be taken back


_BOUNDS: Final = {  # least and most
    "n_ctx": (0, 1 << 62),  # more than the model was trained for is told by `context`
    "threads": (1, 1024),
    "gpu_layers": (0, 1 << 31),
    "max_drafts": (0, 1 << 16),
    "chunk": (1, 1 << 31),
}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to run a model.

    Attributes:
        n_ctx: tokens of context; None takes the model's own up to DEFAULT_CONTEXT, 0 all of it.
        threads: CPU threads; None takes host.limits.default_threads() at most.
        gpu_layers: layers to offload; None leaves it to llama.cpp.
        flash_attention: None leaves it to llama.cpp.
        swa_full: keep all cells of sliding-window layers, so that trees and rewinding work.
        max_drafts: most draft tokens in one tree.
        tree: whether drafts have side branches; None where the model can have them, and True is
            an error where it cannot.
        strict: give every call a width of one exact class, see cost.strict.WidthClass.
        chunk: tokens of the prompt in one call.
        type_k, type_v: of keys and values in the cache, such as "q8_0"; None is "f16", or less
            where memory is short.
        few_drafters: leave out drafters, and what was learnt, that take more memory than they gain.
        draft_model: a GGUF file of a model that drafts; None has none.

    Raises UsageError for a value that is out of bounds.
    """

    n_ctx: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    flash_attention: bool | None = None
    swa_full: bool = True
    max_drafts: int = DEFAULT_MAX_DRAFTS
    tree: bool | None = None
    strict: bool = False
    chunk: int = 512
    type_k: str | None = None
    type_v: str | None = None
    few_drafters: bool = False
    draft_model: Path | None = None

    def __post_init__(self) -> None:
        _check_bounds(self, _BOUNDS)

    @property
    def cache_types(self) -> tuple[str, str]:
        """Of keys and of values."""
        return self.type_k or DEFAULT_CACHE_TYPE, self.type_v or DEFAULT_CACHE_TYPE

    @property
    def draft(self) -> Path | None:
        """The draft model that is opened: none where there are to be no drafts."""
        return self.draft_model if self.max_drafts else None

    @property
    def max_rows(self) -> int:
        """Rows of the largest call but for prompts: a tree and some pending tokens before it.

        Where more are pending, behind a long side branch that was accepted, the tree is smaller.
        """
        return min(_MOST_ROWS, self.max_drafts + 1 + min(self.max_drafts, _PENDING))

    @property
    def max_leaves(self) -> int:
        """Leaves of the largest tree."""
        return max(1, min(MOST_LEAVES, self.max_drafts))

    def context(self, n_ctx_train: int) -> int:
        """Tokens of context with a model that was trained for so many. Raises UsageError."""
        if self.n_ctx is None:
            return min(n_ctx_train, DEFAULT_CONTEXT)
        if self.n_ctx == 0:
            return n_ctx_train
        if self.n_ctx > n_ctx_train:
            raise UsageError(
                f"a context of {self.n_ctx} tokens is more than the {n_ctx_train} that the model"
                " was trained for",
                f"use -c {n_ctx_train} or less",
            )
        return self.n_ctx


def _check_bounds(config: object, bounds: Mapping[str, tuple[int, int]]) -> None:
    """Raise UsageError for a value, if there is one, below its least or above its most."""
    for name, (least, most) in bounds.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"{name} is {value:,}, and {least:,} to {most:,} are possible")


class ModelKind(Protocol):
    """What a context depends on of a model: a header says it, and so does a loaded model."""

    @property
    def n_ctx_train(self) -> int: ...

    @property
    def sliding_window(self) -> int: ...

    @property
    def is_recurrent(self) -> bool: ...

    @property
    def is_hybrid(self) -> bool: ...


_CONTEXT_BOUNDS: Final = {  # least and most
    "n_ctx": (1, 1 << 31),
    "chunk": (1, 1 << 31),
    "max_rows": (1, 1 << 31),
    "max_leaves": (1, 256),  # LLAMA_MAX_SEQ
    "snapshots": (0, 1 << 16),
}


@dataclass(frozen=True, slots=True)
class ContextConfig:
    """How a context of llama.cpp is set up; its memory is planned from the same values.

    Attributes:
        n_ctx: tokens that the text may have; llama.cpp rounds up to a multiple of 256.
        threads: CPU threads; None takes host.limits.default_threads().
        max_rows: rows of one `score` call; each costs n_vocab * 4 bytes of logits.
        max_leaves: leaves of a tree, each a sequence.
        chunk: tokens of one prefill call.
        flash_attention: None leaves it to llama.cpp.
        swa_full: keep all cells of sliding-window layers, which trees and rewinding need.
        follow_threads: whether fewer compute, `threads` at most, while that is faster.
        snapshots: older states that hybrid and recurrent models keep to roll back, where they can.
        type_k, type_v: of keys and of values in the cache, such as "q8_0".

    Raises UsageError for a value that is out of bounds.
    """

    n_ctx: int
    threads: int | None = None
    max_rows: int = 64
    max_leaves: int = 32
    chunk: int = 512
    flash_attention: bool | None = None
    swa_full: bool = True
    follow_threads: bool = False
    snapshots: int = 8
    type_k: str = DEFAULT_CACHE_TYPE
    type_v: str = DEFAULT_CACHE_TYPE

    def __post_init__(self) -> None:
        _check_bounds(self, _CONTEXT_BOUNDS)

    @property
    def batch_rows(self) -> int:
        """Rows of the largest call: llama.cpp wants two more than it keeps snapshots."""
        return max(self.chunk, self.max_rows, self.snapshots + 2)

    def for_draft_model(self, n_ctx_train: int) -> ContextConfig:
        """The context of a model that drafts: a chain at a time, as much of the text as it can."""
        return replace(
            self,
            n_ctx=min(self.n_ctx, n_ctx_train),
            max_rows=DRAFT_ROWS,
            max_leaves=1,
            swa_full=True,
            snapshots=0,
            type_k=DEFAULT_CACHE_TYPE,
            type_v=DEFAULT_CACHE_TYPE,
        )


def context_of(
    config: EngineConfig, model: ModelKind, strict: WidthClass | None = None
) -> ContextConfig:
    """The context that `config` asks for with a model, whose calls are padded to `strict` widths.

    Raises UsageError for more tokens than the model was trained for.
    """
    is_stateful = model.is_recurrent or model.is_hybrid
    has_window = bool(model.sliding_window) and not config.swa_full
    type_k, type_v = config.cache_types
    return ContextConfig(
        n_ctx=config.context(model.n_ctx_train) + (strict.slack if strict else 0),
        threads=config.threads,
        max_rows=max(config.max_rows, strict.widths[0] if strict else 1),
        max_leaves=1 if is_stateful or has_window else config.max_leaves,
        chunk=config.chunk,
        flash_attention=config.flash_attention,
        swa_full=config.swa_full,
        snapshots=_SNAPSHOTS if is_stateful else 0,
        type_k=type_k,
        type_v=type_v,
    )
