"""Products of a mixture of experts have the bits of the oracle, token by token."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from specgen.core.config import ContextConfig
from specgen.core.llama import experts, ggml, kernels
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.llama.formats import FORMATS
from specgen.core.llama.library import library
from specgen.core.protocols import Logits
from specgen.core.tree import DraftTree
from tests.conftest import TinyModel
from tests.llama.test_products import (
    POINTER,
    SETS,
    assert_same_bits,
    each_format,
    each_set,
    random_values,
    random_weights,
)
from tests.support import quants
from tests.support.tiny import Quantization

pytestmark = pytest.mark.llama


def random_experts(
    random: np.random.Generator, name: str, n_experts: int, rows: int, blocks: int
) -> NDArray[np.uint8]:
    """(experts, rows, bytes of a row)."""
    return random_weights(random, name, n_experts * rows, blocks).reshape(n_experts, rows, -1)


def random_choice(
    random: np.random.Generator, n_experts: int, used: int, tokens: int, favour: float = 0
) -> NDArray[np.int32]:
    """(tokens, used): different experts for each token, the first ones more often by `favour`."""
    liking = random.random((tokens, n_experts)) - favour * np.arange(n_experts)
    return np.argsort(-liking, axis=1)[:, :used].astype(np.int32)


def by_kernels(
    compiled: Any,
    name: str,
    weights: NDArray[np.uint8],
    values: NDArray[np.float32],
    chosen: NDArray[np.int32],
    threads: int = 1,
) -> NDArray[np.float32]:
    """Products with weights in our layout."""
    place, before = compiled.specgen_buffer_type(), kernels.calls().products
    found = ggml.multiply_by_experts(
        library().ggml, FORMATS[name].number, weights, values, chosen, threads, place
    )
    assert kernels.calls().products == before + 1
    return found


def by_oracle(
    name: str, weights: NDArray[np.uint8], values: NDArray[np.float32], chosen: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Each pair of a token and an expert by itself."""
    expected = np.empty((*chosen.shape, weights.shape[1]), np.float32)
    columns = np.broadcast_to(values, (*chosen.shape, values.shape[-1]))
    for expert in np.unique(chosen):
        those = chosen == expert
        expected[those] = quants.product(name, weights[expert], columns[those])
    return expected


@each_set
@each_format
@settings(max_examples=6)
@given(
    seed=st.integers(0, 1 << 32),
    rows=st.integers(1, 70),
    blocks=st.integers(1, 4),
    n_experts=st.integers(2, 20),
    used=st.integers(1, 6),
    tokens=st.integers(1, 70),
    threads=st.sampled_from((1, 1, 2, 3, 4)),
    is_shared=st.booleans(),
    favour=st.sampled_from((0, 0.03, 1)),
)
def test_products_of_experts_have_the_bits_of_the_oracle(
    installed: Any,
    name: str,
    seed: int,
    rows: int,
    blocks: int,
    n_experts: int,
    used: int,
    tokens: int,
    threads: int,
    is_shared: bool,
    favour: float,
) -> None:
    """Whatever the sizes, whether the experts of a token share its vector or have their own."""
    random, used = np.random.default_rng(seed), min(used, n_experts)
    weights = random_experts(random, name, n_experts, rows, blocks)
    values = random_values(random, name, tokens * (1 if is_shared else used), blocks)
    values = values.reshape(tokens, -1, values.shape[-1])
    chosen = random_choice(random, n_experts, used, tokens, favour)
    found = by_kernels(installed, name, weights, values, chosen, threads)
    assert_same_bits(found, by_oracle(name, weights, values, chosen))


@each_set
@pytest.mark.parametrize("threads", [1, 3])
def test_more_than_is_packed_at_once(installed: Any, threads: int) -> None:
    """Many tokens go through the work buffer in parts, and an expert in several of them."""
    random, name, blocks = np.random.default_rng(1), "Q4_K", 20
    weights = random_experts(random, name, 6, 9, blocks)
    values = random_values(random, name, 512, blocks).reshape(512, 1, -1)
    chosen = random_choice(random, 6, 4, 512, favour=0.1)
    assert 4 * values.size > 2 * (4 << 20)  # packed, a byte a value
    found = by_kernels(installed, name, weights, values, chosen, threads)
    assert_same_bits(found, by_oracle(name, weights, values, chosen))


@each_set
@each_format
def test_a_token_alone_has_the_bits_it_has_among_others(installed: Any, name: str) -> None:
    """So a draft's logits are those of plain decoding."""
    random = np.random.default_rng(2)
    weights = random_experts(random, name, 5, 37, 3)
    values = random_values(random, name, 19 * 2, 3).reshape(19, 2, -1)
    chosen = random_choice(random, 5, 2, 19)
    alone = [
        by_kernels(installed, name, weights, values[i : i + 1], chosen[i : i + 1])
        for i in range(19)
    ]
    for n in (2, 3, 4, 7, 8, 19):
        found = by_kernels(installed, name, weights, values[:n], chosen[:n], 2)
        assert found.tobytes() == np.concatenate(alone[:n]).tobytes()


