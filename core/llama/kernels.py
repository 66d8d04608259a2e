"""specgen's own products and attention, put into llama.cpp's CPU backend when it is loaded.

Their code is in kernels/, compiled when specgen is installed. Before they are used, ggml's
structures are compared with those they were written for, and their results with ggml's own, those
of attention bit by bit; where anything differs, llama.cpp stays as it is.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from specgen.core import compiled
from specgen.core.errors import UsageError

from .clearing import give_back_pages
from .experts import are_close, experts_agree
from .formats import FORMATS, Format, some_cached, some_weights, spread
from .ggml import F16, Q8_0, address, attend, function, multiply, needed, operation, product
from .lookups import lookups_agree

_log = logging.getLogger("specgen.kernels")

NONE: Final = compiled.NONE  # llama.cpp's own
INSTRUCTIONS: Final = ("avx512", "avxvnni", "avx2")  # best first
_FOR_TESTS: Final = "avx512vl"  # what AVX-VNNI computes, where a processor has only AVX-512
VARIABLE: Final = compiled.VARIABLE

# Versions of ggml that the kernels were seen with: those of llama-cpp-python 0.3.35 and 0.3.36.
PROVEN: Final = frozenset({"0.20.0", "0.25.3"})
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


class _Unusable(Exception):
    """The kernels can't be used here; says why."""


