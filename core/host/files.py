"""Files written whole: a reader sees all of one, or what was there before, whoever else writes."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes, *, is_private: bool = False) -> None:
    """Write `data` beside `path` and rename it there. Raises OSError, and leaves nothing then.

    Where `is_private`, only the user may read the file.
    """
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    mode = 0o600 if is_private else 0o666
    try:
        with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
