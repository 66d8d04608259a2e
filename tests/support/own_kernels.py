"""What specgen's own kernels compute in this process: more is promised of it than of others."""

from __future__ import annotations

from specgen.core.llama.kernels import NONE
from specgen.core.llama.library import library


def multiplies() -> bool:
    """Whether products of the formats that they are written for are theirs."""
    return library().kernels != NONE


def attends() -> bool:
    """Whether attention to a cache in f16 is theirs, by heads of any size that they know."""
    _, *but = library().kernels.split(maxsplit=1)
    return multiplies() and not any(words == "products" or "f16/f16" in words for words in but)
