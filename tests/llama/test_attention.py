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
    blocks = quantize(numbers, Q8_0)
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
    return Inputs(
        2 * random.standard_normal((heads, tokens, size), np.float32),
        random_cached(random, cache[0], hidden.all(0), shared, size),
        random_cached(random, cache[1], hidden.all(0), shared, size),
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
def attention(compiled: Any, cache: tuple[str, str], size: int) -> Iterator[None]:
    """The kernels attend to caches of this kind, whether or not they passed the check."""
    types = [kernels.CACHE_TYPES[kind] for kind in cache]
    assert compiled.specgen_allow(*types, size, True)
    compiled.specgen_enable(False, True)
    try:
        yield
    finally:
        compiled.specgen_enable(False, False)


def by_kernels(
    compiled: Any, cache: tuple[str, str], inputs: Inputs, threads: int = 2
) -> NDArray[np.float32]:
    """What the kernels compute."""
    before = kernels.calls().attentions
    with attention(compiled, cache, inputs.queries.shape[2]):
        found = ggml.attend(library().ggml, *inputs, threads)
    assert kernels.calls().attentions == before + 1
    return found


def same_arithmetic(compiled: Any, cache: tuple[str, str], size: int) -> None:
    """Skips a test of bits where ggml was built for other instructions."""
    if not kernels._attends_alike(library().ggml, compiled, *cache, size):
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
    installed: Any,
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
    same_arithmetic(installed, cache, size)
    random = np.random.default_rng(seed)
    inputs = random_inputs(random, cache, size, shared * sharing, shared, tokens, positions)
    found = by_kernels(installed, cache, inputs, threads)
    assert found.tobytes() == by_ggml(inputs).tobytes()


def test_it_is_used_where_ggml_computes_alike(installed: Any) -> None:
    """No tests of bits are skipped where ggml was built for the instructions of the kernels."""
    left = kernels._check_attention(library().ggml, installed)
    assert "q8_0/q8_0" not in left  # in 8 lanes with all instructions
    wide = kernels._add(library().ggml, installed, kernels.INSTRUCTIONS[:1]) == "avx512"
    print(left, wide, system_info())


def dequantized(cached: NDArray[Any]) -> NDArray[np.float64]:
    plain = dequantize(cached, Q8_0) if cached.dtype == np.uint8 else cached
    return np.nan_to_num(plain.astype(np.float64))


@each_size
@each_cache
def test_it_is_right(installed: Any, cache: tuple[str, str], size: int) -> None:
    """It is the softmax of the scores that averages the values, but for what is rounded."""
    random = np.random.default_rng(4)
    inputs = random_inputs(random, cache, size, heads=4, shared=2, tokens=5, positions=90)
    found = by_kernels(installed, cache, inputs)
    keys, values = (np.repeat(dequantized(x), 2, 0) for x in (inputs.keys, inputs.values))
    scores = inputs.queries @ keys.swapaxes(1, 2) * size**-0.5 + inputs.mask
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (shares / shares.sum(-1, keepdims=True)) @ values
    rounding = 0.01 if cache[0] == "f16" else 0.05  # of queries, to 11 bits or to 8
    assert np.abs(found - expected.swapaxes(0, 1)).max() < rounding
    assert np.abs(found).max() > 0.5
