"""Profiles: what they are kept by, and measured on llama.cpp itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from specgen.core.config import ContextConfig, EngineConfig
from specgen.core.errors import BackendError, ModelError
from specgen.core.knowledge.profile import find_profile, fingerprint, keep_profile, profile_key
from specgen.core.knowledge.profiling import measure_profile, settings_to_measure
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.llama.library import device_names, library_version
from specgen.core.stop import ShouldStop
from tests.conftest import TinyModel


def test_fingerprints_tell_files_apart(tmp_path: Path) -> None:
    """By size, head and blocks; the name does not matter."""
    data = bytearray(3 << 20)
    files = [tmp_path / name for name in ("a", "b", "c", "d", "e")]
    for file, change in zip(files, (None, None, 0, len(data) - 1, "longer"), strict=True):
        changed = bytearray(data + b"\0" if change == "longer" else data)
        if isinstance(change, int):
            changed[change] = 1
        file.write_bytes(changed)
    prints = [fingerprint(file) for file in files]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    with pytest.raises(ModelError, match="missing"):
        fingerprint(tmp_path / "missing")


CONFIG = EngineConfig(n_ctx=256, threads=1)


@pytest.mark.llama
def test_what_a_profile_depends_on(tiny_model: TinyModel) -> None:
    """Weights, settings, devices and the build of llama.cpp, but not the length of the context."""
    path = tiny_model()
    key = profile_key(path, CONFIG)
    assert library_version().startswith("ggml ")
    assert any("CPU" in name for name in device_names())
    assert key["devices"] and key["llama_cpp"]
    assert profile_key(path, dataclasses.replace(CONFIG, n_ctx=128, max_drafts=3)) == key
    for change in (
        {"threads": 2},
        {"flash_attention": True},
        {"gpu_layers": 0},
        {"swa_full": False},
    ):
        assert profile_key(path, dataclasses.replace(CONFIG, **change)) != key
    assert profile_key(tiny_model(quantization="Q8_0"), CONFIG) != key


@pytest.mark.llama
def test_a_profile_is_kept(tiny_model: TinyModel) -> None:
    """Under what was asked for, and under the setting that was chosen."""
    path = tiny_model(quantization="Q4_0")
    assert find_profile(path, CONFIG) is None
    stages: list[str] = []
    profile = measure_profile(path, CONFIG, 1.5, lambda stage, share: stages.append(stage))
    assert profile.comparison is not None
    assert stages[0] == "loading the model"
    kept = keep_profile(path, CONFIG, profile)
    assert kept is not None
    found = find_profile(path, CONFIG)
    assert found is not None
    assert found.record() == profile.record()
    chosen = dataclasses.replace(CONFIG, flash_attention=profile.flash_attention)
    other = dataclasses.replace(CONFIG, flash_attention=not profile.flash_attention)
    by_name = find_profile(path, chosen)
    assert by_name is not None and by_name.curve == found.curve
    assert find_profile(path, other) is None


@pytest.mark.llama
def test_a_profile_that_is_none(tiny_model: TinyModel) -> None:
    """A file that holds something else is set aside."""
    path = tiny_model()
    profile = measure_profile(path, dataclasses.replace(CONFIG, flash_attention=False), 0.2)
    assert (profile.flash_attention, profile.comparison) == (False, None)
    kept = keep_profile(path, CONFIG, profile)
    assert kept is not None
    kept.write_text(kept.read_text().replace('"sizes"', '"seizes"'))
    assert find_profile(path, CONFIG) is None
    assert not kept.exists()


@pytest.mark.llama
@pytest.mark.parametrize("architecture", ["gemma3", "mamba", "lfm2", "granitehybrid"])
def test_every_kind_of_model(tiny_model: TinyModel, architecture: str) -> None:
    """Those that cannot rewind get a curve, too."""
    path = tiny_model(architecture)  # type: ignore[arg-type]
    profile = measure_profile(path, CONFIG, 0.5)
    assert profile.curve.seconds(1, 100) > 0


@pytest.mark.llama
def test_a_model_without_flash_attention(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting that works is taken; where none does, the error is llama.cpp's."""

    class Picky(LlamaBackend):
        def __init__(
            self, model: LlamaModel, config: ContextConfig, should_stop: ShouldStop
        ) -> None:
            if config.flash_attention is not works:
                raise BackendError("no such attention")
            super().__init__(model, config, should_stop)

    monkeypatch.setattr("specgen.core.knowledge.profiling.LlamaBackend", Picky)
    works: bool | None = False
    assert measure_profile(tiny_model(), CONFIG, 0.2).flash_attention is False
    works = None
    with pytest.raises(BackendError, match="no such attention"):
        measure_profile(tiny_model(), CONFIG, 0.2)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (EngineConfig(), (True, False)),
        (EngineConfig(flash_attention=False), (False,)),
        (EngineConfig(type_k="q8_0"), (True, False)),
        (EngineConfig(type_v="q8_0"), (True,)),
    ],
    ids=str,
)
def test_settings_that_are_measured(config: EngineConfig, settings: tuple[bool, ...]) -> None:
    """Flash attention on and off, where nobody chose and values do not need it."""
    assert settings_to_measure(config) == settings


@pytest.mark.llama
def test_a_slow_machine_measures_a_long_context_too(tiny_model: TinyModel) -> None:
    """There is no time for it, but what holds in a short one need not hold there."""
    path = tiny_model(quantization="Q4_1")
    profile = measure_profile(path, EngineConfig(threads=1), deadline_s=0.01)
    assert min(profile.classes) <= 128
    assert max(profile.classes) >= 576
    assert profile.branching.keys() == profile.classes.keys()
