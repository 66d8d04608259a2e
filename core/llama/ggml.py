"""Functions of ggml, llama.cpp's library below, that llama-cpp-python does not wrap."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import mmap
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

F32: Final = 0  # ggml_type, as in GGUF files
F16: Final = 1
Q8_0: Final = 8
I32: Final = 26

_POINTER = ctypes.c_void_p
_ROOM = 16 << 20  # bytes for graph and threads: more than they take, and untouched
_KINDS: Final = MappingProxyType({"float32": F32, "float16": F16, "uint8": Q8_0})
_OPERATIONS = 90  # fewer than there are: ggml does not check


def function(ggml: Any, name: str, result: Any, *arguments: Any) -> Any | None:
    """The function of this name, with these ctypes types, or None where it is not found.

    Args:
        ggml: the library as ctypes has it, or None.
    """
    try:
        found = ggml[name]  # a new object each time, so its types are ours alone
    except (TypeError, AttributeError):
        return None
    found.restype = result
    found.argtypes = list(arguments)
    return found


def needed(ggml: Any, name: str, result: Any, *arguments: Any) -> Any:
    """As `function`; raises AttributeError where it is not found."""
    found = function(ggml, name, result, *arguments)
    if found is None:
        raise AttributeError(f"ggml has no function {name}")
    return found


def address(ggml: Any, name: str) -> int:
    """Where a function or a table lies in memory, or 0 where it is not found."""
    found = function(ggml, name, None)
    return ctypes.cast(found, _POINTER).value or 0 if found else 0


def operation(ggml: Any, name: str) -> int:
    """The number of an operation such as "MUL_MAT", or -1."""
    name_of = needed(ggml, "ggml_op_name", ctypes.c_char_p, ctypes.c_int)
    return next((i for i in range(_OPERATIONS) if name_of(i) == name.encode()), -1)


@dataclass(frozen=True)
class Product:
    """Addresses of a product's tensors, not computed yet, and of the context that they live in."""

    context: int
    weights: int
    values: int
    result: int


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


@contextmanager
def _context(ggml: Any, n_bytes: int, no_data: bool = False) -> Iterator[int]:
    """Memory for tensors of `n_bytes`, a graph and what computing takes.

    With `no_data` tensors are described only: a buffer is to hold what is in them.
    """
    free = needed(ggml, "ggml_free", None, _POINTER)
    init = needed(ggml, "ggml_init", _POINTER, _InitParams)
    size = _ROOM + 4 * n_bytes
    # Not of malloc: freeing a large block makes it keep more for itself from then on.
    with mmap(-1, size) as memory:
        start = ctypes.c_char.from_buffer(memory)
        context: int = init(_InitParams(size, ctypes.addressof(start), no_data))
        try:
            yield context
        finally:
            free(context)
            del start


@contextmanager
def product(
    ggml: Any, kind: int, columns: int, rows: int, n: int, place: int = 0
) -> Iterator[Product]:
    """Tensors for `rows` rows of `columns` weights of type `kind`, times n vectors of float32.

    Args:
        ggml: the library as ctypes has it.
        kind: ggml_type of the weights.
        columns, rows: of the weights.
        n: vectors.
        place: address of the buffer type that the weights are kept in; 0 is no buffer.
    """
    multiply_ = needed(ggml, "ggml_mul_mat", _POINTER, *[_POINTER] * 3)
    with (
        _context(ggml, 4 * (columns * (rows + n) + rows * n)) as context,
        _weights(ggml, context, kind, columns, rows, place) as weights,
    ):
        values = _tensor(ggml, context, F32, columns, n)
        yield Product(context, weights, values, multiply_(context, weights, values))


@contextmanager
def _weights(
    ggml: Any, context: int, kind: int, columns: int, rows: int, place: int, matrices: int = 1
) -> Iterator[int]:
    """A tensor in `context`, or in a buffer of the type `place`."""
    if not place:
        yield _tensor(ggml, context, kind, columns, rows, matrices)
        return
    allocate = needed(ggml, "ggml_backend_alloc_ctx_tensors_from_buft", *[_POINTER] * 3)
    with _context(ggml, 0, no_data=True) as described:
        weights = _tensor(ggml, described, kind, columns, rows, matrices)
        buffer = allocate(described, place)
        if not buffer:
            raise AttributeError("ggml's buffers differ")
        try:
            yield weights
        finally:
            needed(ggml, "ggml_backend_buffer_free", None, _POINTER)(buffer)


