"""Which name somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable

_LEAST = 3  # shorter names are not compared by how they begin


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that `word` is a slip of, or None where none is near.

    Near is what differs in at most a quarter of its letters and digits, or what one begins the
    other with.
    """
    wanted = _plain(word)
    found: list[tuple[int, int, str]] = []
    for name in names:
        known = _plain(name)
        limit = max(len(wanted), len(known)) // 4
        if min(len(wanted), len(known)) >= _LEAST and (
            known.startswith(wanted) or wanted.startswith(known)
        ):
            found.append((0, abs(len(wanted) - len(known)), name))
        elif abs(len(wanted) - len(known)) <= limit:
            distance = _distance(wanted, known)
            if distance <= limit:
                found.append((distance, 0, name))
    return min(found)[2] if found else None


def _plain(word: str) -> str:
    return "".join(filter(str.isalnum, word.casefold()))


def _distance(a: str, b: str) -> int:
    """Letters to put in, take out or replace to make `b` of `a` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        before, row = row, [i]
        for j, other in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
    return row[-1]