def install_kernels(
    ggml: Any, crash: Callable[[Any, Path], str | None] = lambda ggml, path: ""
) -> str:
    """Puts the kernels into ggml's CPU backend, for this process.

    `SPECGEN_KERNELS` in the environment chooses: "none", "avx2", "avxvnni" or "avx512"; without it
    the best that this processor has are taken. Where they can't be used, the log says why.

    Args:
        ggml: the library as ctypes has it, or None.
        crash: says which signal ended a process that tried them, see probe.py; "" is none, and
            None where that is not known: then they are used with `PROVEN` versions of ggml alone.

    Returns:
        The instructions that they use, followed by " products" if attention stays ggml's, or by
        " without" and the caches to which it does, first "experts" if their products stay, too;
        "none" where nothing is used.

    Raises:
        UsageError: the environment asks for others.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted == NONE:
        return NONE
    choices = INSTRUCTIONS if wanted == "auto" else (wanted,)
    if not set(choices) <= {*INSTRUCTIONS, _FOR_TESTS}:
        hint = f"use {', '.join(INSTRUCTIONS)} or {NONE}, or leave it out"
        raise UsageError(f"{VARIABLE} is {wanted!r}, which names no kernels", hint)
    try:
        _require_tried(ggml, crash(ggml, compiled.LIBRARY))
        kernels = _compiled()
        kernels.specgen_enable(False, False)
        _check_classes(ggml)
        _leave_amx_out(ggml, kernels)
        _check_buffer_types(ggml, kernels)
        _check_tensors(ggml, kernels)
        instructions = _add(ggml, kernels, choices)
        _check_products(ggml, kernels)
        if not lookups_agree(ggml, kernels):
            raise _Unusable("our look-ups differ from ggml's")
        experts = _check_experts(ggml, kernels)
        if not give_back_pages(ggml, kernels):
            _log.info("llama.cpp fills caches with zeros itself")
    except (_Unusable, AttributeError) as reason:
        _log.info("only llama.cpp's own kernels: %s", reason)
        return NONE
    try:
        left = _check_attention(ggml, kernels, choices)
    except (_Unusable, AttributeError) as reason:
        _log.info("only llama.cpp's own attention: %s", reason)
        kernels.specgen_enable(True, False)
        return _without(f"{instructions} products", experts)
    kernels.specgen_enable(True, True)
    _log.info("products and attention by specgen's kernels: %s", instructions)
    if left:
        _log.info(
            "only llama.cpp's own attention to %s: ours differs from ggml's in some bits", left
        )
    return _without(instructions, experts, left)


def _without(instructions: str, *left: str) -> str:
    named = ", ".join(filter(None, left))
    return f"{instructions} without {named}" if named else instructions


def _require_tried(ggml: Any, signal: str | None) -> None:
    """Nothing is tried here that ended another process, or that nobody has tried."""
    if signal:
        raise _Unusable(f"a process that tried ours ended by {signal}")
    if signal is None and (version := _version(ggml)) not in PROVEN:
        raise _Unusable(
            f"ours could not be tried with ggml {version}, which they were not seen with"
        )


def _version(ggml: Any) -> str:
    ask = function(ggml, "ggml_version", ctypes.c_char_p)
    text: bytes = ask() if ask else b"of an unknown version"
    return text.decode("utf-8", "replace")


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
    pointer, integer, truth = ctypes.c_void_p, ctypes.c_int, ctypes.c_bool
    try:
        library = compiled.open_library()
    except compiled.NotCompiled as reason:
        raise _Unusable(str(reason)) from reason
    if not hasattr(library, "specgen_install"):
        raise _Unusable("there are none of ours for this processor")
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "layout": (truth, [pointer, pointer, pointer, ctypes.c_size_t, integer]),
        "has_type": (truth, [pointer, pointer]),
        "leave_out": (truth, [ctypes.c_char_p, pointer]),
        "install": (truth, [ctypes.c_char_p, *[integer] * 4, ctypes.POINTER(_Addresses)]),
        "buffer_type": (pointer, []),
        "laid_out": (ctypes.c_int64, [integer, ctypes.c_int64, ctypes.c_int64]),
        "enable": (None, [truth, truth]),
        "allow_experts": (None, [truth]),
        "give_back": (truth, [truth]),
        "lay_out_table": (None, [truth]),
        "allow": (truth, [ctypes.c_char_p, integer, integer, ctypes.c_int64]),
        "products": (ctypes.c_int64, []),
        "lookups": (ctypes.c_int64, []),
        "threads": (ctypes.c_uint64, []),
        "attentions": (ctypes.c_int64, []),
    }
    for name, (result, arguments) in signatures.items():
        found = getattr(library, f"specgen_{name}")
        found.restype, found.argtypes = result, arguments
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


def _check_buffer_types(ggml: Any, kernels: Any) -> None:
    """One that ggml has must look as ours does."""
    table = address(ggml, f"_ZTV{_BUFFERS}E") + 2 * _WORD
    if not kernels.specgen_has_type(table, address(ggml, _TYPES)):
        raise _Unusable("ggml's buffer types differ from those that ours were written for")


def _check_listed(ggml: Any, kernels: Any, device: int) -> None:
    """llama.cpp chooses from the list that the first call makes: ours must be in it."""
    pointer = ctypes.c_void_p
    registry = needed(ggml, "ggml_backend_cpu_reg", pointer)()
    find = needed(ggml, "ggml_backend_reg_get_proc_address", pointer, pointer, ctypes.c_char_p)
    found = find(registry, b"ggml_backend_dev_get_extra_bufts")
    listed = ctypes.CFUNCTYPE(pointer, pointer)(found)(device) if found else None
    while listed and (each := _word(listed)):
        if each == kernels.specgen_buffer_type():
            return
        listed += _WORD
    raise _Unusable("somebody has asked ggml for its buffer types before")


def _word(at: int) -> int:
    return ctypes.c_size_t.from_address(at).value


def _check_tensors(ggml: Any, kernels: Any) -> None:
    overhead = needed(ggml, "ggml_tensor_overhead", ctypes.c_size_t)
    name = needed(ggml, "ggml_set_name", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
    with product(ggml, FORMATS["Q8_0"].number, columns=96, rows=5, n=3) as tensors:
        name(tensors.result, b"product")
        found = tensors.result, tensors.weights, tensors.values
        if not kernels.specgen_layout(*found, overhead(), operation(ggml, "MUL_MAT")):
            raise _Unusable("ggml's tensors differ from those that ours were written for")


class _Addresses(ctypes.Structure):
    """What the kernels take of ggml, as kernels.cpp has it."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("barrier", "types", "cpu_type", "allocate", "type_of", "base_of", "size_of"),
            "device",
        )
    )


def _add(ggml: Any, kernels: Any, choices: tuple[str, ...]) -> str:
    names = (
        *("ggml_barrier", _TYPES, "ggml_backend_cpu_buffer_type", "ggml_backend_buft_alloc_buffer"),
        *("ggml_backend_buffer_get_type", "ggml_backend_buffer_get_base"),
        "ggml_backend_buffer_get_size",
    )
    functions = [address(ggml, name) for name in names]
    pointer = ctypes.c_void_p
    registry = needed(ggml, "ggml_backend_cpu_reg", pointer)()
    get = needed(ggml, "ggml_backend_reg_dev_get", pointer, pointer, ctypes.c_size_t)
    device = get(registry, 0)
    if not all(functions) or not device:
        raise _Unusable("ggml hides what they build on")
    served = "MUL_MAT", "MUL_MAT_ID", "GET_ROWS", "FLASH_ATTN_EXT"
    numbers = [operation(ggml, name) for name in served]
    addresses = _Addresses(*functions, device)
    for instructions in choices:
        if kernels.specgen_install(instructions.encode(), *numbers, addresses):
            _check_listed(ggml, kernels, device)
            return instructions
    raise _Unusable(f"this processor has neither {' nor '.join(choices)}")


