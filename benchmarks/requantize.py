"""Write a model in another quantization, to compare what the same weights cost and how they round.

What the first quantization lost stays lost: such a file is for measuring, not for using.

    python benchmarks/requantize.py MODEL.gguf Q4_0|Q4_1|Q8_0|Q4_K_M|F16 OUT.gguf
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llama_cpp

TYPES = {
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


def requantize(model: Path, quantization: str, out: Path) -> None:
    """Write `model` to `out` in one of TYPES. Raises RuntimeError if llama.cpp fails."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = TYPES[quantization]
    params.allow_requantize = True
    code = llama_cpp.llama_model_quantize(
        str(model).encode(), str(out).encode(), ctypes.byref(params)
    )
    if code:
        raise RuntimeError(f"llama.cpp could not write {out} (code {code})")


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[2] not in TYPES:
        sys.exit(__doc__)
    requantize(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
