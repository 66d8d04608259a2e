"""Writes docs/cli.md from the commands' own help: `make docs`.

It reads parameters, not rendered help, so the page does not depend on Typer's layout.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer.main

from specgen.cli.main import app

PAGE = Path(__file__).with_name("cli.md")
_COLUMNS = 110
HEAD = """\
# Commands

Written by `make docs` from what `specgen COMMAND --help` says; do not edit.
"""
_COMPLETION = ("--install-completion", "--show-completion")  # Typer's own


def commands() -> dict[str, Any]:
    """Every visible command by its full name, `specgen` itself first."""
    return dict(_walk("specgen", typer.main.get_command(app)))


def arguments(command: Any) -> list[Any]:
    """The positional parameters of a command."""
    return [p for p in command.params if p.param_type_name == "argument" and not p.hidden]


def options(command: Any) -> list[Any]:
    """The options of a command, without --help and shell completion."""
    visible = (p for p in command.params if p.param_type_name == "option" and not p.hidden)
    return [p for p in visible if p.opts[0] not in _COMPLETION]


def names(parameter: Any) -> list[str]:
    """All spellings of an option, or the name that stands for an argument's value."""
    if parameter.param_type_name == "argument":
        return [(parameter.metavar or parameter.name.upper()).strip("[]")]
    return [*parameter.opts, *parameter.secondary_opts]


def render() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(name, command) for name, command in commands().items())])


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    for part, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _walk(f"{name} {part}", inner)


def _section(name: str, command: Any) -> str:
    about = _filled(_paragraphs(command.help))
    lines = [f"## {name}", "", f"    {_usage(name, command)}", "", about, ""]
    lines += _table("Argument", arguments(command))
    panels: dict[str, list[Any]] = {}
    for option in options(command):
        panels.setdefault(option.rich_help_panel or "Option", []).append(option)
    for title, members in panels.items():
        lines += _table(title, members)
    return "\n".join(lines)


def _usage(name: str, command: Any) -> str:
    words = [name, "[OPTIONS]"]
    if getattr(command, "commands", None):
        words.append("COMMAND")
    for argument in arguments(command):
        (word,) = names(argument)
        words.append(word if argument.required else f"[{word}]")
    return " ".join(words)


def _paragraphs(text: str | None) -> str:
    """Help text with one line a paragraph; it comes indented as in the source."""
    parts = (text or "").replace("\f", "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)


def _filled(text: str) -> str:
    """Paragraphs in lines that fit an editor."""
    parts = text.split("\n\n")
    return "\n\n".join(textwrap.fill(part, _COLUMNS, break_on_hyphens=False) for part in parts)


def _table(title: str, parameters: list[Any]) -> list[str]:
    if not parameters:
        return []
    rows = [f"| {title} | Meaning | Default |", "|---|---|---|"]
    for parameter in parameters:
        cells = (_spelling(parameter), _paragraphs(parameter.help), _default(parameter))
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return [*rows, ""]


def _spelling(parameter: Any) -> str:
    spelled = ", ".join(f"`{name}`" for name in names(parameter))
    value = _value(parameter)
    return f"{spelled} `{value}`" if value else spelled


def _value(parameter: Any) -> str:
    """What stands for an option's value; nothing for switches and counters."""
    if parameter.param_type_name == "argument" or parameter.is_flag or parameter.count:
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    if isinstance(parameter.default, Enum):
        return "|".join(str(choice.value) for choice in type(parameter.default))
    return "X" if isinstance(parameter.default, float) else "N"


def _default(parameter: Any) -> str:
    shown, default = parameter.show_default, parameter.default
    if isinstance(shown, str):
        return shown
    if not shown or default is None or default is False:
        return ""
    return f"`{default.value if isinstance(default, Enum) else default}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
