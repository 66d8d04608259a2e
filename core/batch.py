"""A `Layout` in the memory layout that llama_decode reads."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import Layout


class Batch:
    """A llama_batch over NumPy buffers, filled without a ctypes call per field.

    Args:
        api: the llama_cpp module.
        max_rows: most rows of a batch.
        max_leaves: most sequence ids of a row.
    """

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