@each_set
def test_views_of_vectors_and_results(installed: Any) -> None:
    """Vectors may lie apart and experts be a view of an argsort; what is used was asked for."""
    handle, random, name = library().ggml, np.random.default_rng(3), "Q5_0"
    size, integer = ctypes.c_size_t, ctypes.c_int64
    function = ggml.needed
    view_3d = function(handle, "ggml_view_3d", POINTER, *[POINTER] * 2, *[integer] * 3, *[size] * 3)
    view_2d = function(handle, "ggml_view_2d", POINTER, *[POINTER] * 2, *[integer] * 2, size, size)
    argsort = function(handle, "ggml_argsort", POINTER, *[POINTER] * 2, ctypes.c_int)
    multiply = function(handle, "ggml_mul_mat_id", POINTER, *[POINTER] * 4)
    get_memory = function(handle, "ggml_get_mem_buffer", POINTER, POINTER)
    used_memory = function(handle, "ggml_used_mem", size, POINTER)
    n_experts, used, tokens, rows, n = 11, 3, 13, 21, 3 * FORMATS[name].values
    weights = random_experts(random, name, n_experts, rows, 3)
    values = random.standard_normal((tokens, used + 1, n + 8)).astype(np.float32)
    liking = random.standard_normal((tokens, n_experts)).astype(np.float32)
    with (
        ggml._context(handle, values.nbytes) as context,
        ggml._weights(
            handle,
            context,
            FORMATS[name].number,
            n,
            rows,
            installed.specgen_buffer_type(),
            n_experts,
        ) as w,
    ):
        ggml._put(handle, w, weights, installed.specgen_buffer_type())
        all_ = ggml._tensor(handle, context, ggml.F32, *values.shape[::-1])
        ggml._fill(handle, all_, values)
        column, row = values.strides[1], values.strides[0]
        x = view_3d(context, all_, n, used, tokens, column, row, column + 12)
        likings = ggml._tensor(handle, context, ggml.F32, n_experts, tokens)
        ggml._fill(handle, likings, liking)
        order = argsort(context, likings, 1)  # the largest first
        result = multiply(context, w, x, view_2d(context, order, used, tokens, 4 * n_experts, 0))
        found = ggml._compute(handle, context, result, (tokens, used, rows), 2)
        behind = get_memory(context) + used_memory(context)
        assert not any(ctypes.string_at(behind, 1 << 16))
    chosen = np.argsort(-liking, axis=1)[:, :used].astype(np.int32)
    expected = by_oracle(name, weights, np.ascontiguousarray(values[:, 1:, 3:-5]), chosen)
    assert_same_bits(found, expected)


