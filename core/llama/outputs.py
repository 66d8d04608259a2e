"""The logits that llama_decode wrote, as NumPy sees them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from specgen.core.errors import BackendError
from specgen.core.protocols import Logits


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
            self._view = np.ctypeslib.as_array(pointer, shape=self._shape)
            self._address = address
        return self._view[start:end]
