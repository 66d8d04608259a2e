"""Files that a user asks for: whether they can be written, and writing them whole."""

from __future__ import annotations

import os
from pathlib import Path

from specgen.core.errors import UsageError
from specgen.core.host.files import write_whole


def check_place(path: Path) -> None:
    """Raise UsageError if a file cannot be written to `path`; worth asking before long work."""
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: the folder {path.parent} may not be written to")


def save(path: Path, data: bytes) -> None:
    """Write a file that the user asked for, whole or not at all. Raises UsageError."""
    try:
        write_whole(path, data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
