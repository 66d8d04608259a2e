"""Fixtures: a home of its own for every test, tiny models, and the real ones where asked for."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import llama_cpp  # noqa: F401  # before specgen has its log: the whole package takes it
import pytest
from hypothesis import settings

from specgen.core.knowledge.first_use import OFF, VARIABLE
from specgen.core.models.catalogue import DEFAULT_MODEL, find_entry, model_folder
from specgen.core.models.pull import pull
from tests.support.tiny import Architecture, Quantization, write_tiny

# A run in the background of a script ignores Ctrl-C, and so would the commands that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no fault: no property has to hold within a time.
settings.register_profile("specgen", deadline=None)
settings.load_profile("specgen")

# Taken before any test changes the environment.
_REAL_MODELS = model_folder()
_NEEDS_MODELS = ("model", "gemma")
_TERMINAL = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES")


class TinyModel(Protocol):
    """Gives the path of a tiny model; each is written once per test run."""

    def __call__(
        self, architecture: Architecture = "llama", quantization: Quantization = "F32"
    ) -> Path: ...


@pytest.fixture(autouse=True)
def _clean_environment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test sees no settings, files or terminal of the person who runs it.

    No model is measured at its first use; tests of that put it back.
    """
    for name in os.environ:
        if name.startswith("SPECGEN_") or name in _TERMINAL:
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    # Else what a text looks like on stderr would depend on how fast the machine is.
    monkeypatch.setenv(VARIABLE, OFF)
    if any(request.node.get_closest_marker(mark) for mark in _NEEDS_MODELS):
        monkeypatch.setenv("SPECGEN_MODELS", str(_REAL_MODELS))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs beside the tests, the machine is taken to be quiet and fast enough."""
    monkeypatch.setattr("specgen.core.knowledge.profile.NOISY", math.inf)
    monkeypatch.setattr("specgen.core.knowledge.profiling.NOISY", math.inf)
    monkeypatch.setattr("specgen.core.knowledge.profile.LEAST_SAMPLES", 0)
    monkeypatch.setattr("specgen.cli.bench.live.load", lambda: None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """`tiny_model("lfm2", "Q8_0")` is the path of such a model."""
    folder = tmp_path_factory.mktemp("tiny")

    def path(architecture: Architecture = "llama", quantization: Quantization = "F32") -> Path:
        file = folder / f"{architecture}-{quantization}.gguf"
        return file if file.exists() else write_tiny(file, architecture, quantization)

    return path


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: TinyModel) -> Callable[[Quantization], Path]:
    """`tiny_llama("Q4_0")` is the path of such a model of plain attention."""
    return lambda quantization: tiny_model("llama", quantization)


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose greedy text never ends, and is the same with any drafter."""
    return write_tiny(
        tmp_path_factory.mktemp("endless") / "endless.gguf", "llama", "Q4_1", end_gain=0
    )


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model, fetched if it is not there. For tests marked `model`."""
    entry = find_entry(DEFAULT_MODEL)
    assert entry is not None
    return pull(entry, _REAL_MODELS)


@pytest.fixture(scope="session")
def gemma_model() -> Path:
    """A sliding-window model. For tests marked `gemma`; nobody accepts its terms unasked."""
    entry = find_entry("gemma-3-270m")
    assert entry is not None
    path = entry.installed(_REAL_MODELS)
    if path is None:
        pytest.skip("`make gemma` accepts the terms of gemma-3-270m and fetches it")
    return path
