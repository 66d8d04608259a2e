"""SIGINT and SIGTERM as a question asked between steps, so that nothing is cut in half."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """The user or the system asked to stop."""


class Interrupts:
    """While entered, the first SIGINT or SIGTERM is noted; a second one ends the process.

    Attributes:
        signal: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self.signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as in a script's background jobs
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """128 + the signal, as shells count: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.signal or 0)

    def check(self, *_: object) -> None:
        """Raise Interrupted if a signal came. Takes what a progress callback is given."""
        if self.signal is not None:
            raise Interrupted

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        # Someone who asks twice does not want to wait for the step to end.
        signal.signal(number, signal.SIG_DFL)
