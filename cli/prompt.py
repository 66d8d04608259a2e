"""Where a prompt comes from: stdin, a file, an argument."""

from __future__ import annotations

import sys
from pathlib import Path

from specgen.core.errors import UsageError


def read_prompt(argument: str | None = None, file: str | None = None) -> str:
    """stdin (unless it is a terminal), then `file` ("-" is stdin), then `argument`.

    Parts are separated by a blank line. Raises UsageError if there is nothing, or it cannot
    be read.
    """
    parts = []
    if file == "-" or not sys.stdin.isatty():
        parts.append(_read_stdin())
    if file is not None and file != "-":
        parts.append(read_file(Path(file), "prompt file"))
    parts.append(argument or "")
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise UsageError("the prompt is empty", "give a text with -p, with -f, or on stdin")
    return text


def _read_stdin() -> str:
    try:
        return _decode(sys.stdin.buffer.read(), "stdin")
    except OSError as error:
        raise UsageError(f"cannot read stdin: {error.strerror}") from None


def read_file(path: Path, what: str) -> str:
    """The text of a file without its last newline; `what` names its purpose in errors.

    Raises UsageError if it cannot be read.
    """
    try:
        return _decode(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from None


def _decode(data: bytes, source: str) -> str:
    """UTF-8 text without its last newline, which editors and `echo` add."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}",
            "convert it first, for example with iconv",
        ) from None
    return text.removesuffix("\n").removesuffix("\r")
