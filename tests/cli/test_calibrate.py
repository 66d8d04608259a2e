"""`specgen calibrate` and `specgen cache`, on a tiny model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from specgen.cli import calibrate
from specgen.cli.main import ErrorGroup
from specgen.cli.prepare import ensure_profile
from specgen.core.config import EngineConfig
from specgen.core.cost.measure import Measurement, measure
from specgen.core.cost.model import load_curve
from specgen.core.knowledge.profile import find_profile
from specgen.core.knowledge.store import cache_folder
from tests.conftest import TinyModel
from tests.support.command import Outcome
from tests.support.command import run as run_any

pytestmark = [pytest.mark.llama, pytest.mark.usefixtures("quiet")]

QUICK = ("-t", "1", "-c", "256", "--seconds", "1")

app = typer.Typer(cls=ErrorGroup)
calibrate.register(app)


def run(*words: str | Path) -> Outcome:
    """The words as a command line."""
    result = CliRunner().invoke(app, list(map(str, words)), prog_name="specgen")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def test_a_table_and_what_follows_from_it(tiny_model: TinyModel) -> None:
    """Times by rows and context on stdout, progress on stderr, the figures in the cache."""
    outcome = run("calibrate", tiny_model(), *QUICK)
    assert outcome.code == 0
    head, *_ = lines = outcome.out.splitlines()
    assert head.split() == ["rows", "128", "tokens"]
    assert lines[1].split()[0] == "1"
    assert lines[1].endswith("1.00x")
    assert all(len(line) == len(head) for line in lines[: lines.index("")])
    said = " ".join(outcome.out.split())
    assert "flash attention: o" in said
    assert "to break even at 128 tokens:" in said
    assert "give the same bits at 128 tokens: " in said
    assert "another number of rows than in the call before takes " in said
    assert f"kept in {cache_folder()}" in said
    assert "specgen: loading the model" in outcome.err
    assert len(list(cache_folder().glob("*.json"))) == 2


def test_json(tiny_model: TinyModel) -> None:
    """One object with all figures."""
    record = run("calibrate", tiny_model(), *QUICK, "-fa", "on", "--json").record
    assert Path(record["stored"]).is_file()
    assert record["flash_attention"] is True
    assert record["flash_attention_off"] is None
    assert record["curve"]["sizes"][:1] == [1]
    assert set(record["break_even"][0]) == {"context", "4", "8", "16"}
    assert record["exact_classes"][0]["context"] == 128


def test_both_settings_are_compared(tiny_model: TinyModel) -> None:
    """Unless one is asked for."""
    record = run("calibrate", tiny_model(), *QUICK, "--json").record
    assert record["flash_attention_off"]["step_time"] > 0
    assert record["flash_attention_off"]["contexts"] == [128]


def test_the_curve_as_a_file(tiny_model: TinyModel, tmp_path: Path) -> None:
    """It is what load_curve reads."""
    file = tmp_path / "curve.json"
    record = run("calibrate", tiny_model(), *QUICK, "--json", "--curve-out", file).record
    assert load_curve(str(file)).record() == record["curve"] == json.loads(file.read_text())


def test_a_curve_that_cannot_be_written(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place that is none is told before the time is spent."""
    monkeypatch.setattr("specgen.core.knowledge.profiling.measure_profile", pytest.fail)
    for place, said in ((tmp_path / "no" / "curve.json", "there is no"), (tmp_path, "is a folder")):
        outcome = run("calibrate", tiny_model(), "--curve-out", place)
        assert (outcome.code, outcome.out) == (2, "")
        assert f"cannot write {place}: " in outcome.err
        assert said in outcome.err


