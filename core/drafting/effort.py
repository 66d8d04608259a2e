"""Whether to ask a drafter whose answers take time: a model, where the others look into tables.

Where every draft token is accepted with the same chance, a chain of them brings a known number of
tokens (Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", arXiv
2211.17192, section 3.1), and what its rows cost is measured. So it is known beforehand whether
the best length gains anything, and then at each node whether one more answer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from specgen.core.protocols import DraftCost

_LONGEST: Final = 16  # the longest chain that is considered, in draft tokens
_TOKENS: Final = 256  # the text is expected to go on for so long: reading it must pay by then
_ROWS_AHEAD: Final = 4  # the price of one more row is the mean of so many next ones


def worth_starting(
    effort: DraftCost, costs: Sequence[float], n_pending: int, budget: int, rate: float
) -> bool:
    """Whether a chain of at most `budget` draft tokens brings more than `rate` tokens a second.

    `costs` are the seconds of a call with 1, 2, … rows, of which `n_pending` go ahead of the tree.
    """
    expected = reached = 1.0
    for n in range(1, min(_LONGEST, budget, len(costs) - n_pending - 1) + 1):
        reached *= effort.chance
        expected += reached
        reading = effort.reading * expected / _TOKENS
        if expected / (costs[n_pending + n] + n * effort.seconds + reading) > rate:
            return True
    return False


def worth_extending(
    effort: DraftCost, path: float, costs: Sequence[float], n_rows: int, most_rows: int
) -> bool:
    """Whether one more answer is worth it at a node that is reached with the chance `path`.

    The call has `n_rows` rows without it, and may have `most_rows`. An accepted token saves a
    call; its row costs what the next few rows cost on average.
    """
    last = min(n_rows - 1 + _ROWS_AHEAD, most_rows - 1, len(costs) - 1)
    slope = (costs[last] - costs[n_rows - 1]) / max(1, last - n_rows + 1)
    return path * effort.chance * costs[0] > effort.seconds + slope