def multiply(
    ggml: Any,
    kind: int,
    weights: NDArray[np.uint8],
    values: NDArray[np.float32],
    threads: int = 2,
    place: int = 0,
) -> NDArray[np.float32]:
    """A product as ggml's CPU backend computes it.

    Args:
        ggml: the library as ctypes has it.
        kind: ggml_type of the weights.
        weights: (rows, bytes of a row), quantized.
        values: (n, columns).
        threads: that share the work.
        place: as for `product`.

    Returns:
        (n, rows).

    Raises:
        AttributeError: ggml lacks a function that this takes.
    """
    n, columns = values.shape
    with product(ggml, kind, columns, len(weights), n, place) as tensors:
        _put(ggml, tensors.weights, weights, place)
        _fill(ggml, tensors.values, values)
        return _compute(ggml, tensors.context, tensors.result, (n, len(weights)), threads)


def multiply_by_experts(
    ggml: Any,
    kind: int,
    weights: NDArray[np.uint8],
    values: NDArray[np.float32],
    chosen: NDArray[np.int32],
    threads: int = 2,
    place: int = 0,
) -> NDArray[np.float32]:
    """Products with some of several matrices, as ggml's CPU backend computes them.

    Args:
        ggml: the library as ctypes has it.
        kind: ggml_type of the weights.
        weights: (experts, rows, bytes of a row), quantized.
        values: (tokens, used experts, columns), or (tokens, 1, columns) for all experts.
        chosen: (tokens, used experts), the numbers of the experts.
        threads: that share the work.
        place: as for `product`.

    Returns:
        (tokens, used experts, rows).

    Raises:
        AttributeError: ggml lacks a function that this takes.
    """
    size, integers = ctypes.c_size_t, [ctypes.c_int64] * 2
    view = needed(ggml, "ggml_view_2d", _POINTER, *[_POINTER] * 2, *integers, size, size)
    multiply_ = needed(ggml, "ggml_mul_mat_id", _POINTER, *[_POINTER] * 4)
    n_experts, rows, _ = weights.shape
    (tokens, used), columns = chosen.shape, values.shape[-1]
    # As in llama.cpp, the beginnings of rows that name others, too.
    named = np.pad(chosen, ((0, 0), (0, 1)), constant_values=-1)
    with (
        _context(ggml, weights.nbytes + values.nbytes + 4 * chosen.size * rows) as context,
        _weights(ggml, context, kind, columns, rows, place, n_experts) as w,
    ):
        _put(ggml, w, weights, place)
        x = _tensor(ggml, context, F32, *values.shape[::-1])
        _fill(ggml, x, values)
        all_ = _tensor(ggml, context, I32, used + 1, tokens)
        _fill(ggml, all_, named)
        ids = view(context, all_, used, tokens, named.strides[0], 0)
        result = multiply_(context, w, x, ids)
        return _compute(ggml, context, result, (tokens, used, rows), threads)


def look_up(
    ggml: Any,
    kind: int,
    columns: int,
    weights: NDArray[np.uint8],
    ids: NDArray[np.int32],
    threads: int = 2,
    place: int = 0,
) -> NDArray[np.float32]:
    """Rows of a table of weights, as ggml's CPU backend turns them into floats.

    Args:
        ggml: the library as ctypes has it.
        kind: ggml_type of the weights.
        columns: weights of a row.
        weights: (rows, bytes of a row), quantized.
        ids: (n), numbers of rows.
        threads: that share the work.
        place: as for `product`.

    Returns:
        (n, columns).

    Raises:
        AttributeError: ggml lacks a function that this takes.
    """
    get = needed(ggml, "ggml_get_rows", _POINTER, *[_POINTER] * 3)
    with (
        _context(ggml, weights.nbytes + 8 * columns * len(ids)) as context,
        _weights(ggml, context, kind, columns, len(weights), place) as table,
    ):
        _put(ggml, table, weights, place)
        rows = _tensor(ggml, context, I32, len(ids))
        _fill(ggml, rows, ids)
        # Alone, one thread would look up all rows.
        copied = needed(ggml, "ggml_cont", _POINTER, *[_POINTER] * 2)
        result = copied(context, get(context, table, rows))
        return _compute(ggml, context, result, (len(ids), columns), threads)


