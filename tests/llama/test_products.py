"""specgen's own matrix products have the bits of an oracle that knows nothing of their code."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from specgen.core.llama import ggml, kernels
from specgen.core.llama.formats import FORMATS
from specgen.core.llama.library import library, system_info
from tests.support import quants

pytestmark = pytest.mark.llama

SETS = (*kernels.INSTRUCTIONS, kernels._FOR_TESTS)
each_set = pytest.mark.parametrize("installed", SETS, indirect=True, scope="module")
each_format = pytest.mark.parametrize("name", FORMATS)

# Formats that llama.cpp computes in the same order where it lays them out itself, as does x86.
REPACKED = ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL")

POINTER = ctypes.c_void_p


def random_weights(
    random: np.random.Generator, name: str, rows: int, blocks: int, is_wild: bool = False
) -> NDArray[np.uint8]:
    """(rows, bytes of a row): with scales as models have them; if `is_wild`, with any bits."""
    format_ = FORMATS[name]
    weights = random.integers(0, 256, (rows, blocks, format_.n_bytes), np.uint8)
    for at in () if is_wild else format_.halves:
        numbers = (random.standard_normal((rows, blocks, 1)) / 64).astype(np.float16)
        weights[..., at : at + 2] = numbers.view(np.uint8)
    return weights.reshape(rows, -1)


def random_values(
    random: np.random.Generator, name: str, n: int, blocks: int, is_wild: bool = False
) -> NDArray[np.float32]:
    """(n, columns): vectors; if `is_wild`, very small and very large ones, and zeros."""
    values = random.standard_normal((n, blocks, FORMATS[name].values))
    if is_wild:
        values *= 10.0 ** random.integers(-45, 38, (n, blocks, 1))
        values[random.random((n, blocks)) < 0.1] = 0
    return values.astype(np.float32).reshape(n, -1)


def by_kernels(
    compiled: Any,
    name: str,
    weights: NDArray[np.uint8],
    values: NDArray[np.float32],
    threads: int = 1,
) -> NDArray[np.float32]:
    """A product with weights in our layout. One thread is quickest where others compute, too."""
    place = compiled.specgen_buffer_type()
    before = kernels.calls().products
    found = ggml.multiply(library().ggml, FORMATS[name].number, weights, values, threads, place)
    assert kernels.calls().products == before + 1
    return found


def assert_same_bits(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Equal to the last bit; one that is no number is like another."""
    assert found.shape == expected.shape
    same = found.view(np.uint32) == expected.view(np.uint32)
    same |= np.isnan(found) & np.isnan(expected)
    different = np.argwhere(~same).tolist()
    assert not different, f"{len(different)} of {same.size}, the first at {different[:5]}"


@contextmanager
def placed(context: int, name: str, weights: NDArray[np.uint8], place: int) -> Iterator[int]:
    """A tensor of weights in a buffer of the type `place`, for a graph in `context`."""
    handle, format_ = library().ggml, FORMATS[name]
    columns = weights.shape[1] // format_.n_bytes * format_.values
    put = ggml.needed(
        handle, "ggml_backend_tensor_set", None, *[POINTER] * 2, *[ctypes.c_size_t] * 2
    )
    kind, rows = format_.number, len(weights)
    with ggml._weights(handle, context, kind, columns, rows, place) as tensor:
        put(tensor, weights.tobytes(), 0, weights.nbytes)
        yield tensor


def times(context: int, weights: int, values: int) -> int:
    """The tensor of a product."""
    product: int = ggml.needed(library().ggml, "ggml_mul_mat", POINTER, *[POINTER] * 3)(
        context, weights, values
    )
    return product


def filled(context: int, values: NDArray[np.float32]) -> int:
    """A tensor with these values, of up to three dimensions, the last one first."""
    tensor = ggml._tensor(library().ggml, context, ggml.F32, *values.shape[::-1])
    ggml._fill(library().ggml, tensor, values)
    return tensor


def memory_behind(context: int) -> bytes:
    """What follows the last thing in `context`: after a computation, the memory it asked for."""
    handle = library().ggml
    start = ggml.needed(handle, "ggml_get_mem_buffer", POINTER, POINTER)(context)
    used = ggml.needed(handle, "ggml_used_mem", ctypes.c_size_t, POINTER)(context)
    return ctypes.string_at(start + used, 1 << 16)


