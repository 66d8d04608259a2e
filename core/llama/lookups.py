"""Whether specgen's own look-ups of rows are those of ggml."""

from __future__ import annotations

from typing import Any

import numpy as np

from .experts import are_close
from .formats import FORMATS, Format, some_weights
from .ggml import look_up


def lookups_agree(ggml: Any, kernels: Any) -> bool:
    """Whether they are ggml's in all formats, but for rounding: ggml may be built to round once.

    Args:
        ggml: the library as ctypes has it.
        kernels: the compiled kernels, installed.
    """
    return all(_agree(ggml, kernels, format_) for format_ in FORMATS.values())


def _agree(ggml: Any, kernels: Any, format_: Format) -> bool:
    """Rows of two bands, one of them twice."""
    ids = np.array([17, 0, 3, 17, 18], np.int32)
    inputs = ggml, format_.number, format_.values, some_weights(format_, rows=19, blocks=1), ids
    before = kernels.specgen_lookups()
    found = look_up(*inputs, threads=1, place=kernels.specgen_buffer_type())
    are_ours = kernels.specgen_lookups() == before + 1
    return are_ours and are_close(found, look_up(*inputs, threads=1))