def attend(
    ggml: Any,
    queries: NDArray[np.float32],
    keys: NDArray[Any],
    values: NDArray[Any],
    mask: NDArray[np.float16],
    threads: int = 2,
) -> NDArray[np.float32]:
    """Flash attention as ggml's CPU backend computes it, with 1 over the root of the size as scale.

    Args:
        ggml: the library as ctypes has it.
        queries: (heads, tokens, size).
        keys: (shared heads, positions, size) float16, or the bytes of Q8_0 as uint8; a shared head
            serves heads that follow each other.
        values: likewise.
        mask: (tokens, positions), 0 or minus infinity.
        threads: that share the work.

    Returns:
        (tokens, heads, size).

    Raises:
        AttributeError: ggml lacks a function that this takes.
    """
    heads, tokens, size = queries.shape
    flash = needed(ggml, "ggml_flash_attn_ext", _POINTER, *[_POINTER] * 5, *[ctypes.c_float] * 3)
    permute = needed(ggml, "ggml_permute", _POINTER, _POINTER, _POINTER, *[ctypes.c_int] * 4)
    arrays = (queries, keys, values)
    with _context(ggml, 2 * sum(array.nbytes for array in (*arrays, mask))) as context:
        tensors = []
        for array in arrays:  # token by token, as llama.cpp has them
            kind = _KINDS[array.dtype.name]
            by_token = _tensor(ggml, context, kind, size, len(array), array.shape[1])
            _fill(ggml, by_token, array.swapaxes(0, 1))
            tensors.append(permute(context, by_token, 0, 2, 1, 3))
        tensors.append(_tensor(ggml, context, F16, *mask.shape[::-1]))
        _fill(ggml, tensors[-1], mask)
        result = flash(context, *tensors, size**-0.5, 0.0, 0.0)
        return _compute(ggml, context, result, (tokens, heads, size), threads)


def _put(ggml: Any, tensor: int, weights: NDArray[np.uint8], place: int) -> None:
    """Fills a tensor in a buffer of the type `place`, or in none."""
    if not place:
        _fill(ggml, tensor, weights)
        return
    size = ctypes.c_size_t
    set_ = needed(ggml, "ggml_backend_tensor_set", None, _POINTER, _POINTER, size, size)
    set_(tensor, weights.tobytes(), 0, weights.nbytes)


def _tensor(ggml: Any, context: int, kind: int, *sizes: int) -> int:
    integers = [ctypes.c_int64] * 3
    new = needed(ggml, "ggml_new_tensor_3d", _POINTER, _POINTER, ctypes.c_int, *integers)
    tensor: int = new(context, kind, *sizes, *[1] * (3 - len(sizes)))
    return tensor


def _fill(ggml: Any, tensor: int, array: NDArray[Any]) -> None:
    data = needed(ggml, "ggml_get_data", _POINTER, _POINTER)
    ctypes.memmove(data(tensor), array.tobytes(), array.nbytes)


def _compute(
    ggml: Any, context: int, result: int, shape: tuple[int, ...], threads: int
) -> NDArray[np.float32]:
    graph = needed(ggml, "ggml_new_graph", _POINTER, _POINTER)(context)
    needed(ggml, "ggml_build_forward_expand", None, _POINTER, _POINTER)(graph, result)
    name = "ggml_graph_compute_with_ctx"
    needed(ggml, name, ctypes.c_int, _POINTER, _POINTER, ctypes.c_int)(context, graph, threads)
    found = np.empty(shape, np.float32)
    data = needed(ggml, "ggml_get_data", _POINTER, _POINTER)
    ctypes.memmove(found.ctypes.data, data(result), found.nbytes)
    return found
