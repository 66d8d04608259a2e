"""The commands about model files: pull, list and info. Results on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from specgen.core.errors import ModelError, UsageError
from specgen.core.host.paths import path_text
from specgen.core.models.catalogue import (
    CATALOGUE,
    DEFAULT_MODEL,
    find_entry,
    model_folder,
    resolve,
)

from .grouping import grouped
from .model_choice import ModelChoice
from .terminal import note, print_table, show, write

if TYPE_CHECKING:
    from specgen.core.memory.placement import Share


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("pull")(pull)
    app.command("list")(list_models)
    app.command("info")(info)


def pull(
    name: Annotated[str, typer.Argument(help="A name that `specgen list` shows.")],
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Accept the model's terms of use.")
    ] = False,
) -> None:
    """Download a model of the catalogue and print where it is."""
    entry = find_entry(name)
    if entry is None:
        resolve(name, "`specgen list` shows the names")  # an unknown name ends here
        hint = "`specgen list` shows the names; nothing else is fetched, and a file needs no pull"
        raise UsageError(
            f"{path_text(name)} is a path, and pull takes a name of the catalogue", hint
        )
    if entry.terms and accept_license:
        note(f"specgen: {entry.title}: {entry.terms}")
    from .prepare import fetch_model

    show(path_text(fetch_model(entry, accept_license=accept_license)))


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the models that have a name, and the files in the model folder."""
    from .model_card import size_text

    folder = model_folder()
    models = [*_catalogue_records(folder), *_file_records(folder)]
    if as_json:
        _print_json({"folder": path_text(folder), "models": models})
        return
    heads = ("NAME", "MODEL", "SIZE", "LICENCE", "STATE")
    table = [
        (
            model["name"],
            f"{model['title']} {model['quantization']}".strip() or "-",
            size_text(model["bytes"]),
            model["licence"] or "-",
            _state(model),
        )
        for model in models
    ]
    print_table(heads, table)


@grouped
def info(
    chosen: ModelChoice,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    template: Annotated[
        bool, typer.Option("--template", help="Print the chat template and nothing else.")
    ] = False,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="Add everything that the header says.")
    ] = False,
) -> None:
    """Show what is in a model file, and what specgen will do with it."""
    from specgen.core.llama.door import judged
    from specgen.core.models.header import read_header
    from specgen.core.models.modelinfo import read_model

    from . import model_card

    path = _installed(chosen.name)
    card = judged(read_model(path))
    if template:
        write(card.chat_template or _no_template(path))
        return
    header = read_header(path)
    shares, kernels = ((), "") if card.refusal else _shares(path)
    if as_json:
        _print_json(model_card.record(card, header, shares))
        return
    lines = model_card.rows(card, kernels)
    print_table((), [*lines, *(model_card.metadata_rows(header) if metadata else [])])


def _shares(path: Path) -> tuple[Sequence[Share], str]:
    """Which weights run on whose kernels, as records and in words."""
    from specgen.core.config import EngineConfig
    from specgen.core.memory.budget import shares_for
    from specgen.drafters import NONE
    from specgen.opening import Wanted, plan_inputs, runs_on

    config = EngineConfig()
    inputs = plan_inputs(Wanted(path, config, NONE, None), None)
    return shares_for(inputs, config), runs_on(inputs, config)


def _no_template(path: Path) -> NoReturn:
    raise ModelError(f"{path_text(path)} has no chat template", "use it without --chat")


def _installed(model: str | None) -> Path:
    """The file that MODEL means; ModelError where it must be pulled first."""
    found = resolve(model)
    if isinstance(found, Path):
        return found
    path = found.installed(model_folder())
    if path is None:
        license_option = " --accept-license" if found.terms else ""
        hint = f"run `specgen pull {found.name}{license_option}`"
        raise ModelError(f"{found.name} is not installed", hint)
    return path


def _catalogue_records(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "title": entry.title,
            "quantization": entry.quantization,
            "bytes": entry.n_bytes,
            "licence": entry.licence,
            "default": entry.name == DEFAULT_MODEL,
            "installed": entry.installed(folder) is not None,
            "path": path_text(folder / entry.file_name),
        }
        for entry in CATALOGUE
    ]


def _file_records(folder: Path) -> list[dict[str, Any]]:
    """GGUF files in the folder that the catalogue does not know."""
    known = {entry.file_name for entry in CATALOGUE}
    files = [path for path in sorted(folder.glob("*.gguf")) if path.name not in known]
    return [
        {
            "name": path_text(path.name),
            "title": "",
            "quantization": "",
            "bytes": path.stat().st_size,
            "licence": "",
            "default": False,
            "installed": True,
            "path": path_text(path),
        }
        for path in files
        if path.is_file()
    ]


def _state(model: dict[str, Any]) -> str:
    state = "installed" if model["installed"] else "not installed"
    return f"{state}, default" if model["default"] else state


def _print_json(value: Any) -> None:
    import json

    show(json.dumps(value, indent=2))
