"""The commands about model files, through a small app that registers them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from specgen.cli import models, prepare, terminal
from specgen.cli.prepare import ensure_model
from specgen.core.errors import ModelError, SpecgenError, UsageError
from specgen.core.models import catalogue
from specgen.core.models.catalogue import CATALOGUE, CatalogueEntry, find_entry
from tests.models.test_header import write_model
from tests.support.wheelhouse import CONTENT, FILE_NAME, make_entry, use_index


class Result:
    """What a command did."""

    def __init__(self, *words: str) -> None:
        app = typer.Typer(pretty_exceptions_enable=False)
        models.register(app)
        result = CliRunner().invoke(app, list(words))
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        self.exception = result.exception


def run(*words: str) -> Result:
    """A command that must succeed."""
    result = Result(*words)
    assert result.code == 0, (result.err, result.exception)
    return result


def refusal(*words: str) -> SpecgenError:
    """The error of a command that must fail."""
    result = Result(*words)
    assert isinstance(result.exception, SpecgenError), result.exception
    assert result.out == ""
    return result.exception


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model folder, and an index that has nothing."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "cwd").mkdir()
    use_index(monkeypatch, tmp_path / "wheels")
    monkeypatch.setenv("SPECGEN_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "models"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """A catalogue of one small model, called "tiny", with terms."""
    entry = make_entry(tmp_path / "wheels", terms="Be kind.")
    find = find_entry

    def found(name: str) -> CatalogueEntry | None:
        return entry if name == "tiny" else find(name)

    monkeypatch.setattr(models, "find_entry", found)
    monkeypatch.setattr(catalogue, "find_entry", found)
    return entry


def test_pull_prints_the_path_and_nothing_else(tiny: CatalogueEntry, folder: Path) -> None:
    """stdout is the path; stderr has the terms, a line at the start and one at the end."""
    result = run("pull", "tiny", "--accept-license")
    assert result.out == f"{folder / FILE_NAME}\n"
    assert (folder / FILE_NAME).read_bytes() == CONTENT
    lines = result.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["specgen"] * 3
    assert "Be kind." in lines[0]
    assert "downloading tiny" in lines[1]
    assert "installed and checked" in lines[2]
    assert run("pull", "tiny").err == ""


def test_pull_without_accepting_the_terms(tiny: CatalogueEntry, folder: Path) -> None:
    """Terms that are not accepted are a usage error with the command that accepts them."""
    error = refusal("pull", "tiny")
    assert isinstance(error, UsageError)
    assert "--accept-license" in error.hint
    assert not folder.exists()


def test_pull_of_what_is_no_name() -> None:
    """A path is a usage error, an unknown name a model error with the nearest name."""
    assert isinstance(refusal("pull", "./model.gguf"), UsageError)
    error = refusal("pull", "gemma-270m")
    assert isinstance(error, ModelError)
    assert "gemma-3-270m" in error.message


def test_ensure_model(tiny: CatalogueEntry, folder: Path, tmp_path: Path) -> None:
    """A path comes back as it is; a name is fetched once, terms permitting."""
    assert ensure_model("./any.gguf") == Path("any.gguf")
    with pytest.raises(UsageError, match="Be kind"):
        ensure_model("tiny")
    run("pull", "tiny", "--accept-license")
    assert ensure_model("tiny") == folder / FILE_NAME
    with pytest.raises(ModelError, match="no model is called"):
        ensure_model("nonesuch")


def test_list_shows_catalogue_and_files(folder: Path) -> None:
    """The list has every entry with its state, and the other files in the model folder."""
    folder.mkdir()
    (folder / "mine.gguf").write_bytes(bytes(2_500_000))
    (folder / "notes.txt").write_text("no model")
    lines = run("list").out.splitlines()
    assert lines[0].split() == ["NAME", "MODEL", "SIZE", "LICENCE", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == [e.name for e in CATALOGUE] + ["mine.gguf"]
    assert lines[1].endswith("not installed, default")
    assert "2.5 MB" in lines[-1]
    assert lines[-1].endswith("installed")


def test_list_as_json(folder: Path) -> None:
    """The same as JSON, with bytes as numbers."""
    listed = json.loads(run("list", "--json").out)
    assert listed["folder"] == str(folder)
    default = [model for model in listed["models"] if model["default"]]
    assert [(model["name"], model["bytes"]) for model in default] == [("smollm2-135m", 98_362_432)]


def test_info_in_plain_lines(tmp_path: Path) -> None:
    """Without a terminal, a line per fact: the label, two spaces or more, the value."""
    path = write_model(tmp_path / "tiny.gguf")
    facts = dict(line.split("  ", 1) for line in run("info", str(path)).out.splitlines())
    facts = {label: value.strip() for label, value in facts.items()}
    assert facts["architecture"] == "llama"
    assert facts["quantization"] == "Q4_K_M"
    assert facts["vocabulary"] == "300"
    assert facts["heads"] == "4"
    assert facts["KV per token"] == "256 bytes at f16"
    assert facts["chat template"] == "yes"
    assert facts["licence"] == "mit"
    assert facts["specgen"].startswith("drafts trees")


@pytest.mark.parametrize(
    ("arch", "extra", "words"),
    [
        ("gemma3", {"gemma3.attention.sliding_window": 512}, ["512 tokens", "full cache"]),
        ("mamba", {}, ["recurrent", "decodes plainly"]),
        ("qwen35", {}, ["hybrid", "drafts chains"]),
        ("jamba", {}, ["hybrid", "decodes plainly"]),
        ("bert", {}, ["cannot run it", "encoder"]),
    ],
)
def test_info_says_what_will_be_done(
    tmp_path: Path, arch: str, extra: dict[str, Any], words: list[str]
) -> None:
    """For every kind of model, info says how specgen will run it, or that it cannot."""
    out = run("info", str(write_model(tmp_path / "m.gguf", arch, extra=extra))).out
    assert all(word in out for word in words)


def test_info_as_json(tmp_path: Path) -> None:
    """JSON has the same facts in bytes and counts, and all metadata with long arrays described."""
    extra = {"test.infinite": [float("inf"), 1.0]}
    path = write_model(tmp_path / "tiny.gguf", extra=extra)
    record = json.loads(run("info", str(path), "--json").out, parse_constant=pytest.fail)
    assert (record["path"], record["n_vocab"], record["drafting"]) == (str(path), 300, "tree")
    assert record["file_bytes"] == path.stat().st_size
    assert record["metadata"]["tokenizer.ggml.tokens"] == {"type": "str", "length": 300}
    assert record["metadata"]["test.infinite"] == ["inf", 1.0]


def test_info_prints_the_template(tmp_path: Path) -> None:
    """--template prints the template as it is, and is an error where there is none."""
    path = write_model(tmp_path / "tiny.gguf")
    assert run("info", str(path), "--template").out == "{{ messages }}"
    bare = write_model(tmp_path / "bare.gguf", extra={"tokenizer.chat_template": 7})
    assert "no chat template" in refusal("info", str(bare), "--template").message


def test_info_with_all_metadata(tmp_path: Path) -> None:
    """--metadata adds every key of the header."""
    out = run("info", str(write_model(tmp_path / "tiny.gguf")), "--metadata").out
    assert "llama.block_count" in out
    assert "300 x str" in out


def test_info_cannot_be_used_to_write_to_the_terminal(tmp_path: Path) -> None:
    """Control characters in a file's metadata do not reach the terminal."""
    extra = {"general.organization": "\x1b[2Jevil\u202e"}
    path = write_model(tmp_path / "m.gguf", extra=extra)
    out = run("info", str(path), "--metadata").out
    assert "evil" in out
    assert "\x1b" not in out
    assert "\u202e" not in out


