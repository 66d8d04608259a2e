"""Rows of a table in specgen's own layout have the bits of an oracle, and are there only once."""

from __future__ import annotations

import ctypes
import logging
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from specgen.core.config import ContextConfig
from specgen.core.llama import backend, ggml, kernels, lookups
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.llama.formats import FORMATS
from specgen.core.llama.library import library
from specgen.core.models.header import read_header
from specgen.core.protocols import Logits
from specgen.core.tree import DraftTree
from tests.conftest import TinyModel
from tests.llama.test_products import (
    OTHERS,
    POINTER,
    SETS,
    assert_same_bits,
    device,
    each_format,
    each_set,
    extreme_weights,
    placed,
    random_weights,
)
from tests.support import quants
from tests.support.limited import is_linux
from tests.support.mutations import Model
from tests.support.tiny import Quantization

pytestmark = pytest.mark.llama

TABLE: Final = "token_embd.weight"
PAGE: Final = 4096


def by_kernels(
    compiled: Any,
    name: str,
    weights: NDArray[np.uint8],
    ids: NDArray[np.int32],
    threads: int = 1,
) -> NDArray[np.float32]:
    """Rows of a table in our layout."""
    before = compiled.specgen_lookups()
    place = compiled.specgen_buffer_type()
    found = ggml.look_up(*inputs(name, weights, ids), threads, place)
    assert compiled.specgen_lookups() == before + 1
    return found


def inputs(
    name: str, weights: NDArray[np.uint8], ids: NDArray[np.int32]
) -> tuple[Any, int, int, NDArray[np.uint8], NDArray[np.int32]]:
    """What `ggml.look_up` takes first."""
    format_ = FORMATS[name]
    columns = weights.shape[1] // format_.n_bytes * format_.values
    return library().ggml, format_.number, columns, weights, ids


@each_set
@each_format
@settings(max_examples=6)
@given(
    seed=st.integers(0, 1 << 32),
    rows=st.integers(1, 90),
    blocks=st.integers(1, 7),
    n=st.integers(1, 20),
    threads=st.sampled_from((1, 1, 2, 3, 4)),
    is_wild=st.booleans(),
)
def test_rows_have_the_bits_of_the_oracle_and_of_ggml(
    installed: Any,
    name: str,
    seed: int,
    rows: int,
    blocks: int,
    n: int,
    threads: int,
    is_wild: bool,
) -> None:
    """Whatever the sizes and the numbers, some rows more than once, the last one among them."""
    random = np.random.default_rng(seed)
    weights = random_weights(random, name, rows, blocks, is_wild)
    ids = random.integers(0, rows, n, np.int32)
    ids[-1] = rows - 1
    found = by_kernels(installed, name, weights, ids, threads)
    assert_same_bits(found, quants.dequantized(name, weights)[ids])
    assert_same_bits(found, ggml.look_up(*inputs(name, weights, ids), threads))


@each_set
@each_format
def test_extreme_blocks(installed: Any, name: str) -> None:
    """Zeros have the sign that they have in ggml, and what is no number stays none."""
    weights = extreme_weights(name, 2)
    ids = np.arange(len(weights), dtype=np.int32)[::-1]
    expected = quants.dequantized(name, weights)[ids]
    assert_same_bits(by_kernels(installed, name, weights, ids), expected)
    assert np.isnan(expected).any() and np.isinf(expected).any() and np.isfinite(expected).any()


@each_set
def test_ids_that_lie_apart(installed: Any) -> None:
    """Ids need not follow each other in memory: every second of these is another's."""
    handle, random, size = library().ggml, np.random.default_rng(1), ctypes.c_size_t
    view = ggml.needed(
        handle, "ggml_view_2d", POINTER, *[POINTER] * 2, *[ctypes.c_int64] * 2, size, size
    )
    transpose = ggml.needed(handle, "ggml_transpose", POINTER, *[POINTER] * 2)
    get = ggml.needed(handle, "ggml_get_rows", POINTER, *[POINTER] * 3)
    weights = random_weights(random, "Q5_K", 40, 2)
    both = np.array([[3, -1], [39, 40], [3, 1 << 30], [16, -5]], np.int32)
    with (
        ggml._context(handle, 1 << 16) as context,
        placed(context, "Q5_K", weights, installed.specgen_buffer_type()) as table,
    ):
        all_ = ggml._tensor(handle, context, ggml.I32, 2, 4)
        ggml._fill(handle, all_, both)
        ids = transpose(context, view(context, all_, 1, 4, 8, 0))
        found = ggml._compute(handle, context, get(context, table, ids), (4, 512), 1)
    assert_same_bits(found, quants.dequantized("Q5_K", weights)[both[:, 0]])


