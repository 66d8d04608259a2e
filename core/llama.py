"""llama.cpp through llama-cpp-python's low-level API: the only module that imports it.

The cache is one sequence (id 0) without holes. Scoring a tree lends the trunk to one more
sequence per extra leaf; committing takes all of that back. Every return code is checked.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BackendError, ContextFull, ModelError
from .layout import Layout, lay_out
from .protocols import Limits, Logits, Tokens
from .tree import DraftTree

_log = logging.getLogger("specgen.llama")

# ggml_log_level -> logging level; 5 continues the line before it.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}
_PIECE_BYTES = 512


class _LogBridge:
    """llama.cpp's log as lines of the `specgen.llama` logger; the last errors kept to quote."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=4)
        self._level = logging.DEBUG
        self._line = ""

    def __call__(self, level: int, text: bytes, _user_data: Any) -> None:
        self._level = _LEVELS.get(level, self._level)
        self._line += text.decode("utf-8", errors="replace")
        if not self._line.endswith("\n"):
            return
        line, self._line = self._line.strip(), ""
        if self._level == logging.ERROR:
            self.errors.append(line)
        _log.log(self._level, "%s", line)

    def last_error(self) -> str:
        """The first of the errors since the last call: later ones only follow from it."""
        line = self.errors[0] if self.errors else ""
        self.errors.clear()
        return line.partition(": ")[2] or line


@dataclass(frozen=True)
class _Library:
    """The loaded library. llama.cpp has one log callback per process, so there is one of these."""

    api: Any
    log: _LogBridge
    log_callback: Any  # ctypes does not keep it alive


@cache
def _library() -> _Library:
    import llama_cpp

    bridge = _LogBridge()
    callback = llama_cpp.llama_log_callback(bridge)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return _Library(llama_cpp, bridge, callback)


def system_info() -> str:
    """What llama.cpp was built for and found on this machine."""
    text: bytes = _library().api.llama_print_system_info()
    return text.decode().strip()


