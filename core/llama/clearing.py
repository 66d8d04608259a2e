"""Caches that take memory as texts grow: their pages are given back instead of filled with zeros.

llama.cpp clears a cache when it is created, and so takes all of it at once: 188 MB and 0.1 s for
8,192 tokens of a model with 135 million weights.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

from .ggml import needed

# Less than what glibc maps for itself: freeing a larger block makes it keep more from then on.
_BYTES: Final = (64 << 10) + 100


def give_back_pages(ggml: Any, kernels: Any) -> bool:
    """Has ggml's buffers in the host's memory cleared so from now on, and says whether they are.

    ggml goes on to clear them where that leaves anything else in a buffer than it should. Raises
    AttributeError where ggml lacks a function that this takes.

    Args:
        ggml: the library as ctypes has it.
        kernels: the compiled kernels, installed.
    """
    if not kernels.specgen_give_back(True):
        return False
    if _clears(ggml):
        return True
    kernels.specgen_give_back(False)
    return False


def _clears(ggml: Any) -> bool:
    """Whether a buffer holds what it is cleared with, both zeros and another value."""
    pointer = ctypes.c_void_p
    make = needed(ggml, "ggml_backend_buft_alloc_buffer", pointer, pointer, ctypes.c_size_t)
    base = needed(ggml, "ggml_backend_buffer_get_base", pointer, pointer)
    clear = needed(ggml, "ggml_backend_buffer_clear", None, pointer, ctypes.c_uint8)
    free = needed(ggml, "ggml_backend_buffer_free", None, pointer)
    buffer = make(needed(ggml, "ggml_backend_cpu_buffer_type", pointer)(), _BYTES)
    if not buffer:
        return False
    found = []
    start = base(buffer)
    for value in (7, 0, 7):
        ctypes.memset(start, 1, _BYTES)
        clear(buffer, value)
        found.append(ctypes.string_at(start, _BYTES) == bytes([value]) * _BYTES)
    free(buffer)
    return all(found)
