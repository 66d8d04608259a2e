"""specgen's own attention has the bits of ggml's, or is not used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from specgen.core.llama import ggml, kernels
from specgen.core.llama.library import library, system_info
from tests.support.command import finish, start, text_of
from tests.support.tiny import Quantization

pytestmark = pytest.mark.llama

Q8_0 = gguf.GGMLQuantizationType.Q8_0
CACHES = [(keys, values) for keys in kernels.CACHE_TYPES for values in kernels.CACHE_TYPES]
each_cache = pytest.mark.parametrize("cache", CACHES, ids="/".join)
each_size = pytest.mark.parametrize("size", kernels.HEAD_SIZES)


@pytest.fixture(scope="module", params=kernels.INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """One after the other, with the kernels switched off."""
    loaded = library()
    if loaded.kernels == kernels.NONE:
        pytest.skip("there are none for this processor, or no compiler was there")
    compiled = kernels._compiled()
    if not compiled.specgen_allow(request.param.encode(), ggml.F16, ggml.F16, 64):
        pytest.skip(f"this processor does not have {request.param}")
    compiled.specgen_enable(False, False)
    yield request.param
    assert kernels.install_kernels(loaded.ggml) == loaded.kernels  # as it was


class Inputs(NamedTuple):
    """The arguments of `ggml.attend`."""

    queries: NDArray[np.float32]
    keys: NDArray[Any]
    values: NDArray[Any]
    mask: NDArray[np.float16]


def random_cached(
    random: np.random.Generator, kind: str, hidden: NDArray[np.bool_], shared: int, size: int
) -> NDArray[Any]:
    """Keys or values; what is hidden is not a number."""
    numbers = random.standard_normal((shared, len(hidden), size), np.float32)
    if kind == "f16":
        numbers[:, hidden] = np.nan
        return numbers.astype(np.float16)
    blocks: NDArray[np.uint8] = quantize(numbers, Q8_0)
    blocks.reshape(shared, len(hidden), -1, 34)[:, hidden, :, :2] = 0xFF  # scales
    return blocks


def random_inputs(
    random: np.random.Generator,
    cache: tuple[str, str],
    size: int,
    heads: int,
    shared: int,
    tokens: int,
    positions: int,
) -> Inputs:
    """Inputs in which each token sees the first position, and none the last ones."""
    hidden = random.random((tokens, positions)) < 0.3
    hidden[:, 0] = False
    hidden[:, positions - positions // 8 :] = True
    unseen: NDArray[np.bool_] = np.all(hidden, axis=0)
    return Inputs(
        2 * random.standard_normal((heads, tokens, size), np.float32),
        random_cached(random, cache[0], unseen, shared, size),
        random_cached(random, cache[1], unseen, shared, size),
        np.where(hidden, -np.inf, 0).astype(np.float16),
    )


def by_ggml(inputs: Inputs) -> NDArray[np.float32]:
    """What ggml computes for several tokens, for one token, too: it splits the cache for one."""
    tokens = inputs.queries.shape[1]
    if tokens > 1:
        return ggml.attend(library().ggml, *inputs)
    twice = inputs._replace(
        queries=np.repeat(inputs.queries, 2, axis=1), mask=np.repeat(inputs.mask, 2, axis=0)
    )
    return ggml.attend(library().ggml, *twice)[:1]


@contextmanager
def attention(instructions: str, cache: tuple[str, str], size: int) -> Iterator[None]:
    """The kernels attend to caches of this kind, whether or not they passed the check."""
    compiled = kernels._compiled()
    types = [kernels.CACHE_TYPES[kind] for kind in cache]
    assert compiled.specgen_allow(instructions.encode(), *types, size)
    compiled.specgen_enable(False, True)
    try:
        yield
    finally:
        compiled.specgen_enable(False, False)


def by_kernels(
    instructions: str, cache: tuple[str, str], inputs: Inputs, threads: int = 2
) -> NDArray[np.float32]:
    """What the kernels compute."""
    before = kernels.calls().attentions
    with attention(instructions, cache, inputs.queries.shape[2]):
        found = ggml.attend(library().ggml, *inputs, threads)
    assert kernels.calls().attentions == before + 1
    return found


def alike(instructions: str, cache: tuple[str, str], size: int) -> bool:
    """Whether the check finds the bits of ggml."""
    compiled = kernels._compiled()
    return kernels._attends_alike(library().ggml, compiled, instructions, *cache, size)


def same_arithmetic(instructions: str, cache: tuple[str, str], size: int) -> None:
    """Skips a test of bits where ggml was built for other instructions."""
    if not alike(instructions, cache, size):
        pytest.skip("ggml was built for other arithmetic: attention stays ggml's here")


@each_size
@each_cache
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    shared=st.integers(1, 4),
    sharing=st.integers(1, 5),
    tokens=st.one_of(st.integers(1, 9), st.integers(1, 63)),
    positions=st.integers(1, 700),
    threads=st.integers(1, 4),
)
def test_the_same_bits(
    instructions: str,
    cache: tuple[str, str],
    size: int,
    seed: int,
    shared: int,
    sharing: int,
    tokens: int,
    positions: int,
    threads: int,
) -> None:
    """Each token gets what ggml computes for several; what is hidden from all is not read."""
    same_arithmetic(instructions, cache, size)
    random = np.random.default_rng(seed)
    inputs = random_inputs(random, cache, size, shared * sharing, shared, tokens, positions)
    found = by_kernels(instructions, cache, inputs, threads)
    assert found.tobytes() == by_ggml(inputs).tobytes()


def test_it_is_used_where_ggml_computes_alike(instructions: str) -> None:
    """Nothing is left to ggml where it was built for the instructions of the kernels."""
    left = kernels._check_attention(library().ggml, kernels._compiled(), (instructions,))
    assert "q8_0/q8_0" not in left  # summed in 8 lanes with all instructions
    built_for = "avx512" if "AVX512 = 1" in system_info() else "avx2"
    if "avx512_fp16" in Path("/proc/cpuinfo").read_text():
        pytest.skip("ggml may have been built for arithmetic in half precision")
    assert bool(left) == (instructions != built_for)


def test_other_instructions_where_ggml_has_them(instructions: str) -> None:
    """Each kind of cache is attended to with those whose bits are ggml's."""
    both = kernels.INSTRUCTIONS
    left = kernels._check_attention(library().ggml, kernels._compiled(), both[::-1])
    assert left == kernels._check_attention(library().ggml, kernels._compiled(), both)
    assert (not left) == (library().kernels in both)