def buffer_type(name: bytes) -> int:
    """The address of the buffer type of ggml's CPU backend with this name, or 0."""
    handle = library().ggml
    registry = ggml.needed(handle, "ggml_backend_cpu_reg", POINTER)()
    find = ggml.needed(
        handle, "ggml_backend_reg_get_proc_address", POINTER, POINTER, ctypes.c_char_p
    )
    ask = ctypes.CFUNCTYPE(ctypes.POINTER(POINTER), POINTER)
    listed = ask(find(registry, b"ggml_backend_dev_get_extra_bufts"))(device())
    name_of = ggml.needed(handle, "ggml_backend_buft_name", ctypes.c_char_p, POINTER)
    for address in listed:
        if not address or name_of(address) == name:
            return address or 0
    return 0


def device() -> int:
    """ggml's CPU."""
    handle = library().ggml
    registry = ggml.needed(handle, "ggml_backend_cpu_reg", POINTER)()
    get = ggml.needed(handle, "ggml_backend_reg_dev_get", POINTER, POINTER, ctypes.c_size_t)
    found: int = get(registry, 0)
    return found


@each_format
def test_the_oracle_reads_weights_as_gguf_does(name: str) -> None:
    """Its numbers, put together, are those of the package gguf, to the last bit."""
    random = np.random.default_rng(1)
    kind = gguf.GGMLQuantizationType[name]
    for is_wild in (False, True):
        weights = random_weights(random, name, 9, 5, is_wild)
        with np.errstate(all="ignore"):
            expected = dequantize(weights, kind)
        assert_same_bits(quants.dequantized(name, weights), expected)


def test_the_oracle_rounds_once() -> None:
    """Of a product and a sum it is the nearest float, also where the product alone is a tie."""
    random = np.random.default_rng(11)
    a = random.integers(-5000, 5000, 600).astype(np.float32)
    b, c = (random.standard_normal((2, 600)) * 10.0 ** random.integers(-44, 30, (2, 600))).astype(
        np.float32
    )
    b[::2] = np.float32(1 + 2**-23) * 2.0 ** random.integers(-140, 90, 300)
    a[::2], c[::4] = 3, np.copysign(np.float32(1e-40), c[::4])
    for found, *factors in zip(quants.fused(a, b, c), a, b, c, strict=True):
        exact = Fraction(float(factors[0])) * Fraction(float(factors[1])) + Fraction(
            float(factors[2])
        )
        others = [np.nextafter(found, np.float32(side)) for side in (-np.inf, np.inf)]
        off, *more = (abs(Fraction(float(each)) - exact) for each in (found, *others))
        is_even = found.view(np.uint32) % 2 == 0
        assert all(off < each or (off == each and is_even) for each in more)


@pytest.mark.parametrize("name", ["Q8_0", "Q8_1", "Q8_K"])
def test_the_oracle_quantizes_columns_as_ggml_does(name: str) -> None:
    """Its bytes, scales and sums are those that ggml's CPU backend multiplies with."""
    if "AVX2 = 1" not in system_info():
        pytest.skip("ggml was built for other arithmetic")
    random = np.random.default_rng(2)
    values = random_values(random, "Q4_K", 40, 3)
    values[1:20] *= 10.0 ** np.arange(-19, 19, 2)[:, None]
    values[20, :300] = 0
    values[21:23] = (np.arange(768) % 255 - 127) / 2  # ties
    values[22] *= -1
    columns = {"Q8_0": quants.q8_0, "Q8_1": quants.q8_1, "Q8_K": quants.q8_k}[name](values)
    fields = {"Q8_0": [("d", "<f2")], "Q8_1": [("d", "<f2"), ("s", "<f2")], "Q8_K": [("d", "<f4")]}
    sums = [("sums", "<i2", 16)] if name == "Q8_K" else []
    size = columns.values.shape[-1]
    found = np.zeros(columns.d.shape, np.dtype([*fields[name], ("values", "i1", size), *sums]))
    traits = ggml.needed(library().ggml, "ggml_get_type_traits_cpu", POINTER, ctypes.c_int)
    function = POINTER.from_address(traits(gguf.GGMLQuantizationType[name])).value or 0
    quantize = ctypes.CFUNCTYPE(None, POINTER, POINTER, ctypes.c_int64)(function)
    quantize(values.ctypes.data, found.ctypes.data, values.size)
    assert np.array_equal(found["values"], columns.values)
    assert np.array_equal(found["d"], columns.d)
    assert columns.s is None or np.array_equal(found["s"], columns.s)


