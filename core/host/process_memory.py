"""The memory that this process has: now, and at its peak.

Linux tells it in /proc, other systems through psutil.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_STATUS: Final = Path("/proc/self/status")


def portable() -> Any | None:
    """The module psutil on systems without /proc, None on Linux.

    There it would take 1 to 2 MiB of every run, and it knows neither the limits of control groups
    nor the cores that a process may use.
    """
    if sys.platform == "linux":
        return None
    import psutil

    return psutil


def resident_bytes() -> int | None:
    """What is resident now, or None where the system does not tell."""
    if psutil := portable():
        return int(psutil.Process().memory_info().rss)
    return bytes_in(_STATUS, "VmRSS")


def anonymous_bytes() -> int | None:
    """What is resident now and in no file, or None where the system does not tell.

    On other systems than Linux, what would be free if the process ended.
    """
    if psutil := portable():
        return int(psutil.Process().memory_full_info().uss)
    return bytes_in(_STATUS, "RssAnon")


def peak_bytes() -> int:
    """Most resident memory of this process, in bytes, since `reset_peak`.

    Without a reset, or where there is none (not Linux), since the process began. Mapped files
    count as far as they are resident, and so do weights.
    """
    # First, because getrusage knows no reset, and starts with the peak of the parent process.
    peak = bytes_in(_STATUS, "VmHWM")
    return _peak_since_start() if peak is None else peak


def reset_peak() -> None:
    """Let `peak_bytes` begin anew at what is resident now, where the system can do so."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def trim_heap() -> None:
    """Let the system have what was freed, as far as the C library can."""
    # TypeError: on Windows a library needs a name. AttributeError: glibc alone has the function.
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def bytes_in(path: Path, key: str) -> int | None:
    """The value of a line such as "VmHWM:  1696 kB", in bytes; None without file or line."""
    with suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return 1024 * int(line.split()[1])
    return None


def _peak_since_start() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
