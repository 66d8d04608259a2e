"""How to run a model, as asked for. Imports nothing heavy: `specgen --help` shows defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError

# Longest context that is taken unasked: its cache costs memory whether it is used or not.
DEFAULT_CONTEXT = 8192

DEFAULT_MAX_DRAFTS = 16

DEFAULT_CACHE_TYPE = "f16"

# Rows of logits of a call of the draft model: it looks at one, and a step leaves few tokens that
# it has not read.
DRAFT_ROWS = 4

_MOST_ROWS = 64
_PENDING = 4
_MOST_LEAVES = 32


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to run a model.

    Attributes:
        n_ctx: tokens of context; None takes the model's own up to DEFAULT_CONTEXT, 0 all of it.
        threads: CPU threads; None takes host.default_threads().
        gpu_layers: layers to offload; None leaves it to llama.cpp.
        flash_attention: None leaves it to llama.cpp.
        swa_full: keep all cells of sliding-window layers, so that trees and rewinding work.
        max_drafts: most guesses in one tree.
        tree: whether drafts have side branches; None where the model can have them, and True is
            an error where it cannot.
        strict: give every call a width of one exact class, see strict.Strict.
        chunk: tokens of the prompt in one call.
        type_k, type_v: of keys and values in the cache, such as "q8_0"; None is "f16", or less
            where memory is short.
        few_drafters: leave out drafters, and what was learnt, that take more memory than they gain.
        draft_model: a GGUF file of a model that drafts, see `draft`; None has none.
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

        Where more are pending, which takes a long guess on a side branch, the tree is smaller.
        """
        return min(_MOST_ROWS, self.max_drafts + 1 + min(self.max_drafts, _PENDING))

    @property
    def max_leaves(self) -> int:
        """Leaves of the largest tree."""
        return max(1, min(_MOST_LEAVES, self.max_drafts))

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
