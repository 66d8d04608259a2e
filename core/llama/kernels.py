"""specgen's own products and attention, put into llama.cpp's CPU backend when it is loaded.

Their code is in kernels/, compiled when specgen is installed. Before they are used, ggml's
structures are compared with those they were written for, and their results bit by bit with
ggml's own; where anything differs, llama.cpp stays as it is.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from specgen.core.errors import UsageError

from .ggml import F16, address, attend, multiply, needed, operation, product

_log = logging.getLogger("specgen.kernels")

NONE: Final = "none"  # llama.cpp's own
INSTRUCTIONS: Final = ("avx512", "avx2")  # best first
VARIABLE: Final = "SPECGEN_KERNELS"

Q4_1, Q8_0 = 3, 8  # ggml_type
BLOCK_BYTES: Final = MappingProxyType({Q4_1: 20, Q8_0: 34})  # of 32 weights
HEAD_SIZES: Final = (64, 128, 256)  # dimensions of a head that attention is written for
CACHE_TYPES: Final = MappingProxyType({"f16": F16, "q8_0": Q8_0})  # of keys, and of values

# Tables of virtual functions, and those that we replace, whose names tell their arguments too.
_REPACK = "N4ggml3cpu6repack"
_TRAITS = f"{_REPACK}13tensor_traitsI10block_q4_0Ll8ELl8EL9ggml_type8EE"
_BUFFERS = f"{_REPACK}17extra_buffer_type"
_CLASSES: Final = MappingProxyType(
    {
        f"_ZTV{_TRAITS}E": (
            f"_Z{_TRAITS}9work_sizeEiPK11ggml_tensorRm",
            f"_Z{_TRAITS}15compute_forwardEP19ggml_compute_paramsP11ggml_tensor",
        ),
        f"_ZTV{_BUFFERS}E": (
            f"_Z{_BUFFERS}11supports_opEP19ggml_backend_devicePK11ggml_tensor",
            f"_Z{_BUFFERS}17get_tensor_traitsEPK11ggml_tensor",
        ),
    }
)
_TYPES = "_Z39ggml_backend_cpu_get_extra_buffer_typesv"
_FIRST = 4  # words of such a table before these: two of the compiler's, two for destruction
_WORD = ctypes.sizeof(ctypes.c_size_t)
_CONTEXT = 7  # words of a buffer type before the address of its object

_LIBRARY: Final = Path(__file__).with_name("_kernels.so")  # the same for every Python: see setup.py
_VERSION = 3  # of the compiled functions' arguments


class _Unusable(Exception):
    """The kernels can't be used here; says why."""


