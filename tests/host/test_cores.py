"""How many threads are worth it, by what the system writes about cores and quotas."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specgen.core.host import limits
from specgen.core.host.cores import fast_cpus, performance_cores, physical_cores

EIGHT = frozenset(range(8))


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def write_each(devices: Path, name: str, values: list[int]) -> None:
    for cpu, value in enumerate(values):
        write(devices, f"system/cpu/cpu{cpu}/{name}", str(value))


def test_intel_names_its_kinds_of_cores(tmp_path: Path) -> None:
    """Whatever frequencies say; of those that the process may use."""
    write(tmp_path, "cpu_core/cpus", "0-3,5")
    write(tmp_path, "cpu_atom/cpus", "4,6-7")
    write_each(tmp_path, "cpufreq/cpuinfo_max_freq", [1] * 4 + [9] * 4)
    assert fast_cpus(EIGHT, tmp_path) == {0, 1, 2, 3, 5}
    assert fast_cpus(frozenset({3, 4, 5}), tmp_path) == {3, 5}
    only_efficient = frozenset({6, 7})
    assert fast_cpus(only_efficient, tmp_path) == only_efficient


@pytest.mark.parametrize("name", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_others_are_told_apart_by_their_speed(tmp_path: Path, name: str) -> None:
    """Capacities of ARM, or frequencies; those that are nearly alike are of one kind."""
    write_each(tmp_path, name, [400, 400, 400, 400, 950, 950, 1000, 1024])
    assert fast_cpus(EIGHT, tmp_path) == {4, 5, 6, 7}
    assert fast_cpus(frozenset({1, 2}), tmp_path) == {1, 2}
    assert fast_cpus(frozenset(range(9)), tmp_path) == frozenset(range(9))  # one is not told of
    assert fast_cpus(EIGHT, tmp_path / "missing") == EIGHT


def test_a_core_counts_once(tmp_path: Path) -> None:
    """Two CPUs share it; of a CPU that nothing is told of, nothing is known."""
    siblings = ["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"]
    for cpu, text in enumerate(siblings):
        write(tmp_path, f"system/cpu/cpu{cpu}/topology/thread_siblings_list", text)
    assert physical_cores(EIGHT, tmp_path) == 4
    assert physical_cores(frozenset({0, 4, 5}), tmp_path) == 2
    assert physical_cores(frozenset({8, 9}), tmp_path) == 2


def test_performance_cores_of_a_mac() -> None:
    """As macOS tells; None where all cores are alike."""
    assert performance_cores(lambda name: 6 if name == "hw.perflevel0.physicalcpu" else 10) == 6
    assert performance_cores(lambda name: None) is None


def test_the_tightest_quota_counts(tmp_path: Path) -> None:
    """Of the process's group and of all above it, in both versions of control groups."""
    member, root = tmp_path / "cgroup", tmp_path / "fs"
    member.write_text("0::/jobs/mine\n")
    write(root, "cpu.max", "max 100000")
    write(root, "jobs/cpu.max", "250000 100000")
    write(root, "jobs/mine/cpu.max", "800000 100000")
    assert limits._cgroup_cpus(member, root) == 2.5
    member.write_text("4:cpu,cpuacct:/mine\n3:memory:/other\n")
    write(root / "cpu", "cpu.cfs_quota_us", "-1")
    write(root / "cpu", "cpu.cfs_period_us", "100000")
    assert limits._cgroup_cpus(member, root) is None
    write(root / "cpu", "mine/cpu.cfs_quota_us", "150000")
    write(root / "cpu", "mine/cpu.cfs_period_us", "100000")
    assert limits._cgroup_cpus(member, root) == 1.5


def test_threads_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast physical cores, no more than the quota, rounded down, and at least one."""
    monkeypatch.setattr(limits, "portable", lambda: None)
    monkeypatch.setattr(limits, "_affinity", lambda: EIGHT)
    monkeypatch.setattr(limits, "_cgroup_cpus", lambda *_: quota)
    monkeypatch.setattr(limits, "fast_cpus", lambda cpus: frozenset(n for n in cpus if n < 6))
    monkeypatch.setattr(limits, "physical_cores", lambda cpus: len({n // 2 for n in cpus}))
    quota: float | None = None
    assert limits.default_threads() == 3
    quota = 2.9
    assert limits.default_threads() == 2
    quota = 0.5
    assert limits.default_threads() == 1


def test_affinity_counts() -> None:
    """A process that may use one CPU has one thread."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system has none")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert limits.default_threads() == limits.usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
