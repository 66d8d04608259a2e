"""The keyboard while an answer is written: keys are not shown, and kept for the next message."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import ExitStack, suppress
from types import FrameType, TracebackType
from typing import Any

try:
    import termios
except ImportError:  # Windows shows nothing, and keeps what is typed
    termios = None  # type: ignore[assignment]

_PAUSE_S = 0.03  # longer than between two pieces of what is pasted
_MOST = 1 << 16  # bytes read at once


class Keyboard:
    """While entered, what is typed on a terminal is read and not shown; Ctrl-C works as ever.

    A terminal in its usual mode would keep no more than 4095 bytes of a line. The shell has its
    own terminal while the process is stopped (Ctrl-Z). Does nothing where stdin is no terminal.
    """

    def __init__(self) -> None:
        self._typed = bytearray()
        self._open = ExitStack()
        self._usual: list[Any] = []  # the terminal's attributes

    def __enter__(self) -> Keyboard:
        if termios is None or not sys.stdin.isatty():
            return self
        self._file = sys.stdin.fileno()
        self._usual = termios.tcgetattr(self._file)
        self._open.callback(self._set, self._usual)
        self._hush()
        self._open.callback(self._read_rest)
        self._handle(signal.SIGCONT, lambda *_: self._hush())
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:  # someone handles Ctrl-Z
            self._handle(signal.SIGTSTP, self._be_stopped)
        self._open.callback(self._start_reading())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def take(self) -> str:
        """The text that was typed or pasted since the last call. Enter begins a new line.

        Raises EOFError after a Ctrl-D alone.
        """
        from prompt_toolkit.input.vt100_parser import Vt100Parser
        from prompt_toolkit.key_binding.key_processor import KeyPress
        from prompt_toolkit.keys import Keys

        text, leaves = "", False

        def press(key: KeyPress) -> None:
            nonlocal text, leaves
            if key.key in (Keys.ControlM, Keys.ControlJ):
                text += "\n"
            elif key.key == Keys.ControlH:  # Backspace
                text = text[:-1]
            elif key.key == Keys.ControlU:
                text = ""
            elif key.key == Keys.ControlD and not text:
                leaves = True
            elif key.key in (Keys.BracketedPaste, Keys.ControlI):
                text += key.data
            elif not isinstance(key.key, Keys):
                text += key.key

        parser = Vt100Parser(press)
        parser.feed(self._typed.replace(b"\r\n", b"\r").decode("utf-8", "replace"))
        parser.flush()
        self._typed.clear()
        if leaves and not text:
            raise EOFError
        return text.rstrip("\n")

    def _is_ours(self) -> bool:
        """Whether the terminal is ours: whoever uses it from the background is stopped."""
        try:
            return os.tcgetpgrp(self._file) == os.getpgrp()
        except OSError:
            return False

    def _set(self, attributes: list[Any]) -> None:
        if self._is_ours():
            with suppress(termios.error):  # it was closed
                termios.tcsetattr(self._file, termios.TCSADRAIN, attributes)

    def _hush(self) -> None:
        """Give keys one by one, and show none."""
        input_, output, control, local, *speeds, keys = self._usual
        keys = [*keys]
        keys[termios.VMIN], keys[termios.VTIME] = 0, 0
        local &= ~(termios.ECHO | termios.ICANON)
        self._set([input_ & ~termios.ICRNL, output, control, local, *speeds, keys])

    def _handle(self, number: int, handler: Any) -> None:
        self._open.callback(signal.signal, number, signal.signal(number, handler))

    def _be_stopped(self, number: int, _frame: FrameType | None) -> None:
        self._set(self._usual)
        again = signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, again)
        self._hush()

    def _start_reading(self) -> Any:
        """Read in a thread of its own, so that there is always room for Ctrl-C. Ends if called."""
        woken, wake = os.pipe()
        thread = threading.Thread(target=self._read, args=(woken,), daemon=True)
        thread.start()

        def end() -> None:
            os.close(wake)
            thread.join()
            os.close(woken)

        return end

    def _read(self, woken: int) -> None:
        # A system call of the main thread must be what a signal interrupts.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while woken not in select.select([woken, self._file], [], [])[0]:
            if not self._read_some():
                select.select([woken], [], [], _PAUSE_S)

    def _read_rest(self) -> None:
        while select.select([self._file], [], [], _PAUSE_S)[0] and self._read_some():
            pass

    def _read_some(self) -> bool:
        """Read what is there; False if that was nothing."""
        if not self._is_ours():
            return False
        try:
            data = os.read(self._file, _MOST)
        except OSError:  # it was closed
            return False
        self._typed += data
        return bool(data)
