"""A time at which llama.cpp gives a call up."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from time import perf_counter
from typing import Any, Final

from specgen.core import compiled
from specgen.core.stop import ShouldStop

_NEVER: Final = (1 << 63) - 1  # ns


class Deadline:
    """Ends calls of a context that take too long, and those for prompts that are to stop.

    llama.cpp asks after every operation of the graph, some 500 times a call: a compiled function
    where there is one, which takes 20 us of a call, else one of Python's, which takes 0.5 ms.

    Args:
        api: the llama_cpp module.
        context: of llama.cpp, that computes on the CPU: other backends do not ask.
        should_stop: asked while prompts are processed.

    Attributes:
        is_cheap: whether asking takes next to no time.
    """

    def __init__(self, api: Any, context: Any, should_stop: ShouldStop) -> None:
        self._api = api
        self._context = context
        self._end_s = math.inf
        self._end = ctypes.c_int64(_NEVER)
        self._compiled = _compiled()
        self.is_cheap = self._compiled is not None
        kind = api.ggml_abort_callback
        self._asked = self._none = kind()
        self._stopped = kind(lambda _: self._has_passed or should_stop())
        self._late = kind(lambda _: self._has_passed)
        if self._compiled:
            self._late = kind(ctypes.cast(self._compiled.specgen_is_over, ctypes.c_void_p).value)

    @property
    def _has_passed(self) -> bool:
        return perf_counter() > self._end_s

    def set(self, limit_s: float | None, *, is_prompt: bool) -> None:
        """The next call may take so many seconds, or as long as it likes."""
        if limit_s is None and not is_prompt:
            return
        if limit_s is not None:
            self._end_s = perf_counter() + limit_s
            if self._compiled:
                self._end.value = self._compiled.specgen_now() + int(1e9 * limit_s)
        self._ask(self._stopped if is_prompt else self._late)

    def clear(self) -> bool:
        """Calls may take as long as they like; returns whether the last one took too long."""
        has_passed, self._end_s = self._has_passed, math.inf
        self._end.value = _NEVER
        if not (self._compiled and self._asked is self._late):  # which may as well stay
            self._ask(self._none)
        return has_passed

    def _ask(self, function: Any) -> None:
        if function is not self._asked:
            self._asked = function
            end = ctypes.addressof(self._end)
            self._api.llama_set_abort_callback(self._context, function, end)


@cache
def _compiled() -> Any | None:
    """The library that specgen's kernels are in, where it has these functions."""
    try:
        library = compiled.open_library()
        library.specgen_now.restype, library.specgen_now.argtypes = ctypes.c_int64, []
        library.specgen_is_over.restype = ctypes.c_bool
        library.specgen_is_over.argtypes = [ctypes.c_void_p]
    except (compiled.NotCompiled, AttributeError):
        return None
    return library