_OUT_OF_RANGE = """
import os
import numpy as np
from specgen.core.llama import ggml, kernels
from specgen.core.llama.formats import FORMATS, some_weights
from specgen.core.llama.library import library

format_, place = FORMATS["Q8_0"], kernels._compiled().specgen_buffer_type()
inputs = library().ggml, format_.number, format_.values, some_weights(format_, 6, 1)
for row in (0, 5, 6, 15, -1, -1 << 31):
    if not (child := os.fork()):
        ggml.look_up(*inputs, np.array([0, row], np.int32), 1, place)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_row_that_there_is_not() -> None:
    """It ends the process, as in ggml, also where the last band has room for it."""
    if library().kernels == kernels.NONE:
        pytest.skip("there are no kernels for this processor")
    words = [sys.executable, "-W", "ignore", "-c", _OUT_OF_RANGE]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "0", "-6", "-6", "-6", "-6"], done.stderr


def supports(
    kind: int, place: int, *, name: str = TABLE, batches: int = 1, viewed: bool = False
) -> bool:
    """What the CPU backend answers when llama.cpp looks for a buffer type for a table."""
    handle, size = library().ggml, ctypes.c_size_t
    allocate = ggml.needed(handle, "ggml_backend_buft_alloc_buffer", POINTER, POINTER, size)
    free = ggml.needed(handle, "ggml_backend_buffer_free", None, POINTER)
    ask = ggml.needed(handle, "ggml_backend_dev_supports_op", ctypes.c_bool, *[POINTER] * 2)
    get = ggml.needed(handle, "ggml_get_rows", POINTER, *[POINTER] * 3)
    view = ggml.needed(handle, "ggml_view_tensor", POINTER, *[POINTER] * 2)
    call = ggml.needed(handle, "ggml_set_name", POINTER, POINTER, ctypes.c_char_p)
    with ggml._context(handle, 0, no_data=True) as context:
        table = ggml._tensor(handle, context, kind, 512, 40, batches)
        table = call(view(context, table) if viewed else table, name.encode())
        ids = ggml._tensor(handle, context, ggml.I32, 512, batches)
        buffer = allocate(place, 0)
        POINTER.from_address(table + 8).value = buffer  # ggml_tensor.buffer
        answer: bool = ask(device(), get(context, table, ids))
        free(buffer)
        return answer


def test_which_tables_are_laid_out(installed: Any) -> None:
    """The one of tokens, in our formats, where the thread that loads the model has asked for it."""
    place, numbers = (
        installed.specgen_buffer_type(),
        [format_.number for format_ in FORMATS.values()],
    )
    kernels.lay_out_table(True)
    try:
        assert not any(supports(number, place) for number in numbers)
        installed.specgen_enable(True, False)
        assert all(supports(number, place) for number in numbers)
        for other in OTHERS:
            assert not supports(gguf.GGMLQuantizationType[other], place), other
        q4_0 = FORMATS["Q4_0"].number
        assert not supports(q4_0, place, name="per_layer_token_embd.weight")
        assert not supports(q4_0, place, batches=2)
        assert not supports(q4_0, place, viewed=True)
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(supports, q4_0, place).result()
        kernels.lay_out_table(False)
        assert not any(supports(number, place) for number in numbers)
    finally:
        kernels.lay_out_table(False)
        installed.specgen_enable(False, False)


def wrong(found: NDArray[np.float32]) -> NDArray[np.float32]:
    """One of them is off by more than rounding."""
    found.flat[np.abs(found).argmax()] *= 1 + 1e-4
    return found


@pytest.mark.parametrize("is_ours", [True, False], ids=["wrong", "ggml's"])
def test_the_check(
    installed: Any,
    is_ours: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing of ours is used where rows differ, or where others have looked them up."""

    def spoilt(*table: Any, threads: int, place: int = 0) -> NDArray[np.float32]:
        look_up: Any = ggml.look_up
        found: NDArray[np.float32] = look_up(*table, threads, place if is_ours else 0)
        return wrong(found) if is_ours and place else found

    monkeypatch.setattr(lookups, "look_up", spoilt)
    caplog.set_level(logging.INFO, "specgen.kernels")
    assert kernels.install_kernels(library().ggml) == kernels.NONE
    assert "look-ups differ" in caplog.messages[-1]