def dequantized(cached: NDArray[Any]) -> NDArray[np.float64]:
    """Keys or values as numbers, zeros where they are none."""
    plain = dequantize(cached, Q8_0) if cached.dtype == np.uint8 else cached
    return np.nan_to_num(plain.astype(np.float64))


@each_size
@each_cache
def test_it_is_right(instructions: str, cache: tuple[str, str], size: int) -> None:
    """It is the softmax of the scores that averages the values, but for what is rounded."""
    random = np.random.default_rng(4)
    inputs = random_inputs(random, cache, size, heads=4, shared=2, tokens=5, positions=90)
    found = by_kernels(instructions, cache, inputs)
    keys, values = (np.repeat(dequantized(x), 2, 0) for x in (inputs.keys, inputs.values))
    scores = inputs.queries @ keys.swapaxes(1, 2) * size**-0.5 + inputs.mask
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (shares / shares.sum(-1, keepdims=True)) @ values
    rounding = 0.01 if cache[0] == "f16" else 0.05  # of queries, to 11 bits or to 8
    assert np.abs(found - expected.swapaxes(0, 1)).max() < rounding
    assert np.abs(found).max() > 0.5


@each_cache
def test_without_a_finite_score(instructions: str, cache: tuple[str, str]) -> None:
    """What is no number, or overflows, gives what it gives in ggml, and not something else."""
    same_arithmetic(instructions, cache, 64)
    inputs = random_inputs(np.random.default_rng(5), cache, 64, 5, 1, tokens=4, positions=60)
    inputs.queries[1, 2, 5] = 1e6  # too large for half precision
    inputs.queries[2, 3] = np.nan
    inputs.queries[3, 1, 7] = 3e38
    inputs.queries[4, 0, 9] = np.inf
    found = by_kernels(instructions, cache, inputs)
    assert np.array_equal(found, by_ggml(inputs), equal_nan=True)
    assert np.isnan(found).any() and not np.isnan(found).all()


