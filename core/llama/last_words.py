"""How a process ends that llama.cpp gives up in: with one line and an exit code, as all others do.

Where ggml finds a contradiction it prints, runs a debugger and aborts. Nothing can be saved from
there, so its callback says what is wrong and leaves. The same goes for a C++ exception that nobody
catches.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from specgen.core.errors import BackendError, ModelError, SpecgenError
from specgen.core.host.paths import path_text

from .ggml import function

_STDERR = 2
_SOURCE = re.compile(r"\S*[/\\](\S+:\d+: )")  # with the folder of whoever built it
_SET_TERMINATE = "_ZSt13set_terminatePFvvE"  # std::set_terminate(void (*)())


class LastWords:
    """What is said when llama.cpp ends the process; on whatever thread it does so."""

    def __init__(self) -> None:
        self._opening: Path | None = None
        self._terminal = _terminal_settings()
        self._callbacks: list[Any] = []  # ctypes does not keep them alive

    def listen(self, ggml: Any) -> None:
        """Be asked from now on; where the library has no such callback, it aborts as ever."""
        abort = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self._abort)
        terminate = ctypes.CFUNCTYPE(None)(self._terminate)
        for name, callback in (
            ("ggml_set_abort_callback", abort),
            (_SET_TERMINATE, terminate),
        ):
            if set_callback := function(ggml, name, ctypes.c_void_p, type(callback)):
                set_callback(callback)
                self._callbacks.append(callback)

    @contextmanager
    def opening(self, path: Path) -> Iterator[None]:
        """Within, the file is to blame."""
        before, self._opening = self._opening, path
        try:
            yield
        finally:
            self._opening = before

    def _abort(self, message: bytes | None) -> None:
        self._end(_SOURCE.sub(r"\1", (message or b"").decode("utf-8", "replace")))

    def _terminate(self) -> None:
        self._end("an exception that it does not catch")

    def _end(self, reason: str) -> None:
        """Leave without a way back: the callers of this would abort."""
        error = self._error(" ".join(reason.split()))
        try:
            with suppress(Exception):
                sys.stdout.flush()
            self._restore_terminal()
            line = f"specgen: error: {error.message} ({error.hint})\n"
            with suppress(OSError):
                os.write(_STDERR, line.encode("utf-8", "replace"))
        finally:
            os._exit(error.exit_code)

    def _error(self, reason: str) -> SpecgenError:
        if self._opening is None:
            return BackendError(
                f"llama.cpp gave up: {reason}",
                "-vv shows its log; what was written so far is complete",
            )
        return ModelError(
            f"llama.cpp cannot run {path_text(self._opening)}: {reason}",
            "the file is damaged, or llama-cpp-python is too old for it; `specgen info` shows what"
            " it says",
        )

    def _restore_terminal(self) -> None:
        """As it was found: an answer is written with echo off."""
        if self._terminal:
            with suppress(Exception):
                self._terminal()


def _terminal_settings() -> Callable[[], None] | None:
    """What sets the terminal back to how it is now; None where there is none."""
    try:
        import termios
    except ImportError:  # Windows
        return None
    try:
        number = sys.stdin.fileno()
        settings = termios.tcgetattr(number)
    except (OSError, ValueError, AttributeError, termios.error):
        return None
    return lambda: termios.tcsetattr(number, termios.TCSANOW, settings)
