"""SIGINT and SIGTERM as a question asked between steps, so that nothing is cut in half."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import typer

from specgen.core.stop import Interrupted


class Interrupts:
    """While entered, the first SIGINT or SIGTERM is noted; a second one ends the process.

    Interrupted, where it is not caught inside, becomes an exit with 128 + the signal.

    Args:
        at_once: raise Interrupted wherever the signal comes. For Python's own work alone: what
            is raised in a callback of C is lost.

    Attributes:
        signal: the signal that came, or None.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.signal: int | None = None
        self._at_once = at_once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before != signal.SIG_IGN:  # as in a script's background jobs
                self._before[number] = before
        self.forget()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if isinstance(error, Interrupted):
            raise typer.Exit(self.exit_code) from None

    @property
    def exit_code(self) -> int:
        """128 + the signal, as shells count: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.signal or 0)

    def came(self) -> bool:
        """Whether a signal came; what core asks, see specgen.core.stop."""
        return self.signal is not None

    def check(self, *_: object) -> None:
        """Raise Interrupted if a signal came. Takes what a progress callback is given."""
        if self.came():
            raise Interrupted

    def forget(self) -> None:
        """As if none had come so far."""
        self.signal = None
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        # Someone who asks twice does not want to wait for the step to end.
        signal.signal(number, signal.SIG_DFL)
        if self._at_once:
            raise Interrupted
