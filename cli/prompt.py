"""Where a prompt comes from: stdin, files, an argument."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from specgen.core.errors import UsageError
from specgen.core.host.paths import path_text
from specgen.core.text.encoding import decode_text, without_mark

from .terminal import note

_PATIENCE_S = 1.0
_STDIN_NAMES = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "/proc/thread-self/fd/0")
_WAITING = "specgen: waiting for stdin to end; --no-stdin leaves it alone"
_HINT = "give a text with -p, with -f, or on stdin"


def read_prompt(
    argument: str = "",
    files: Sequence[str] = (),
    *,
    stdin: bool = True,
    hint: str = _HINT,
) -> str:
    """stdin, then `files` in their order, then `argument`, with a blank line between.

    stdin is read unless it is a terminal or `stdin` is false. Where a file is stdin ("-"), it
    stands there, and nothing is left of it for a second one. Raises UsageError if there is nothing
    (with `hint`), or it cannot be read.
    """
    names: list[str | None] = [None if _is_stdin(file) else file for file in files]
    if None in names:
        if not stdin:
            raise UsageError("--no-stdin does not go with a file that is stdin", "leave one out")
    elif stdin and not sys.stdin.isatty():
        names.insert(0, None)
    argument = without_mark(argument)  # of a file, by way of "$(cat FILE)"
    others = bool(argument) or any(name is not None for name in names)
    parts = [
        _read_stdin(announced=others) if name is None else read_file(name, "prompt file")
        for name in names
    ]
    text = "\n\n".join(part for part in (*parts, argument) if part)
    if not text:
        raise UsageError("the prompt is empty", hint)
    return text


def read_file(path: str | Path, what: str) -> str:
    """The text of a file without its last newline; `what` names its purpose in errors.

    Raises UsageError if it cannot be read, or is stdin: that has a prompt in it, or nothing.
    """
    if _is_stdin(str(path)):
        raise UsageError(f"the {what} cannot come from stdin", "give a file")
    shown = path_text(path) or "''"
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"cannot read the {what} {shown}: {error.strerror}") from None
    except ValueError as error:  # no file has such a name
        raise UsageError(f"cannot read the {what} {shown}: {error}") from None
    return _less_newline(decode_text(data, shown))


def _is_stdin(file: str) -> bool:
    """Whether reading `file` is reading stdin. A file that stdin was opened from is another."""
    if os.path.normpath(file) in _STDIN_NAMES:
        return True
    try:
        named, ours = os.stat(file), os.fstat(sys.stdin.fileno())
    except (OSError, ValueError):  # there is no such file; or stdin is none, as in tests
        return False
    return stat.S_ISFIFO(named.st_mode) and os.path.samestat(named, ours)


def _read_stdin(*, announced: bool) -> str:
    try:
        with _announced() if announced else nullcontext():
            data = sys.stdin.buffer.read()
    except OSError as error:
        raise UsageError(f"cannot read stdin: {error.strerror}") from None
    return _less_newline(decode_text(data, "stdin"))


@contextmanager
def _announced() -> Iterator[None]:
    """Within, say after a second what is waited for: stdin may be open by accident."""
    timer = threading.Timer(_PATIENCE_S, note, [_WAITING])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _less_newline(text: str) -> str:
    """Without the last newline, which editors and `echo` add."""
    return text.removesuffix("\n").removesuffix("\r")
