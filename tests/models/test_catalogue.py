"""The models that have a name, and what MODEL may be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from specgen.core.errors import ModelError
from specgen.core.models.catalogue import (
    CATALOGUE,
    DEFAULT_MODEL,
    CatalogueEntry,
    find_entry,
    model_folder,
    resolve,
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.setenv("SPECGEN_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path / "cwd")


def refusal(model: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve(model)
    return caught.value


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_entries_are_consistent(entry: CatalogueEntry) -> None:
    """The pieces of every entry add up to the file, and its checksum is a sha256."""
    assert sum(piece.n_bytes for piece in entry.pieces) == entry.n_bytes
    assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert entry.name == entry.name.casefold()
    assert entry.file_name.endswith(".gguf")
    assert Path(entry.file_name).name == entry.file_name


def test_names_and_files_are_unique() -> None:
    """No two entries share a name or a file."""
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
    assert len({entry.file_name for entry in CATALOGUE}) == len(CATALOGUE)


def test_no_model_is_the_default_model() -> None:
    """MODEL left out means the default entry, which needs no terms to be accepted."""
    entry = resolve(None)
    assert isinstance(entry, CatalogueEntry)
    assert (entry.name, entry.terms) == (DEFAULT_MODEL, "")


def test_names_in_any_case() -> None:
    """A name is found whatever its case."""
    assert resolve("Gemma-3-270M") is find_entry("gemma-3-270m")


@pytest.mark.parametrize("model", ["./no/such", "dir/model.bin", "none.gguf", "NONE.GGUF", "/x"])
def test_what_looks_like_a_path_is_one(model: str) -> None:
    """A separator or .gguf makes a path, so that a missing file is named as such later."""
    assert resolve(model) == Path(model)


def test_an_existing_file_wins_over_a_name(tmp_path: Path) -> None:
    """A file here is that file, even under a catalogue name; a folder of that name is not."""
    Path("weights").touch()
    assert resolve("weights") == Path("weights")
    Path("gemma-3-270m").mkdir()
    assert isinstance(resolve("gemma-3-270m"), CatalogueEntry)
    Path(DEFAULT_MODEL).touch()
    assert resolve(DEFAULT_MODEL) == Path(DEFAULT_MODEL)


def test_a_directory_is_taken_as_a_path() -> None:
    """A folder resolves to itself, and reading it says that it is no model file."""
    Path("stuff").mkdir()
    assert resolve("stuff") == Path("stuff")
    assert resolve(".") == Path(".")


def test_a_file_of_the_model_folder_needs_its_name_only(tmp_path: Path) -> None:
    """NAME.gguf is looked for here first, then in the model folder."""
    stored = tmp_path / "models" / "mine.gguf"
    stored.touch()
    assert resolve("mine.gguf") == stored
    Path("mine.gguf").touch()
    assert resolve("mine.gguf") == Path("mine.gguf")


def test_an_unknown_name_leads_on() -> None:
    """The message names the nearest model, the hint the list, or what the caller says."""
    error = refusal("smollm2-135")
    assert "'smollm2-135'" in error.message
    assert "smollm2-135m" in error.message.removeprefix("no model is called 'smollm2-135'")
    assert "specgen list" in error.hint
    with pytest.raises(ModelError) as caught:
        resolve("smollm2-135", "look elsewhere")
    assert caught.value.hint == "look elsewhere"


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("smollm2-135", "smollm2-135m"),
        ("smollm2", "smollm2-135m"),
        ("SmolLM2:135m", "smollm2-135m"),
        ("smolm2-135m", "smollm2-135m"),
        ("smollm2-135m-instruct", "smollm2-135m"),
        ("gemma-270m", "gemma-3-270m"),
        ("gemma3", "gemma-3-270m"),
        ("llama3", ""),
        ("llama-3.2-1b", ""),
        ("tinyllama", ""),
        ("phi-3-mini", ""),
        ("mistral", ""),
        ("qwen2.5-0.5b", ""),
        ("gemma-2-9b", ""),
        ("hi", ""),
        ("s", ""),
        ("", ""),
        ("x" * 1_000_000, ""),
    ],
    ids=lambda value: value[:22] or "none",
)
def test_only_near_names_are_told(model: str, near: str) -> None:
    """A name is offered for a slip of it, or for a beginning of it."""
    message = refusal(model).message
    assert message.partition("; the nearest name is ")[2] == near


@pytest.mark.parametrize("model", ["", "Once upon a time " * 100, "a\0b", "日本語のプロンプト"])
def test_a_prompt_in_the_place_of_a_model(model: str) -> None:
    """Any text is refused in one short line, whatever its length and characters."""
    error = refusal(model)
    assert len(error.message) < 200
    assert "specgen list" in error.hint


@pytest.mark.parametrize(
    "model",
    [
        "https://hub/a/b.gguf",
        "hf.co/user/model:Q4_0",
        "HF.co/a",
        "huggingface.co/a/b",
        "ollama://a",
    ],
)
def test_an_address_is_no_path(model: str) -> None:
    """It is shown as it was given, with what to do instead."""
    error = refusal(model)
    assert error.message == f"{model} is an address, not a file"
    assert "download the GGUF file and give its path" in error.hint


def test_installed_means_the_right_size(tmp_path: Path) -> None:
    """A file of another size is not the installed model."""
    entry = find_entry(DEFAULT_MODEL)
    assert entry is not None
    folder = model_folder()
    assert folder == tmp_path / "models"
    assert entry.installed(folder) is None
    path = folder / entry.file_name
    path.write_bytes(b"GGUF")
    assert entry.installed(folder) is None
    with open(path, "r+b") as file:
        file.truncate(entry.n_bytes)
    assert entry.installed(folder) == path


def test_the_model_folder_without_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty setting counts as none: the folder is the user's data folder."""
    monkeypatch.setenv("SPECGEN_MODELS", "")
    assert model_folder().parts[-2:] == ("specgen", "models")
    monkeypatch.setenv("SPECGEN_MODELS", "~/models")
    assert model_folder() == Path.home() / "models"
