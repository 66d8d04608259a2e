"""Whether specgen's own products of experts are those of ggml."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats import FORMATS, some_weights, spread
from .ggml import multiply_by_experts


def experts_agree(ggml: Any, kernels: Any) -> bool:
    """Whether they are ggml's but for rounding, and the same for one token as for several.

    One format tells: an expert's sums are those of other products, which have a check of their own.

    Args:
        ggml: the library as ctypes has it.
        kernels: the compiled kernels, installed.
    """
    format_, place = FORMATS["Q4_K"], kernels.specgen_buffer_type()
    weights = some_weights(format_, rows=3 * 19, blocks=1).reshape(3, 19, -1)
    values = spread(4, 2, format_.values)
    chosen = np.array([[1, 0], [2, 1], [1, 2], [0, 1]], np.int32)
    inputs = ggml, format_.number, weights
    before = kernels.specgen_products()
    expected = multiply_by_experts(*inputs, values, chosen, threads=1)
    found = multiply_by_experts(*inputs, values, chosen, 1, place)
    one = multiply_by_experts(*inputs, values[-1:], chosen[-1:], 1, place)
    are_ours = kernels.specgen_products() == before + 2
    return are_ours and one.tobytes() == found[-1:].tobytes() and are_close(found, expected)


def are_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether they differ by rounding alone."""
    return bool(np.all(np.abs(found - expected) < 1e-5 * np.abs(expected).max()))