def install_kernels(ggml: Any, crash: Callable[[Any, Path], str] = lambda ggml, path: "") -> str:
    """Puts the kernels into ggml's CPU backend, for this process.

    `SPECGEN_KERNELS` in the environment chooses: "none", "avx2" or "avx512"; without it the best
    that this processor has are taken. Where they can't be used, the log says why.

    Args:
        ggml: the library as ctypes has it, or None.
        crash: says which signal ended a process that tried them, see probe.py; "" is none.

    Returns:
        The instructions that they use, followed by " products" if attention stays ggml's, or by
        " without" and the caches to which it does; "none" where nothing is used.

    Raises:
        UsageError: the environment asks for others.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted == NONE:
        return NONE
    choices = INSTRUCTIONS if wanted == "auto" else (wanted,)
    if not set(choices) <= set(INSTRUCTIONS):
        hint = f"use {', '.join(INSTRUCTIONS)} or {NONE}, or leave it out"
        raise UsageError(f"{VARIABLE} is {wanted!r}, which names no kernels", hint)
    if signal := crash(ggml, _LIBRARY):
        _log.info("only llama.cpp's own kernels: a process that tried ours ended by %s", signal)
        return NONE
    try:
        kernels = _compiled()
        kernels.specgen_enable(False, False)
        _check_classes(ggml)
        _leave_amx_out(ggml, kernels)
        _check_buffer_types(ggml)
        _check_tensors(ggml, kernels)
        instructions = _add(ggml, kernels, choices)
        _check_products(ggml, kernels)
    except (_Unusable, AttributeError) as reason:
        _log.info("only llama.cpp's own kernels: %s", reason)
        return NONE
    try:
        left = _check_attention(ggml, kernels, choices)
    except (_Unusable, AttributeError) as reason:
        _log.info("only llama.cpp's own attention: %s", reason)
        kernels.specgen_enable(True, False)
        return f"{instructions} products"
    kernels.specgen_enable(True, True)
    _log.info("products of Q4_1 and Q8_0, and attention, by specgen's kernels: %s", instructions)
    if left:
        _log.info(
            "only llama.cpp's own attention to %s: ours differs from ggml's in some bits", left
        )
        return f"{instructions} without {left}"
    return instructions


@dataclass(frozen=True, slots=True)
class Calls:
    """Operations that the kernels computed in this process, those of the checks included."""

    products: int
    attentions: int


def calls() -> Calls:
    """How often the kernels were used."""
    try:
        kernels = _compiled()
    except _Unusable:
        return Calls(0, 0)
    return Calls(kernels.specgen_products(), kernels.specgen_attentions())


@cache
def _compiled() -> Any:
    if not _LIBRARY.exists():
        raise _Unusable("ours were not compiled when specgen was installed")
    pointer, integer, truth = ctypes.c_void_p, ctypes.c_int, ctypes.c_bool
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        version = library.specgen_version()
    except (OSError, AttributeError) as error:
        raise _Unusable(f"{_LIBRARY} can't be used ({error}); install specgen again") from error
    if version != _VERSION:
        raise _Unusable(f"{_LIBRARY} is of another version; install specgen again")
    if not hasattr(library, "specgen_install"):
        raise _Unusable("there are none of ours for this processor")
    library.specgen_layout.restype = truth
    library.specgen_layout.argtypes = [pointer, pointer, pointer, ctypes.c_size_t, integer]
    library.specgen_leave_out.restype = truth
    library.specgen_leave_out.argtypes = [ctypes.c_char_p, pointer]
    library.specgen_install.restype = truth
    library.specgen_install.argtypes = [ctypes.c_char_p, integer, integer, *[pointer] * 3]
    library.specgen_enable.restype = None
    library.specgen_enable.argtypes = [truth, truth]
    library.specgen_allow.restype = truth
    library.specgen_allow.argtypes = [ctypes.c_char_p, integer, integer, ctypes.c_int64]
    library.specgen_products.restype = ctypes.c_int64
    library.specgen_attentions.restype = ctypes.c_int64
    return library


def _check_classes(ggml: Any) -> None:
    for table, names in _CLASSES.items():
        start = address(ggml, table)
        if not start:
            raise _Unusable("ggml hides its classes")
        words = (ctypes.c_size_t * (_FIRST + len(names))).from_address(start)
        if [address(ggml, name) for name in names] != list(words[_FIRST:]):
            raise _Unusable("ggml's classes differ from those that ours were written for")


def _leave_amx_out(ggml: Any, kernels: Any) -> None:
    """Let no weights be laid out for AMX: ours cannot read them, and are quicker at a few rows.

    And gcc before 13 sets AMX up wrongly: llama.cpp then crashes at the first prompt.
    """
    if kernels.specgen_leave_out(b"AMX", address(ggml, _TYPES)):
        _log.info("AMX is left out: specgen's kernels take its place")


def _check_buffer_types(ggml: Any) -> None:
    """One that ggml has must look as ours will."""
    pointer = ctypes.c_void_p
    registry = needed(ggml, "ggml_backend_cpu_reg", pointer)()
    device = needed(ggml, "ggml_backend_reg_dev_get", pointer, pointer, ctypes.c_size_t)
    find = needed(ggml, "ggml_backend_reg_get_proc_address", pointer, pointer, ctypes.c_char_p)
    found = find(registry, b"ggml_backend_dev_get_extra_bufts")
    if not found:
        raise _Unusable("ggml has no extra buffer types")
    # llama.cpp chooses buffers for weights from the list that the first call makes: without ours.
    listed = ctypes.CFUNCTYPE(pointer, pointer)(found)(device(registry, 0))
    table = address(ggml, f"_ZTV{_BUFFERS}E") + 2 * _WORD
    while listed and (each := _word(listed)):
        if _word(_word(each + _CONTEXT * _WORD)) == table:
            return
        listed += _WORD
    raise _Unusable("ggml's buffer types differ from those that ours were written for")


def _word(at: int) -> int:
    return ctypes.c_size_t.from_address(at).value


def _check_tensors(ggml: Any, kernels: Any) -> None:
    overhead = needed(ggml, "ggml_tensor_overhead", ctypes.c_size_t)
    name = needed(ggml, "ggml_set_name", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
    with product(ggml, Q8_0, columns=96, rows=5, n=3) as tensors:
        name(tensors.result, b"product")
        found = tensors.result, tensors.weights, tensors.values
        if not kernels.specgen_layout(*found, overhead(), operation(ggml, "MUL_MAT")):
            raise _Unusable("ggml's tensors differ from those that ours were written for")


def _add(ggml: Any, kernels: Any, choices: tuple[str, ...]) -> str:
    names = ("ggml_barrier", "ggml_get_type_traits_cpu")
    functions = [address(ggml, name) for name in (*names, _TYPES)]
    if not all(functions):
        raise _Unusable("ggml hides what they build on")
    numbers = [operation(ggml, name) for name in ("MUL_MAT", "FLASH_ATTN_EXT")]
    for instructions in choices:
        if kernels.specgen_install(instructions.encode(), *numbers, *functions):
            return instructions
    raise _Unusable(f"neither {' nor '.join(choices)} suits this processor and ggml's formats")


def _check_products(ggml: Any, kernels: Any) -> None:
    """One vector at a time by ggml, all together by the kernels."""
    values = _spread(11, 96)
    for kind in BLOCK_BYTES:
        weights = _some_weights(kind, rows=35, blocks=3)
        expected = np.concatenate([multiply(ggml, kind, weights, v[None]) for v in values])
        before = calls().products
        with _switched_on(kernels, products=True):
            found = multiply(ggml, kind, weights, values)
        if calls().products != before + 1:
            raise _Unusable("ggml does not ask for ours")
        if found.tobytes() != expected.tobytes():
            raise _Unusable("our products differ from ggml's in some bits")


def _check_attention(ggml: Any, kernels: Any, choices: tuple[str, ...]) -> str:
    """Several tokens by ggml and by the kernels, for each kind of cache and each size of a head.

    The kernels attend to those alone where all bits are ggml's, with the first instructions that
    have them: ggml may have been built for fewer than this processor has.

    Returns:
        The others: types of keys and of values, and a size, such as "f16/q8_0 128, q8_0/q8_0 64".
    """
    kernels.specgen_enable(False, False)
    kinds = [(k, v, size) for k in CACHE_TYPES for v in CACHE_TYPES for size in HEAD_SIZES]
    left = [
        kind
        for kind in kinds
        if not any(_attends_alike(ggml, kernels, instructions, *kind) for instructions in choices)
    ]
    if left == kinds:
        raise _Unusable("ours differs from ggml's in some bits")
    return ", ".join(f"{keys}/{values} {size}" for keys, values, size in left)


def _attends_alike(
    ggml: Any, kernels: Any, instructions: str, keys: str, values: str, size: int
) -> bool:
    """Whether the kernels attend to such a cache as ggml does; only then they do from now on."""
    types = CACHE_TYPES[keys], CACHE_TYPES[values]
    inputs = (
        2 * _spread(3, 3, size),
        _some_cached(types[0], size, 0),
        _some_cached(types[1], size, 1),
        np.where(_spread(3, 40) < -0.5, -np.inf, 0).astype(np.float16),
    )
    if not kernels.specgen_allow(instructions.encode(), *types, size):
        return False
    expected = attend(ggml, *inputs)
    before = calls().attentions
    with _switched_on(kernels, attention=True):
        found = attend(ggml, *inputs)
    if calls().attentions != before + 1:
        raise _Unusable("ggml does not ask for ours")
    alike = found.tobytes() == expected.tobytes()
    if not alike:
        kernels.specgen_allow(NONE.encode(), *types, size)
    return alike


def _some_cached(kind: int, size: int, leave_out: int) -> NDArray[Any]:
    """Keys or values of 40 positions, in one shared head."""
    positions = 40 + leave_out  # so that values are not the same as keys
    if kind == F16:
        return _spread(1, positions, size)[:, leave_out:].astype(np.float16)
    return _some_weights(kind, positions, size // 32)[None, leave_out:]


@contextmanager
def _switched_on(
    kernels: Any, *, products: bool = False, attention: bool = False
) -> Iterator[None]:
    kernels.specgen_enable(products, attention)
    try:
        yield
    finally:
        kernels.specgen_enable(False, False)


def _spread(*shape: int) -> NDArray[np.float32]:
    """Numbers from -1 to 1 in no order. NumPy's generators would take 2.5 MB for good."""
    numbers = np.sin(np.arange(1, 1 + math.prod(shape), dtype=np.float64) ** 2)
    return numbers.astype(np.float32).reshape(shape)


def _some_weights(kind: int, rows: int, blocks: int) -> NDArray[np.uint8]:
    size = BLOCK_BYTES[kind]
    weights = (128 + 127 * _spread(rows, blocks, size)).astype(np.uint8)
    halves = 2 if kind == Q4_1 else 1  # a scale, and a minimum
    scales = (_spread(rows, blocks, halves) / 64).astype(np.float16)
    weights[..., : 2 * halves] = scales.view(np.uint8)
    return weights.reshape(rows, blocks * size)
