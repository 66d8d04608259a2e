"""The library that is compiled from kernels/ when specgen is installed."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

VARIABLE: Final = "SPECGEN_KERNELS"  # of the environment: which instructions it may use
NONE: Final = "none"  # what it says where the library shall not be used

LIBRARY: Final = Path(__file__).parent / "llama" / "_kernels.so"  # for every Python: see setup.py
VERSION: Final = 7  # of the compiled functions' arguments


class NotCompiled(Exception):
    """There is no library that can be used; says why."""


def open_library() -> ctypes.CDLL:
    """The compiled functions, without the types of their arguments.

    Raises NotCompiled where there are none of this version.
    """
    if not LIBRARY.exists():
        raise NotCompiled("ours were not compiled when specgen was installed")
    try:
        library = ctypes.CDLL(str(LIBRARY))
        found = library.specgen_version()
    except (OSError, AttributeError) as error:
        raise NotCompiled(f"{LIBRARY} can't be used ({error}); install specgen again") from error
    if found != VERSION:
        raise NotCompiled(f"{LIBRARY} is of another version; install specgen again")
    return library