@each_cache
def test_a_token_that_sees_nothing(instructions: str, cache: tuple[str, str]) -> None:
    """It gets zeros, as in ggml, and the others get theirs."""
    same_arithmetic(instructions, cache, 128)
    inputs = random_inputs(np.random.default_rng(6), cache, 128, 2, 1, tokens=5, positions=50)
    inputs.mask[2] = -np.inf
    found = by_kernels(instructions, cache, inputs)
    assert not found[2].any() and found[[0, 1, 3, 4]].all()
    assert found.tobytes() == by_ggml(inputs).tobytes()


def test_extreme_blocks(instructions: str) -> None:
    """The smallest and largest bytes, zeros and scales too small for a normal half."""
    cache = ("q8_0", "q8_0")
    inputs = random_inputs(np.random.default_rng(7), cache, 64, 3, 1, tokens=4, positions=24)
    for cached in inputs.keys, inputs.values:
        blocks = cached.reshape(24, 2, 34)
        for position, byte in ((0, 0x80), (1, 0x7F), (2, 0xFF), (3, 0x00)):
            blocks[position, :, 2:] = byte
        blocks[4, :, :2] = 0
        blocks[5, :, :2] = 3, 0x80  # a tiny negative one
    inputs.queries[0, 0] = 3.0
    inputs.queries[0, 1] = -3.0
    inputs.queries[0, 2] = 0.0
    inputs.queries[0, 3] = 1e-30
    assert by_kernels(instructions, cache, inputs).tobytes() == by_ggml(inputs).tobytes()


@each_cache
def test_many_tokens(instructions: str, cache: tuple[str, str]) -> None:
    """From 64 on ggml has another kernel for halves, which stays, and none for other caches."""
    inputs = random_inputs(np.random.default_rng(8), cache, 64, 3, 1, tokens=70, positions=90)
    expected = by_ggml(inputs)
    before = kernels.calls().attentions
    with attention(instructions, cache, 64):
        found = ggml.attend(library().ggml, *inputs)
    halves = cache == ("f16", "f16")
    assert kernels.calls().attentions == before + (not halves)
    if alike(instructions, cache, 64) or halves:
        assert found.tobytes() == expected.tobytes()


def test_others_are_left_to_ggml(instructions: str) -> None:
    """What was not allowed is not computed, and there is nothing to allow for other formats."""
    inputs = random_inputs(np.random.default_rng(9), ("q8_0", "f16"), 64, 2, 1, 3, positions=20)
    allow = kernels._compiled().specgen_allow
    before = kernels.calls()
    assert allow(b"none", ggml.Q8_0, ggml.F16, 64)
    with (
        attention(instructions, ("q8_0", "f16"), 128),
        attention(instructions, ("q8_0", "q8_0"), 64),
    ):
        ggml.attend(library().ggml, *inputs)
    assert kernels.calls() == before
    for kind in (
        (ggml.F32, ggml.F16, 64),
        (ggml.F16, int(gguf.GGMLQuantizationType.Q4_1), 64),
        (ggml.F16, ggml.F16, 80),
    ):
        assert not allow(instructions.encode(), *kind)
    assert not allow(b"neon", ggml.F16, ggml.F16, 64)


