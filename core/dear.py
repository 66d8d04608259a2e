"""Whether to ask a drafter whose answers take time: a model, where the others look into tables.

A chain of guesses that are each right with the same chance brings a known number of tokens
(Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192,
theorem 3.8); what its rows cost is measured. So it is known beforehand whether the best length
gains anything, and then at each node whether one more answer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .protocols import Effort

PREMIUM: Final = 1.05  # as the builder has it: estimates that look best are likely to be too high

_LONGEST = 16  # guesses in a row
_TOKENS = 256  # that a text is taken to go on for: reading it has to pay by then
_ROWS_AHEAD = 4  # that are looked ahead to, to see what one more costs


def pays(effort: Effort, row: Sequence[float], n_lead: int) -> bool:
    """Whether a draft of the best length would bring more tokens a second than none.

    `row` has the seconds of a call with 1, 2, … rows, of which `n_lead` go ahead of the tree.
    """
    plain = PREMIUM / row[n_lead]
    expected = reached = 1.0
    for n in range(1, min(_LONGEST, len(row) - n_lead - 1) + 1):
        reached *= effort.hope
        expected += reached
        reading = effort.reading * expected / _TOKENS
        if expected / (row[n_lead + n] + n * effort.seconds + reading) > plain:
            return True
    return False


def pays_on(effort: Effort, path: float, row: Sequence[float], n_rows: int) -> bool:
    """Whether one more answer is worth it at a node that is reached with the chance `path`.

    `n_rows` the call has without it. A right guess saves a call; its row costs what the next few
    rows cost on average.
    """
    last = min(n_rows - 1 + _ROWS_AHEAD, len(row) - 1)
    slope = (row[last] - row[n_rows - 1]) / max(1, last - n_rows + 1)
    return path * effort.hope * row[0] > effort.seconds + slope
