"""A model and a context of llama.cpp, through its low-level API (see library.py).

The cache has no holes, and each cell of the text carries all sequence ids, one for each leaf that a
tree may have (see layout.py). Every return code is checked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specgen.core.config import ContextConfig
from specgen.core.errors import BackendError, ContextFull, ModelError
from specgen.core.host.limits import default_threads
from specgen.core.host.paths import path_text
from specgen.core.models.modelinfo import is_tied, read_headers
from specgen.core.models.types import type_id
from specgen.core.protocols import Limits, Logits, Tokens
from specgen.core.stop import Interrupted, ShouldStop, heed, never
from specgen.core.tree import DraftTree

from .buffers import Batch, Outputs
from .door import require_runnable
from .kernels import lay_out_table
from .layout import Layout, lay_out, lay_out_chain
from .library import free_device_memory, library
from .threads import Threads
from .vocab import LlamaVocab

_TRIED = 2  # rows of calls that find out how many threads are worth it


class LlamaModel:
    """Loaded weights, the vocabulary and what kind of memory the model has.

    Args:
        path: a GGUF file.
        gpu_layers: layers to offload; None leaves it to llama.cpp (as many as fit the build).
        should_stop: asked again and again while weights are loaded.

    Raises ModelError, quoting llama.cpp, if it cannot be loaded or cannot generate text, and
    Interrupted.
    """

    def __init__(
        self, path: Path, gpu_layers: int | None = None, should_stop: ShouldStop = never
    ) -> None:
        heed(should_stop)
        headers = require_runnable(path)
        self.path = path
        self._api = api = library().api
        params = api.llama_model_default_params()
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        go_on = api.llama_progress_callback(lambda _share, _data: not should_stop())
        params.progress_callback = go_on
        lay_out_table(is_tied(headers) and free_device_memory() is None)
        try:
            self.handle = _load(path, params, should_stop)
        finally:
            lay_out_table(False)
        if api.llama_model_has_encoder(self.handle) or api.llama_model_is_diffusion(self.handle):
            self.close()
            raise ModelError(
                f"{path_text(path)} is not a decoder-only text model",
                "specgen generates text with decoder-only models",
            )
        with library().last_words.opening(path):
            self.vocab = LlamaVocab(api, api.llama_model_get_vocab(self.handle))
        self.n_ctx_train: int = api.llama_model_n_ctx_train(self.handle)
        self.sliding_window: int = api.llama_model_n_swa(self.handle)
        self.is_recurrent: bool = api.llama_model_is_recurrent(self.handle)
        self.is_hybrid: bool = api.llama_model_is_hybrid(self.handle)

    def chat_template(self) -> str | None:
        """The model's own Jinja template, if it has one."""
        text: bytes | None = self._api.llama_model_chat_template(self.handle, None)
        return text.decode("utf-8", "replace") if text else None

    def close(self) -> None:
        """Free the weights. Contexts must be closed first."""
        if self.handle:
            self._api.llama_model_free(self.handle)
            self.handle = None


def open_vocab(path: Path) -> LlamaVocab:
    """The vocabulary of a GGUF file, without its weights, kept for good. Raises ModelError."""
    read_headers(path)  # the file need not be one that can be run, but one that can be read
    api = library().api
    params = api.llama_model_default_params()
    params.vocab_only = True
    handle = _load(path, params)
    with library().last_words.opening(path):
        return LlamaVocab(api, api.llama_model_get_vocab(handle))


def _load(path: Path, params: Any, should_stop: ShouldStop = never) -> Any:
    """What llama.cpp makes of a file. Raises ModelError, which quotes it, and Interrupted."""
    library().log.errors.clear()
    with library().last_words.opening(path):
        handle = library().api.llama_model_load_from_file(os.fsencode(path), params)
    if handle:
        return handle
    heed(should_stop)
    reason = " ".join(library().log.last_error().split()) or "unknown reason"
    raise ModelError(
        f"llama.cpp cannot load {path_text(path)}: {reason}",
        "check the file with `specgen info`, or fetch it again",
    )


