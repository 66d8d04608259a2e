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


def random_attention(
    random: np.random.Generator, size: int, heads: int, shared: int, tokens: int, positions: int
) -> tuple[NDArray[np.float32], NDArray[np.float16], NDArray[np.float16], NDArray[np.float16]]:
    """Queries, keys, values and mask for `ggml.attend`; what nobody sees is not a number."""
    queries = 2 * random.standard_normal((heads, tokens, size), np.float32)
    keys = random.standard_normal((shared, positions, size)).astype(np.float16)
    values = random.standard_normal((shared, positions, size)).astype(np.float16)
    hidden = random.random((tokens, positions)) < 0.3
    hidden[:, 0] = False
    hidden[:, positions - positions // 8 :] = True
    keys[:, hidden.all(0)] = np.nan
    values[:, hidden.all(0)] = np.nan
    return queries, keys, values, np.where(hidden, -np.inf, 0).astype(np.float16)


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
    compiled.specgen_enable(True, loaded.kernels in kernels.INSTRUCTIONS)


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


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    size=st.sampled_from(kernels.HEAD_SIZES),
    shared=st.integers(1, 4),
    sharing=st.integers(1, 5),
    tokens=st.integers(1, 63),
    positions=st.integers(1, 700),
    threads=st.integers(1, 4),
)
def test_attention_has_the_same_bits(
    installed: Any,
    seed: int,
    size: int,
    shared: int,
    sharing: int,
    tokens: int,
    positions: int,
    threads: int,
) -> None:
    """Each token gets what ggml computes for several; what is hidden from all is not read."""
    if not installed.specgen_enable(False, False):
        pytest.skip("there is no attention for these instructions")
    if library().kernels not in kernels.INSTRUCTIONS:
        pytest.skip("ggml was built for other arithmetic: attention stays ggml's here")
    random = np.random.default_rng(seed)
    heads = shared * sharing
    queries, keys, values, mask = random_attention(random, size, heads, shared, tokens, positions)
    n = max(2, tokens)  # ggml splits the cache for one
    by_ggml = ggml.attend(
        library().ggml,
        np.resize(queries.swapaxes(0, 1), (n, heads, size)).swapaxes(0, 1),
        keys,
        values,
        np.resize(mask, (n, positions)),
    )[:tokens]
    before = kernels.calls().attentions
    installed.specgen_enable(False, True)
    found = ggml.attend(library().ggml, queries, keys, values, mask, threads)
    installed.specgen_enable(False, False)
    assert kernels.calls().attentions == before + 1
    assert found.tobytes() == by_ggml.tobytes()


def test_attention_is_right(installed: Any) -> None:
    """It is the softmax of the scores that averages the values, but for half precision."""
    if not installed.specgen_enable(False, True):
        pytest.skip("there is no attention for these instructions")
    random = np.random.default_rng(4)
    queries, keys, values, mask = random_attention(random, 64, 4, 2, tokens=5, positions=90)
    found = ggml.attend(library().ggml, queries, keys, values, mask)
    installed.specgen_enable(False, False)
    k, v = (np.nan_to_num(np.repeat(x, 2, 0).astype(np.float64)) for x in (keys, values))
    scores = queries @ k.swapaxes(1, 2) / 8 + mask
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (shares / shares.sum(-1, keepdims=True)) @ v
    assert np.abs(found - expected.swapaxes(0, 1)).max() < 0.01
    assert np.abs(found).max() > 0.5


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
    has_attention = installed.specgen_enable(True, True)
    before = kernels.calls()
    text_of(tiny_llama("Q4_1"), "-p", "the way", "-n", "8", "--no-learn")
    between = kernels.calls()
    text_of(tiny_llama("Q4_K"), "-p", "the way", "-n", "8", "--no-learn", "-fa", "on")
    after = kernels.calls()
    installed.specgen_enable(False, False)
    assert between.products > before.products
    assert has_attention == (after.attentions > between.attentions)


def test_attention_without_a_finite_score(installed: Any) -> None:
    """What overflows half precision becomes no number, as in ggml, and not a wrong one."""
    if not installed.specgen_enable(False, False):
        pytest.skip("there is no attention for these instructions")
    inputs = random_attention(np.random.default_rng(5), 64, 3, 1, tokens=4, positions=60)
    inputs[0][1, 2, 5] = 1e6
    inputs[0][2, 3] = np.nan
    expected = ggml.attend(library().ggml, *inputs)
    installed.specgen_enable(False, True)
    found = ggml.attend(library().ggml, *inputs)
    installed.specgen_enable(False, False)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.isnan(found).any() and not np.isnan(found).all()


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


def test_other_bits_of_attention(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where attention alone differs, products are kept."""
    seen = []

    def flipped(*arguments: Any) -> NDArray[np.float32]:
        found = ggml.attend(*arguments)
        seen.append(found)
        found.view(np.uint32)[-1, -1, -1] ^= len(seen) % 2
        return found

    monkeypatch.setattr(kernels, "attend", flipped)
    caplog.set_level(logging.INFO, "specgen.kernels")
    assert kernels.install_kernels(library().ggml).endswith(" products")
    assert "attention" in caplog.messages[-1]


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
