"""Paths as people and JSON see them: a name is bytes, and need not be text in any encoding."""

from __future__ import annotations

import os
from pathlib import Path


def path_text(path: str | Path) -> str:
    """`path` as text that every encoder of UTF-8 takes.

    Python keeps bytes that it cannot decode as lone surrogates. Names are UTF-8 nearly everywhere,
    whatever the locale says, so that is tried first; what is no text has U+FFFD in its place.
    """
    text = str(path)
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:  # not a name that this locale can have
        return text.encode("utf-8", "replace").decode()
    try:
        return name.decode()
    except UnicodeDecodeError:
        return text if _is_text(text) else name.decode("utf-8", "replace")


def _is_text(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)
