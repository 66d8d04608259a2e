"""Templates, which are strangers' programs, in a process of their own.

The process bounds what it can see of a template (interpreter.py). One that hangs all the same,
takes all memory or makes Python itself crash is ended with its process, and so is one that nobody
waits for any more.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from threading import Thread
from time import perf_counter
from typing import Any, Final

from specgen.core.stop import ShouldStop, heed, never

MAX_SECONDS: Final = 10.0  # compiling a template may take so long, and each text that it makes
_PAUSE_S: Final = 0.05  # so many seconds pass between two looks at who wants to stop

# The child finds modules where we do. It is told so, for no environment variable says all of it.
_CHILD: Final = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1])\n"
    "from specgen.core.text.interpreter import serve; serve()"
)


class Refused(Exception):
    """The template called `raise_exception`."""


class Failed(Exception):
    """The template is wrong, or takes too much; the message is one line."""


class TooMuch(Failed):
    """The template reached a bound."""


_OUTCOMES: Final[Mapping[str, type[Exception]]] = {
    kind.__name__: kind for kind in (Refused, Failed, TooMuch)
}


class Program:
    """A template. Raises Failed where it cannot be compiled, and Interrupted.

    `should_stop` is asked while the template is compiled and while it runs.
    """

    def __init__(self, source: str, should_stop: ShouldStop = never) -> None:
        self._source = source
        self._should_stop = should_stop
        self._ask({"source": source})

    def run(self, n_characters: int, **variables: Any) -> str:
        """The text that it makes of `variables`, which are JSON and have so many characters.

        Raises Refused where the template does so, TooMuch, Failed and Interrupted.
        """
        return self._ask(
            {"source": self._source, "n_characters": n_characters, "variables": variables}
        )

    def _ask(self, request: Mapping[str, Any]) -> str:
        kind, text = _child().ask(json.dumps(request).encode(), self._should_stop)
        if kind in _OUTCOMES:
            raise _OUTCOMES[kind](text)
        return text


def end() -> None:
    """End the process that runs templates, and give its 12 MB back; the next one starts another."""
    _child().end()


class _Child:
    """The process that runs templates: started by the first question, and again after an end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.end)

    def ask(self, request: bytes, should_stop: ShouldStop) -> tuple[str, str]:
        """What became of a request, and a text. Raises TooMuch, Failed and Interrupted."""
        process = self._running()
        answer = bytearray()
        talk = Thread(target=_talk, args=(process, request, answer), daemon=True)
        deadline = perf_counter() + MAX_SECONDS
        talk.start()
        try:
            while talk.is_alive():
                talk.join(_PAUSE_S)
                heed(should_stop)
                if perf_counter() > deadline:
                    raise TooMuch(f"it runs for more than {MAX_SECONDS:.0f} seconds")
            if not answer.endswith(b"\n"):
                raise Failed("it made the process crash that runs it")
        except BaseException:
            process.kill()
            talk.join()
            self.end()
            raise
        kind, text = json.loads(answer)
        if kind == TooMuch.__name__:  # who knows what is left of the process
            self.end()
        return kind, text

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process and self._process.poll() is not None:  # someone else ended it
            self.end()
        if self._process is None:
            try:
                self._process = _start()
            except OSError as error:
                raise Failed(f"no process can be started to run it: {error.strerror}") from None
        return self._process

    def end(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process:
            process.kill()
            with suppress(OSError):  # what it did not read
                process.communicate()


@cache
def _child() -> _Child:
    """One for all templates: starting it takes as long as hundreds of them."""
    return _Child()


def _start() -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        # A terminal's Ctrl-C is for us; the second line is for Windows.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def _talk(process: subprocess.Popen[bytes], request: bytes, answer: bytearray) -> None:
    """Send a line, and read one. Ends with the process, if need be."""
    assert process.stdin and process.stdout
    with suppress(OSError):
        process.stdin.write(request + b"\n")
        process.stdin.flush()
        answer += process.stdout.readline()
