"""The largest logits of rows, by the compiled library, or by NumPy where there is none.

Both give the same bits: logits are only compared, and where they are turned into probabilities
both do the same operations in single precision, one by one, and add up whole numbers. The
library's source is kernels/rows.h and kernels/rows_largest.h.

Behind a call of llama.cpp all code is cold, and the first use of any function of NumPy's takes 7
to 20 us, as long as looking at a row. So the library is given arrays as they are, and what comes
back is plain Python.
"""

from __future__ import annotations

import ctypes
import math
import os
from array import array
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .compiled import NONE, VARIABLE, NotCompiled, open_library

Row: TypeAlias = NDArray[np.float32]  # (n_vocab,)
Rows: TypeAlias = NDArray[np.float32]  # (rows, n_vocab)

_PARTS = 64  # of a row: the logits at one place of each are a column
_TO_WHOLE = np.float32(1.5 * 2**23)  # added and taken off again, it rounds to whole numbers
_LOG2_E = np.float32(1.44269504)
_LEAST = np.float32(-30)  # logarithm of a share of which nothing is left
# 2**x for -0.5 to 0.5, the highest power first; see kernels/rows.h.
_POLYNOMIAL = tuple(
    np.float32(c) for c in (0.0013264727, 0.009671513, 0.055507336, 0.24022242, 0.693147, 1)
)
_FLOAT32 = np.dtype(np.float32)
_OBJECT_BYTES = 16  # of what every Python object begins with, in the builds that are known


class Largest:
    """Finds the largest logits of rows of `n_vocab`, up to `k` of them. Not for several threads.

    A row of another shape raises ValueError.
    """

    def __init__(self, n_vocab: int, k: int) -> None:
        self.n_vocab = n_vocab
        self._k = max(0, min(k, n_vocab))
        self._compiled = compiled()
        self._ids = (ctypes.c_int32 * self._k)()
        self._logits = (ctypes.c_float * self._k)()

    def argmax(self, row: Row) -> int:
        """The position of the largest, the lowest of equals; that of the first NaN, if any."""
        if self._compiled:
            found: int = self._compiled.argmax(id(row), id(_FLOAT32), self.n_vocab)
            if found >= 0:
                return found
        return int(self._checked(row).argmax())

    def top_k(self, row: Row) -> tuple[list[int], list[float]]:
        """The ids of the `k` largest logits, and these, best first, ties by lowest id.

        All where k >= n_vocab, none where k <= 0. NaN is above all else.
        """
        ids, logits = self._ids, self._logits
        if not self._k:
            return [], []
        if self._compiled and self._compiled.top_k(
            id(row), id(_FLOAT32), self.n_vocab, self._k, ids, logits
        ):
            return ids[:], logits[:]
        row = self._checked(row)
        found = _largest(row, _peaks(row[None], self._k)[0], self._k)
        return found.tolist(), row[found].tolist()

    def _checked(self, row: Row) -> Row:
        if row.shape != (self.n_vocab,):
            raise ValueError(f"logits have shape {row.shape}, not ({self.n_vocab},)")
        return row.astype(np.float32, copy=False)


def likeliest(rows: Rows, k: int) -> tuple[array[int], array[float]]:
    """The `k` likeliest tokens of each row, ordered as above, and about how likely they are.

    All tokens where k >= n_vocab. The probabilities are a little too large: of every column of 64
    logits only the largest is summed up. They hold nearly all that the row holds. A row with a NaN,
    or without a finite maximum, has zeros.

    Returns:
        Tokens and probabilities, row after row.
    """
    n_rows, n_vocab = rows.shape
    k = min(k, n_vocab)
    ids, probs = array("i", bytes(4 * n_rows * k)), array("f", bytes(4 * n_rows * k))
    library = compiled() if ids else None
    to = ids.buffer_info()[0], probs.buffer_info()[0]
    if library and library.likeliest(id(rows), id(_FLOAT32), n_rows, n_vocab, k, *to):
        return ids, probs
    return _likeliest(rows.astype(np.float32, copy=False), k) if ids else (ids, probs)


@dataclass(frozen=True, slots=True)
class Compiled:
    """Functions of the library; their arguments are in kernels/rows_largest.h."""

    argmax: Any
    top_k: Any
    likeliest: Any


@cache
def compiled() -> Compiled | None:
    """The library's functions for this processor, or None where NumPy does the work."""
    if os.environ.get(VARIABLE) == NONE or not _are_arrays_known():
        return None
    try:
        library = open_library()
    except NotCompiled:
        return None
    return functions(library, "_avx2" if has_avx2(library) else "")


