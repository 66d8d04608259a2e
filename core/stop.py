"""Being asked to stop. Core knows nothing of signals: it asks a function between its steps.

llama.cpp asks it, too, in callbacks. What is raised in one is lost, so the function must not
raise: it only says yes or no.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

ShouldStop: TypeAlias = Callable[[], bool]


class Interrupted(KeyboardInterrupt):
    """Someone asked to stop. As with Ctrl-C, no `except Exception` takes it for a failure."""


def never() -> bool:
    """For work that nobody stops."""
    return False


def heed(should_stop: ShouldStop) -> None:
    """Raise Interrupted if `should_stop` says so."""
    if should_stop():
        raise Interrupted