@each_set
@each_format
@settings(max_examples=6)
@given(
    seed=st.integers(0, 1 << 32),
    rows=st.integers(1, 90),
    blocks=st.integers(1, 7),
    n=st.one_of(st.integers(1, 20), st.integers(21, 64), st.sampled_from((65, 72, 129, 130))),
    threads=st.sampled_from((1, 1, 2, 3, 4)),
    is_wild=st.booleans(),
)
def test_products_have_the_bits_of_the_oracle(
    installed: Any,
    name: str,
    seed: int,
    rows: int,
    blocks: int,
    n: int,
    threads: int,
    is_wild: bool,
) -> None:
    """Whatever the sizes, the numbers and the instructions."""
    random = np.random.default_rng(seed)
    weights = random_weights(random, name, rows, blocks, is_wild)
    values = random_values(random, name, n, blocks, is_wild)
    found = by_kernels(installed, name, weights, values, threads)
    assert_same_bits(found, quants.product(name, weights, values))


# In half precision: the largest, ordinary ones, the smallest, zeros, infinity and no number.
HALVES = (0x7BFF, 0x2C00, 0xA800, 0x0001, 0x83FF, 0x0000, 0x8000, 0x7C00, 0xFE00)


def extreme_weights(name: str, blocks: int) -> NDArray[np.uint8]:
    """Rows of equal bytes, with each number of `HALVES` as scale and as minimum."""
    format_ = FORMATS[name]
    rows = []
    for byte in (0x00, 0xFF, 0x80, 0x7F):
        for i, scale in enumerate(HALVES):
            block = np.full(format_.n_bytes, byte, np.uint8)
            for at, half in zip(format_.halves, (scale, HALVES[i - 3]), strict=False):
                block[at : at + 2] = np.array([half], "<u2").view(np.uint8)
            rows.append(np.tile(block, blocks))
    return np.array(rows)


