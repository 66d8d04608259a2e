"""Where the number of threads does not show in a single bit of what a model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from specgen.core.config import ContextConfig
from specgen.core.memory.placement import are_all_laid_out
from specgen.core.models.modelinfo import Fields, read_headers

from .kernels import CACHE_TYPES, HEAD_SIZES, INSTRUCTIONS, laid_out_bytes
from .library import library

# Keys and tensors of what attention by specgen's kernels leaves to llama.cpp.
_OTHERWISE: Final = ("softcapping", "max_alibi_bias", "attn_sinks", "ssm", "shortconv")


def is_steady(path: Path, config: ContextConfig) -> bool:
    """Whether specgen's kernels compute all products and all attention of the model in `path`.

    Then any number of threads gives the same bits. llama.cpp's kernels may share out a sum.
    Raises ModelError.
    """
    if library().kernels not in INSTRUCTIONS:  # it names what is left to llama.cpp
        return False
    if not config.flash_attention or not {config.type_k, config.type_v} <= set(CACHE_TYPES):
        return False
    headers = read_headers(path)
    if not _head_sizes(Fields(headers[0])) <= set(HEAD_SIZES):
        return False
    names = [key for header in headers for key in header.metadata]
    names += [tensor.name for header in headers for tensor in header.tensors]
    if any(word in name for name in names for word in _OTHERWISE):
        return False
    return are_all_laid_out(headers, laid_out_bytes)


def _head_sizes(fields: Fields) -> set[int]:
    """Of keys and of values; 0 where the file does not tell."""
    heads = fields.per_layer("attention.head_count")
    most = max(heads, default=0) if isinstance(heads, tuple) else heads
    usual = fields.number("embedding_length") // most if most else 0
    names = ("attention.key_length", "attention.value_length")
    return {fields.number(name, usual) for name in names}
