"""The threads of a context: their number follows what its calls take."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from specgen.core.host.threads import ThreadChoice
from specgen.core.stop import ShouldStop

from .deadline import Deadline
from .library import library

_log = logging.getLogger("specgen.threads")

_ABORTED: Final = 2  # of llama_decode


class Threads:
    """Makes the calls of a context, each with as many threads as are worth it.

    Args:
        api: the llama_cpp module.
        context: of llama.cpp.
        number: of threads at first, and at most.
        follow: whether their number follows what calls take.
        should_stop: asked while prompts are processed.
    """

    def __init__(
        self,
        api: Any,
        context: Any,
        number: int,
        *,
        follow: bool,
        should_stop: ShouldStop,
    ) -> None:
        self._api = api
        self._context = context
        self._deadline = Deadline(api, context, should_stop)
        self._choice = ThreadChoice(number) if follow and number > 1 else None
        self._set = number
        self._told = number

    @property
    def is_new(self) -> bool:
        """Whether their number is to be chosen, and no call was made yet."""
        return self._choice is not None and not self._choice.total_s

    def set(self, number: int) -> None:
        """The next calls have so many threads, unless their number follows what they take."""
        if number != self._set:
            self._api.llama_set_n_threads(self._context, number, number)
            self._set = number

    def run(
        self,
        decode: Callable[[], int],
        undo: Callable[[], None],
        rows: int,
        context: int,
        *,
        is_prompt: bool,
        can_undo: bool,
    ) -> int:
        """What llama_decode returns for a call with `rows` rows behind `context` tokens.

        `decode` makes it; `undo` takes back what it left where it is given up to be made again.
        """
        while True:
            limit_s = self._prepare(rows, is_prompt=is_prompt)
            self._deadline.set(limit_s if can_undo else None, is_prompt=is_prompt)
            start = perf_counter()
            try:
                code = decode()
            finally:
                is_late = self._deadline.clear()
            seconds = perf_counter() - start
            is_late &= code == _ABORTED
            if self._choice and (code == 0 or is_late):
                self._choice.observe(rows, context, seconds, finished=not is_late)
                self._tell(self._choice.settled)
            if not is_late:
                return code
            undo()
            library().log.errors.clear()  # they say no more than that

    def _prepare(self, rows: int, *, is_prompt: bool) -> float | None:
        """Set the number of threads; returns the seconds that the call may take, or None."""
        if self._choice is None:
            return None
        number, limit_s = self._choice.use(rows)
        self.set(number)
        # In prompts somebody is asked anyway.
        is_cheap = self._deadline.is_cheap or is_prompt or number != self._choice.settled
        return limit_s if is_cheap else None

    def _tell(self, number: int) -> None:
        if number == self._told:
            return
        reason = "busy" if number < self._told else "quieter"
        self._told = number
        threads = "1 thread" if number == 1 else f"{number} threads"
        _log.info("the machine is %s: %s from here on", reason, threads)
