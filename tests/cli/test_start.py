"""What a command does before it begins: no more than it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_group

from specgen.cli import main
from specgen.core.models import header
from tests.support.command import ROOT, text_of

# Runs specgen, and says at the end what it has imported and how often garbage was looked for.
_TELLING = """
import atexit, gc, json, sys

def tell():
    told = {"modules": sorted(sys.modules), "collections": collections.count("start")}
    told |= {"collects": gc.isenabled(), "frozen": gc.get_freeze_count()}
    print(json.dumps(told), file=sys.stderr)

collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
atexit.register(tell)
from specgen.__main__ import main
main()
"""
# Each belongs to what `generate` does not do with a text that it continues.
_NEEDLESS = {
    *("jinja2", "rich.progress", "rich.table", "prompt_toolkit", "zipfile"),
    *("specgen.cli.chat", "specgen.cli.calibrate", "specgen.cli.verify", "specgen.cli.models"),
    *("specgen.cli.bench.command", "specgen.cli.plan", "specgen.cli.model_card"),
    *("specgen.core.text.template", "specgen.core.text.conversation"),
    *("specgen.core.models.pull", "specgen.core.knowledge.profiling"),
}


def told(*words: str | Path) -> Any:
    """What `specgen WORDS` has imported when it ends, and more."""
    command = [sys.executable, "-c", _TELLING, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


@pytest.mark.llama
def test_generate_imports_what_it_needs(endless: Path) -> None:
    """No other command, no chat template, nothing that measures or fetches models."""
    found = set(told("generate", endless, "-p", "he was", "-n", "1", "-t", "1")["modules"])
    assert "specgen.core.engine" in found
    assert not found & _NEEDLESS


def test_a_command_imports_no_other() -> None:
    """Nor anything that runs models."""
    found = set(told("list")["modules"])
    assert "specgen.cli.models" in found
    assert not found & {"specgen.cli.generate", "specgen.cli.verify", "numpy", "llama_cpp"}


@pytest.mark.llama
def test_garbage_is_looked_for_rarely(endless: Path) -> None:
    """Hardly ever while a command starts, and not among what is there at its end, but it is."""
    found = told("generate", endless, "-p", "he was", "-n", "1", "-t", "1")
    assert found["collects"]
    assert found["collections"] < 5
    assert found["frozen"] > 10_000


def test_each_module_has_its_commands() -> None:
    """The table of commands names those that their modules register, each once."""
    registered = []
    for module in dict.fromkeys(main._MODULES.values()):
        part = typer.Typer()
        import_module(f".{module}", main.__package__).register(part)
        registered += [(name, module) for name in get_group(part).commands]
    assert sorted(registered) == sorted(main._MODULES.items())


@pytest.mark.llama
def test_a_command_reads_a_header_once(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that has not changed just now; before it was asked for three times."""
    opened = []
    read = header._read

    def counted(path: Path) -> header.Header:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(header, "_SETTLED_S", 0.0)
    monkeypatch.setattr(header, "_read", counted)
    header._read_once.cache_clear()
    text_of(endless, "-p", "he was", "-n", "1")
    assert opened == [endless]