class LlamaBackend:
    """One llama.cpp context (see protocols.Backend).

    `should_stop` is asked before anything that takes long, and while tokens are prefilled.
    Raises BackendError if the context cannot be created, and Interrupted.
    """

    def __init__(
        self, model: LlamaModel, config: ContextConfig, should_stop: ShouldStop = never
    ) -> None:
        heed(should_stop)
        self._api = api = library().api
        self._should_stop = should_stop
        self._stateful = model.is_recurrent or model.is_hybrid
        self._window = 0 if config.swa_full else model.sliding_window
        with library().last_words.opening(model.path):
            self._context = api.llama_init_from_model(model.handle, self._params(model, config))
        if not self._context:
            reason = library().log.last_error() or "unknown reason"
            raise BackendError(
                f"llama.cpp cannot create a context of {config.n_ctx} tokens: {reason}",
                "use a smaller context (-c)",
            )
        self._memory = api.llama_get_memory(self._context)
        self._n_vocab = model.vocab.n_vocab
        self.limits = self._find_limits(config)
        self._threads = Threads(
            api,
            self._context,
            config.threads or default_threads(),
            follow=config.follow_threads and self.limits.can_stop,
            should_stop=should_stop,
        )
        self._outputs = Outputs(api, self._context, config.max_rows, self._n_vocab)
        self._n_ids = self.limits.max_leaves
        self._batch = Batch(api, max(config.chunk, config.max_rows), self._n_ids)
        self._length = 0
        self._scored: Layout | None = None
        self._n_pending = 0  # rows of that call ahead of the tree
        self.n_calls = 0  # of llama_decode
        self._has_loose_rows = False  # behind `length`, from a call that was not seen to its end

    def _params(self, model: LlamaModel, config: ContextConfig) -> Any:
        can_branch = not self._stateful and not self._window
        params = self._api.llama_context_default_params()
        params.n_ctx = config.n_ctx
        params.n_batch = params.n_ubatch = config.batch_rows  # or it aborts on splitting a batch
        params.n_seq_max = config.max_leaves if can_branch else 1
        params.n_outputs_max = max(config.max_rows, params.n_seq_max)
        params.n_rs_seq = config.snapshots if self._stateful else 0
        params.n_threads = params.n_threads_batch = config.threads or default_threads()
        if config.flash_attention is not None:
            params.flash_attn_type = int(config.flash_attention)
        params.swa_full = config.swa_full
        params.type_k, params.type_v = type_id(config.type_k), type_id(config.type_v)
        params.kv_unified = True
        return params

    def _find_limits(self, config: ContextConfig) -> Limits:
        can_branch = not self._stateful and not self._window
        max_rows = config.max_rows
        if self._stateful:  # a rollback reaches as far back as there are snapshots
            max_rows = min(max_rows, 1 + self._api.llama_n_rs_seq(self._context))
        on_cpu = free_device_memory() is None
        return Limits(
            n_vocab=self._n_vocab,
            n_ctx=config.n_ctx,
            max_rows=max_rows,
            max_leaves=config.max_leaves if can_branch else 1,
            chunk=config.chunk,
            can_branch=can_branch,
            can_rewind=not self._stateful,
            can_stop=on_cpu,  # llama.cpp's CPU backend alone asks
            computes_behind=not (on_cpu or self._stateful),
        )

    @property
    def length(self) -> int:
        """See protocols.Backend."""
        return self._length

    def prefill(self, tokens: Tokens) -> None:
        """See protocols.Backend."""
        n = len(tokens)
        heed(self._should_stop)
        self._drop_loose_rows()
        self._require_room(n)
        text = tokens.tolist()
        self._find_threads(text[0])
        self._decode(lay_out_chain(text, self._length, self._n_ids), outputs=False)
        if not self.limits.can_stop:  # GPUs work on when a call has returned: let it take its time
            self._api.llama_synchronize(self._context)
        self._length += n
        self._has_loose_rows = False

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """See protocols.Backend."""
        self._drop_loose_rows()
        rows = lay_out(tree, pending, self._length, self._n_ids)
        n = len(rows.tokens)
        if n > self.limits.max_rows or rows.n_leaves > self._n_ids:
            raise ValueError(f"{n} rows, {rows.n_leaves} leaves do not fit {self.limits}")
        self._require_room(n)
        self._find_threads(rows.tokens[0])
        self._decode(rows, outputs=True)
        self._scored = rows
        self._n_pending = len(pending)

    def wait(self) -> Logits:
        """See protocols.Backend."""
        if self._scored is None:
            raise ValueError("wait without a submit")
        return self._outputs.rows(self._n_pending, len(self._scored.tokens))

    def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
        """See protocols.Backend."""
        self.submit(tree, pending)
        return self.wait()

    def commit(self, n_kept: int) -> None:
        """See protocols.Backend. Raises BackendError if the model cannot drop the rest."""
        rows, self._scored = self._scored, None
        if not self._context:  # a call that was given up after the model was closed
            return
        if rows is None:
            raise ValueError("commit without a score")
        if self._stateful and n_kept == 0:
            # Snapshots reach back to the first row of the batch, not before it.
            self._clear()
            return
        length = self._length + n_kept
        if rows.n_leaves > 1:
            self._end_branches(rows)
        if n_kept < len(rows.tokens):
            self._cut(length)
        if n_kept > rows.n_shared:
            self._share(self._length + rows.n_shared, length)
        self._length = length
        self._has_loose_rows = False

    def rewind(self, length: int) -> int:
        """See protocols.Backend."""
        self._drop_loose_rows()
        if length >= self._length:
            return self._length
        if self._can_cut_to(length):
            self._cut(length)
            self._length = length
        else:
            self._clear()
        return self._length

    @property
    def n_reused(self) -> int:
        """Calls of llama_decode that took the graph of the call before."""
        reused: int = self._api.llama_perf_context(self._context).n_reused
        return reused

    def close(self) -> None:
        """Free the context; the model stays."""
        if self._context:
            self._api.llama_free(self._context)
            self._context = None

    def _can_cut_to(self, length: int) -> bool:
        if length == 0 or not self.limits.can_rewind:
            return False
        if not self._window:
            return True
        # A windowed cache has forgotten what lies before its oldest cell; llama.cpp would cut
        # it all the same.
        oldest: int = self._api.llama_memory_seq_pos_min(self._memory, 0)
        return oldest <= max(0, length - self._window + 1)

    def _end_branches(self, rows: Layout) -> None:
        """Take the ids of side branches from the rows of a tree, which frees those branches."""
        start = self._length + rows.n_shared
        for sequence in range(1, rows.n_leaves):
            self._api.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def _share(self, start: int, end: int) -> None:
        """Let the cells from `start` to `end`, of the main chain, carry all ids."""
        for sequence in range(1, self._n_ids):
            self._api.llama_memory_seq_cp(self._memory, 0, sequence, start, end)

    def _clear(self) -> None:
        self._api.llama_memory_clear(self._memory, False)
        self._length = 0
        self._has_loose_rows = False

    def _cut(self, length: int) -> None:
        every = -1 if self._n_ids > 1 else 0
        if not self._api.llama_memory_seq_rm(self._memory, every, length, -1):
            raise BackendError(
                f"llama.cpp could not cut the cache back to {length} tokens",
                "this model cannot undo tokens; use --drafter none",
            )

    def _drop_loose_rows(self) -> None:
        """Take back what a failed call left, or one that a KeyboardInterrupt came after.

        Raises BackendError for a context that is closed.
        """
        if not self._context:
            raise BackendError("the model is closed", "load it again")
        if not self._has_loose_rows:
            return
        if self._stateful or self._window:
            # Part of the batch may be in the state, or in the place of what a window has left.
            self._clear()
        else:
            self._cut(self._length)
        self._has_loose_rows = False

    @property
    def _can_undo(self) -> bool:
        """Whether a call that was given up can be made again with nothing lost."""
        return not (self._stateful or self._window) or self._length == 0

    def _find_threads(self, token: int) -> None:
        """Two calls ahead of the first: with one thread, and with all, if they take no longer.

        What they compute is dropped.
        """
        if not self._threads.is_new:
            return
        limits = self.limits
        if min(limits.n_ctx, max(limits.chunk, limits.max_rows)) > _TRIED:
            rows = lay_out_chain((token,) * _TRIED, self._length, self._n_ids)
            for _ in range(2):
                self._decode(rows, outputs=False)
                self._drop_loose_rows()

    def _require_room(self, n: int) -> None:
        if self._length + n > self.limits.n_ctx:
            raise ContextFull(
                f"{self._length + n} tokens exceed the available context size"
                f" of {self.limits.n_ctx}",
                "use a larger context (-c) or a shorter text",
            )

    def _decode(self, rows: Layout, *, outputs: bool) -> None:
        """Run one batch; on failure put the cache back and raise BackendError or Interrupted."""
        batch = self._batch.fill(rows, outputs)

        def decode() -> int:
            self._has_loose_rows = True
            self.n_calls += 1
            code: int = self._api.llama_decode(self._context, batch)
            return code

        code = self._threads.run(
            decode,
            self._drop_loose_rows,
            len(rows.tokens),
            self._length,
            is_prompt=not outputs,
            can_undo=self._can_undo,
        )
        if code == 0:
            return
        self._drop_loose_rows()
        if self._should_stop():
            library().log.errors.clear()  # they say no more than that
            raise Interrupted
        raise BackendError(*_explain(code, len(rows.tokens), self.limits.n_ctx))


def _explain(code: int, n_rows: int, n_ctx: int) -> tuple[str, str]:
    """Message and hint for a code of llama_decode."""
    if code == 1:
        return (
            f"llama.cpp found no room for {n_rows} tokens in a context of {n_ctx}",
            "use a larger context (-c)",
        )
    if code == 2:
        return "llama.cpp was told to abort", ""
    reason = library().log.last_error() or "see -vv"
    return (
        f"llama.cpp failed on {n_rows} tokens (code {code}): {reason}",
        "it may be out of memory: use a smaller context (-c) or fewer GPU layers (-ngl)",
    )
