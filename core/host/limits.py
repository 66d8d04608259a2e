"""What this machine lets us use: CPU threads that do not collapse under a quota, and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

from .cores import fast_cpus, performance_cores, physical_cores
from .process_memory import anonymous_bytes, bytes_in, portable

Waits: TypeAlias = Mapping[str, float]  # seconds by thread

_N = TypeVar("_N", bound=float)


def default_threads() -> int:
    """Threads for llama.cpp: min(affinity, cgroup quota rounded down, fast physical cores), >= 1.

    More threads than the quota allows make a step many times slower, because every thread
    waits for those that the scheduler has parked.
    """
    usable = _affinity()
    bounds = [len(usable), _physical_cores(usable)]
    quota = _cgroup_cpus(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    if quota is not None:
        bounds.append(int(quota))
    return max(1, min(bounds))


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(_affinity())


def load() -> tuple[float, int] | None:
    """How many tasks wanted to run in the last minute, and how many CPUs the machine has for them.

    None where the system does not tell.
    """
    try:
        return os.getloadavg()[0], os.cpu_count() or 1
    except (AttributeError, OSError):  # Windows has none; a container may hide it
        return None


def thread_waits() -> Waits:
    """How long each thread of this process was ready to run while others had the CPUs, so far.

    Empty where the system does not tell; Linux does.
    """
    waits: dict[str, float] = {}
    with suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            words = (_read(task / "schedstat") or "").split()
            if len(words) == 3:  # ns that it ran, ns that it waited, times that it ran
                waits[task.name] = int(words[1]) / 1e9
    return waits


def longest_wait_s(before: Waits, after: Waits) -> float:
    """How long the thread waited that waited most: all others wait for it at the next barrier."""
    return max((after[name] - before[name] for name in after if name in before), default=0.0)


def available_memory_bytes() -> int | None:
    """Memory that this process can have in all without swapping; None where nobody tells.

    What it already has counts, too, unless it could be dropped. A container's or a service's
    limit counts (cgroups, v2 and v1), less what others use there and could not drop.
    """
    psutil = portable()
    free = (
        psutil.virtual_memory().available
        if psutil
        else bytes_in(Path("/proc/meminfo"), "MemAvailable")
    )
    left = _cgroup_memory(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    known = [n for n in (free, left) if n is not None]
    return max(0, min(known)) + (anonymous_bytes() or 0) if known else None


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _physical_cores(usable: frozenset[int]) -> int:
    """Distinct fast cores among the usable CPUs; all CPUs where the system does not tell."""
    if psutil := portable():
        return performance_cores() or int(psutil.cpu_count(logical=False) or len(usable))
    return physical_cores(fast_cpus(usable))


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
    return _left(folder, "memory.max", "memory.current", "")


def _v1_memory(folder: Path) -> int | None:
    return _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _left(folder: Path, limit: str, usage: str, prefix: str) -> int | None:
    """What a group's limit leaves, given the names of its files and a prefix in memory.stat.

    Pages of files can be dropped.
    """
    most, used = _read(folder / limit), _read(folder / usage)
    if not (most and used and most.isdecimal() and used.isdecimal()):  # "max", or no such group
        return None
    lines = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
    stat = {words[0]: int(words[1]) for words in lines if len(words) == 2}
    files = (stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
    return int(most) - int(used) + sum(files)


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
