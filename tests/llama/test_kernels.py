"""specgen's own matrix products have the bits of ggml's, or are not used."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from specgen.core.errors import UsageError
from specgen.core.llama import ggml, kernels
from specgen.core.llama.library import library
from tests.support.command import finish, start, text_of
from tests.support.tiny import Quantization

pytestmark = pytest.mark.llama

KINDS = {"Q4_1": kernels.Q4_1, "Q8_0": kernels.Q8_0}
# Of the tiny models Q4_K is the one whose heads have 64 dimensions.
QUANTIZATIONS: tuple[Quantization, ...] = ("Q4_1", "Q8_0", "Q4_K")
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def random_weights(
    random: np.random.Generator, kind: int, rows: int, blocks: int
) -> NDArray[np.uint8]:
    """(rows, bytes of a row): weights of type `kind` with scales as models have them."""
    size = kernels.BLOCK_BYTES[kind]
    weights = random.integers(0, 256, (rows, blocks, size), np.uint8)
    halves = 2 if kind == kernels.Q4_1 else 1  # a scale, and a minimum
    scales = (random.standard_normal((rows, blocks, halves)) / 64).astype(np.float16)
    weights[..., : 2 * halves] = scales.view(np.uint8)
    return weights.reshape(rows, blocks * size)


@pytest.fixture(scope="module", params=kernels.INSTRUCTIONS)
def installed(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The compiled kernels, with one set of instructions after the other, switched off."""
    loaded = library()
    if loaded.kernels == kernels.NONE:
        pytest.skip("there are none for this processor, or no compiler was there")
    compiled = kernels._compiled()
    try:
        kernels._add(loaded.ggml, compiled, (request.param,))
    except kernels._Unusable:
        pytest.skip(f"this processor does not have {request.param}")
    compiled.specgen_enable(False, False)
    yield compiled
    kernels._add(loaded.ggml, compiled, (loaded.kernels.split()[0],))
    compiled.specgen_enable(True, not loaded.kernels.endswith("products"))


def by_ggml(kind: int, weights: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[Any]:
    """Products with one vector at a time: those of plain decoding."""
    return np.concatenate([ggml.multiply(library().ggml, kind, weights, v[None]) for v in values])


def by_kernels(
    compiled: Any, kind: int, weights: NDArray[np.uint8], values: NDArray[np.float32], threads: int
) -> NDArray[np.float32]:
    """All products at once; few are always the kernels'."""
    before = kernels.calls().products
    compiled.specgen_enable(True, False)
    found = ggml.multiply(library().ggml, kind, weights, values, threads)
    compiled.specgen_enable(False, False)
    assert kernels.calls().products == before + 1 or len(values) > 16
    return found


@each_kind
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    rows=st.integers(1, 90),
    blocks=st.integers(1, 40),
    n=st.one_of(st.integers(1, 20), st.sampled_from((63, 64, 65, 130))),
    threads=st.integers(1, 4),
)
def test_products_have_the_same_bits(
    installed: Any, kind: int, seed: int, rows: int, blocks: int, n: int, threads: int
) -> None:
    """Whatever the sizes, each result is that of ggml for its vector alone."""
    random = np.random.default_rng(seed)
    weights = random_weights(random, kind, rows, blocks)
    values = random.standard_normal((n, 32 * blocks)).astype(np.float32)
    found = by_kernels(installed, kind, weights, values, threads)
    assert found.tobytes() == by_ggml(kind, weights, values).tobytes()


@each_kind
def test_products_are_right(installed: Any, kind: int) -> None:
    """They are those of the dequantized weights, but for the rounding of the vectors to 8 bits."""
    random = np.random.default_rng(1)
    weights = random_weights(random, kind, rows=48, blocks=9)
    values = random.standard_normal((7, 288)).astype(np.float32)
    plain = dequantize(weights, gguf.GGMLQuantizationType(kind)).astype(np.float64)
    steps = np.abs(values.reshape(7, 9, 32)).max(2) / 127
    most = np.repeat(steps, 32, axis=1) @ np.abs(plain).T  # each value is off by one step at most
    found = by_kernels(installed, kind, weights, values, threads=2)
    assert np.all(np.abs(found - values @ plain.T) <= most)
    assert np.abs(found).mean() > 2 * most.mean()


