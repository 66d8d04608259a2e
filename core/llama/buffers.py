"""llama.cpp's buffers: the batch that llama_decode reads, and the logits that it writes.

Plain ctypes arrays: after a call of llama.cpp all code is cold, and then NumPy takes five times
as long to write a few numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from specgen.core.errors import BackendError
from specgen.core.protocols import Logits

from .layout import Layout


class Batch:
    """A llama_batch over arrays that are used again and again.

    Args:
        api: the llama_cpp module.
        max_rows: most rows of a batch.
        n_ids: sequence ids that there are; a row carries all of them, unless a tree says otherwise.
    """

    def __init__(self, api: Any, max_rows: int, n_ids: int) -> None:
        numbers = ctypes.c_int32 * max_rows
        self._tokens = numbers()
        self._positions = numbers()
        self._all = range(n_ids)
        self._n_ids = numbers(*[n_ids] * max_rows)
        row = ctypes.c_int32 * n_ids
        self._ids = (row * max_rows)(*[row(*self._all) for _ in range(max_rows)])
        self._outputs = (ctypes.c_int8 * max_rows)()
        pointers = (ctypes.POINTER(ctypes.c_int32) * max_rows)(*self._ids)
        self._n_branched = 0  # rows whose ids are those of a tree
        self._has_outputs = False
        self._batch = api.llama_batch(
            n_tokens=0,
            token=self._tokens,
            embd=None,
            pos=self._positions,
            n_seq_id=self._n_ids,
            seq_id=pointers,
            logits=self._outputs,
        )

    def fill(self, rows: Layout, outputs: bool) -> Any:
        """The batch of `rows`; with `outputs` every row gives logits, else none does."""
        n = len(rows.tokens)
        self._tokens[:n] = [*rows.tokens]
        self._positions[:n] = [*rows.positions]
        if outputs != self._has_outputs:
            ctypes.memset(self._outputs, outputs, ctypes.sizeof(self._outputs))
            self._has_outputs = outputs
        if self._n_branched or rows.n_leaves > 1:
            self._fill_ids(rows)
        self._batch.n_tokens = n
        return self._batch

    def _fill_ids(self, rows: Layout) -> None:
        """Write the sequence ids, those too that an earlier tree left in rows behind these."""
        n, before = len(rows.tokens), self._n_branched
        self._n_branched = max(n, before)  # whatever interrupts this
        for row in range(n, before):
            self._fill_row(row, self._all)
        for row, ids in enumerate(rows.sequences):
            self._fill_row(row, ids)
        self._n_branched = n if rows.n_leaves > 1 else 0

    def _fill_row(self, row: int, ids: Sequence[int]) -> None:
        self._ids[row][: len(ids)] = [*ids]
        self._n_ids[row] = len(ids)


class Outputs:
    """A view of llama.cpp's output buffer, made anew only where the buffer moved.

    Making one takes as long as drafting a token.

    Args:
        api: the llama_cpp module.
        context: a llama_context.
        max_rows: most rows of logits that the context was set up for.
        n_vocab: values in a row.
    """

    def __init__(self, api: Any, context: Any, max_rows: int, n_vocab: int) -> None:
        # The address as a number, which is quicker to compare than a pointer to values.
        address = ctypes.cast(api.llama_get_logits, ctypes.c_void_p).value or 0
        self._find = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(address)
        self._context = context
        self._shape = max_rows, n_vocab
        self._address = 0
        self._view: Logits = np.empty((0, n_vocab), np.float32)

    def rows(self, start: int, end: int) -> Logits:  # (end - start, n_vocab)
        """The rows from `start` to `end`, valid until the next call.

        Raises BackendError if there are none.
        """
        address = self._find(self._context)
        if not address:
            raise BackendError("llama.cpp returned no logits")
        if address != self._address:
            pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            values = np.ctypeslib.as_array(pointer, shape=self._shape)
            self._view = values.view(np.float32)  # NumPy's own type, which core/rows.py knows
            self._address = address
        return self._view[start:end]
