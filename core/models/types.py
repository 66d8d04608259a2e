"""How llama.cpp's tensor types are stored: the name, and the bytes of a block of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Final, NamedTuple


class Block(NamedTuple):
    """How a type is stored: `n_values` numbers in `n_bytes` bytes."""

    name: str
    n_values: int
    n_bytes: int


# fmt: off
BLOCKS: Final[Mapping[int, Block]] = MappingProxyType({
    0: Block("F32", 1, 4), 1: Block("F16", 1, 2), 2: Block("Q4_0", 32, 18),
    3: Block("Q4_1", 32, 20), 6: Block("Q5_0", 32, 22), 7: Block("Q5_1", 32, 24),
    8: Block("Q8_0", 32, 34), 9: Block("Q8_1", 32, 36), 10: Block("Q2_K", 256, 84),
    11: Block("Q3_K", 256, 110), 12: Block("Q4_K", 256, 144), 13: Block("Q5_K", 256, 176),
    14: Block("Q6_K", 256, 210), 15: Block("Q8_K", 256, 292), 16: Block("IQ2_XXS", 256, 66),
    17: Block("IQ2_XS", 256, 74), 18: Block("IQ3_XXS", 256, 98), 19: Block("IQ1_S", 256, 50),
    20: Block("IQ4_NL", 32, 18), 21: Block("IQ3_S", 256, 110), 22: Block("IQ2_S", 256, 82),
    23: Block("IQ4_XS", 256, 136), 24: Block("I8", 1, 1), 25: Block("I16", 1, 2),
    26: Block("I32", 1, 4), 27: Block("I64", 1, 8), 28: Block("F64", 1, 8),
    29: Block("IQ1_M", 256, 56), 30: Block("BF16", 1, 2), 34: Block("TQ1_0", 256, 54),
    35: Block("TQ2_0", 256, 66), 39: Block("MXFP4", 32, 17), 40: Block("NVFP4", 64, 36),
    41: Block("Q1_0", 128, 18), 42: Block("Q2_0", 64, 18),
})
# fmt: on


def stored_bytes(shape: tuple[int, ...], type_id: int) -> int | None:
    """Bytes of a tensor of a known type; None where no such tensor can exist.

    A row (the first dimension) must be whole blocks, and sizes must fit 63 bits.
    """
    block = BLOCKS[type_id]
    n_values = prod(shape)
    if not 0 < n_values < 1 << 63 or (shape[0] if shape else 1) % block.n_values:
        return None
    return n_values // block.n_values * block.n_bytes


def type_name(type_id: int) -> str:
    """The type's name such as "Q4_1", or "type 99" for one that we do not know."""
    return BLOCKS[type_id].name if type_id in BLOCKS else f"type {type_id}"


def type_id(name: str) -> int:
    """The number of a type, by its name in small or capital letters. Raises KeyError."""
    numbers = {block.name: number for number, block in BLOCKS.items()}
    return numbers[name.upper()]
