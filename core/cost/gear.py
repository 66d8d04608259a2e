"""What a change of the width of calls takes, beside what a call of that width takes.

llama.cpp builds its graph anew where a call has another number of rows than the one before. And
where graphs are captured (CUDA), that is done at the second call of a width, and thrown away at the
next change. So a call costs T(n) in a run of calls of n rows, its first two something more.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from specgen.core.protocols import Change

FREE: Final = Change()


class Gear(NamedTuple):
    """The width of the last call, and whether it was the first one of that width."""

    width: int = 0
    is_new: bool = False

    def extra_s(self, width: int, change: Change) -> float:
        """Seconds that the next call takes more, if it has `width` rows."""
        if width != self.width:
            return change.first_s
        return change.second_s if self.is_new else 0.0

    def after(self, width: int) -> Gear:
        """The gear once a call of `width` rows was made."""
        return Gear(width, width != self.width)
