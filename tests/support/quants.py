"""What products of quantized weights must be, to the last bit, computed with NumPy.

Weights are read as ggml defines their formats (ggml-common.h), columns are quantized as its CPU
backend does it for them, and the sums are made in the order that specgen promises. Nothing here
comes from kernels/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# The numbers that IQ4_NL and IQ4_XS choose from.
_UNEVEN: Final = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.int64
)


@dataclass(frozen=True)
class Weights:
    """What blocks of weights say: a value times its share's scale times d, and a minimum.

    Where shares have minima, these times dmin are taken off; else dmin, if any, is added.
    """

    values: Integers  # (rows, blocks, shares, values of a share)
    scales: Integers  # (rows, blocks, shares), 1 where a block has d alone
    d: Floats  # (rows, blocks), halves
    minima: Integers | None = None  # (rows, blocks, shares)
    dmin: Floats | None = None  # (rows, blocks), halves


@dataclass(frozen=True)
class Columns:
    """Vectors in 8 bits: a value times d."""

    values: Integers  # (n, blocks, values of a block)
    d: Floats  # (n, blocks)
    s: Floats | None = None  # (n, blocks): the sum of a block, times d


def _fields(*fields: tuple[str, str, int]) -> np.dtype[Any]:
    return np.dtype([(name, kind, (n,) if n > 1 else ()) for name, kind, n in fields])


_D, _DMIN, _HALF = ("d", "<f2", 1), ("dmin", "<f2", 1), ("qs", "u1", 16)

# Blocks as they lie in a file.
_BLOCKS: Final = MappingProxyType(
    {
        "Q4_0": _fields(_D, _HALF),
        "Q4_1": _fields(_D, _DMIN, _HALF),
        "Q5_0": _fields(_D, ("qh", "u1", 4), _HALF),
        "Q5_1": _fields(_D, _DMIN, ("qh", "u1", 4), _HALF),
        "Q8_0": _fields(_D, ("qs", "i1", 32)),
        "IQ4_NL": _fields(_D, _HALF),
        "Q2_K": _fields(("scales", "u1", 16), ("qs", "u1", 64), _D, _DMIN),
        "Q3_K": _fields(("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), _D),
        "Q4_K": _fields(_D, _DMIN, ("scales", "u1", 12), ("qs", "u1", 128)),
        "Q5_K": _fields(_D, _DMIN, ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)),
        "Q6_K": _fields(("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D),
        "IQ4_XS": _fields(_D, ("scales_h", "<u2", 1), ("scales_l", "u1", 4), ("qs", "u1", 128)),
    }
)


def _parts(data: NDArray[Any], run: int, bits: int) -> Integers:
    """Numbers of so many bits: in each run of bytes all the lowest ones, then the next."""
    shifts = np.arange(0, 8, bits)[:, None]
    runs = data.astype(np.int64).reshape(*data.shape[:-1], -1, 1, run)
    parts: Integers = runs >> shifts & (1 << bits) - 1
    return parts.reshape(*data.shape[:-1], -1)


def _bits_in_order(data: NDArray[Any]) -> Integers:
    """Bit i of all bytes together is number i."""
    return np.unpackbits(data, axis=-1, bitorder="little").astype(np.int64)


def _fifth_bits(b: NDArray[Any]) -> Integers:
    return _parts(b["qs"], 16, 4) + 16 * _bits_in_order(b["qh"])


def _six_bits(b: NDArray[Any]) -> tuple[Integers, Integers]:
    """Scales and minima of Q4_K and Q5_K.

    The first four of each are the low six bits of a byte. Of the last four the low four bits are
    in the third part, the high two above the first four.
    """
    first, second, third = np.moveaxis(
        b["scales"].astype(np.int64).reshape(*b.shape, 3, 4), -2, 0
    )  # each (..., 4)
    scales = np.concatenate((first % 64, third % 16 + 16 * (first // 64)), axis=-1)
    minima = np.concatenate((second % 64, third // 16 + 16 * (second // 64)), axis=-1)
    return scales, minima


def _q2_k(b: NDArray[Any]) -> tuple[Integers, ...]:
    scales = b["scales"].astype(np.int64)
    return _parts(b["qs"], 32, 2), scales % 16, scales // 16


def _q3_k(b: NDArray[Any]) -> tuple[Integers, ...]:
    """Scales have their low four bits in the first eight bytes, the high two in the last four."""
    values = _parts(b["qs"], 32, 2) + 4 * _parts(b["hmask"], 32, 1) - 4
    low, high = _parts(b["scales"][..., :8], 8, 4), _parts(b["scales"][..., 8:], 4, 2)
    return values, low + 16 * high - 32


def _q4_k(b: NDArray[Any]) -> tuple[Integers, ...]:
    return _parts(b["qs"], 32, 4), *_six_bits(b)


def _q5_k(b: NDArray[Any]) -> tuple[Integers, ...]:
    return _parts(b["qs"], 32, 4) + 16 * _parts(b["qh"], 32, 1), *_six_bits(b)


def _q6_k(b: NDArray[Any]) -> tuple[Integers, ...]:
    values = _parts(b["ql"], 64, 4) + 16 * _parts(b["qh"], 32, 2) - 32
    return values, b["scales"].astype(np.int64)


def _iq4_xs(b: NDArray[Any]) -> tuple[Integers, ...]:
    """Scales have their low four bits in two a byte, the high two in one number of 16 bits."""
    low = _parts(b["scales_l"], 1, 4)
    high = b["scales_h"].astype(np.int64)[..., None] >> np.arange(0, 16, 2) & 3
    return _UNEVEN[_parts(b["qs"], 16, 4)], low + 16 * high - 32


# Of a block: values, then scales of the shares and their minima, if it has any.
_READ: Final[dict[str, Callable[[NDArray[Any]], tuple[Integers, ...]]]] = {
    "Q4_0": lambda b: (_parts(b["qs"], 16, 4) - 8,),
    "Q4_1": lambda b: (_parts(b["qs"], 16, 4),),
    "Q5_0": lambda b: (_fifth_bits(b) - 16,),
    "Q5_1": lambda b: (_fifth_bits(b),),
    "Q8_0": lambda b: (b["qs"].astype(np.int64),),
    "IQ4_NL": lambda b: (_UNEVEN[_parts(b["qs"], 16, 4)],),
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}


def decoded(name: str, weights: NDArray[np.uint8]) -> Weights:
    """Rows of weights, (rows, bytes of a row), in the format of this name."""
    blocks = np.ascontiguousarray(weights).view(_BLOCKS[name])  # (rows, blocks)
    values, *more = _READ[name](blocks)
    scales = more[0] if more else np.ones((*blocks.shape, 1), np.int64)
    return Weights(
        values.reshape(*scales.shape, -1),
        scales,
        blocks["d"].astype(np.float32),
        more[1] if len(more) > 1 else None,
        blocks["dmin"].astype(np.float32) if "dmin" in (blocks.dtype.names or ()) else None,
    )


def dequantized(name: str, weights: NDArray[np.uint8]) -> Floats:
    """The weights as numbers, (rows, values of a row), rounded as the formats are defined."""
    w = decoded(name, weights)
    with np.errstate(all="ignore"):
        scales = w.d[..., None] * w.scales.astype(np.float32)
        numbers = scales[..., None] * w.values.astype(np.float32)
        if w.dmin is not None and w.minima is not None:
            numbers -= (w.dmin[..., None] * w.minima.astype(np.float32))[..., None]
        elif w.dmin is not None:
            numbers += w.dmin[..., None, None]
    return numbers.reshape(len(weights), -1)


def _bytes(numbers: Floats) -> Integers:
    """The nearest whole numbers, of ties the even one; what is none becomes -128."""
    nearest = np.where(np.abs(numbers) < 1 << 30, np.rint(numbers), -128)
    return nearest.clip(-128, 127).astype(np.int64)


def q8_k(values: Floats) -> Columns:
    """In blocks of 256, without a rounded scale: the first of the largest becomes -127."""
    x = values.reshape(len(values), -1, 256)
    with np.errstate(all="ignore"):
        at = np.abs(x).argmax(axis=-1, keepdims=True)
        largest = np.take_along_axis(x, at, axis=-1)
        factor = np.float32(-127) / largest
        whole = np.where(largest != 0, _bytes(factor * x), 0)
        d = np.where(largest != 0, np.float32(1) / factor, np.float32(0))
    return Columns(whole, d[..., 0])


def q8_1(values: Floats) -> Columns:
    """In blocks of 32, with a scale and a sum that are rounded to half precision."""
    x = values.reshape(len(values), -1, 32)
    with np.errstate(all="ignore"):
        largest = np.abs(x).max(axis=-1, keepdims=True)
        factor = np.where(largest != 0, np.float32(127) / largest, np.float32(0))
        whole = _bytes(factor * x)
        d = largest[..., 0] / np.float32(127)
        s = d * whole.sum(axis=-1).astype(np.float32)
        return Columns(whole, _through_half(d), _through_half(s))


def q8_0(values: Floats) -> Columns:
    """In blocks of 32, with a scale that is rounded to half precision."""
    columns = q8_1(values)
    return Columns(columns.values, columns.d)


def _through_half(numbers: Floats) -> Floats:
    return numbers.astype(np.float16).astype(np.float32)


def fused(a: Floats, b: Floats, c: Floats) -> Floats:
    """a b + c, rounded once."""
    exact = a.astype(float) * b.astype(float)  # 48 bits at most
    sums = exact + c
    # What that rounding left out decides where the sum lies in the middle of two floats. So it
    # goes into the last bit, which is not zero in any middle.
    part = sums - exact
    left_out = (exact - (sums - part)) + (c - part)
    is_even = sums.view(np.int64) % 2 == 0
    towards = np.nextafter(sums, np.copysign(np.inf, left_out))
    is_short = np.isfinite(sums) & (left_out != 0) & is_even
    rounded: Floats = np.where(is_short, towards, sums).astype(np.float32)
    return rounded


def _whole(x: Integers, weights: Integers) -> Floats:
    """(n, rows): exact sums of products along the last axes, rounded to float32."""
    # Less than 2^53, so float64 is exact, too, and quicker.
    flat = (array.reshape(len(array), -1).astype(float) for array in (x, weights))
    sums: Floats = np.inner(*flat).astype(np.float32)
    return sums


def product(name: str, weights: NDArray[np.uint8], values: Floats) -> Floats:
    """(n, rows): the products of weights, (rows, bytes of a row), and vectors, (n, columns).

    Each has one sum, to which the blocks are added in their order: the sum over the shares of
    scale times dot product, which is exact, times the product of both d, in one rounding. Minima
    have a sum of their own, which is added or taken off at the end.
    """
    w = decoded(name, weights)
    if w.scales.shape[-1] > 1:
        x = q8_k(values)
    else:
        x = q8_1(values) if w.dmin is not None else q8_0(values)
    sums = np.zeros((len(values), len(weights)), np.float32)
    minima = sums.copy()
    with np.errstate(all="ignore"):
        for b in range(w.d.shape[1]):
            d = x.d[:, b, None]
            whole = _whole(x.values[:, b], w.scales[:, b, :, None] * w.values[:, b])
            sums = fused(whole, w.d[:, b] * d, sums)
            if w.dmin is not None and w.minima is not None:
                shares = x.values[:, b].reshape(len(values), w.minima.shape[-1], -1).sum(axis=-1)
                minima = fused(_whole(shares, w.minima[:, b]), w.dmin[:, b] * d, minima)
            elif w.dmin is not None and x.s is not None:
                minima = fused(w.dmin[:, b], x.s[:, b, None], minima)
        if w.dmin is None:
            return sums
        return sums + minima if w.minima is None else sums - minima