def extreme_values(name: str, blocks: int) -> NDArray[np.float32]:
    """Vectors that quantize to the largest sums of either sign, ties, zeros, and what overflows."""
    n = FORMATS[name].values * blocks
    random = np.random.default_rng(3)
    values = random.standard_normal((12, n)).astype(np.float32)
    values[0] = 3
    values[1] = -3
    values[2] = np.where(np.arange(n) % 2, 3, -3)  # the first of the largest decides
    values[3] = -values[2]
    values[4] = (np.arange(n) % 255 - 127) / 2
    values[5, n // blocks :] = 0
    values[6] = 0
    values[7] *= 1e-30
    values[8] *= np.float32(1e-40)
    values[9, 7] = 3e38
    values[10] = -3e38
    values[11] *= 1e5
    return values


@each_set
@each_format
def test_extreme_blocks(installed: Any, name: str) -> None:
    """Nothing overflows on the way to a sum, and what is no number stays none."""
    weights, values = extreme_weights(name, 3), extreme_values(name, 3)
    expected = quants.product(name, weights, values)
    assert_same_bits(by_kernels(installed, name, weights, values), expected)
    assert np.isnan(expected).any() and np.isinf(expected).any() and np.isfinite(expected).any()


@each_set
@each_format
def test_a_vector_alone_has_the_bits_it_has_among_others(installed: Any, name: str) -> None:
    """So a draft's logits are those of plain decoding."""
    random = np.random.default_rng(4)
    weights, values = random_weights(random, name, 37, 3), random_values(random, name, 19, 3)
    alone = {i: by_kernels(installed, name, weights, values[i : i + 1]) for i in (0, 1, 6, 13, 18)}
    for n in (2, 3, 4, 7, 8, 19):
        found = by_kernels(installed, name, weights, values[:n])
        assert all(found[i : i + 1].tobytes() == alone[i].tobytes() for i in alone if i < n)


@each_set
@each_format
def test_they_are_as_exact_as_ggmls_own(installed: Any, name: str) -> None:
    """Beside products in double precision, the error is that of quantized columns, as in ggml."""
    random = np.random.default_rng(5)
    weights, values = random_weights(random, name, 96, 6), random_values(random, name, 16, 6)
    exact = values.astype(float) @ quants.dequantized(name, weights).astype(float).T
    found = by_kernels(installed, name, weights, values)
    others = ggml.multiply(library().ggml, FORMATS[name].number, weights, values, threads=1)
    errors = [float(np.sqrt(np.mean((each - exact) ** 2))) for each in (found, others)]
    assert errors[0] <= 1.02 * errors[1]
    assert errors[0] < 0.02 * float(np.sqrt(np.mean(exact**2)))


@each_set
@pytest.mark.parametrize("name", REPACKED)
def test_they_have_the_bits_of_llama_cpps_own_layout(installed: Any, name: str) -> None:
    """Where llama.cpp lays weights out, too, a vector's product is the same as there."""
    place = buffer_type(b"CPU_REPACK")
    needed = "AVX512 = 1" if name == "Q2_K" else "AVX2 = 1"
    if not place or needed not in system_info():
        pytest.skip("ggml was built for other arithmetic")
    random = np.random.default_rng(6)
    for blocks in (1, 4, 7):
        weights = random_weights(random, name, 40, blocks)
        values = random_values(random, name, 1, blocks)
        theirs = ggml.multiply(library().ggml, FORMATS[name].number, weights, values, 1, place)
        assert_same_bits(by_kernels(installed, name, weights, values), theirs)


@each_set
def test_large_products(installed: Any) -> None:
    """Several threads lay a matrix out, and each computes many bands of it, for all panels."""
    random, n = np.random.default_rng(7), 131
    weights, values = random_weights(random, "Q5_K", 523, 5), random_values(random, "Q5_K", n, 5)
    assert weights.nbytes > 1 << 18
    expected = quants.product("Q5_K", weights, values)
    assert_same_bits(by_kernels(installed, "Q5_K", weights, values, 3), expected)


@each_set
@each_format
def test_views_of_vectors(installed: Any, name: str) -> None:
    """Vectors may lie apart, in another order, and in three dimensions; all have room."""
    handle, random = library().ggml, np.random.default_rng(8)
    size, integer = ctypes.c_size_t, ctypes.c_int64
    view = ggml.needed(handle, "ggml_view_3d", POINTER, *[POINTER] * 2, *[integer] * 3, *[size] * 3)
    permute = ggml.needed(handle, "ggml_permute", POINTER, *[POINTER] * 2, *[ctypes.c_int] * 4)
    weights = random_weights(random, name, 21, 3)
    n = 3 * FORMATS[name].values
    values = random.standard_normal((4, 5, n + 8)).astype(np.float32)
    with (
        ggml._context(handle, values.nbytes) as context,
        placed(context, name, weights, installed.specgen_buffer_type()) as w,
    ):
        all_ = filled(context, values)
        part = view(context, all_, n, 3, 4, 4 * (n + 8), 4 * (n + 8) * 5, 4 * (n + 8 + 3))
        swapped = permute(context, part, 0, 2, 1, 3)
        for x, seen in (
            (part, values[:, 1:4, 3:-5]),
            (swapped, values[:, 1:4, 3:-5].swapaxes(0, 1)),
        ):
            shape = (*seen.shape[:2], len(weights))
            found = ggml._compute(handle, context, times(context, w, x), shape, 1)
            flat = np.ascontiguousarray(seen).reshape(-1, n)
            expected = quants.product(name, weights, flat)
            assert_same_bits(found, expected.reshape(shape))
            assert not any(memory_behind(context))


@each_set
def test_products_of_products(installed: Any) -> None:
    """Several in a graph share the memory for packed vectors, and wait for each other."""
    handle, random, place = (
        library().ggml,
        np.random.default_rng(9),
        installed.specgen_buffer_type(),
    )
    first = random_weights(random, "Q4_0", 512, 9)
    second, third = (random_weights(random, name, 256, 2) for name in ("Q6_K", "Q4_K"))
    values = random_values(random, "Q4_0", 11, 9)
    middle = quants.product("Q4_0", first, values)
    expected = quants.product("Q6_K", second, middle), quants.product("Q4_K", third, middle)
    add = ggml.needed(handle, "ggml_add", POINTER, *[POINTER] * 3)
    with (
        ggml._context(handle, 1 << 20) as context,
        placed(context, "Q4_0", first, place) as a,
        placed(context, "Q6_K", second, place) as b,
        placed(context, "Q4_K", third, place) as c,
    ):
        x = times(context, a, filled(context, values))
        result = add(context, times(context, b, x), times(context, c, x))
        found = ggml._compute(handle, context, result, (11, 256), 3)
    assert_same_bits(found, expected[0] + expected[1])


@each_set
def test_two_graphs_at_once(installed: Any) -> None:
    """Programs may compute with two models on two threads: nothing is shared but code."""

    def run(seed: int) -> None:
        random, name = np.random.default_rng(seed), ("Q4_1", "Q3_K")[seed % 2]
        place = installed.specgen_buffer_type()
        for _ in range(12):
            weights, values = random_weights(random, name, 70, 5), random_values(random, name, 9, 5)
            kind = FORMATS[name].number
            found = ggml.multiply(library().ggml, kind, weights, values, 2, place)
            assert_same_bits(found, quants.product(name, weights, values))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (0, 1)))