_OUT_OF_RANGE = """
import os
import numpy as np
from specgen.core.llama import experts, ggml, kernels
from specgen.core.llama.formats import FORMATS, some_weights, spread
from specgen.core.llama.library import library

format_, place = FORMATS["Q8_0"], kernels._compiled().specgen_buffer_type()
weights = some_weights(format_, 6, 1).reshape(3, 2, -1)
inputs = library().ggml, format_.number, weights, spread(1, 1, 32)
for expert in (0, 2, -1, 3):
    if not (child := os.fork()):
        ggml.multiply_by_experts(*inputs, np.array([[expert]], np.int32), 1, place)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_an_expert_that_there_is_not() -> None:
    """It ends the process, as in ggml, before anything else is read or written."""
    if library().kernels == kernels.NONE:
        pytest.skip("there are no kernels for this processor")
    words = [sys.executable, "-W", "ignore", "-c", _OUT_OF_RANGE]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "0", "-6", "-6"], done.stderr


def supports(number: int, place: int, *, x: int = ggml.F32, viewed: bool = False) -> bool:
    """What the CPU backend answers when llama.cpp looks for a buffer type for 4 matrices."""
    handle, size = library().ggml, ctypes.c_size_t
    allocate = ggml.needed(handle, "ggml_backend_buft_alloc_buffer", POINTER, POINTER, size)
    free = ggml.needed(handle, "ggml_backend_buffer_free", None, POINTER)
    ask = ggml.needed(handle, "ggml_backend_dev_supports_op", ctypes.c_bool, *[POINTER] * 2)
    multiply = ggml.needed(handle, "ggml_mul_mat_id", POINTER, *[POINTER] * 4)
    view = ggml.needed(handle, "ggml_view_tensor", POINTER, *[POINTER] * 2)
    registry = ggml.needed(handle, "ggml_backend_cpu_reg", POINTER)()
    device = ggml.needed(handle, "ggml_backend_reg_dev_get", POINTER, POINTER, size)(registry, 0)
    with ggml._context(handle, 0, no_data=True) as context:
        w = ggml._tensor(handle, context, number, 512, 40, 4)
        w = view(context, w) if viewed else w
        vectors = ggml._tensor(handle, context, x, 512, 2, 512)
        ids = ggml._tensor(handle, context, ggml.I32, 2, 512)
        buffer = allocate(place, 0)
        POINTER.from_address(w + 8).value = buffer  # ggml_tensor.buffer
        answer: bool = ask(device, multiply(context, w, vectors, ids))
        free(buffer)
        return answer


def test_which_experts_are_laid_out(installed: Any) -> None:
    """Those of our formats, where products are on and the check has allowed it."""
    place, numbers = (
        installed.specgen_buffer_type(),
        [format_.number for format_ in FORMATS.values()],
    )
    installed.specgen_allow_experts(True)
    assert not any(supports(number, place) for number in numbers)
    installed.specgen_enable(True, False)
    assert all(supports(number, place) for number in numbers)
    assert not supports(ggml.F32, place)
    assert not supports(ggml.F16, place)
    assert not supports(numbers[0], place, x=ggml.F16)
    assert not supports(numbers[0], place, viewed=True)
    installed.specgen_allow_experts(False)
    assert not any(supports(number, place) for number in numbers)
    installed.specgen_enable(False, False)


def spoilt(by: float, tokens: int) -> Callable[..., NDArray[np.float32]]:
    """Products of our kernels with this many tokens are wrong by a factor."""

    def multiply(*inputs: Any, **more: Any) -> NDArray[np.float32]:
        found = ggml.multiply_by_experts(*inputs, **more)
        is_ours = inputs[6:] == (kernels._compiled().specgen_buffer_type(),)
        if is_ours and len(found) == tokens:
            found.flat[np.abs(found).argmax()] *= 1 + by
        return found

    return multiply


@pytest.mark.parametrize(("by", "tokens"), [(1e-4, 4), (2.0**-23, 1), (0, 0)])
def test_the_check(
    installed: Any,
    by: float,
    tokens: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where ours are wrong, products of experts alone are left to ggml, and the name tells it."""
    caplog.set_level(logging.INFO, "specgen.kernels")
    monkeypatch.setattr(experts, "multiply_by_experts", spoilt(by, tokens))
    names = kernels.install_kernels(library().ggml).split(" without ")
    is_wrong = bool(by)
    assert ("experts" in names[-1].split(", ")) == is_wrong
    assert any("own products of experts" in message for message in caplog.messages) == is_wrong
    place, number = installed.specgen_buffer_type(), FORMATS["Q4_0"].number
    assert supports(number, place) != is_wrong
    installed.specgen_enable(False, False)


def logits_of(path: Path, threads: int, width: int) -> Logits:
    """Of 16 tokens behind a prompt, so many in a call."""
    model, tokens = LlamaModel(path), range(70, 86)
    backend = LlamaBackend(model, ContextConfig(256, threads=threads, flash_attention=True))
    backend.prefill(np.arange(40, 60, dtype=np.int32))
    rows = []
    for first in range(0, len(tokens), width):
        part = tokens[first : first + width]
        tree = DraftTree.from_parents(part, range(-1, len(part) - 1))
        rows.append(backend.score(tree, []).copy())
        backend.commit(len(part))
    backend.close()
    model.close()
    return np.concatenate(rows)


@pytest.mark.parametrize("quantization", ["Q4_K", "Q8_0"])
def test_a_model_computes_the_same(quantization: Quantization, tiny_model: TinyModel) -> None:
    """Logits depend neither on instructions nor on threads nor on other rows of a call."""
    loaded, path, found = library(), tiny_model("qwen3moe", quantization), []
    if loaded.kernels == kernels.NONE:
        pytest.skip("there are no kernels for this processor")
    compiled = kernels._compiled()
    for name in SETS:
        with suppress(kernels._Unusable):
            kernels._add(loaded.ggml, compiled, (name,))
            compiled.specgen_allow_experts(True)
            compiled.specgen_enable(True, False)
            before = kernels.calls().products
            found += [logits_of(path, 1, 1), logits_of(path, 2, 5), logits_of(path, 1, 16)]
            assert kernels.calls().products > before
    compiled.specgen_enable(False, False)
    theirs = logits_of(path, 1, 1)
    assert kernels.install_kernels(loaded.ggml) == loaded.kernels
    assert len({logits.tobytes() for logits in found}) == 1
    # Rounding may have a token choose other experts where two are nearly as good.
    is_close = np.abs(found[0] - theirs).max(axis=1) < 0.5  # of a deviation of 1.8
    assert is_close.mean() > 0.8
