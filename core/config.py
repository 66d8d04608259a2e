"""How to run a model, as asked for. Imports nothing heavy: `specgen --help` shows defaults."""

from __future__ import annotations

from dataclasses import dataclass

# Longest context that is taken unasked: its cache costs memory whether it is used or not.
DEFAULT_CONTEXT = 8192

DEFAULT_MAX_DRAFTS = 16


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to run a model.

    Attributes:
        n_ctx: tokens of context; None takes the model's own up to DEFAULT_CONTEXT, 0 all of it.
        threads: CPU threads; None takes host.default_threads().
        gpu_layers: layers to offload; None leaves it to llama.cpp.
        flash_attention: None leaves it to llama.cpp.
        swa_full: keep all cells of sliding-window layers, so that trees and rewinding work.
        max_drafts: most guesses in one tree.
        tree: whether drafts have side branches; None where the model can have them, and True is
            an error where it cannot.
        strict: give every call a width of one exact class, see strict.Strict.
    """

    n_ctx: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    flash_attention: bool | None = None
    swa_full: bool = True
    max_drafts: int = DEFAULT_MAX_DRAFTS
    tree: bool | None = None
    strict: bool = False
