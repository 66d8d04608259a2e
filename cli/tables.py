"""Tables on stdout: Rich's on a terminal, else aligned text."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .streams import clean, show


def print_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()
) -> None:
    """A head and rows; the columns in `left` are flush left, the others right."""
    rows = [list(map(clean, row)) for row in rows]
    if sys.stdout.isatty():
        _print_rich(heads, rows, left)
        return
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        show("  ".join(cells).rstrip())


def _print_rich(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i in left else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