@pytest.fixture
def tied(tiny_model: TinyModel, tmp_path: Path) -> Callable[[Quantization], Path]:
    """Tiny models whose table of tokens is the output, too."""

    def path_of(quantization: Quantization) -> Path:
        path = tmp_path / f"tied-{quantization}.gguf"
        model = Model.read(tiny_model("llama", quantization))
        model.tensors = [each for each in model.tensors if each.name != "output.weight"]
        model.write(path)
        return path

    return path_of


PROMPT: Final = np.arange(40, 60, dtype=np.int32)


def opened(path: Path, threads: int) -> tuple[LlamaModel, LlamaBackend]:
    """A model that has read a prompt."""
    model = LlamaModel(path)
    made = LlamaBackend(model, ContextConfig(256, threads=threads, flash_attention=True))
    made.prefill(PROMPT)
    return model, made


def logits_of(path: Path, threads: int) -> Logits:
    """Of six tokens behind the prompt."""
    model, made = opened(path, threads)
    found = made.score(DraftTree.from_parents(range(70, 76), range(-1, 5)), []).copy()
    made.close()
    model.close()
    return found


@pytest.mark.parametrize("quantization", ["Q4_1", "Q8_0", "Q4_K", "Q6_K"])
def test_a_tied_model_computes_the_same(
    quantization: Quantization,
    tied: Callable[[Quantization], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logits do not depend on who looks rows up, nor on instructions and threads."""
    loaded, path = library(), tied(quantization)
    if loaded.kernels == kernels.NONE:
        pytest.skip("there are no kernels for this processor")
    compiled, found = kernels._compiled(), set()
    for name in SETS:
        with suppress(kernels._Unusable):
            kernels._add(loaded.ggml, compiled, (name,))
            compiled.specgen_enable(True, False)
            for threads in (1, 3):
                before = compiled.specgen_lookups()
                found.add(logits_of(path, threads).tobytes())
                assert compiled.specgen_lookups() == before + 2
    with monkeypatch.context() as patch:
        patch.setattr(backend, "lay_out_table", lambda wanted: None)
        before = compiled.specgen_lookups()
        found.add(logits_of(path, 1).tobytes())
        assert compiled.specgen_lookups() == before
    assert kernels.install_kernels(loaded.ggml) == loaded.kernels
    assert len(found) == 1


def pages_of_table(path: Path) -> tuple[int, int]:
    """Whole pages of the table of tokens in the file, and how many of them this process has."""
    header = read_header(path)
    table = next(each for each in header.tensors if each.name == TABLE)
    start = header.data_start + table.offset
    first, last = -(-start // PAGE), (start + table.n_bytes) // PAGE
    present = 0
    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb") as pagemap:
        for line in maps:
            if not line.endswith(f"{path}\n"):
                continue
            span, _, offset, *_ = line.split()
            begin, end = (int(at, 16) for at in span.split("-"))
            page = int(offset, 16) // PAGE  # of the file, that lies at `begin`
            for each in range(max(first, page), min(last, page + (end - begin) // PAGE)):
                pagemap.seek((begin // PAGE + each - page) * 8)
                present += struct.unpack("<Q", pagemap.read(8))[0] >> 63
    return last - first, present


needs_pagemap = pytest.mark.skipif(not is_linux(), reason="Linux alone tells of pages")


@needs_pagemap
def test_a_tied_table_is_there_once(tied: Callable[[Quantization], Path]) -> None:
    """No page of it in the file is mapped after tokens were looked up."""
    if library().kernels == kernels.NONE:
        pytest.skip("there are no kernels for this processor")
    path = tied("Q8_0")
    model, made = opened(path, 2)
    pages, present = pages_of_table(path)
    made.close()
    model.close()
    assert pages > 10
    assert present == 0


@needs_pagemap
@pytest.mark.parametrize("reason", ["untied", "gpu"])
def test_a_table_that_stays_mapped(
    reason: str,
    tied: Callable[[Quantization], Path],
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that nothing is multiplied with, or that a GPU may multiply, is read from the file."""
    path = tiny_model("llama", "Q8_0") if reason == "untied" else tied("Q8_0")
    if reason == "gpu":
        monkeypatch.setattr(backend, "free_device_memory", lambda: 1 << 30)
    model, made = opened(path, 2)
    _, present = pages_of_table(path)
    made.close()
    model.close()
    assert present > 0
