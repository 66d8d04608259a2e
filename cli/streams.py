"""What is said on stdout and stderr. Imports nothing heavy."""

from __future__ import annotations

import sys


def write(text: str) -> None:
    """Text to stdout at once, as UTF-8 whatever the locale says."""
    if text:
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()


def note(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)
