"""The README's table of speeds, from a file that `specgen bench --save` wrote.

A row for each task: plain decoding in tokens per second, then how many times as fast each is.

    python benchmarks/readme_table.py benchmarks/results/DATE.json [DRAFTER...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from specgen.core.evaluation.results import PLAIN, Results, load_results
from specgen.core.evaluation.summary import Row, summarize


def table(results: Results, wanted: Sequence[str] = ()) -> Iterator[str]:
    """The lines of the table, in Markdown, for the drafters that are wanted, or for all."""
    drafters = [name for name in results.drafters if name != PLAIN]
    drafters = [name for name in drafters if not wanted or name in wanted]
    rows = {(row.task, row.drafter): row for row in summarize(results)}
    yield f"| task | plain, t/s | {' | '.join(drafters)} |"
    yield "|---" * (2 + len(drafters)) + "|"
    for task in dict.fromkeys(task for task, _ in rows):
        ratios = [_ratio(rows.get((task, name))) for name in drafters]
        yield f"| {task} | {rows[task, PLAIN].tokens_per_s:.0f} | {' | '.join(ratios)} |"


def _ratio(row: Row | None) -> str:
    if row is None or row.ratio is None:
        return "-"
    return f"{row.ratio.value:.2f} ±{row.ratio.noise:.2f}"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for line in table(load_results(Path(sys.argv[1])), sys.argv[2:]):
        print(line)
