"""Which of the machine's cores are worth a thread: fast ones, each once.

Where cores differ, all threads wait for the slowest. Linux tells them apart by the kind of core
(Intel), by its capacity (ARM) or by its highest frequency; macOS by performance levels.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

DEVICES: Final = Path("/sys/devices")

_CAPACITY: Final = "cpu_capacity"
_FREQUENCY: Final = "cpufreq/cpuinfo_max_freq"
# Cores of one kind differ by some percent in the frequency that they may reach; efficient ones
# reach 0.2 to 0.7 of the others' capacity or frequency.
_ALIKE: Final = 0.75


def fast_cpus(usable: frozenset[int], devices: Path = DEVICES) -> frozenset[int]:
    """Those of the `usable` CPUs that belong to fast cores; all where the system does not tell."""
    performance = _listed(_read(devices / "cpu_core/cpus")) & usable
    if performance and _read(devices / "cpu_atom/cpus"):
        return performance
    for name in (_CAPACITY, _FREQUENCY):
        speeds = _numbers(devices, usable, name)
        if speeds:
            return frozenset(n for n in usable if speeds[n] >= _ALIKE * max(speeds.values()))
    return usable


def physical_cores(cpus: frozenset[int], devices: Path = DEVICES) -> int:
    """Distinct cores among CPUs; as many as CPUs where the system does not tell."""
    path = "system/cpu/cpu{}/topology/thread_siblings_list"
    return len({_read(devices / path.format(cpu)) or str(cpu) for cpu in cpus})


def performance_cores(ask: Callable[[str], int | None] | None = None) -> int | None:
    """Fast physical cores of a Mac, or None on other systems, and where cores are alike."""
    if ask is None:
        if sys.platform != "darwin":
            return None
        ask = _sysctl
    return ask("hw.perflevel0.physicalcpu") or None


def _sysctl(name: str) -> int | None:
    value, size = ctypes.c_int32(), ctypes.c_size_t(4)
    with suppress(OSError, AttributeError):
        call = ctypes.CDLL(None).sysctlbyname
        if call(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0) == 0:
            return value.value
    return None


def _numbers(devices: Path, cpus: Iterable[int], name: str) -> dict[int, int]:
    """What the system tells of each CPU; nothing unless of all."""
    texts = {n: _read(devices / f"system/cpu/cpu{n}" / name) or "" for n in cpus}
    if not all(text.isdecimal() and int(text) for text in texts.values()):
        return {}
    return {n: int(text) for n, text in texts.items()}


def _listed(text: str | None) -> frozenset[int]:
    """The numbers of a list such as "0-3,8", or none."""
    found: set[int] = set()
    with suppress(ValueError):
        for part in (text or "").split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
