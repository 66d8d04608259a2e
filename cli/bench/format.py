"""A report as a table, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from specgen.cli.choices import Format
from specgen.cli.streams import clean, draw, write

if TYPE_CHECKING:
    from rich.console import Console

_Rows: TypeAlias = Sequence[Sequence[str]]
_Draw: TypeAlias = Callable[[Sequence[str], _Rows], str]

_WIDTH: Final = 100
_GAP: Final = 2  # spaces between columns
_NAMES: Final = 2  # columns; the others are figures
_SHORTENED_TASK: Final = 16  # where a table would be too wide with longer ones
_LONGEST_DRAFTER: Final = 18


@dataclass(frozen=True, slots=True)
class Report:
    """What is shown, whatever the format.

    Attributes:
        above: labels and values.
        heads: of the table, with line breaks; the first columns are names: tasks and drafters.
        spare: columns that a narrow terminal does not show, the least important first.
        cells: of the table.
        below: lines; the ones after an empty line explain the others.
        records: of the table's rows, with all figures.
        whole: everything as one object.
    """

    above: Sequence[tuple[str, str]]
    heads: Sequence[str]
    spare: Sequence[int]
    cells: _Rows
    below: Sequence[str]
    records: Sequence[Mapping[str, Any]]
    whole: Mapping[str, Any]


def render(report: Report, format: Format, terminal: bool) -> str:
    """The report as text that ends with a line break.

    Args:
        terminal: whether a table may have colours, and is as wide as the terminal allows.
    """
    if format == Format.json:
        return _json(report.whole)
    if format == Format.jsonl:
        return "".join(map(_json, report.records))
    if format == Format.csv:
        return _csv(report.records)
    if format == Format.md:
        return "".join(f"{line}\n" for line in _markdown(report))
    return _for_terminal(report) if terminal else _table(report, _WIDTH, _aligned)


def print_report(report: Report, format: Format) -> None:
    """The report on stdout."""
    terminal = sys.stdout.isatty()
    put = draw if terminal and format == Format.table else write  # its cells are clean
    put(render(report, format, terminal))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    """With one head. What has parts is JSON in its cell; what is not known is empty."""
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        for record in records:
            parts = {k: json.dumps(v) for k, v in record.items() if isinstance(v, Mapping)}
            writer.writerow({**record, **parts})
    return text.getvalue()


def _markdown(report: Report) -> Iterator[str]:
    yield from (f"- {label}: {_escaped(value)}" for label, value in report.above)
    yield ""
    rules = ["---" if i < _NAMES else "---:" for i in range(len(report.heads))]
    heads = list(map(_in_one_line, report.heads))
    for row in (heads, rules, *report.cells):
        yield f"| {' | '.join(map(_escaped, row))} |"
    yield ""
    yield from (f"- {_escaped(line)}" if line else "" for line in report.below)


def _escaped(text: str) -> str:
    return clean(text).replace("|", "\\|")


def _in_one_line(head: str) -> str:
    return head.replace("\n/", "/").replace("\n", " ")


def _table(report: Report, width: int, draw: _Draw) -> str:
    indent = max(len(label) for label, _ in report.above) + 2
    above = [_wrapped(f"{label:<{indent}}{text}", width, indent) for label, text in report.above]
    below = [_wrapped(line, width, 2) for line in report.below]
    return "\n".join([*above, "", draw(report.heads, _named(report, width)), "", *below]) + "\n"


def _wrapped(line: str, width: int, indent: int) -> str:
    return textwrap.fill(clean(line), width, subsequent_indent=indent * " ")


def _for_terminal(report: Report) -> str:
    """A table that fits, as far as leaving out columns helps."""
    from rich.console import Console

    console = Console()
    width = min(console.width, _WIDTH)
    left_out: list[int] = []
    for column in report.spare:
        if _width(_without(report, left_out), width) <= console.width:
            break
        left_out.append(column)
    shown = _without(report, left_out)
    if left_out:
        names = ", ".join(_in_one_line(report.heads[column]) for column in sorted(left_out))
        note = f"a wider terminal, or another format, also shows: {names}"
        shown = replace(shown, below=[*shown.below, note])
    return _table(shown, width, partial(_rich, console))


def _without(report: Report, columns: Sequence[int]) -> Report:
    kept = [i for i in range(len(report.heads)) if i not in columns]
    heads, *cells = ([row[i] for i in kept] for row in (report.heads, *report.cells))
    return replace(report, heads=heads, cells=cells)


def _width(report: Report, room: int) -> int:
    """Characters of a line of the table, where there is room for so many."""
    widths = _widths(report.heads, _named(report, room))
    return sum(widths) + _gap(widths) * (len(widths) - 1)


def _named(report: Report, width: int) -> list[list[str]]:
    """The cells, with names that leave room for figures in a table that wide, and tasks once."""
    rows, last = [], ""
    for task, drafter, *figures in report.cells:
        name = "" if task == last else clean(task)
        others = map(clean, figures)
        rows.append([name, shortened(clean(drafter), _LONGEST_DRAFTER), *others])
        last = task
    _, *widths = _widths(report.heads, rows)
    longest = max(width - sum(widths) - _GAP * len(widths), _SHORTENED_TASK)
    return [[shortened(name, longest), *cells] for name, *cells in rows]


def shortened(text: str, longest: int) -> str:
    """The text, or its start with an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _gap(widths: Sequence[int]) -> int:
    """Spaces between columns: fewer where the table gets too wide."""
    return _GAP if sum(widths) + _GAP * (len(widths) - 1) <= _WIDTH else 1


def _widths(heads: Sequence[str], rows: _Rows) -> list[int]:
    lines = [heads, *rows]
    return [
        max(len(part) for line in lines for part in line[i].split("\n")) for i in range(len(heads))
    ]


def _aligned(heads: Sequence[str], rows: _Rows) -> str:
    widths = _widths(heads, rows)
    gap = " " * _gap(widths)
    upper, _, lower = zip(*(head.rpartition("\n") for head in heads), strict=True)
    lines = [
        gap.join(
            cell.ljust(width) if i < _NAMES else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (upper, lower, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _rich(console: Console, heads: Sequence[str], rows: _Rows) -> str:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, _gap(_widths(heads, rows)), 0, 0), pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < _NAMES else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
