"""Which batch widths round alike: rows are the same bits, so the text is the same, too.

llama.cpp picks its kernels by the width of a batch, and kernels add in different orders. Widths
that share their kernels form a class; a text decoded in steps of one class is the same however
the steps fall.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, TypeAlias

from .measure import Subject

Classes: TypeAlias = tuple[tuple[int, ...], ...]  # widths, rising

WIDTHS: Final = (4, 8, 1, 2, 16, 12, 3, 6, 5, 7, 32, 24)  # most important first
_TOKENS: Final = 12  # that are decoded in every width


def exact_classes(
    subject: Subject, context: int, deadline_s: float, widths: Sequence[int] = WIDTHS
) -> Classes:
    """Which batch widths give bit-identical rows.

    A text is decoded after `context` tokens in steps of each width; widths whose logits are the
    same bits all along form a class. None are found where the backend cannot rewind.
    """
    if not subject.backend.limits.can_rewind:
        return ()
    end = subject.clock() + deadline_s
    classes: dict[tuple[bytes, ...], list[int]] = {}
    longest_s = 0.0
    for width in subject.sizes(widths):
        start = subject.clock()
        if classes and start + longest_s > end:
            break
        subject.go_to(context)
        classes.setdefault(_decode(subject, width), []).append(width)
        longest_s = max(longest_s, subject.clock() - start)
    subject.go_to(context)
    return tuple(sorted(tuple(sorted(members)) for members in classes.values()))


def _decode(subject: Subject, width: int) -> tuple[bytes, ...]:
    """A digest of the logits after each of the next tokens, `width` rows a call."""
    digests: list[bytes] = []
    while (left := _TOKENS - len(digests)) > 0:
        rows = subject.backend.score(subject.chain(width), ())
        digests += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows[:left]]
        subject.backend.commit(min(width, left))
    return tuple(digests)
