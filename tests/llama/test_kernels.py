"""How specgen's kernels get into llama.cpp, and what keeps them out; and its attention."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from specgen.core import compiled
from specgen.core.errors import UsageError
from specgen.core.llama import ggml, kernels
from specgen.core.llama.library import library
from tests.support.command import finish, start, text_of
from tests.support.tiny import Quantization

pytestmark = pytest.mark.llama

# Of the tiny models Q4_K is the one whose heads have 64 dimensions.
QUANTIZATIONS: tuple[Quantization, ...] = ("Q4_1", "Q8_0", "Q4_K")


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
    monkeypatch.setattr(compiled, "LIBRARY", tmp_path / "_kernels.so")
    monkeypatch.setattr(kernels, "_compiled", kernels._compiled.__wrapped__)  # not the one it has
    assert "not compiled" in reason_for_none(caplog, library().ggml)
    assert kernels.calls() == kernels.Calls(0, 0)


def test_a_library_that_does_not_fit(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was compiled for an older specgen is not called."""
    monkeypatch.setattr(kernels, "_compiled", kernels._compiled.__wrapped__)
    monkeypatch.setattr(compiled, "VERSION", 0)
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


def test_threads_that_differ(
    installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Products note which threads took part: what ggml tells each of them is read rightly."""

    def alone(
        ggml_: Any, kind: int, w: Any, v: Any, threads: int, place: int = 0
    ) -> NDArray[np.float32]:
        return ggml.multiply(ggml_, kind, w, v, threads=1, place=place)

    monkeypatch.setattr(kernels, "multiply", alone)
    assert "threads otherwise" in reason_for_none(caplog, library().ggml)
