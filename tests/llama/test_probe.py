"""What tries the kernels first: a crash there ends a child, and the kernels are not used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from specgen.core import compiled
from specgen.core.llama import kernels, probe
from specgen.core.llama.library import library
from tests.support.command import ROOT

CRASH = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder where nothing is known yet."""
    if library().kernels == kernels.NONE:
        pytest.skip("there are none for this processor, or no compiler was there")
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPECGEN_CACHE", str(folder))
    return folder


def counting(cache: Path, code: str) -> tuple[str, ...]:
    """A command that leaves a line each time, then does what `code` says."""
    log = cache.with_name("runs")
    return sys.executable, "-c", f"open({str(log)!r}, 'a').write('run\\n'); {code}"


def runs(cache: Path) -> int:
    """How often it ran."""
    log = cache.with_name("runs")
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("pass", ""),
        ("raise SystemExit(3)", ""),
        ("import os; os.abort()", "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    ],
)
def test_the_verdict_is_kept(cache: Path, code: str, ended: str) -> None:
    """One child for a build; its end of its own accord is none of the kernels' faults."""
    command = counting(cache, code)
    for _ in range(3):
        assert probe.crash(library().ggml, compiled.LIBRARY, command) == ended
    assert runs(cache) == 1
    (file,) = cache.iterdir()
    assert json.loads(file.read_bytes()) == {"crash": ended}
    assert file.stat().st_mode & 0o77 == 0


def test_another_build_is_tried_anew(cache: Path, tmp_path: Path) -> None:
    """Also what was compiled again in the same place."""
    copy = tmp_path / "_kernels.so"
    copy.write_bytes(compiled.LIBRARY.read_bytes())
    command = counting(cache, "pass")
    for path in (compiled.LIBRARY, copy, copy):
        probe.crash(library().ggml, path, command)
    assert runs(cache) == 2
    copy.write_bytes(copy.read_bytes() + b"\0")
    probe.crash(library().ggml, copy, command)
    assert runs(cache) == 3


def test_an_interrupt_is_no_verdict(cache: Path) -> None:
    """Whoever ended the child from outside said nothing of the kernels."""
    command = counting(cache, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    for _ in range(2):
        assert probe.crash(library().ggml, compiled.LIBRARY, command) is None
    assert runs(cache) == 2


def test_without_a_cache_nothing_is_lost(cache: Path, tmp_path: Path) -> None:
    """A folder that is a file, and a verdict that is none."""
    cache.write_text("a file")
    assert probe.crash(library().ggml, compiled.LIBRARY, CRASH) == "SIGSEGV"
    cache.unlink()
    assert probe.crash(library().ggml, compiled.LIBRARY, CRASH) == "SIGSEGV"
    (file,) = cache.iterdir()
    file.write_text("no verdict")
    assert probe.crash(library().ggml, compiled.LIBRARY, CRASH) is None


def test_where_nothing_is_compiled_nothing_is_tried(cache: Path, tmp_path: Path) -> None:
    """Nor without ggml."""
    assert probe.crash(library().ggml, tmp_path / "none.so", counting(cache, "pass")) == ""
    assert probe.crash(None, compiled.LIBRARY, counting(cache, "pass")) == ""
    assert runs(cache) == 0


@pytest.mark.llama
def test_what_nobody_has_tried(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a verdict the kernels are used with versions of ggml alone that are known to work."""
    ggml = library().ggml
    assert kernels.install_kernels(ggml, lambda *_: None) == library().kernels
    monkeypatch.setattr(kernels, "PROVEN", frozenset({"0.1"}))
    assert kernels.install_kernels(ggml, lambda *_: None) == kernels.NONE
    assert kernels.install_kernels(ggml, lambda *_: "") == library().kernels  # as it was


@pytest.mark.llama
def test_the_command_goes_on_without_them(cache: Path, endless: Path) -> None:
    """And says why with -v; its text is that of llama.cpp's own kernels."""
    words = ("generate", str(endless), "-p", "he", "-n", "5", "--greedy", "--no-learn", "-v")
    command = [sys.executable, "-m", "specgen", *words]
    used = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (file,) = cache.glob("specgen-kernels-*.json")
    file.write_text(json.dumps({"crash": "SIGSEGV"}))
    without = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "by specgen's kernels" in used.stderr
    expected = "only llama.cpp's own kernels: a process that tried ours ended by SIGSEGV"
    assert expected in without.stderr
    chosen = {**os.environ, kernels.VARIABLE: kernels.NONE}
    none = subprocess.run(command, cwd=ROOT, env=chosen, capture_output=True, text=True, check=True)
    assert without.stdout == none.stdout != ""