def test_info_of_what_is_not_there() -> None:
    """A missing file, a directory and a model that is not installed are errors with a hint."""
    assert "no such file" in refusal("info", "none.gguf").message
    assert "is a directory" in refusal("info", ".").message
    assert "specgen pull smollm2-135m" in refusal("info").hint
    assert "--accept-license" in refusal("info", "gemma-3-270m").hint


def test_tables_and_bars_on_a_terminal(
    tiny: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal, the same facts come as rich tables and progress bars."""
    path = write_model(tmp_path / "[red]tiny.gguf")
    for module in (terminal, prepare):
        monkeypatch.setattr(module, "is_terminal", lambda stream: True)
    assert "[red]tiny.gguf" in run("info", str(path)).out.replace("\n", "")
    assert "smollm2-135m" in run("list").out
    result = run("pull", "tiny", "--accept-license")
    assert result.out.endswith(f"{FILE_NAME}\n")
    assert "unpacking and checking" in result.err


def test_registering_is_light() -> None:
    """Loading the commands imports neither rich tables, nor pip's driver, nor NumPy."""
    code = (
        "import sys, specgen.cli.models; "
        "print([n for n in ('numpy', 'llama_cpp', 'rich.progress', 'rich.table', "
        "'specgen.core.models.pull', 'platformdirs') if n in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
