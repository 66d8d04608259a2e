"""How fast this machine reads memory, which bounds how fast it decodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .limits import available_memory_bytes

_LEAST_BYTES: Final = 64 << 20
_SHARE: Final = 4  # measuring takes at most a fourth of the memory that is available

# NumPy vectorises the maximum of int32 and releases the GIL. Of those tried it reads the
# fastest: 42 GB/s with one core of an EPYC, bitwise or 36, sums of floats 24, of small integers 3.
_READ: Final = np.maximum.reduce


def measure_bandwidth(
    threads: int,
    n_bytes: int = 512 << 20,
    seconds: float = 1.0,
    clock: Callable[[], float] = perf_counter,
) -> float:
    """Bytes per second that `threads` threads read from memory together, in the best round.

    In a round each thread reads its part of one array of `n_bytes`, which should be larger than
    any cache; where memory is short the array is smaller. Rounds go on for `seconds`, the last
    one to its end. What else runs on the machine meanwhile takes its share.
    """
    array = np.empty(_affordable(n_bytes) // 4, np.int32)
    with ThreadPoolExecutor(threads) as pool:
        parts = np.array_split(array, threads)
        # Pages that nobody wrote to have no memory of their own, and reading them is fast.
        list(pool.map(_fill, parts))
        start = clock()
        best = math.inf
        while True:
            began = clock()
            list(pool.map(_READ, parts))
            ended = clock()
            best = min(best, ended - began)
            if ended - start >= seconds:
                break
    return array.nbytes / best


def _affordable(n_bytes: int) -> int:
    available = available_memory_bytes()
    if available is None:
        return n_bytes
    return min(n_bytes, max(_LEAST_BYTES, available // _SHARE))


def _fill(part: NDArray[np.int32]) -> None:
    part.fill(1)
