"""Which weights llama.cpp's CPU backend copies into another layout, and what the copies take.

Kernels that handle several rows at once want the rows interleaved. Such a copy lies in memory
of its own, next to the file, which stays mapped. (AMX adds up to an eighth.)
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

from specgen.core.models.header import TensorInfo

# Tables where tokens look up rows; nothing is multiplied with them.
TABLES: Final = frozenset(
    {
        *("token_embd.weight", "per_layer_token_embd.weight"),
        *("position_embd.weight", "token_types.weight"),
    }
)

# By type: the features that its kernels need, any of these sets, and the rows they take at once.
_INT8: Final = frozenset({"NEON", "MATMUL_INT8"})
_DOT: Final = frozenset({"NEON", "DOTPROD"})
_AVX2: Final = frozenset({"AVX2"})
_AVX512: Final = frozenset({"AVX512"})
_KERNELS: Final = MappingProxyType(
    {
        "Q4_0": ((_AVX2, 8), (_INT8, 4), (_DOT, 4), (frozenset({"VXE"}), 4)),
        "Q4_K": ((_AVX2, 8), (_INT8, 8), (_DOT, 8)),
        "Q2_K": ((_AVX512, 8),),
        "Q5_K": ((_INT8, 8), (_DOT, 8)),
        "Q6_K": ((_INT8, 8), (_DOT, 8)),
        "IQ4_NL": ((_AVX2, 8), (_DOT, 4)),
        "MXFP4": ((_AVX2, 8), (_DOT, 4)),
        "Q8_0": ((_INT8, 4), (_DOT, 4)),
        "Q1_0": ((_INT8, 4), (_DOT, 4)),
    }
)

AMX: Final = "AMX_INT8"  # the feature's name

# AMX multiplies tiles: columns that a row must be a multiple of. Rows come by 32.
_TILES: Final = MappingProxyType(
    {
        **dict.fromkeys(("Q4_0", "Q4_1", "Q8_0"), 32),
        **dict.fromkeys(("Q4_K", "Q5_K", "Q6_K", "IQ4_XS"), 256),
        "F16": 16,
    }
)
_TILE_ROWS: Final = 32


def cpu_features(system_info: str) -> frozenset[str]:
    """Names of the features that llama.cpp's line says it has, as in "CPU : AVX2 = 1 | ..."."""
    found = re.findall(r"(\w+) = (\d+)", system_info)
    return frozenset(name for name, value in found if int(value))


def is_copied(tensor: TensorInfo, features: frozenset[str]) -> bool:
    """Whether a weight that is multiplied is copied on a CPU with these features."""
    if len(tensor.shape) != (3 if "_exps." in tensor.name else 2):
        return False
    if AMX in features and _fits_tiles(tensor):
        return True
    if "REPACK" not in features:
        return False
    kernels = _KERNELS.get(tensor.type, ())
    return any(needed <= features and not tensor.shape[1] % n for needed, n in kernels)


def _fits_tiles(tensor: TensorInfo) -> bool:
    columns = _TILES.get(tensor.type)
    if columns is None or len(tensor.shape) != 2:
        return False
    return not tensor.shape[0] % columns and not tensor.shape[1] % _TILE_ROWS
