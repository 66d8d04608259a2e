"""Reading a binary file front to back without believing any length that it states.

No read goes past the size that the file had at the start, and counts are checked against the
bytes that are left before anything is allocated; else a ModelError says what does not fit.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from specgen.core.errors import ModelError
from specgen.core.host.paths import path_text

AGAIN: Final = "download or convert the file again"
CHUNK: Final = 1 << 20  # so many bytes are read at once

_LENGTH: Final = struct.Struct("<Q")  # the length of a string stands before it like this
# All strings that become Python values together may have so many bytes.
_MAX_TEXT_BYTES: Final = 64 << 20


class ByteSource:
    """A file of `size` bytes, read from byte `pos` on; numbers are little-endian."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.size, self.pos = path, size, 0
        self._file = file
        self._text_left = _MAX_TEXT_BYTES

    def peek(self, n: int) -> bytes:
        """Up to `n` bytes from here; the position stays."""
        data = self._file.read(min(n, self.size - self.pos))
        self._file.seek(self.pos)
        return data

    def take(self, n: int) -> bytes:
        """The next `n` bytes."""
        data = self._file.read(n) if n <= self.size - self.pos else b""
        if len(data) != n:
            self._truncated(n)
        self.pos += n
        return data

    def skip(self, n: int) -> None:
        """Pass over `n` bytes."""
        if n > self.size - self.pos:
            self._truncated(n)
        self._file.seek(n, os.SEEK_CUR)
        self.pos += n

    def skip_strings(self, n: int) -> None:
        """Pass over `n` strings; a tight loop, since vocabularies have 300,000 of them."""
        length_at, block, last, at = _LENGTH.unpack_from, b"", -1, 0
        for _ in range(n):
            if at > last:  # here the length is not in the block any more
                self.skip(at)
                block = self.peek(CHUNK)
                last, at = len(block) - _LENGTH.size, 0
                if last < 0:
                    self._truncated(_LENGTH.size)
            at += _LENGTH.size + length_at(block, at)[0]
        self.skip(at)

    def uint(self, n: int) -> int:
        """An unsigned number of `n` bytes."""
        return int.from_bytes(self.take(n), "little")

    def count(self, what: str, limit: int, item_bytes: int) -> int:
        """How many `what` follow, at most `limit`, each of `item_bytes` or more."""
        n = self.uint(8)
        room = min(limit, (self.size - self.pos) // item_bytes)
        if n > room:
            self.damaged(f"it claims {n:,} {what}, and there is room for {room:,}")
        return n

    def text(self, what: str, limit: int | None = None) -> str:
        """A string with its length before it, at most `limit` bytes; bad UTF-8 is replaced."""
        n = self.uint(8)
        limit = self._text_left if limit is None else min(limit, self._text_left)
        if n > limit:
            self.damaged(f"{what} claims {n:,} bytes, and at most {limit:,} are possible")
        self._text_left -= n
        return self.take(n).decode("utf-8", "replace")

    def damaged(self, what: str) -> NoReturn:
        """Raise the ModelError that says so."""
        raise ModelError(f"{path_text(self.path)} is truncated or damaged: {what}", AGAIN)

    def _truncated(self, n: int) -> NoReturn:
        self.damaged(
            f"its header asks for {n:,} bytes at byte {self.pos:,}, "
            f"and the file has {self.size:,} bytes"
        )
