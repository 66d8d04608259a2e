"""Buffers of ggml that are cleared by giving their pages back."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from specgen.core.host.process_memory import resident_bytes
from specgen.core.llama import clearing, kernels
from specgen.core.llama.ggml import needed
from specgen.core.llama.library import library

pytestmark = [
    pytest.mark.llama,
    pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux alone"),
]

MIB = 1 << 20
SIZE = 64 * MIB + 5  # its end is not the end of a page
ROOM = 8 * MIB  # what else may happen in the process meanwhile

Clear = Callable[[int], None]


@pytest.fixture
def compiled() -> Iterator[Any]:
    """The compiled kernels; buffers are cleared as before when the test is over."""
    if library().kernels == kernels.NONE:
        pytest.skip("there are no kernels for this processor")
    yield kernels._compiled()
    assert clearing.give_back_pages(library().ggml, kernels._compiled())


@contextmanager
def buffer(size: int = SIZE) -> Iterator[tuple[int, Clear]]:
    """Where a new buffer of ggml's CPU type lies, and what clears it."""
    ggml, pointer = library().ggml, ctypes.c_void_p
    make = needed(ggml, "ggml_backend_buft_alloc_buffer", pointer, pointer, ctypes.c_size_t)
    made = make(needed(ggml, "ggml_backend_cpu_buffer_type", pointer)(), size)
    clear = needed(ggml, "ggml_backend_buffer_clear", None, pointer, ctypes.c_uint8)
    try:
        base = needed(ggml, "ggml_backend_buffer_get_base", pointer, pointer)(made)
        yield base, lambda value: clear(made, value)
    finally:
        needed(ggml, "ggml_backend_buffer_free", None, pointer)(made)


def resident() -> int:
    """Bytes that are resident now."""
    found = resident_bytes()
    assert found is not None
    return found


def test_a_cleared_buffer_takes_no_memory(compiled: Any) -> None:
    """Neither a new one nor one that was full; what is written afterwards does."""
    before = resident()
    with buffer() as (base, clear):
        clear(0)
        assert resident() - before < ROOM
        ctypes.memset(base, 1, SIZE)
        assert resident() - before > SIZE - ROOM
        clear(0)
        assert resident() - before < ROOM


@pytest.mark.parametrize("size", [1, 100, 4096, 3 * 4096, 5 * 4096 + 1, MIB + 77])
def test_all_of_a_buffer_is_cleared(compiled: Any, size: int) -> None:
    """To zeros and to any other value, at the edges of pages, too, and nothing behind it."""
    with buffer(size) as (base, clear):
        for value in (0, 7, 0, 255):
            ctypes.memset(base, 1, size)
            clear(value)
            assert ctypes.string_at(base, size) == bytes([value]) * size
        behind = (ctypes.c_char * 64).from_address(base + size - size % 64)
        ctypes.memset(base, 1, size)
        kept = behind.raw[size % 64 :]
        clear(0)
        assert behind.raw[size % 64 :] == kept


def test_where_it_clears_otherwise_ggml_goes_on(
    compiled: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A buffer that was not cleared as it must be is seen when the library is loaded."""
    fill = ctypes.memset
    monkeypatch.setattr(ctypes, "string_at", lambda base, n: b"\1" * n)
    caplog.set_level(logging.INFO, "specgen.kernels")
    assert kernels.install_kernels(library().ggml) == library().kernels
    assert "llama.cpp fills caches with zeros itself" in caplog.messages
    monkeypatch.undo()
    before = resident()
    with buffer() as (base, clear):
        clear(0)
        assert resident() - before > SIZE - ROOM
        fill(base, 1, SIZE)
