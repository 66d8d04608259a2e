"""The Python that runs specgen, in hints about what is missing in its environment."""

from __future__ import annotations

import shlex
import sys

from .paths import path_text


def python_command(*words: str) -> str:
    """A command line of this Python, to be shown and copied: `/usr/bin/python3 -m ensurepip`."""
    return " ".join([shlex.quote(path_text(sys.executable or "python")), *words])


def install_hint(library: str) -> str:
    """What to do where a library is missing, as a hint of an error."""
    return f"run `{python_command('-m', 'pip', 'install', library)}`"
