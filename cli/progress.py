"""Progress of long work on stderr: a bar on a terminal, else a line for each stage."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

from .streams import clean, note

Progress: TypeAlias = Callable[[str, float], None]  # told what is done, and the part of it, 0..1


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress]:
    """While entered, what the progress is told is shown."""
    if not sys.stderr.isatty():
        stages: set[str] = set()

        def tell(stage: str, share: float) -> None:
            if stage not in stages:
                note(f"specgen: {stage}")
            stages.add(stage)

        yield tell
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=1.0)

        def draw(stage: str, share: float) -> None:
            bars.update(task, description=escape(clean(stage)), completed=share)

        yield draw
