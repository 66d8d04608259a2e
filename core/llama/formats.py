"""The formats of weights that specgen's kernels multiply, as kernels/formats.h has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Format:
    """How a block of weights looks in a file.

    Attributes:
        number: ggml_type, as in GGUF files.
        values: of a block.
        n_bytes: of a block.
        halves: where numbers in half precision lie in it, which must not be random.
    """

    number: int
    values: int
    n_bytes: int
    halves: tuple[int, ...]


FORMATS: Final = MappingProxyType(
    {
        "Q4_0": Format(2, 32, 18, (0,)),
        "Q4_1": Format(3, 32, 20, (0, 2)),
        "Q5_0": Format(6, 32, 22, (0,)),
        "Q5_1": Format(7, 32, 24, (0, 2)),
        "Q8_0": Format(8, 32, 34, (0,)),
        "Q2_K": Format(10, 256, 84, (80, 82)),
        "Q3_K": Format(11, 256, 110, (108,)),
        "Q4_K": Format(12, 256, 144, (0, 2)),
        "Q5_K": Format(13, 256, 176, (0, 2)),
        "Q6_K": Format(14, 256, 210, (208,)),
        "IQ4_NL": Format(20, 32, 18, (0,)),
        "IQ4_XS": Format(23, 256, 136, (0,)),
    }
)


def spread(*shape: int) -> NDArray[np.float32]:
    """Numbers from -1 to 1 in no order. NumPy's generators would take 2.5 MB for good."""
    numbers = np.sin(np.arange(1, 1 + math.prod(shape), dtype=np.float64) ** 2)
    return numbers.astype(np.float32).reshape(shape)


def some_weights(format_: Format, rows: int, blocks: int) -> NDArray[np.uint8]:
    """(rows, bytes of a row): any weights of this format, with scales as models have them."""
    weights = (128 + 127 * spread(rows, blocks, format_.n_bytes)).astype(np.uint8)
    scales = (spread(rows, blocks, len(format_.halves)) / 64).astype(np.float16)
    for i, at in enumerate(format_.halves):
        weights[..., at : at + 2] = scales[..., i : i + 1].view(np.uint8)
    return weights.reshape(rows, -1)


def some_cached(size: int, leave_out: int, *, half: bool) -> NDArray[Any]:
    """Keys or values of 40 positions in one shared head, in half precision or as Q8_0.

    Those that are left out at the beginning are more, so that values are not the same as keys.
    """
    positions = 40 + leave_out
    if half:
        return spread(1, positions, size)[:, leave_out:].astype(np.float16)
    return some_weights(FORMATS["Q8_0"], positions, size // 32)[None, leave_out:]
