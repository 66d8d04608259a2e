"""What a change of the width of calls takes, beside what a call of that width takes.

llama.cpp builds its graph anew where a call has another number of rows than the one before. And
where graphs are captured (CUDA), that is done at the second call of a width, and thrown away at the
next change. So a call costs T(n) in a run of calls of n rows, its first two something more.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from specgen.core.protocols import Change

FREE: Final = Change()
# Places of a call in a run of calls of one width; the first two are places in a Change, too.
FIRST: Final = 0
SECOND: Final = 1
LATER: Final = 2


class Gear(NamedTuple):
    """The width of the last call, and whether it was the first one of that width."""

    width: int = 0
    is_new: bool = False

    def place(self, width: int) -> int:
        """Where in a run the next call is, if it has `width` rows: FIRST, SECOND or LATER."""
        if width != self.width:
            return FIRST
        return SECOND if self.is_new else LATER

    def extra_s(self, width: int, change: Change) -> float:
        """Seconds that the next call takes more, if it has `width` rows."""
        place = self.place(width)
        return change[place] if place < LATER else 0.0

    def after(self, width: int) -> Gear:
        """The gear once a call of `width` rows was made."""
        return Gear(width, width != self.width)


def change_text(change: Change) -> str:
    """What a change takes, in one line."""
    if change == FREE:
        return "nothing that shows"
    first, second = (f"{1e3 * seconds:.2g} ms" for seconds in change)
    return f"{first} at the first call" + (f", {second} at the second" if change.second_s else "")
