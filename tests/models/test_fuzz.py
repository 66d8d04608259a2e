"""Damaged and lying headers, to a plan and into llama.cpp: an answer or one line, never a crash."""

from __future__ import annotations

import json
import mmap
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time

import pytest

from specgen.core.config import EngineConfig
from specgen.core.errors import SpecgenError
from specgen.core.host.process_memory import peak_bytes, reset_peak, resident_bytes
from specgen.core.llama.door import judged
from specgen.core.memory.budget import PlanInputs, fit
from specgen.core.models.header import read_header
from specgen.core.models.modelinfo import ModelInfo, read_headers
from tests.support.command import ROOT
from tests.support.headers import MADE
from tests.support.mutations import Model, mutated
from tests.support.tiny import Architecture, write_tiny

N_TINY, N_LARGE = 4000, 200  # mutations of each of five and of six headers: 21,200
N_SAID, N_LOADED = 800, 120  # faults in what each of five says: 4,000; and 600 that are loaded
SECONDS = 60  # of the processor: the machine may have other work
MOST_BYTES = 200 << 20
EXTREMES = (0, 1, 255, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TINY: tuple[Architecture, ...] = ("llama", "gemma3", "mamba", "lfm2", "granitehybrid")


def plan(path: Path) -> None:
    """All that is done with a header before a model is loaded, within a budget or not."""
    headers = read_headers(path)
    info = judged(ModelInfo.from_headers(headers))
    info.require_runnable()
    subject = PlanInputs(headers, info, frozenset({"AVX2", "REPACK"}), lambda n_ctx, few: 1_000_000)
    found = fit(subject, EngineConfig(swa_full=False), 300 << 20)
    assert 0 < found.plan.total <= 300 << 20
    assert min(found.plan.record().values()) >= 0


def is_planned(path: Path) -> bool:
    """Whether it came as far as a plan, be it one that does not fit; if not, one line says why."""
    try:
        plan(path)
    except SpecgenError as error:
        assert error.message
        assert "\n" not in error.message + error.hint
        assert error.exit_code in (2, 3, 4)
        return error.exit_code == 4
    return True


def damage(data: mmap.mmap, end: int, rng: random.Random) -> dict[int, int]:
    """Change a few places before `end`, and return the bytes that were there."""
    before: dict[int, int] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if rng.random() < 0.5:
            new = bytes([rng.choice((0, 1, 255, rng.randrange(256)))])
        else:
            new = struct.pack("<Q", rng.choice(EXTREMES))[: rng.choice((4, 8))]
        place = rng.randrange(rng.choice((min(1200, end), end)))
        for i, byte in enumerate(new[: end - place], start=place):
            before.setdefault(i, data[i])
            data[i] = byte
    return before


def hammer(path: Path, n: int, seed: int) -> int:
    """Plan for `n` damaged versions of a file, and return how many came as far as a plan."""
    rng = random.Random(seed)
    end = read_header(path).data_start
    n_planned = 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for _ in range(n):
            before = damage(data, end, rng)
            n_planned += is_planned(path)
            for place, byte in before.items():
                data[place] = byte
    return n_planned


@pytest.fixture(params=[*TINY, *MADE])
def header(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Models of five architectures with a vocabulary, and headers from 1B to 70B without."""
    name = request.param
    path = tmp_path / name
    return MADE[name].write(path, "llama") if name in MADE else write_tiny(path, name)


def within_bounds(work: Callable[[], int]) -> int:
    """What `work` returns, if it took no more time and memory than is allowed."""
    reset_peak()
    before, began = resident_bytes(), process_time()
    result = work()
    assert process_time() - began < SECONDS
    assert before is None or peak_bytes() - before < MOST_BYTES
    return result


@pytest.mark.long
def test_damaged_headers(header: Path) -> None:
    """No exception but our own, no hang, no memory; and not all are refused."""
    n = N_TINY if header.name in TINY else N_LARGE
    n_planned = within_bounds(lambda: hammer(header, n, seed=7))
    assert n / 20 < n_planned < n


@pytest.mark.long
@pytest.mark.parametrize("architecture", TINY)
def test_headers_that_say_what_cannot_be(architecture: Architecture, tmp_path: Path) -> None:
    """Wrong values, types, arrays, tokens and tensors in files that are well-formed otherwise."""
    rng, path = random.Random(9), tmp_path / "m.gguf"
    model = Model.read(write_tiny(path, architecture))

    def work() -> int:
        files = (mutated(model, rng).write(path, weights=False) for _ in range(N_SAID))
        return sum(map(is_planned, files))

    assert N_SAID / 10 < within_bounds(work) < N_SAID


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
@pytest.mark.parametrize("architecture", TINY)
def test_models_that_are_damaged_inside(architecture: str, tmp_path: Path) -> None:
    """What passes the plan is loaded and run, or ends in one line: no process dies of a signal."""
    words = ["-m", "tests.support.loading", str(tmp_path), architecture, "10", str(N_LOADED)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == N_LOADED
    for code, said in outcomes:
        assert code in (0, 1, 2, 3, 4, 5), said
        lines = [line for line in said.splitlines() if line.startswith("specgen: error: ")]
        assert len(lines) == bool(code), said
        assert "Traceback" not in said
    assert N_LOADED / 10 < sum(code == 0 for code, _ in outcomes) < N_LOADED


@pytest.mark.model
def test_damaged_headers_of_the_default_model(default_model: Path, tmp_path: Path) -> None:
    """A real header, with 49,152 tokens and as many merges."""
    path, start = tmp_path / "m.gguf", read_header(default_model).data_start
    size = default_model.stat().st_size
    with default_model.open("rb") as source, path.open("wb") as target:
        target.write(source.read(start))
        target.truncate(size)
    assert within_bounds(lambda: hammer(path, 500, seed=8)) < 500
