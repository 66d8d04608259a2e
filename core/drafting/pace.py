"""Drafting takes time too: ask seldom while it does not pay.

A step that asks the drafters spends host time whether or not they know anything. On a small
model that is a few hundredths of a step: nothing while drafts are accepted, a loss in a text that
offers nothing to draft from.
"""

from __future__ import annotations

from typing import Final

SKIPPED: Final = (1, 3)  # steps between two that ask, while asking does not pay; then more

_RATE: Final = 0.1  # what one step counts for in the balance


class BackOff:
    """When to ask the drafters: always while that gains time, else every few steps."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Another text: nothing is known of what asking will gain."""
        self._balance_s: float | None = None  # mean gain of a step that asks
        self._skip = 0
        self._in_vain = 0  # askings in a row, since the balance went below zero

    def should_draft(self) -> bool:
        """Whether to ask in this step."""
        if self._skip:
            self._skip -= 1
            return False
        return True

    def settle(self, plain_s: float, gain_s: float) -> None:
        """A step that asked gained `gain_s` seconds, where one plain step takes `plain_s`."""
        if self._balance_s is None:  # as if one step in ten had saved a call
            self._balance_s = _RATE * plain_s
        self._balance_s += _RATE * (gain_s - self._balance_s)
        if self._balance_s >= 0:
            self._in_vain = 0
        else:
            self._skip = SKIPPED[min(self._in_vain, len(SKIPPED) - 1)]
            self._in_vain += 1