@each_kind
def test_extreme_blocks(installed: Any, kind: int) -> None:
    """The largest products of every sign, zeros, and scales too small for a normal half."""
    random = np.random.default_rng(2)
    weights = random_weights(random, kind, rows=6, blocks=4).reshape(6, 4, -1)
    first = 4 if kind == kernels.Q4_1 else 2
    for row, byte in ((0, 0x80), (1, 0x7F), (2, 0xFF), (3, 0x00)):
        weights[row, :, first:] = byte
    weights[4, :, :first] = 0
    weights[5, :, :first] = np.tile(np.array([3, 0x80], np.uint8), first // 2)
    values = random.standard_normal((5, 128)).astype(np.float32)
    values[0] = 3.0
    values[1] = -3.0
    values[2, 32:] = 0.0
    values[3] = 1e-30
    values[4, 7] = 3e38
    flat = weights.reshape(6, -1)
    found = by_kernels(installed, kind, flat, values, threads=2)
    assert found.tobytes() == by_ggml(kind, flat, values).tobytes()


def test_other_formats_are_left_to_ggml(installed: Any) -> None:
    """Kernels multiply with weights of their own formats only."""
    random = np.random.default_rng(3)
    installed.specgen_enable(True, False)
    before = kernels.calls()
    values = random.standard_normal((3, 64)).astype(np.float32)
    q4_0 = random.integers(0, 100, (8, 2 * 18), np.uint8)
    ggml.multiply(library().ggml, int(gguf.GGMLQuantizationType.Q4_0), q4_0, values)
    floats = random.standard_normal((8, 64)).astype(np.float32).view(np.uint8)
    found = ggml.multiply(library().ggml, ggml.F32, floats, values)
    installed.specgen_enable(False, False)
    assert kernels.calls() == before
    assert np.allclose(found, values @ floats.view(np.float32).T, atol=1e-4)


@pytest.mark.long
def test_a_model_computes_the_same(
    tiny_llama: Callable[[Quantization], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text and log-probabilities of a whole model do not depend on the kernels."""
    options = ["-n", "24", "--greedy", "--drafter", "none", "--logprobs", "3", "--json"]
    for quantization in QUANTIZATIONS:
        found = []
        for name in (kernels.NONE, *kernels.INSTRUCTIONS):
            monkeypatch.setenv("SPECGEN_KERNELS", name)
            path = tiny_llama(quantization)
            outcome = finish(start("generate", path, "-p", "the way that was", *options))
            assert (outcome.code, outcome.err) == (0, "")
            choice = outcome.record["choices"][0]
            found.append((choice["text"], choice["logprobs"]))
        assert found[0][1]
        assert found[1:] == found[:1] * (len(found) - 1), quantization


def test_a_model_runs_on_the_kernels(
    installed: Any, tiny_llama: Callable[[Quantization], Path]
) -> None:
    """In a model, too, they are asked for what they were written for."""
    installed.specgen_enable(True, False)
    before = kernels.calls()
    text_of(tiny_llama("Q4_1"), "-p", "the way", "-n", "8", "--no-learn")
    installed.specgen_enable(False, False)
    assert kernels.calls().products > before.products


def reason_for_none(caplog: pytest.LogCaptureFixture, handle: Any) -> str:
    """Why the kernels were not installed."""
    caplog.set_level(logging.INFO, "specgen.kernels")
    assert kernels.install_kernels(handle) == kernels.NONE
    return caplog.messages[-1]


def test_without_a_compiled_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """An installation without a compiler works, and says so in the log."""
    monkeypatch.setattr(kernels, "_LIBRARY", tmp_path / "_kernels.so")
    monkeypatch.setattr(kernels, "_compiled", kernels._compiled.__wrapped__)  # not the one it has
    assert "not compiled" in reason_for_none(caplog, library().ggml)
    assert kernels.calls() == kernels.Calls(0, 0)


def test_a_library_that_does_not_fit(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was compiled for an older specgen is not called."""
    monkeypatch.setattr(kernels, "_compiled", kernels._compiled.__wrapped__)
    monkeypatch.setattr(kernels, "_VERSION", 0)
    assert "install specgen again" in reason_for_none(caplog, library().ggml)


def test_other_buffer_types(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An object that does not lie where it is expected is noticed."""
    monkeypatch.setattr(kernels, "_CONTEXT", 0)
    assert "buffer types differ" in reason_for_none(caplog, library().ggml)


def test_without_ggml(caplog: pytest.LogCaptureFixture) -> None:
    """Where llama-cpp-python does not load ggml by itself, llama.cpp stays as it is."""
    assert reason_for_none(caplog, None)


def test_other_classes(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Functions in another order than expected are noticed before any is replaced."""
    swapped = {table: names[::-1] for table, names in kernels._CLASSES.items()}
    monkeypatch.setattr(kernels, "_CLASSES", swapped)
    assert "classes differ" in reason_for_none(caplog, library().ggml)


def test_other_tensors(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A number of an operation that does not stand where it is expected is noticed."""
    monkeypatch.setattr(kernels, "operation", lambda *_: 5)
    assert "tensors differ" in reason_for_none(caplog, library().ggml)


def test_other_bits(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One bit that differs from ggml's is enough."""

    def flipped(*arguments: Any) -> NDArray[np.float32]:
        found = ggml.multiply(*arguments)
        if len(found) > 1:
            found.view(np.uint32)[-1, -1] ^= 1
        return found

    monkeypatch.setattr(kernels, "multiply", flipped)
    assert "some bits" in reason_for_none(caplog, library().ggml)


def test_a_setting_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt choice is refused by name."""
    monkeypatch.setenv("SPECGEN_KERNELS", "avx")
    with pytest.raises(UsageError, match="SPECGEN_KERNELS") as error:
        kernels.install_kernels(library().ggml)
    assert "avx2" in error.value.hint


def test_layout_of_nothing(installed: Any) -> None:
    """The check of tensors looks at what it is given."""
    zeros = (ctypes.c_char * 4096)()
    start = ctypes.addressof(zeros)
    assert not installed.specgen_layout(start, start + 1024, start + 2048, 368, 29)


def test_a_buffer_type_is_left_out_by_its_name(installed: Any) -> None:
    """The others stay in their order; where there is none of the name, nothing changes."""
    pointer = ctypes.c_void_p
    naming = ctypes.CFUNCTYPE(pointer, pointer)
    texts = [ctypes.create_string_buffer(name) for name in (b"HBM", b"AMX", b"CPU_REPACK")]
    names = [naming(lambda _, text=text: ctypes.addressof(text)) for text in texts]
    types = [(pointer * 8)(ctypes.cast(name, pointer).value) for name in names]
    items = (pointer * 3)(*map(ctypes.addressof, types))
    start = ctypes.addressof(items)
    end = start + ctypes.sizeof(items)
    vector = (pointer * 3)(start, end, end)  # as gcc and clang lay out std::vector
    listed = ctypes.CFUNCTYPE(pointer)(lambda: ctypes.addressof(vector))
    address = ctypes.cast(listed, pointer).value
    assert not installed.specgen_leave_out(b"KLEIDIAI", address)
    assert vector[1] == end
    assert installed.specgen_leave_out(b"AMX", address)
    assert (vector[0], vector[1]) == (start, end - ctypes.sizeof(pointer))
    assert items[:2] == [ctypes.addressof(types[0]), ctypes.addressof(types[2])]
    assert not installed.specgen_leave_out(b"AMX", address)
