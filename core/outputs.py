"""The logits that llama_decode wrote, as NumPy sees them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .errors import BackendError
from .protocols import Logits


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
        self._api = api
        self._context = context
        self._shape = max_rows, n_vocab
        self._address = 0
        self._view: Logits = np.empty((0, n_vocab), np.float32)

    def rows(self, n: int) -> Logits:  # (n, n_vocab)
        """The first `n` rows, valid until the next call. Raises BackendError if there are none."""
        pointer = self._api.llama_get_logits(self._context)
        if not pointer:
            raise BackendError("llama.cpp returned no logits")
        address = ctypes.addressof(pointer.contents)
        if address != self._address:
            self._view = np.ctypeslib.as_array(pointer, shape=self._shape)
            self._address = address
        return self._view[:n]
