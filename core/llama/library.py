"""llama.cpp as a loaded library: its functions, its log, its build and its devices.

The only module that imports llama-cpp-python, and no more of it than the bindings.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

from specgen.core.errors import BackendError
from specgen.core.host.process_memory import resident_bytes

from .ggml import function
from .kernels import install_kernels
from .last_words import LastWords
from .probe import crash

_log = logging.getLogger("specgen.llama")

_GPUS = (1, 2)  # ggml_backend_dev_type: with memory of its own, and with the host's

# Bytes, more than llama.cpp's libraries take at first without drivers of GPUs: 6 MB were seen.
_LIBRARIES = 16 << 20

# ggml_log_level -> logging level; 5 continues the line before it.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}


# llama.cpp says of every buffer where it is: "load_tensors:      CUDA0 model buffer size = 92 MiB".
_BUFFER = re.compile(r"\w+: +(\S+) +\w+ +buffer size = +([0-9.]+) MiB")
_ON_HOST = re.compile(r"CPU|AMX|BLAS|\w+_Host$")  # memory that a GPU sees is the host's as well


class LogBridge:
    """llama.cpp's log as lines of the `specgen.llama` logger.

    Attributes:
        errors: the last ones, to quote.
        device_bytes: of all buffers on GPUs that were told of since somebody last set it to 0.
    """

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=4)
        self.device_bytes = 0
        self._level = logging.DEBUG
        self._line = ""
        self._is_heard = True

    def __call__(self, level: int, text: bytes, _user_data: Any) -> None:
        """llama.cpp's callback: a piece of a line."""
        if not self._is_heard:
            return
        self._level = _LEVELS.get(level, self._level)
        self._line += text.decode("utf-8", errors="replace")
        if not self._line.endswith("\n"):
            return
        line, self._line = self._line.strip(), ""
        if self._level == logging.ERROR:
            self.errors.append(line)
        if (buffer := _BUFFER.match(line)) and not _ON_HOST.match(buffer[1]):
            self.device_bytes += int(float(buffer[2]) * (1 << 20))
        _log.log(self._level, "%s", line)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Within, what llama.cpp says is dropped: it was asked what may fail."""
        self._is_heard = False
        try:
            yield
        finally:
            self._is_heard = True

    def last_error(self) -> str:
        """The first of the errors since the last call: later ones only follow from it."""
        line = self.errors[0] if self.errors else ""
        self.errors.clear()
        return line.partition(": ")[2] or line


@dataclass(frozen=True)
class Library:
    """The loaded library. llama.cpp has one log callback per process, so there is one of these.

    Attributes:
        api: llama.cpp's functions and structures.
        ggml: the library below it, or None where llama-cpp-python does not load it by itself.
        log: what llama.cpp says.
        last_words: what is said where it ends the process.
        kernels: the instructions of specgen's own matrix products, or "none".
        driver_bytes: of the host's memory, that drivers of GPUs took when they were asked what is
            free. They come with the library, whether or not there is a GPU.
    """

    api: Any
    ggml: Any
    log: LogBridge
    last_words: LastWords
    log_callback: Any  # ctypes does not keep it alive
    kernels: str
    driver_bytes: int = 0


@cache
def library() -> Library:
    """The library, loaded by the first call. Raises BackendError if it cannot be."""
    before = resident_bytes() or 0
    # Else ggml has a debugger write to our streams. It looks when it is loaded, too.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    api, ggml = _bindings()
    last_words = LastWords()
    last_words.listen(ggml)
    # May raise, and llama.cpp keeps the callback that it is given.
    kernels = install_kernels(ggml, crash)
    bridge = LogBridge()
    callback = api.llama_log_callback(bridge)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    api.llama_backend_init()
    loaded = Library(api, ggml, bridge, last_words, callback, kernels)
    _free_bytes(loaded)
    taken = (resident_bytes() or 0) - before
    return replace(loaded, driver_bytes=max(0, taken - _LIBRARIES))


def _bindings() -> tuple[Any, Any]:
    """llama-cpp-python's bindings of llama.cpp and ggml.

    Its package imports a server's worth of things that are of no use here, 11 MB of them: so for
    a moment an empty package stands in its place. Whoever imports it later gets all of it, and
    then it has llama.cpp's log as well. Raises BackendError.
    """
    name = "llama_cpp"
    spec = None if name in sys.modules else find_spec(name)
    if spec:
        sys.modules[name] = module_from_spec(spec)
    try:
        api = import_module(f"{name}.llama_cpp")
        with suppress(ImportError):
            return api, import_module(f"{name}._ggml").libggml
        return api, None
    except (ImportError, OSError, RuntimeError) as error:
        hint = "install llama-cpp-python again, on this machine"
        raise BackendError(f"llama.cpp cannot be loaded: {error}", hint) from None
    finally:
        if spec:
            del sys.modules[name]


def system_info() -> str:
    """What llama.cpp was built for and found on this machine."""
    text: bytes = library().api.llama_print_system_info()
    return text.decode().strip()


def library_version() -> str:
    """Everything about the build of llama.cpp that may change its speed or its rounding."""
    names = ("ggml_version", "ggml_commit")
    built = [text for name in names if (text := _ggml_text(name)) is not None]
    return " ".join(["ggml", *built, "kernels", library().kernels, system_info()])


def device_names() -> tuple[str, ...]:
    """The devices that llama.cpp found, such as "CPU AMD EPYC"; none where it does not say."""
    words = ("ggml_backend_dev_name", "ggml_backend_dev_description")
    return tuple(
        " ".join(_ggml_text(word, device) or "" for word in words) for device in _devices(library())
    )


def knows_architecture(name: str) -> bool:
    """Whether llama.cpp can load models of this architecture; True where it does not say.

    It is asked to open a header in memory that states the architecture and nothing else.
    """
    lib = library()
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    new = function(lib.ggml, "gguf_init_empty", pointer)
    put = function(lib.ggml, "gguf_set_val_str", None, pointer, text, text)
    free = function(lib.ggml, "gguf_free", None, pointer)
    ask = getattr(lib.api, "llama_model_init_from_user", None)
    if new is None or put is None or free is None or ask is None:
        return True
    params = lib.api.llama_model_default_params()
    params.vocab_only = True
    header = new()
    put(header, b"general.architecture", name.encode())
    put(header, b"tokenizer.ggml.model", b"none")
    with lib.log.unheard():
        model = ask(header, lib.api.llama_model_set_tensor_data_t(), None, params)
    free(header)
    if model:
        lib.api.llama_model_free(model)
    return bool(model)


def free_device_memory() -> int | None:
    """Bytes that are free on all GPUs together, or None where llama.cpp has none to offload to."""
    return _free_bytes(library())


def _free_bytes(lib: Library) -> int | None:
    if not lib.api.llama_supports_gpu_offload():
        return None
    size = ctypes.POINTER(ctypes.c_size_t)
    kind_of = function(lib.ggml, "ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    ask = function(lib.ggml, "ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
    if kind_of is None or ask is None:
        return None
    found = []
    for device in _devices(lib):
        if kind_of(device) in _GPUS:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            ask(device, ctypes.byref(free), ctypes.byref(total))
            found.append(free.value)
    return sum(found) if found else None


def _devices(lib: Library) -> list[int]:
    """Handles of all devices; none where llama.cpp does not say."""
    count = function(lib.ggml, "ggml_backend_dev_count", ctypes.c_size_t)
    get = function(lib.ggml, "ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    if count is None or get is None:
        return []
    return [get(i) for i in range(count())]


def _ggml_text(name: str, *handles: int) -> str | None:
    ask = function(library().ggml, name, ctypes.c_char_p, *[ctypes.c_void_p] * len(handles))
    text: bytes | None = ask(*handles) if ask else None
    return text.decode("utf-8", "replace") if text else None
