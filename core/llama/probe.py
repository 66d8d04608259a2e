"""Does trying our kernels end the process? Found out in a process of its own, once for each build.

The checks of kernels.py reach into a library that they were not compiled with. Where its structures
lie otherwise than expected they mostly say so, but they may as well read what is not there, and
then the system ends the process. So a child makes them first, and the verdict is kept in the cache
folder: a crash there means that the kernels are not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from specgen.core.errors import UsageError
from specgen.core.host.files import write_whole
from specgen.core.host.folders import user_folder

_LONGEST_S: Final = 60.0  # a child that takes longer is ended, and nothing is known
_CRASHES: Final = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT")
_TRY: Final = (
    "from specgen.core.llama.kernels import install_kernels;"
    "from specgen.core.llama.library import _bindings;"
    "install_kernels(_bindings()[1])"
)


def crash(
    ggml: Any, library: Path, command: Sequence[str] = (sys.executable, "-c", _TRY)
) -> str | None:
    """The signal that ended the process which tried the kernels in `library`; "" if none did.

    None where nobody can tell: no process could be started, or it did not end in time.

    Args:
        ggml: the library that they are put into, as ctypes has it, or None.
        library: their compiled code; where there is none, nothing is tried.
        command: makes the checks.
    """
    if ggml is None or not library.exists():
        return ""
    with suppress(UsageError, OSError, ValueError, KeyError, TypeError):
        file = _file(Path(ggml._name), library)
        if file.exists():
            return str(json.loads(file.read_bytes())["crash"])
        ended = _ended_by(command)
        if ended is not None:
            with suppress(OSError):  # then the next process tries again
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, json.dumps({"crash": ended}).encode(), is_private=True)
        return ended
    return None


def _file(ggml: Path, library: Path) -> Path:
    """Where the verdict is kept for this build of ggml, of the kernels, and this processor."""
    parts = [_processor()]
    for path in (ggml, library):
        state = path.stat()
        parts.append(f"{path} {state.st_size} {state.st_mtime_ns}")
    key = hashlib.blake2b("\n".join(parts).encode(), digest_size=10).hexdigest()
    return user_folder("cache", "SPECGEN_CACHE") / f"specgen-kernels-{key}.json"


def _processor() -> str:
    """What the processor can do, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()}"


def _ended_by(command: Sequence[str]) -> str | None:
    """The signal of a crash; "" for an end of its own; None where that does not tell."""
    # Neither the keys of a terminal nor a log of the system's reach it.
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=os.name == "posix",
            timeout=_LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode >= 0:
        return ""
    with suppress(ValueError):
        name = signal.Signals(-done.returncode).name
        return name if name in _CRASHES else None
    return None
