"""The one door that all pass who run a model: a file that cannot generate is refused before it.

The header says it, and llama.cpp which architectures it has: nothing is loaded or measured.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from specgen.core.models.modelinfo import ModelInfo, read_model

from .library import knows_architecture


def require_runnable(path: str | Path) -> None:
    """Raise ModelError where the model at `path` cannot be read or cannot be run, and say why."""
    judged(read_model(path)).require_runnable()


def judged(info: ModelInfo) -> ModelInfo:
    """`info`, refused if llama.cpp of this build has no such architecture."""
    if info.refusal or knows_architecture(info.architecture):
        return info
    return replace(
        info,
        refusal=f"llama.cpp of this build does not know its architecture, '{info.architecture}'",
        remedy="a newer llama-cpp-python may",
    )
