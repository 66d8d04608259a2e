"""UTF-8 as it comes from files, pipes and the command line. What is not UTF-8 is refused."""

from __future__ import annotations

import codecs
import os
from typing import Final

from specgen.core.errors import UsageError

_CONVERT: Final = "convert it first, for example with iconv"

# Of UTF-32 before UTF-16: one begins with the other.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def decode_text(data: bytes, source: str) -> str:
    """The text of a file or a pipe, without a byte order mark at its start.

    `source` names it in errors. Raises UsageError if it is not UTF-8.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            raise UsageError(f"{source} is {encoding}, not UTF-8", _CONVERT)
    return without_mark(decode(data, source))


def without_mark(text: str) -> str:
    """A text without the byte order mark that some files begin with, and all that was read of
    them."""
    return text.removeprefix("\ufeff")


def decode(data: bytes, source: str) -> str:
    """The text that `data` is. Raises UsageError if it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}", _CONVERT
        ) from None


def text_of(word: str, source: str) -> str:
    """The text that a word of the command line was given as, whatever the locale takes it for.

    Python decodes words by the locale: where that is not UTF-8, letters come as others, or as
    halves of surrogates. Raises UsageError if its bytes are not UTF-8.
    """
    return word if word.isascii() else decode(_bytes_of(word), source)


def _bytes_of(word: str) -> bytes:
    try:
        return os.fsencode(word)
    except UnicodeEncodeError:  # half of a pair, which Windows allows
        return word.encode("utf-8", "surrogatepass")