def supports(kind: int, *sizes: int, place: int, x: int = ggml.F32, viewed: bool = False) -> bool:
    """What the CPU backend answers when llama.cpp looks for a buffer type for a matrix."""
    handle, size = library().ggml, ctypes.c_size_t
    allocate = ggml.needed(handle, "ggml_backend_buft_alloc_buffer", POINTER, POINTER, size)
    free = ggml.needed(handle, "ggml_backend_buffer_free", None, POINTER)
    ask = ggml.needed(handle, "ggml_backend_dev_supports_op", ctypes.c_bool, *[POINTER] * 2)
    view = ggml.needed(handle, "ggml_view_tensor", POINTER, *[POINTER] * 2)
    with ggml._context(handle, 0, no_data=True) as context:
        w = ggml._tensor(handle, context, kind, *sizes)
        if viewed:
            w = view(context, w)
        vectors = ggml._tensor(handle, context, x, sizes[0], 512, *sizes[2:])
        buffer = allocate(place, 0)
        POINTER.from_address(
            w + 8
        ).value = buffer  # ggml_tensor.buffer, as kernels/ggml_abi.h has it
        answer: bool = ask(device(), times(context, w, vectors))
        free(buffer)
        return answer


OTHERS = ("F32", "F16", "BF16", "MXFP4", "IQ1_S", "IQ2_XXS", "IQ3_S", "TQ2_0")


def test_which_matrices_are_laid_out(installed: Any) -> None:
    """Those of our formats, when the kernels are on; all others llama.cpp keeps elsewhere."""
    place = installed.specgen_buffer_type()
    numbers = [format_.number for format_ in FORMATS.values()]
    assert not any(supports(number, 512, 40, place=place) for number in numbers)
    installed.specgen_enable(True, False)
    try:
        assert all(supports(number, 512, 40, place=place) for number in numbers)
        for name in OTHERS:
            assert not supports(gguf.GGMLQuantizationType[name], 512, 40, place=place), name
        q4_0 = FORMATS["Q4_0"].number
        assert not supports(q4_0, 512, 40, 2, place=place)
        assert not supports(q4_0, 512, 40, place=place, viewed=True)
        assert not supports(q4_0, 512, 40, place=place, x=ggml.F16)
    finally:
        installed.specgen_enable(False, False)


def test_what_a_matrix_takes(installed: Any) -> None:
    """At least its bytes in the file, whole bands of rows; nothing where there is no kernel."""
    for format_ in FORMATS.values():
        in_file = 48 * 3 * format_.n_bytes
        taken = kernels.laid_out_bytes(format_.number, 3 * format_.values, 48)
        assert in_file <= taken < 1.25 * in_file
        assert kernels.laid_out_bytes(format_.number, 3 * format_.values, 41) == taken
        assert kernels.laid_out_bytes(format_.number, 3 * format_.values + 16, 48) == 0
    for name in OTHERS:
        assert kernels.laid_out_bytes(gguf.GGMLQuantizationType[name], 512, 48) == 0, name


def test_weights_elsewhere_are_left_to_ggml(installed: Any) -> None:
    """A matrix that is not in our buffers is computed by ggml, of whatever format."""
    random = np.random.default_rng(10)
    values = random.standard_normal((3, 64)).astype(np.float32)
    floats = random.standard_normal((8, 64)).astype(np.float32)
    q4_0 = random_weights(random, "Q4_0", 8, 2)
    before = kernels.calls()
    installed.specgen_enable(True, False)
    found = ggml.multiply(library().ggml, ggml.F32, floats.view(np.uint8), values)
    other = ggml.multiply(library().ggml, FORMATS["Q4_0"].number, q4_0, values)
    installed.specgen_enable(False, False)
    assert kernels.calls() == before
    assert np.allclose(found, values @ floats.T, atol=1e-4)
    assert np.allclose(other, quants.product("Q4_0", q4_0, values), atol=1e-4)