def has_avx2(library: ctypes.CDLL) -> bool:
    """Whether this processor runs the functions that were compiled for AVX2."""
    return hasattr(library, "specgen_has_avx2") and bool(library.specgen_has_avx2())


def functions(library: ctypes.CDLL, ending: str) -> Compiled:
    """Those whose names have this ending: "_avx2", or "" for any processor."""
    # They keep Python's lock: to let it go and take it again costs more than it gives.
    held = ctypes.PyDLL(library._name, handle=library._handle)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "argmax": (number, [pointer, pointer, number]),
        "top_k": (ctypes.c_bool, [pointer, pointer, number, number, pointer, pointer]),
        "likeliest": (ctypes.c_bool, [pointer, pointer, *[number] * 3, pointer, pointer]),
    }
    found = {}
    for name, (result, arguments) in signatures.items():
        found[name] = getattr(held, f"specgen_{name}{ending}")
        found[name].restype, found[name].argtypes = result, arguments
    return Compiled(**found)


def _are_arrays_known() -> bool:
    """Whether arrays are in memory as the library expects it."""
    some = np.zeros((3, 5), np.float32)[1:]
    if object.__basicsize__ != _OBJECT_BYTES or np.ndarray.__basicsize__ < ctypes.sizeof(_Array):
        return False
    it = _Array.from_address(id(some))
    if (it.values, it.n_dimensions, it.type) != (some.ctypes.data, 2, id(_FLOAT32)):
        return False
    numbers = ctypes.c_int64 * 2
    shape, strides = numbers.from_address(it.shape), numbers.from_address(it.strides)
    return (*shape, *strides) == (*some.shape, *some.strides)


class _Array(ctypes.Structure):
    """As rows.h has it."""

    _fields_ = (
        ("object", ctypes.c_char * _OBJECT_BYTES),
        ("values", ctypes.c_void_p),
        ("n_dimensions", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("shape", "strides", "base", "type")),
    )


def _likeliest(rows: Rows, k: int) -> tuple[array[int], array[float]]:
    """See `likeliest`; by NumPy."""
    ids, probs = np.zeros((len(rows), k), np.int32), np.zeros((len(rows), k), np.float32)
    peaks = _peaks(rows, k)
    tops = peaks.max(axis=1)
    usable = np.isfinite(tops).nonzero()[0]
    for i in usable:
        ids[i] = _largest(rows[i], peaks[i], k)
    top = tops[usable, None]
    with np.errstate(over="ignore"):  # a difference may be infinite; its share is 0
        totals = _shares(peaks[usable] - top).sum(axis=1, keepdims=True)
        probs[usable] = _shares(rows[usable[:, None], ids[usable]] - top) / totals
    return array("i", ids.tobytes()), array("f", probs.tobytes())


def _peaks(rows: Rows, k: int) -> Rows:
    """The largest logit of each column, and what is behind the last part of a row.

    All logits where columns are few. A column is what NumPy reduces many times faster than
    neighbours.
    """
    n_columns = rows.shape[1] // _PARTS
    if n_columns <= 2 * k:
        return rows
    n = n_columns * _PARTS
    peaks = np.maximum.reduce(rows[:, :n].reshape(len(rows), _PARTS, n_columns), axis=1)
    return np.concatenate((peaks, rows[:, n:]), axis=1) if n < rows.shape[1] else peaks


def _largest(row: Row, peaks: Row, k: int) -> NDArray[np.intp]:
    """Ids of the `k` largest, best first. The k-th largest peak is a bound: k logits reach it."""
    if math.isnan(peaks.max()):
        by_rank: NDArray[np.intp] = np.lexsort((-row, ~np.isnan(row)))
        return by_rank[:k]
    n = len(peaks)
    found = (row >= np.partition(peaks, n - k)[n - k]).nonzero()[0]
    backwards = found[::-1]  # a stable sort upwards then ends with the lowest of the largest
    order = row[backwards].argsort(kind="stable")[: -k - 1 : -1]
    ids: NDArray[np.intp] = backwards[order]
    return ids


def _shares(x: NDArray[np.float32]) -> NDArray[np.int64]:
    """exp(x) for x <= 0 in whole numbers of 2**-30, whose sums are exact."""
    power = np.maximum(x, _LEAST) * _LOG2_E
    whole = (power + _TO_WHOLE) - _TO_WHOLE
    part = power - whole
    value: Any = _POLYNOMIAL[0]
    for coefficient in _POLYNOMIAL[1:]:
        value = value * part + coefficient
    scale = (whole.astype(np.int32) + (30 + 127) << 23).view(np.float32)  # 2**(whole + 30)
    shares: NDArray[np.int64] = (value * scale).astype(np.int64)
    return shares
