"""What the tables of drafters take, for who plans memory.

Fitted to what they took (see tests/memory/test_memory.py); each has a bound, and they grow
with the text until they reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from . import NONE, names_of
from .recycle import PAIRS, TEXT_ROWS, K
from .suffix import CAPACITY

_PAGE: Final = 4096
_ROW: Final = 8 * K  # recycle keeps so many bytes for a token
_TOKENS_PER_PAGE: Final = 5  # so many tokens of text touch one more page of rows; 8 to 15 were seen
_JUDGE: Final = 1_800_000  # the counts of the acceptance model take so many bytes
_PAST: Final = 3_700_000  # an index of past answers takes so many bytes
# Reading, merging and writing the counts of earlier runs takes so many bytes.
_COUNTS: Final = 6_200_000
_ANSWERS: Final = 2_000_000  # doing the same with past answers takes so many bytes


def table_bytes(names: str, n_vocab: int, n_ctx: int, *, learn: bool, answers: bool) -> int:
    """Bytes of the tables of drafters, once a context of `n_ctx` tokens is full.

    `names` are as for `create`; `learn` is whether what earlier runs left is used and
    kept, `answers` whether that includes past answers. Raises UsageError for an unknown name.
    """
    chosen = names_of(names)
    total = sum(_TABLES[name](n_vocab, n_ctx) for name in chosen)
    if len(chosen) > 1:
        total += _JUDGE
        if learn:
            total += _COUNTS
        if learn and answers:
            total += _ANSWERS + (_PAST if "suffix" in chosen else 0)
    return total


def _recycle(n_vocab: int, n_ctx: int) -> int:
    """Rows by token lie in pages that are touched one by one; text and pairs are dictionaries."""
    rows = min(_ROW * n_vocab, _PAGE * n_ctx // _TOKENS_PER_PAGE)
    return rows + 320 * min(TEXT_ROWS, n_ctx) + (120 + _ROW) * min(PAIRS // 2, 4 * n_ctx)


def _suffix(n_vocab: int, n_ctx: int) -> int:
    """Rings double, and for a moment there are two of them."""
    ring = min(CAPACITY, 1 << max(10, (n_ctx - 1).bit_length()))
    return 1_800_000 + 52 * ring


_TABLES: Final[dict[str, Callable[[int, int], int]]] = {
    NONE: lambda n_vocab, n_ctx: 0,
    "prompt-lookup": lambda n_vocab, n_ctx: 50_000 + 16 * n_ctx,
    "copyspec": lambda n_vocab, n_ctx: 50_000 + 16 * n_ctx,
    "suffix": _suffix,
    "trigram": lambda n_vocab, n_ctx: min(9_000_000, 150_000 + 60 * n_ctx),
    "recycle": _recycle,
}