def test_a_cache_that_cannot_be_written(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are shown all the same."""
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("SPECGEN_CACHE", str(file))
    outcome = run("calibrate", tiny_model(), *QUICK)
    assert outcome.code == 0
    assert "not kept" in outcome.out
    assert "cannot write" in outcome.err


def test_a_busy_machine_is_told(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is shown, not kept, and the exit code says so; what was kept stays."""
    run("calibrate", tiny_model(), *QUICK)
    kept = {path: path.read_bytes() for path in cache_folder().glob("*.json")}
    assert len(kept) == 2
    monkeypatch.setattr("specgen.core.knowledge.profile.NOISY", 0.5)
    monkeypatch.setattr("specgen.core.knowledge.profiling.NOISY", 0.5)
    curve = tmp_path / "curve.json"
    outcome = run("calibrate", tiny_model(), *QUICK, "--curve-out", curve)
    assert outcome.code == 1
    assert outcome.out.splitlines()[1].endswith("1.00x")
    assert "kept" not in outcome.out
    *_, said = outcome.err.splitlines()
    assert said.startswith("specgen: error: not kept: the machine was busy: ")
    assert said.endswith("(run it again when it is quiet)")
    assert not curve.exists()
    record = run("calibrate", tiny_model(), *QUICK, "--json").record
    assert record["stored"] is None
    assert {path: path.read_bytes() for path in cache_folder().glob("*.json")} == kept


def test_a_busy_machine_is_measured_twice(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said in one line, and if it is quiet by then, all is well."""
    found: list[Measurement] = []

    def measured(*args: Any, **options: Any) -> Measurement:
        found.append(replace(measure(*args, **options), noise=1.05 if found else 1.5))
        return found[-1]

    monkeypatch.setattr("specgen.core.knowledge.profile.NOISY", 1.3)
    monkeypatch.setattr("specgen.core.knowledge.profiling.NOISY", 1.3)
    monkeypatch.setattr("specgen.core.knowledge.profiling.measure", measured)
    outcome = run("calibrate", tiny_model(), "-t", "1", "-c", "256", "--seconds", "60", "--json")
    assert len(found) == 2
    assert outcome.code == 0
    assert outcome.err.count("the machine is busy with something else: measuring once more") == 1
    assert outcome.record["noise"] == 1.05
    assert outcome.record["curve"] == found[1].curve.record()
    assert Path(outcome.record["stored"]).is_file()


def test_too_little_time_is_told(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single sample is no measurement, and what helps is more time."""
    monkeypatch.setattr("specgen.core.knowledge.profile.LEAST_SAMPLES", 1000)
    outcome = run("calibrate", tiny_model(), *QUICK)
    assert outcome.code == 1
    assert "error: not kept: calls could be timed " in outcome.err
    assert outcome.err.endswith("(give it more time: --seconds 4)\n")
    assert not list(cache_folder().glob("*.json"))


def test_what_is_not_known_well_is_not_pretended(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a command has the widths that round alike, but no prices."""
    monkeypatch.setattr("specgen.core.knowledge.profile.NOISY", 0.5)
    monkeypatch.setattr("specgen.core.knowledge.profiling.NOISY", 0.5)
    path, config = tiny_model(quantization="Q4_1"), EngineConfig(n_ctx=256, threads=1)
    profile = ensure_profile(path, config)
    assert profile.prices is None
    assert profile.strict.largest > 1
    assert find_profile(path, config) is None
    monkeypatch.setattr("specgen.core.knowledge.profile.NOISY", math.inf)
    monkeypatch.setattr("specgen.core.knowledge.profiling.NOISY", math.inf)
    assert ensure_profile(path, config).prices is not None
    assert find_profile(path, config) is not None


def test_what_is_no_model() -> None:
    """An unknown name ends here, before anything is loaded."""
    outcome = run("calibrate", "no-such-model")
    assert outcome.code == 3
    assert "no-such-model" in outcome.err


def test_the_cache(tiny_model: TinyModel) -> None:
    """`cache path` says where it is, `cache clear` empties it."""
    assert run("cache", "path").out == f"{cache_folder()}\n"
    run("calibrate", tiny_model(), *QUICK)
    assert cache_folder().is_dir()
    outcome = run("cache", "clear")
    assert (outcome.code, outcome.out) == (0, "")
    assert "removed 2 files" in outcome.err
    assert not cache_folder().exists()
    assert "removed 0 files" in run("cache", "clear").err


def test_strict_decoding_is_measured_once_on_a_busy_machine(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load does not change which widths round alike: they are kept, and no times with them."""
    monkeypatch.setattr("specgen.core.knowledge.profile.NOISY", 0.5)
    monkeypatch.setattr("specgen.core.knowledge.profiling.NOISY", 0.5)
    words = ("generate", tiny_model(), "he was", "-n", "3", "-t", "1", "-c", "256", "--strict")
    first, second = run_any(*words), run_any(*words)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "what calls cost is not known: the machine was busy" in first.err
    assert second.err == ""
    profile = find_profile(tiny_model(), EngineConfig(n_ctx=256, threads=1))
    assert profile is not None
    assert profile.prices is None
    assert any(profile.classes.values())