def _check_products(ggml: Any, kernels: Any) -> None:
    """They are ggml's but for rounding, and the same for one vector as for several.

    Only one is shared by threads: where the machine is busy, they wait 30 ms for each other.
    """
    for i, format_ in enumerate(FORMATS.values()):
        kernels.specgen_threads()
        n_threads = 1 if i else 2
        if not _is_right(ggml, kernels, format_, n_threads):
            raise _Unusable("our products differ from ggml's")
        if kernels.specgen_threads() != (1 << n_threads) - 1:
            raise _Unusable("ggml tells its threads otherwise than ours expect")


def _is_right(ggml: Any, kernels: Any, format_: Format, threads: int) -> bool:
    n_values = 3 * format_.values if format_.values < 256 else format_.values
    values, number = spread(11, n_values), format_.number
    # Less than a page of weights: then nobody asks the system whether they are of a mapped file.
    weights = some_weights(format_, rows=19, blocks=n_values // format_.values)
    expected = multiply(ggml, number, weights, values, threads=1)
    before, place = calls().products, kernels.specgen_buffer_type()
    found = multiply(ggml, number, weights, values, threads=threads, place=place)
    one = multiply(ggml, number, weights, values[-1:], threads=1, place=place)
    if calls().products != before + 2:
        raise _Unusable("ggml does not ask for ours")
    return one.tobytes() == found[-1:].tobytes() and are_close(found, expected)


def _check_experts(ggml: Any, kernels: Any) -> str:
    """ "experts" if their products are left to ggml, for they differ from ggml's; else ""."""
    agree = experts_agree(ggml, kernels)
    kernels.specgen_allow_experts(agree)
    if not agree:
        _log.info("only llama.cpp's own products of experts: ours differ from ggml's")
    return "" if agree else "experts"


def _check_attention(ggml: Any, kernels: Any, choices: tuple[str, ...]) -> str:
    """Several tokens by ggml and by the kernels, for each kind of cache and each size of a head.

    The kernels attend to those alone where all bits are ggml's, with the first instructions that
    have them: ggml may have been built for fewer than this processor has. As with products, the
    first alone is shared by threads.

    Returns:
        The others: types of keys and of values, and a size, such as "f16/q8_0 128, q8_0/q8_0 64".
    """
    kernels.specgen_enable(False, False)
    kinds = [(k, v, size) for k in CACHE_TYPES for v in CACHE_TYPES for size in HEAD_SIZES]
    left = []
    for kind in kinds:
        n_threads = 1 if kind != kinds[0] else 2
        if not any(_attends_alike(ggml, kernels, each, *kind, n_threads) for each in choices):
            left.append(kind)
    if left == kinds:
        raise _Unusable("ours differs from ggml's in some bits")
    return ", ".join(f"{keys}/{values} {size}" for keys, values, size in left)


def _attends_alike(
    ggml: Any, kernels: Any, instructions: str, keys: str, values: str, size: int, threads: int = 1
) -> bool:
    """Whether the kernels attend to such a cache as ggml does; only then they do from now on."""
    types = CACHE_TYPES[keys], CACHE_TYPES[values]
    inputs = (
        2 * spread(3, 3, size),
        some_cached(size, 0, half=keys == "f16"),
        some_cached(size, 1, half=values == "f16"),
        np.where(spread(3, 40) < -0.5, -np.inf, 0).astype(np.float16),
    )
    if not kernels.specgen_allow(instructions.encode(), *types, size):
        return False
    expected = attend(ggml, *inputs, 1)
    before = calls().attentions
    with _attending(kernels):
        found = attend(ggml, *inputs, threads)
    if calls().attentions != before + 1:
        raise _Unusable("ggml does not ask for ours")
    alike = found.tobytes() == expected.tobytes()
    if not alike:
        kernels.specgen_allow(NONE.encode(), *types, size)
    return alike


@contextmanager
def _attending(kernels: Any) -> Iterator[None]:
    kernels.specgen_enable(False, True)
    try:
        yield
    finally:
        kernels.specgen_enable(False, False)


def lay_out_table(wanted: bool) -> None:
    """Whether models that this thread loads from now on have their table of tokens laid out, too.

    That takes more where nothing is multiplied with the table: then few of its pages are read.
    """
    with suppress(_Unusable):
        _compiled().specgen_lay_out_table(wanted)


def laid_out_bytes(number: int, columns: int, rows: int) -> int:
    """What a matrix takes in the kernels' layout; 0 where they are not written for its ggml_type.

    The kernels must be installed.
    """
    n_bytes: int = _compiled().specgen_laid_out(number, columns, rows)
    return n_bytes
