"""Staying within a memory budget while a text grows.

A plan says beforehand what will be taken. What it cannot know, such as a drafter that takes more
than it says, is watched: what is resident is read every few steps, and before the budget is
crossed the session gives up drafts (see Session.shrink).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from specgen.core.host.process_memory import resident_bytes

LOOK_EVERY: Final = 16  # memory is looked at every 16 steps; a look takes about 20 us
# Growth is foreseen for so many looks: with 16 drafts there are as many things to give up.
_AHEAD: Final = 4
_SHARE: Final = 0.01  # this part of the budget stays free


class Keeper:
    """Says when memory is getting short.

    Args:
        budget: bytes that the process may have.
        resident: what it has now, or None where the system does not tell.
    """

    def __init__(self, budget: int, resident: Callable[[], int | None] = resident_bytes) -> None:
        self.budget = budget
        self._resident = resident
        self.begin()

    def begin(self) -> None:
        """Another text: what its prompt took says nothing of what its steps will take."""
        self._before: int | None = None
        self._steps = 0

    def is_short(self) -> bool:
        """To be asked once a step: whether the budget might be crossed before all is given up.

        It might if the memory grows on as it did since the last look.
        """
        self._steps += 1
        if self._steps % LOOK_EVERY:
            return False
        now = self._resident()
        if now is None:
            return False
        growth = 0 if self._before is None else max(0, now - self._before)
        self._before = now
        return now + _AHEAD * growth > (1 - _SHARE) * self.budget
