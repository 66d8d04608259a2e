"""Measuring: on a backend whose calls take what the test says, and on llama.cpp itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from specgen.core.config import EngineConfig
from specgen.core.errors import BackendError, ModelError
from specgen.core.exact import exact_branches, exact_classes
from specgen.core.library import device_names, library_version
from specgen.core.llama import ContextConfig, LlamaBackend, LlamaModel
from specgen.core.measure import Subject, compare, measure
from specgen.core.profile import (
    find_profile,
    fingerprint,
    keep_profile,
    measure_profile,
    profile_key,
    settings_to_measure,
)
from specgen.core.protocols import Limits, Logits, Tokens
from specgen.core.stop import ShouldStop
from specgen.core.testing import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree

from .conftest import TinyModel

TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]
SIZES = (1, 4, 8, 2, 24)
CONTEXTS = (8, 32, 64)
LIMITS = fake_limits(16, n_ctx=128)


def cost(n: int, context: int) -> float:
    """What a call takes: a stair at four rows, rising with the context."""
    return (1.0 + -(-n // 4)) * (1 + context / 100)


class TimedBackend(FakeBackend):
    """Its calls move a clock; `load(calls)` slows them down."""

    def __init__(
        self,
        limits: Limits = LIMITS,
        *,
        factor: float = 1.0,
        load: Callable[[int], float] = lambda calls: 1.0,
        clock: list[float] | None = None,
        prefill_s: float = 0.1,
    ) -> None:
        super().__init__(HashModel(limits.n_vocab), limits)
        self.now = [0.0] if clock is None else clock
        self.widths: list[int] = []
        self._factor = factor
        self._load = load
        self._prefill_s = prefill_s

    def subject(self) -> Subject:
        """This backend, a text and its clock."""
        return Subject(self, TEXT, lambda: self.now[0])

    def prefill(self, tokens: Tokens) -> None:
        super().prefill(tokens)
        self.now[0] += self._prefill_s * len(tokens) * self._factor

    def score(self, tree: DraftTree, lead: Sequence[int]) -> Logits:
        self.widths.append(len(tree))
        self.now[0] += cost(len(tree), self.length) * self._factor * self._load(self.calls)
        return super().score(tree, lead)


def test_a_quiet_backend_is_measured_exactly() -> None:
    """Every size at every context; large sizes in proportion at those between."""
    found = measure(TimedBackend().subject(), 1e6, SIZES, CONTEXTS)
    assert found.noise == 1.0
    assert (found.curve.sizes, found.curve.contexts) == ((1, 2, 4, 8, 24), CONTEXTS)
    for context, times in zip(CONTEXTS, found.curve.times, strict=True):
        expected = [cost(n, context) for n in found.curve.sizes]
        assert times == pytest.approx(expected)


def test_load_now_and_then_does_not_show() -> None:
    """One call in six is ten times slower."""
    busy = TimedBackend(load=lambda calls: 10.0 if calls % 6 == 0 else 1.0)
    found = measure(busy.subject(), 1e6, SIZES, CONTEXTS)
    quiet = measure(TimedBackend().subject(), 1e6, SIZES, CONTEXTS)
    assert found.curve.times == tuple(map(pytest.approx, quiet.curve.times))
    assert found.noise == pytest.approx(1.0)


def test_load_most_of_the_time_is_told() -> None:
    """Then no figure can be trusted, and the noise says so."""
    busy = TimedBackend(load=lambda calls: 1.0 if calls % 7 == 0 else 10.0)
    assert measure(busy.subject(), 1e6, SIZES, CONTEXTS).noise > 1.5


def test_a_busy_spell_does_not_show() -> None:
    """A context that was measured under load is no slower than the next longer one."""
    spell = range(40, 80)
    busy = TimedBackend(load=lambda calls: 30.0 if calls in spell else 1.0)
    found = measure(busy.subject(), 1e6, SIZES, CONTEXTS)
    for shorter, longer in zip(found.curve.times, found.curve.times[1:], strict=False):
        assert all(a <= 1.2 * b for a, b in zip(shorter, longer, strict=True))


def test_sizes_take_turns() -> None:
    """No size is measured twice before all others were measured once; behind each comes one row."""
    backend = TimedBackend()
    measure(backend.subject(), 1e6, SIZES, (8,))
    turn = [width for n in SIZES for width in ((1, 1) if n == 1 else (n, 1))]
    assert backend.widths[: 1 + 2 * len(turn)] == [1, *turn, *turn]  # a call to warm up


def test_what_a_size_costs_shows_in_two_calls() -> None:
    """A call that is slow because another size was before it is not held against one row."""

    class Rebuilding(TimedBackend):
        def score(self, tree: DraftTree, lead: Sequence[int]) -> Logits:
            if self.widths and self.widths[-1] != len(tree):
                self.now[0] += 7.0
            return super().score(tree, lead)

    found = measure(Rebuilding().subject(), 1e6, SIZES, (8,)).curve
    other = measure(TimedBackend().subject(), 1e6, SIZES, (8,)).curve
    assert found.seconds(1, 8) == pytest.approx(other.seconds(1, 8))
    assert found.seconds(4, 8) == pytest.approx(other.seconds(4, 8) + 14.0)


def test_the_deadline_costs_rounds_then_sizes_then_contexts() -> None:
    """Less time means fewer repetitions, then fewer points, never none."""
    calls, n_points = [], []
    for deadline_s in (1000.0, 300.0, 100.0, 30.0, 1.0):
        backend = TimedBackend()
        curve = measure(backend.subject(), deadline_s, SIZES, CONTEXTS).curve
        calls.append(backend.calls)
        n_points.append((len(curve.contexts), len(curve.sizes)))
        assert backend.now[0] <= deadline_s + 30
        for context, times in zip(curve.contexts, curve.times, strict=True):
            assert times == pytest.approx([cost(n, context) for n in curve.sizes])
    assert calls == sorted(calls, reverse=True)
    assert n_points[0] == n_points[1] == (3, 5)
    assert n_points[-1] == (1, 3)


def test_a_slow_prefill_costs_contexts() -> None:
    """Text that is only there to be long gets part of the time."""
    found = measure(TimedBackend(prefill_s=5.0).subject(), 400.0, SIZES, CONTEXTS)
    assert found.curve.contexts == (8, 32)


@pytest.mark.parametrize(
    ("n_ctx", "contexts"), [(128, CONTEXTS), (48, (8,)), (12, (8,)), (10, (3,)), (2, (0,))]
)
def test_small_contexts(n_ctx: int, contexts: tuple[int, ...]) -> None:
    """What does not fit is left out."""
    subject = TimedBackend(fake_limits(16, n_ctx=n_ctx)).subject()
    curve = measure(subject, 1e6, SIZES, CONTEXTS).curve
    assert curve.contexts == contexts
    assert max(curve.sizes) <= max(1, n_ctx // 2)


def test_a_backend_that_cannot_rewind() -> None:
    """Its contexts are measured upwards, a row is kept each time, and widths are not compared."""
    limits = fake_limits(16, n_ctx=512, rewind=False, branch=False, max_rows=8)
    subject = TimedBackend(limits).subject()
    curve = measure(subject, 1e6, SIZES, (8, 200)).curve
    assert (curve.sizes, curve.contexts) == ((1, 2, 4, 8), (8, 200))
    assert exact_classes(subject, 8, 1e6) == ()


def test_comparing_settings() -> None:
    """The clock is shared, and load falls on all alike."""
    clock = [0.0]
    first = TimedBackend(clock=clock)
    second = TimedBackend(clock=clock, factor=1.5)
    found = compare([first.subject(), second.subject()], 1e6, (8, 64))
    assert found.contexts == (8, 64)
    assert found.steps == pytest.approx((1.0, 1.5))
    assert found.prefill == pytest.approx((1.0, 1.5))
    assert first.widths == second.widths


def test_comparing_in_no_time() -> None:
    """One size at the shortest context is the least."""
    clock = [0.0]
    subjects = [TimedBackend(clock=clock, factor=f).subject() for f in (2.0, 1.0)]
    found = compare(subjects, 0.1, (8, 64))
    assert found.contexts == (8,)
    assert found.steps == pytest.approx((1.0, 0.5))


class RoundingBackend(TimedBackend):
    """Rows in full groups of four round otherwise, as do all beyond a context of 40."""

    def score(self, tree: DraftTree, lead: Sequence[int]) -> Logits:
        logits = super().score(tree, lead).copy()
        logits[: len(tree) // 4 * 4] += np.float32(1e-3)
        if self.length >= 40 and len(tree) == 1:
            logits += np.float32(2e-3)
        return logits


def test_exact_classes() -> None:
    """Widths are in a class if a text decoded in either has the same logits all along."""
    subject = RoundingBackend().subject()
    widths = (1, 8, 4, 2, 16, 3, 6, 5, 24)
    # 8 leaves a half group at the end of no text: the second call of 24 is cut off after 8 rows.
    assert exact_classes(subject, 8, 1e6, widths) == ((1, 2, 3), (4, 8, 16, 24), (5,), (6,))
    assert exact_classes(subject, 64, 1e6, widths)[:2] == ((1,), (2, 3))
    assert subject.backend.length == 64


def test_exact_classes_in_time() -> None:
    """The first width is always there; what was not compared is in no class."""
    assert exact_classes(TimedBackend().subject(), 8, 0.1, (4, 8, 1)) == ((4,),)


def test_exact_branches() -> None:
    """A width is exact if its side branches round as a chain does, wherever they are tried."""

    class Branching(TimedBackend):
        """From 6 rows on side branches round otherwise, with 8 rows only at one place."""

        def score(self, tree: DraftTree, lead: Sequence[int]) -> Logits:
            logits = super().score(tree, lead).copy()
            if len(tree) >= 6 and (len(tree) != 8 or self.length == 16):
                logits[tree.n_main :] += np.float32(1e-3)
            return logits

    subject = Branching().subject()
    assert exact_branches(subject, 8, 1e6, (3, 4, 5, 6, 8, 12)) == {
        3: True, 4: True, 5: True, 6: False, 8: False, 12: False
    }  # fmt: skip
    assert subject.backend.length == 8
    assert exact_branches(Branching().subject(), 40, 1e6, (3, 8)) == {3: True, 8: True}
    assert exact_branches(Branching().subject(), 8, 0.0, (6, 4)) == {6: False}
    chains = TimedBackend(fake_limits(16, branch=False)).subject()
    assert exact_branches(chains, 8, 1e6) == {}


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

    monkeypatch.setattr("specgen.core.profile.LlamaBackend", Picky)
    works: bool | None = False
    assert measure_profile(tiny_model(), CONFIG, 0.2).flash_attention is False
    works = None
    with pytest.raises(BackendError, match="no such attention"):
        measure_profile(tiny_model(), CONFIG, 0.2)


@pytest.mark.llama
def test_exact_classes_of_llama_cpp(tiny_model: TinyModel) -> None:
    """Q4_0 rounds alike in every width, with flash attention and a short text."""
    model = LlamaModel(tiny_model(quantization="Q4_0"))
    backend = LlamaBackend(model, ContextConfig(256, threads=1, flash_attention=True))
    try:
        assert exact_classes(Subject(backend, TEXT), 16, 60.0, (1, 2, 5, 8)) == ((1, 2, 5, 8),)
        assert exact_branches(Subject(backend, TEXT), 16, 60.0, (3, 8)) == {3: True, 8: True}
    finally:
        backend.close()
        model.close()


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
