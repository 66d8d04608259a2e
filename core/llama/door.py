"""The one door that all pass who run a model: a file that cannot generate is refused before it.

The header says it, and llama.cpp which architectures it has: nothing is loaded or measured.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from specgen.core.models.header import Header
from specgen.core.models.modelinfo import ModelInfo, read_headers

from .library import knows_architecture


def require_runnable(path: str | Path) -> tuple[Header, ...]:
    """The headers of the model at `path`.

    Raises ModelError where it cannot be read or cannot be run, and says why.
    """
    headers = read_headers(path)
    judged(ModelInfo.from_headers(headers)).require_runnable()
    return headers


def judged(info: ModelInfo) -> ModelInfo:
    """`info`, refused if llama.cpp of this build has no such architecture."""
    if info.refusal or knows_architecture(info.architecture):
        return info
    return replace(
        info,
        refusal=f"llama.cpp of this build does not know its architecture, '{info.architecture}'",
        remedy="a newer llama-cpp-python may",
    )