def flip(monkeypatch: pytest.MonkeyPatch, where: Callable[[Inputs], bool]) -> None:
    """Every second result of `attend`, that is of the kernels, differs in one bit."""
    seen = []

    def flipped(*arguments: Any) -> NDArray[np.float32]:
        found = ggml.attend(*arguments)
        seen.append(found)
        if where(Inputs(*arguments[1:5])):
            found.view(np.uint32)[-1, -1, -1] ^= len(seen) % 2
        return found

    monkeypatch.setattr(kernels, "attend", flipped)


def test_one_check_is_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine is busy, threads wait long for each other: one kind of cache is enough."""
    threads = []

    def counted(*arguments: Any) -> NDArray[np.float32]:
        threads.append(arguments[-1])
        return ggml.attend(*arguments)

    monkeypatch.setattr(kernels, "attend", counted)
    assert kernels.install_kernels(library().ggml) == library().kernels
    assert sorted(threads)[-2:] == [1, 2]


def test_other_bits(
    instructions: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where attention alone differs, products are kept."""
    monkeypatch.setenv(kernels.VARIABLE, instructions)
    flip(monkeypatch, lambda _: True)
    caplog.set_level(logging.INFO, "specgen.kernels")
    assert kernels.install_kernels(library().ggml).endswith(" products")
    assert "only llama.cpp's own attention: " in caplog.messages[-1]


def test_other_bits_of_one_kind(
    instructions: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where attention differs for one size of a head in one format, the rest is kept."""
    monkeypatch.setenv(kernels.VARIABLE, instructions)
    flip(monkeypatch, lambda it: it.keys.shape[2] == 136 and it.values.dtype == np.uint8)
    caplog.set_level(logging.INFO, "specgen.kernels")
    name = kernels.install_kernels(library().ggml)
    assert "q8_0/q8_0 128" in name and name.split()[1] == "without"
    assert "q8_0/f16 128" not in name and "q8_0/q8_0 64" not in name
    assert "only llama.cpp's own attention to " in caplog.messages[-1]
    for size, calls in ((64, 1), (128, 0)):
        inputs = random_inputs(np.random.default_rng(3), ("q8_0", "q8_0"), size, 2, 1, 3, 20)
        before = kernels.calls().attentions
        ggml.attend(library().ggml, *inputs)
        assert kernels.calls().attentions == before + calls
    kernels._compiled().specgen_enable(False, False)


@pytest.mark.long
def test_a_model_computes_the_same(
    tiny_llama: Callable[[Quantization], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text and log-probabilities with a cache in Q8_0 do not depend on the instructions."""
    options = ["-n", "24", "--greedy", "--drafter", "none", "--logprobs", "3", "--json"]
    options += ["-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0"]
    found = []
    for name in ("avx2", library().kernels.split()[0]):
        monkeypatch.setenv("SPECGEN_KERNELS", name)
        path = tiny_llama("Q4_K")  # its heads have 64 dimensions
        outcome = finish(start("generate", path, "-p", "the way that was", *options))
        assert (outcome.code, outcome.err) == (0, "")
        choice = outcome.record["choices"][0]
        found.append((choice["text"], choice["logprobs"]))
    assert found[0][1]
    assert found[1:] == found[:1] * (len(found) - 1)


@each_cache
def test_a_model_attends(
    instructions: str, cache: tuple[str, str], tiny_llama: Callable[[Quantization], Path]
) -> None:
    """In a model, too, the kernels are asked for attention, whatever its cache is in."""
    options = ["-n", "8", "--no-learn", "-fa", "on", "-ctk", cache[0], "-ctv", cache[1]]
    before = kernels.calls().attentions
    with attention(instructions, cache, 64):
        text_of(tiny_llama("Q4_K"), "-p", "the way", *options)
    assert kernels.calls().attentions > before
