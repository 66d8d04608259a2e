"""What this machine lets us use: CPU threads that do not collapse under a quota, and memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

_N = TypeVar("_N", bound=float)


def default_threads() -> int:
    """Threads for llama.cpp: min(affinity, cgroup quota rounded down, physical cores), >= 1.

    More threads than the quota allows make a step many times slower, because every thread
    waits for those that the scheduler has parked.
    """
    usable = _affinity()
    bounds = [len(usable), _physical_cores(usable)]
    quota = _cgroup_cpus(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    if quota is not None:
        bounds.append(int(quota))
    return max(1, min(bounds))


def available_memory_bytes() -> int | None:
    """Memory that can be had without swapping, or None where the system does not tell.

    A container's or a service's limit counts (cgroups, v2 and v1), less what is in use there
    and could not be dropped.
    """
    free = _bytes_in(Path("/proc/meminfo"), "MemAvailable")
    left = _cgroup_memory(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    known = [n for n in (free, left) if n is not None]
    return max(0, min(known)) if known else None


def peak_memory_bytes() -> int:
    """Most resident memory of this process since `reset_peak_memory`; 0 where it is not known.

    Without a reset, or where there is none (not Linux), since the process began. Mapped files
    count as far as they are resident, and so do weights.
    """
    # First, because getrusage knows no reset, and starts with the peak of the parent process.
    peak = _bytes_in(Path("/proc/self/status"), "VmHWM")
    return _peak_by_getrusage() if peak is None else peak


def reset_peak_memory() -> None:
    """Let `peak_memory_bytes` begin anew at what is resident now, where the system can do so."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_by_getrusage() -> int:
    if sys.platform == "win32":
        return 0
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _bytes_in(path: Path, key: str) -> int | None:
    """The value of a line such as "VmHWM:  1696 kB", in bytes."""
    for line in (_read(path) or "").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    return None


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _physical_cores(usable: frozenset[int]) -> int:
    """Distinct cores among the usable CPUs; all of them where the system does not tell."""
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {_read(Path(topology.format(cpu))) or str(cpu) for cpu in usable}
    return len(cores)


def _cgroup_cpus(membership: Path, root: Path) -> float | None:
    """CPUs that the tightest cgroup (v2 or v1) above this process allows, or None."""
    return _tightest(membership, root, "cpu", _v2_quota, _v1_quota)


def _cgroup_memory(membership: Path, root: Path) -> int | None:
    """Bytes that the tightest cgroup (v2 or v1) above this process still allows, or None."""
    return _tightest(membership, root, "memory", _v2_memory, _v1_memory)


def _tightest(
    membership: Path,
    root: Path,
    controller: str,
    read_v2: Callable[[Path], _N | None],
    read_v1: Callable[[Path], _N | None],
) -> _N | None:
    """The least of what a controller's groups say that this process is in, or None."""
    limits: list[_N] = []
    for line in (_read(membership) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _quotas_above(root, path, read_v2)
        elif controller in controllers.split(","):
            limits += _quotas_above(root / controller, path, read_v1)
    return min(limits, default=None)


def _v2_memory(folder: Path) -> int | None:
    return _left(folder, "memory.max", "memory.current", "inactive_file")


def _v1_memory(folder: Path) -> int | None:
    names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    return _left(folder, *names)


def _left(folder: Path, limit: str, usage: str, droppable: str) -> int | None:
    """What a group's limit leaves, given the names of its files and of what it could drop."""
    most, used = _read(folder / limit), _read(folder / usage)
    if not (most and used and most.isdecimal() and used.isdecimal()):  # "max", or no such group
        return None
    lines = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
    stat = {words[0]: int(words[1]) for words in lines if len(words) == 2}
    return int(most) - int(used) + stat.get(droppable, 0)


def _quotas_above(root: Path, path: str, read: Callable[[Path], _N | None]) -> list[_N]:
    """Quotas of the group at `path` and of all groups above it, as mounted at `root`."""
    group = root / path.strip("/")
    groups = [group, *group.parents]
    inside = groups[: groups.index(root) + 1]
    return [quota for folder in inside if (quota := read(folder)) is not None]


def _v2_quota(folder: Path) -> float | None:
    words = (_read(folder / "cpu.max") or "max").split()
    return None if words[0] == "max" else int(words[0]) / int(words[1])


def _v1_quota(folder: Path) -> float | None:
    quota = int(_read(folder / "cpu.cfs_quota_us") or -1)
    period = int(_read(folder / "cpu.cfs_period_us") or 0)
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