class LlamaVocab:
    """The model's own tokenizer (see protocols.Vocab)."""

    def __init__(self, handle: Any) -> None:
        self._api = _library().api
        self._handle = handle
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self.n_vocab: int = self._api.llama_vocab_n_tokens(handle)
        self.add_bos: bool = self._api.llama_vocab_get_add_bos(handle)
        ids = range(self.n_vocab)
        self.eog = frozenset(t for t in ids if self._api.llama_vocab_is_eog(handle, t))
        self.bos_text = self._text(self._api.llama_vocab_bos(handle))
        self.eos_text = self._text(self._api.llama_vocab_eos(handle))

    def _text(self, token: int) -> str:
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def control_texts(self) -> frozenset[str]:
        """The texts of all control tokens, such as `<|im_end|>`."""
        ids = range(self.n_vocab)
        control = (t for t in ids if self._api.llama_vocab_is_control(self._handle, t))
        return frozenset(text for t in control if (text := self._text(t)))

    def tokenize(self, text: str, *, add_bos: bool, special: bool) -> list[int]:
        """See protocols.Vocab. Raises BackendError if llama.cpp cannot tokenize the text."""
        data = text.encode("utf-8", errors="replace")
        size = len(data) + 2  # no token is shorter than a byte; BOS and EOS may be added
        for _ in range(2):
            buffer = (self._api.llama_token * size)()
            n = self._api.llama_tokenize(
                self._handle, data, len(data), buffer, size, add_bos, special
            )
            if n >= 0:
                return list(buffer[:n])
            size = -n
        raise BackendError(f"llama.cpp could not tokenize a text of {len(data)} bytes")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """See protocols.Vocab."""
        key = (token, special)
        if key not in self._pieces:
            self._pieces[key] = self._read_piece(token, special)
        return self._pieces[key]

    def _read_piece(self, token: int, special: bool) -> bytes:
        size = _PIECE_BYTES
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            n = self._api.llama_token_to_piece(self._handle, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n
        raise BackendError(f"llama.cpp could not turn token {token} into text")


class LlamaModel:
    """Loaded weights, the vocabulary and what kind of memory the model has.

    Args:
        path: a GGUF file.
        gpu_layers: layers to offload; None leaves it to llama.cpp (as many as fit the build).

    Raises ModelError, quoting llama.cpp, if it cannot be loaded or cannot generate text.
    """

    def __init__(self, path: Path, gpu_layers: int | None = None) -> None:
        library = _library()
        self._api = api = library.api
        params = api.llama_model_default_params()
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        library.log.errors.clear()
        self.handle = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            reason = library.log.last_error() or "unknown reason"
            raise ModelError(
                f"llama.cpp cannot load {path}: {reason}",
                "check the file with `specgen info`, or fetch it again",
            )
        if api.llama_model_has_encoder(self.handle) or api.llama_model_is_diffusion(self.handle):
            self.close()
            raise ModelError(
                f"{path} is not a decoder-only text model",
                "specgen generates text with decoder-only models",
            )
        self.vocab = LlamaVocab(api.llama_model_get_vocab(self.handle))
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


@dataclass(frozen=True, slots=True)
class ContextConfig:
    """How to set up a context.

    Attributes:
        n_ctx: tokens that the text may have.
        threads: CPU threads.
        max_rows: rows of one `score` call; each costs n_vocab * 4 bytes of logits.
        max_leaves: leaves of a tree.
        chunk: tokens of one prefill call.
        flash_attention: None leaves it to llama.cpp.
        swa_full: keep all cells of sliding-window layers, which trees and rewinding need.
        snapshots: states that hybrid and recurrent models keep to roll back, where they can.
    """

    n_ctx: int
    threads: int
    max_rows: int = 64
    max_leaves: int = 16
    chunk: int = 512
    flash_attention: bool | None = None
    swa_full: bool = True
    snapshots: int = 8


class LlamaBackend:
    """One llama.cpp context (see protocols.Backend).

    Raises BackendError if the context cannot be created.
    """

    def __init__(self, model: LlamaModel, config: ContextConfig) -> None:
        self._api = api = _library().api
        self._stateful = model.is_recurrent or model.is_hybrid
        self._window = 0 if config.swa_full else model.sliding_window
        self._context = api.llama_init_from_model(model.handle, self._params(model, config))
        if not self._context:
            reason = _library().log.last_error() or "unknown reason"
            raise BackendError(
                f"llama.cpp cannot create a context of {config.n_ctx} tokens: {reason}",
                "use a smaller context (-c)",
            )
        self._memory = api.llama_get_memory(self._context)
        self._n_vocab = model.vocab.n_vocab
        self.limits = self._find_limits(config)
        self._batch = _Batch(api, max(config.chunk, config.max_rows), config.max_leaves)
        self._length = 0
        self._scored: Layout | None = None

    def _params(self, model: LlamaModel, config: ContextConfig) -> Any:
        can_branch = not self._stateful and not self._window
        params = self._api.llama_context_default_params()
        params.n_ctx = config.n_ctx
        params.n_batch = params.n_ubatch = max(config.chunk, config.max_rows)
        params.n_seq_max = config.max_leaves if can_branch else 1
        params.n_outputs_max = max(config.max_rows, params.n_seq_max)
        params.n_rs_seq = config.snapshots if self._stateful else 0
        params.n_threads = params.n_threads_batch = config.threads
        if config.flash_attention is not None:
            params.flash_attn_type = int(config.flash_attention)
        params.swa_full = config.swa_full
        params.kv_unified = True
        return params

    def _find_limits(self, config: ContextConfig) -> Limits:
        can_branch = not self._stateful and not self._window
        max_rows = config.max_rows
        if self._stateful:  # a rollback reaches as far back as there are snapshots
            max_rows = min(max_rows, 1 + self._api.llama_n_rs_seq(self._context))
        return Limits(
            n_vocab=self._n_vocab,
            n_ctx=config.n_ctx,
            max_rows=max_rows,
            max_leaves=config.max_leaves if can_branch else 1,
            chunk=config.chunk,
            can_branch=can_branch,
            can_rewind=not self._stateful,
        )

    @property
    def length(self) -> int:
        """See protocols.Backend."""
        return self._length

    def prefill(self, tokens: Tokens) -> None:
        """See protocols.Backend."""
        n = len(tokens)
        self._require_room(n)
        rows = Layout(
            tuple(tokens.tolist()), tuple(range(self._length, self._length + n)), ((0,),) * n, 1
        )
        self._decode(rows, outputs=False)
        self._length += n

    def score(self, tree: DraftTree, lead: Sequence[int]) -> Logits:
        """See protocols.Backend."""
        rows = lay_out(tree, lead, self._length)
        n = len(rows.tokens)
        if n > self.limits.max_rows or rows.n_sequences > self.limits.max_leaves:
            raise ValueError(f"{n} rows, {rows.n_sequences} leaves do not fit {self.limits}")
        self._require_room(n)
        for sequence in range(1, rows.n_sequences):
            self._api.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        self._decode(rows, outputs=True)
        self._scored = rows
        pointer = self._api.llama_get_logits(self._context)
        if not pointer:
            raise BackendError("llama.cpp returned no logits")
        logits = np.ctypeslib.as_array(pointer, shape=(n, self._n_vocab))
        return logits[len(lead) :]

    def commit(self, n_kept: int) -> None:
        """See protocols.Backend. Raises BackendError if the model cannot drop the rest."""
        rows, self._scored = self._scored, None
        if rows is None:
            raise ValueError("commit without a score")
        length = self._length + n_kept
        if rows.n_sequences > 1:
            self._api.llama_memory_seq_keep(self._memory, 0)
        if n_kept < len(rows.tokens):
            self._cut(length)
        self._length = length

    def rewind(self, length: int) -> int:
        """See protocols.Backend."""
        if length >= self._length:
            return self._length
        if self._can_cut_to(length):
            self._cut(length)
            self._length = length
        else:
            self._api.llama_memory_clear(self._memory, False)
            self._length = 0
        return self._length

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
        # A windowed cache has forgotten what lies before its oldest cell.
        oldest: int = self._api.llama_memory_seq_pos_min(self._memory, 0)
        return oldest <= max(0, length - self._window)

    def _cut(self, length: int) -> None:
        if not self._api.llama_memory_seq_rm(self._memory, 0, length, -1):
            raise BackendError(
                f"llama.cpp could not cut the cache back to {length} tokens",
                "this model cannot undo tokens; use --drafter none",
            )

    def _require_room(self, n: int) -> None:
        if self._length + n > self.limits.n_ctx:
            raise ContextFull(
                f"{self._length + n} tokens exceed the available context size"
                f" of {self.limits.n_ctx}",
                "use a larger context (-c) or a shorter text",
            )

    def _decode(self, rows: Layout, *, outputs: bool) -> None:
        """Run one batch; on failure leave the cache as it was and raise BackendError."""
        code = self._api.llama_decode(self._context, self._batch.fill(rows, outputs))
        if code == 0:
            return
        self._api.llama_memory_seq_keep(self._memory, 0)
        self._api.llama_memory_seq_rm(self._memory, 0, self._length, -1)
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
    reason = _library().log.last_error() or "see -vv"
    return (
        f"llama.cpp failed on {n_rows} tokens (code {code}): {reason}",
        "it may be out of memory: use a smaller context (-c) or fewer GPU layers (-ngl)",
    )


class _Batch:
    """A llama_batch over NumPy buffers, filled without a ctypes call per field."""

    def __init__(self, api: Any, max_rows: int, max_leaves: int) -> None:
        self._tokens = np.zeros(max_rows, np.int32)
        self._positions = np.zeros(max_rows, np.int32)
        self._n_ids = np.ones(max_rows, np.int32)
        self._ids = np.zeros((max_rows, max_leaves), np.int32)
        self._outputs = np.zeros(max_rows, np.int8)
        rows = self._ids.ctypes.data + self._ids.strides[0] * np.arange(max_rows)
        self._id_rows = rows.astype(np.uintp)
        self._is_chain = True
        self._batch = api.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._n_ids, ctypes.c_int32),
            seq_id=_pointer(self._id_rows, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._outputs, ctypes.c_int8),
        )

    def fill(self, rows: Layout, outputs: bool) -> Any:
        """The batch of `rows`; with `outputs` every row gives logits, else none does."""
        n = len(rows.tokens)
        self._tokens[:n] = rows.tokens
        self._positions[:n] = rows.positions
        self._outputs[:n] = outputs
        if rows.n_sequences > 1:
            self._fill_ids(rows)
        elif not self._is_chain:
            self._ids[:, 0] = 0
            self._n_ids[:] = 1
        self._is_chain = rows.n_sequences == 1
        self._batch.n_tokens = n
        return self._batch

    def _fill_ids(self, rows: Layout) -> None:
        for row, ids in enumerate(rows.sequences):
            self._ids[row, : len(ids)] = ids
            self._n_ids[row] = len(ids)


def _pointer(array: NDArray[Any], ctype: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctype))
