"""The likeliest tokens of rows of logits."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from .kernels import compiled
from .protocols import Logits

ENTRY: Final = np.dtype([("token", np.int32), ("prob", np.float32)])

_BLOCK: Final = 64  # logits whose maximum stands for them


def top_k_rows(logits: Logits, k: int) -> NDArray[np.void]:  # (rows, min(k, n_vocab)) of ENTRY
    """The `k` likeliest tokens of each row, best first, and about their probabilities.

    Rows without usable logits get probability 0. The tokens are exact: the k largest values
    lie in the k blocks of largest maxima. The probabilities are a little too large, since only
    the maxima of the other blocks are summed up: they hold nearly all that the row holds.
    """
    kernels = compiled()
    if kernels is None or not logits.flags.c_contiguous or logits.dtype != np.float32:
        return _by_numpy(logits, k)
    n_rows, n_vocab = logits.shape
    entries = np.empty((n_rows, min(k, n_vocab)), ENTRY)
    kernels.specgen_top_k(
        logits.ctypes.data, n_rows, n_vocab, entries.shape[1], entries.ctypes.data
    )
    return entries


def _by_numpy(logits: Logits, k: int) -> NDArray[np.void]:
    n_rows, n_vocab = logits.shape
    n_blocks = n_vocab // _BLOCK
    if n_blocks <= 2 * k:
        places = np.arange(n_rows * n_vocab).reshape(n_rows, n_vocab)
        values = peaks = logits
    else:
        # A block is a column here, which NumPy reduces many times faster than runs of neighbours.
        n_even = n_blocks * _BLOCK
        peaks = np.maximum.reduce(logits[:, :n_even].reshape(n_rows, _BLOCK, n_blocks), axis=1)
        blocks = peaks.argpartition(n_blocks - k, axis=1)[:, n_blocks - k :]
        starts = _starts(n_rows, n_vocab)
        rows = np.arange(0, n_even, n_blocks)
        places = (blocks[:, :, None] + (starts[:, :, None] + rows)).reshape(n_rows, -1)
        if n_even < n_vocab:
            places = np.concatenate((places, starts + np.arange(n_even, n_vocab)), axis=1)
        values = logits.take(places)
    return _best(places, values, peaks, n_vocab, k)


def _best(
    places: NDArray[np.intp], values: Logits, peaks: Logits, n_vocab: int, k: int
) -> NDArray[np.void]:
    """The `k` best of each row of `values`, found at `places` of all logits laid end to end."""
    n_rows, n = values.shape
    if k < n:
        at = values.argpartition(n - k, axis=1)[:, n - k :] + _starts(n_rows, n)
        places, values = places.take(at), values.take(at)
    order = (-values).argsort(axis=1, kind="stable") + _starts(n_rows, min(k, n))
    entries = np.empty(order.shape, ENTRY)
    entries["token"] = places.take(order) - _starts(n_rows, n_vocab)
    values = values.take(order)
    with np.errstate(invalid="ignore", over="ignore"):
        top = values[:, :1]
        total = np.exp(peaks - top).sum(axis=1, keepdims=True)
        probs = np.exp(values - top) / total
    probs[~np.isfinite(total[:, 0])] = 0.0
    np.minimum(probs, 1.0, out=entries["prob"])
    return entries


def _starts(n_rows: int, n: int) -> NDArray[np.intp]:  # (n_rows, 1)
    """Where each row of `n` values starts, all laid end to end."""
    return np.arange(0, n_rows * n, n)[:, None]
