"""Whether to ask a drafter whose answers take time: a model, where the others look into tables.

A chain of guesses that are each right with the same chance brings a known number of tokens
(Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192,
section 3.1); what its rows cost is measured. So it is known beforehand whether the best length
gains anything, and then at each node whether one more answer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from specgen.core.protocols import DraftCost

_LONGEST: Final = 16  # guesses in a row
_TOKENS: Final = 256  # that a text is taken to go on for: reading it has to pay by then
_ROWS_AHEAD: Final = 4  # that are looked ahead to, to see what one more costs


def worth_starting(
    effort: DraftCost, row: Sequence[float], n_pending: int, room: int, rate: float
) -> bool:
    """Whether a chain of at most `room` guesses brings more than `rate` tokens a second.

    `row` has the seconds of a call with 1, 2, … rows, of which `n_pending` go ahead of the tree.
    """
    expected = reached = 1.0
    for n in range(1, min(_LONGEST, room, len(row) - n_pending - 1) + 1):
        reached *= effort.chance
        expected += reached
        reading = effort.reading * expected / _TOKENS
        if expected / (row[n_pending + n] + n * effort.seconds + reading) > rate:
            return True
    return False


def worth_extending(effort: DraftCost, path: float, row: Sequence[float], n_rows: int) -> bool:
    """Whether one more answer is worth it at a node that is reached with the chance `path`.

    `n_rows` the call has without it. A right guess saves a call; its row costs what the next few
    rows cost on average.
    """
    last = min(n_rows - 1 + _ROWS_AHEAD, len(row) - 1)
    slope = (row[last] - row[n_rows - 1]) / max(1, last - n_rows + 1)
    return path * effort.chance * row[0] > effort.seconds + slope
