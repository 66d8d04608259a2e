"""How specgen's kernels get into llama.cpp, and what keeps them out; and its attention."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from specgen.core.errors import UsageError
from specgen.core.llama import ggml, kernels
from specgen.core.llama.library import library
from tests.support.command import finish, start, text_of
from tests.support.tiny import Quantization

pytestmark = pytest.mark.llama

# Of the tiny models Q4_K is the one whose heads have 64 dimensions.
QUANTIZATIONS: tuple[Quantization, ...] = ("Q4_1", "Q8_0", "Q4_K")


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
    installed: Any,
    request: pytest.FixtureRequest,
    tiny_llama: Callable[[Quantization], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Text and log-probabilities of a whole model do not depend on instructions or threads."""
    options = ["-n", "24", "--greedy", "--drafter", "none", "--logprobs", "3", "--json"]
    for quantization in QUANTIZATIONS:
        found = []
        for name, threads in (("avx2", "1"), (request.node.callspec.params["installed"], "2")):
            monkeypatch.setenv("SPECGEN_KERNELS", name)
            path = tiny_llama(quantization)
            prompt = ("-p", "the way that was", "-t", threads)
            outcome = finish(start("generate", path, *prompt, *options))
            assert (outcome.code, outcome.err) == (0, "")
            choice = outcome.record["choices"][0]
            found.append((choice["text"], choice["logprobs"]))
        assert found[0][1]
        assert found[0] == found[1], quantization


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
    """Where no buffer type begins with the table that is expected there, ours may not look so."""
    monkeypatch.setattr(kernels, "_BUFFERS", kernels._TRAITS)
    assert "buffer types differ" in reason_for_none(caplog, library().ggml)


def test_a_list_that_was_made_before(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where llama.cpp would not find our buffer type, no weights are laid out."""
    monkeypatch.setattr(kernels, "_word", lambda at: 0)
    assert "before" in reason_for_none(caplog, library().ggml)


def test_hidden_functions(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All that the kernels call must be there."""
    hidden = "ggml_backend_buffer_get_base"
    monkeypatch.setattr(
        kernels, "address", lambda lib, name: 0 if name == hidden else ggml.address(lib, name)
    )
    assert "hides" in reason_for_none(caplog, library().ggml)


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


def is_alone(n: int, place: int) -> bool:
    """The product with one vector by our kernels."""
    return n == 1 and place != 0


def is_among_others(n: int, place: int) -> bool:
    """The one with several."""
    return n > 1 and place != 0


@pytest.mark.parametrize(
    ("is_spoilt", "by"), [(is_alone, 2.0**-23), (is_among_others, 1e-4)], ids=["alone", "others"]
)
def test_other_products(
    installed: Any,
    is_spoilt: Callable[[int, int], bool],
    by: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What differs by more than rounding is noticed, and a bit that depends on other vectors."""

    def spoilt(
        lib: Any, kind: int, weights: Any, values: Any, threads: int = 1, place: int = 0
    ) -> NDArray[np.float32]:
        found = ggml.multiply(lib, kind, weights, values, threads, place)
        if is_spoilt(len(found), place):
            worst = np.unravel_index(np.abs(found).argmax(), found.shape)
            found[worst] *= 1 + by
        return found

    monkeypatch.setattr(kernels, "multiply", spoilt)
    assert "our products differ" in reason_for_none(caplog, library().ggml)


def test_products_that_ggml_keeps(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Right results are not enough: our kernels must have computed them."""
    monkeypatch.setattr(kernels, "multiply", lambda *inputs, **_: ggml.multiply(*inputs[:4]))
    assert "does not ask for ours" in reason_for_none(caplog, library().ggml)


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
