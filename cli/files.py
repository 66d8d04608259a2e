"""Files that a user asks for: whether they can be written, and writing them whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from specgen.core.errors import UsageError


def check_place(path: Path) -> None:
    """Raise UsageError if a file cannot be written to `path`; worth asking before long work."""
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: the folder {path.parent} may not be written to")


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the file and rename, so that there is all of it or what was there before.

    Raises UsageError.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        try:
            beside.write_bytes(data)
            os.replace(beside, path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
