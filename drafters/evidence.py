"""What drafters say about their candidates, in few enough words to count by."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

# A copy longer than this is cut: no machine verifies more tokens at once with profit, and the
# next step may go on with it.
LONGEST_COPY: Final = 64

# The upper ends of all chance buckets but the last one. Close to 0 and to 1 a small difference
# says as much as a large one in the middle.
_CHANCES: Final = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96)
N_CHANCES: Final = len(_CHANCES) + 1


def length_bucket(n: int) -> int:
    """0, 1, 2, 3 for themselves, then 4 for 4..7, 5 for 8..15, 6 for 16 and more."""
    return n if n < 4 else min(n.bit_length() + 1, 6)


def chance_bucket(p: float) -> int:
    """0..N_CHANCES-1 for a probability."""
    return bisect_right(_CHANCES, p)
