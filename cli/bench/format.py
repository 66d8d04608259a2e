"""A report as a table, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from specgen.cli.choices import Format
from specgen.cli.terminal import clean, draw, is_terminal, table_text, terminal_columns, write

_Rows: TypeAlias = Sequence[Sequence[str]]

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


def render(report: Report, format: Format, columns: int | None = None) -> str:
    """The report as text that ends with a line break.

    Args:
        columns: how wide the terminal is that a table is for, which has colours then.
    """
    if format == Format.json:
        return _json(report.whole)
    if format == Format.jsonl:
        return "".join(map(_json, report.records))
    if format == Format.csv:
        return _csv(report.records)
    if format == Format.md:
        return "".join(f"{line}\n" for line in _markdown(report))
    return _table(report, columns)


def print_report(report: Report, format: Format) -> None:
    """The report on stdout."""
    if format == Format.table and is_terminal(sys.stdout):
        draw(render(report, format, terminal_columns()))  # its cells are clean
    else:
        write(render(report, format))


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


def _table(report: Report, columns: int | None = None) -> str:
    """Text of _WIDTH, or for a terminal: without the columns that it has no room for."""
    width = min(columns or _WIDTH, _WIDTH)
    report = _fitting(report, width, columns) if columns else report
    indent = max(len(label) for label, _ in report.above) + 2
    above = [_wrapped(f"{label:<{indent}}{text}", width, indent) for label, text in report.above]
    below = [_wrapped(line, width, 2) for line in report.below]
    rows, right = _named(report, width), range(_NAMES, len(report.heads))
    gap = _gap(_widths(report.heads, rows))
    table = table_text(report.heads, rows, right=right, columns=columns, gap=gap)
    return "\n".join([*above, "", table, "", *below]) + "\n"


def _wrapped(line: str, width: int, indent: int) -> str:
    return textwrap.fill(clean(line), width, subsequent_indent=indent * " ")


def _fitting(report: Report, width: int, columns: int) -> Report:
    """The report with a table that fits, as far as leaving out columns helps."""
    left_out: list[int] = []
    shown = report
    for column in report.spare:
        widths = _widths(shown.heads, _named(shown, width))
        if sum(widths) + _gap(widths) * (len(widths) - 1) <= columns:
            break
        left_out.append(column)
        shown = _without(report, left_out)
    if left_out:
        names = ", ".join(_in_one_line(report.heads[column]) for column in sorted(left_out))
        note = f"a wider terminal, or another format, also shows: {names}"
        shown = replace(shown, below=[*shown.below, note])
    return shown


def _without(report: Report, columns: Sequence[int]) -> Report:
    kept = [i for i in range(len(report.heads)) if i not in columns]
    heads, *cells = ([row[i] for i in kept] for row in (report.heads, *report.cells))
    return replace(report, heads=heads, cells=cells)


def _named(report: Report, width: int) -> list[list[str]]:
    """The cells, with names that leave room for figures in a table that wide, and tasks once."""
    rows, last = [], ""
    for task, drafter, *figures in report.cells:
        name = "" if task == last else clean(task)
        rows.append([name, shortened(clean(drafter), _LONGEST_DRAFTER), *figures])
        last = task
    _, *widths = _widths(report.heads, rows)
    longest = max(width - sum(widths) - _GAP * len(widths), _SHORTENED_TASK)
    return [[shortened(name, longest), *cells] for name, *cells in rows]


def shortened(text: str, longest: int) -> str:
    """The text, or its start with an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _widths(heads: Sequence[str], rows: _Rows) -> list[int]:
    """Characters of each column."""
    columns = zip(heads, *rows, strict=True)
    return [max(len(part) for cell in column for part in cell.split("\n")) for column in columns]


def _gap(widths: Sequence[int]) -> int:
    """Spaces between columns: fewer where the table gets too wide."""
    return _GAP if sum(widths) + _GAP * (len(widths) - 1) <= _WIDTH else 1
