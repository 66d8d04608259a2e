"""Which batch widths round alike: rows are the same bits, so the text is the same, too.

llama.cpp picks its kernels by the width of a batch, and kernels add in different orders. Widths
that share their kernels form a class; a text decoded in steps of one class is the same however
the steps fall. Rows of a side branch see their ancestors in other cells than those of a chain,
which some kernels add in another order, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, TypeAlias

from specgen.core.protocols import Logits
from specgen.core.tree import DraftTree

from .timed import TimedBackend

WidthClasses: TypeAlias = tuple[tuple[int, ...], ...]  # widths, rising
Branching: TypeAlias = dict[int, bool]  # by width: whether side branches round as chains do

# Widths that are compared, the most important first.
WIDTHS: Final = (4, 1, 8, 2, 16, 12, 3, 6, 5, 7, 32, 24)
_BRANCHED: Final = (4, 8, 3, 16, 6, 12)  # trees are tried in these widths
_WANTED: Final = 4  # for the first four widths the deadline may be late by _GRACE times itself
_GRACE: Final = 2.0
# So many tokens are decoded in every width: different sums can be the same bits by chance.
_TOKENS: Final = 32
_ROWS: Final = 16  # so many rows of side branches are compared in every width


def exact_classes(
    timed: TimedBackend, context: int, deadline_s: float, widths: Sequence[int] = WIDTHS
) -> WidthClasses:
    """Which batch widths give bit-identical rows.

    A text is decoded after `context` tokens in steps of each width; widths whose logits are the
    same bits all along form a class. None are found where the backend cannot rewind. A width that
    takes longer than (1 + _GRACE) deadlines is given up half way.
    """
    if not timed.backend.limits.can_rewind:
        return ()
    end = timed.clock() + deadline_s
    last = end + _GRACE * deadline_s
    classes: dict[tuple[bytes, ...], list[int]] = {}
    longest_s = 0.0
    for width in timed.sizes(widths):
        start = timed.clock()
        n_known = sum(map(len, classes.values()))
        if start + longest_s > (last if n_known < _WANTED else end):
            break
        timed.go_to(context)
        digests = _decode(timed, width, last)
        if digests is None:
            break
        classes.setdefault(digests, []).append(width)
        longest_s = max(longest_s, timed.clock() - start)
    timed.go_to(context)
    return tuple(sorted(tuple(sorted(members)) for members in classes.values()))


def least_exact_s(timed: TimedBackend) -> float:
    """Seconds in which `exact_classes` compares two widths, as far as they are known."""
    return sum(-(-_TOKENS // n) * timed.expected_s(n) for n in timed.sizes(WIDTHS)[:2])


def _decode(timed: TimedBackend, width: int, last: float) -> tuple[bytes, ...] | None:
    """A digest of the logits after each of the next tokens, `width` rows a call; None if late."""
    digests: list[bytes] = []
    while (left := _TOKENS - len(digests)) > 0:
        if timed.clock() > last:
            return None
        rows = timed.backend.score(timed.chain(width), ())
        digests += _digests(rows[:left])
        timed.backend.commit(min(width, left))
    return tuple(digests)


def exact_branches(
    timed: TimedBackend, context: int, deadline_s: float, widths: Sequence[int] = _BRANCHED
) -> Branching:
    """Whether rows of a side branch are the bits of a chain's rows, by width, as time allows.

    None are tried where the backend cannot branch. Time is kept as `exact_classes` does.
    """
    limits = timed.backend.limits
    if not (limits.can_branch and limits.can_rewind):
        return {}
    end = timed.clock() + deadline_s
    last = end + _GRACE * deadline_s
    found: Branching = {}
    longest_s = 0.0
    for width in timed.sizes(widths):
        start = timed.clock()
        if start + longest_s > end:
            break
        alike = _alike_everywhere(timed, context, width, last)
        if alike is None:
            break
        found[width] = alike
        longest_s = max(longest_s, timed.clock() - start)
    timed.go_to(context)
    return found


def _n_main(width: int) -> int:
    """Rows of a tried tree that are on its main chain: the root, and wrong tokens after it."""
    return (width + 1) // 2


def _n_places(width: int) -> int:
    return -(-_ROWS // (width - _n_main(width)))


def _alike_everywhere(timed: TimedBackend, context: int, width: int, last: float) -> bool | None:
    """Whether side branches are alike at all places that are tried; None if it gets late."""
    for place in range(context, context + width * _n_places(width), width):
        if timed.clock() > last:
            return None
        if not _branches_alike(timed, place, width):
            return False
    return True


def _branches_alike(timed: TimedBackend, context: int, width: int) -> bool:
    """Whether the text gives the same bits as a chain, and on a branch beside a wrong chain."""
    timed.go_to(context)
    chain = timed.chain(width)
    n_main = _n_main(width)
    n_vocab = timed.backend.limits.n_vocab
    wrong = [(token + 1) % n_vocab for token in chain.tokens[1:n_main]]
    right = chain.tokens[1 : 1 + width - n_main]
    parents = (*range(-1, n_main - 1), 0, *range(n_main, width - 1))
    tree = DraftTree.from_parents((chain.tokens[0], *wrong, *right), parents)
    expected = _digests(timed.backend.score(chain, ())[: 1 + len(right)])
    timed.backend.commit(0)
    rows = timed.backend.score(tree, ())
    same = _digests(rows[[0, *range(n_main, width)]]) == expected
    timed.backend.commit(0)
    return same


def _digests(rows: Logits) -> list[bytes]:
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
