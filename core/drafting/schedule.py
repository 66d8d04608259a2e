"""When drafters are asked, for asking takes host time whether or not they know anything.

That time is nothing next to a call of a large model and some hundredths of a call of a small one:
nothing while drafts are accepted, a loss in a text that offers nothing to draft from. So all of
them are asked less often while drafting does not pay (`BackOff`), and one whose look at the logits
takes too much of a plain step is not asked at all (`DrafterPool`). Drafts change no text, so a
drafter that is not asked costs nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import Final

import numpy as np

from specgen.core.protocols import Drafter, Logits, Tokens
from specgen.core.tree import DraftTree

from .guarded import SafeDrafter

SKIPPED: Final = (1, 3)  # steps without drafts after one that did not pay; more after the first
LOOK_SHARE: Final = 0.01  # a drafter's look at the logits may take so much of a plain step

_RATE: Final = 0.1  # one step's weight in the mean of what drafting gained
_LOOKS: Final = 5  # looks that are remembered; the quickest counts, since load slows down others
_NO_LOGITS = np.empty((1, 0), np.float32)


class BackOff:
    """Whether to draft in a step: always while that gains time, else every few steps."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Another text begins: nothing is known of what drafts will gain in it."""
        self._balance_s: float | None = None  # mean gain of a step with drafts
        self._skip = 0
        self._in_vain = 0  # steps with drafts in a row since the balance fell below zero

    def should_draft(self) -> bool:
        """Whether to ask the drafters in this step."""
        if self._skip:
            self._skip -= 1
            return False
        return True

    def settle(self, plain_s: float, gain_s: float) -> None:
        """A step with drafts gained `gain_s` seconds, where one plain step takes `plain_s`."""
        if self._balance_s is None:  # as if one step in ten had saved a call
            self._balance_s = _RATE * plain_s
        self._balance_s += _RATE * (gain_s - self._balance_s)
        if self._balance_s >= 0:
            self._in_vain = 0
        else:
            self._skip = SKIPPED[min(self._in_vain, len(SKIPPED) - 1)]
            self._in_vain += 1


class DrafterPool:
    """The drafters of a text, each guarded, and told all of the text once it is asked.

    Where several make the same candidate, the first of them has it.
    """

    def __init__(self, drafters: Sequence[Drafter], n_vocab: int) -> None:
        self._members = [_Member(SafeDrafter(drafter, n_vocab)) for drafter in drafters]
        self._asked: list[_Member] = []

    def begin(self, context: Tokens) -> None:
        """Start on a text."""
        for member in self._members:
            member.drafter.begin(context)
            member.n_seen = len(context)

    def ready(self, text: Sequence[int], plain_s: float | None) -> list[SafeDrafter]:
        """Those to ask, who know all of `text` then; a plain step takes `plain_s` seconds."""
        self._asked = [member for member in self._members if member.can_look(plain_s)]
        for member in self._asked:
            member.catch_up(text)
        return [member.drafter for member in self._asked]

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """Show those who were asked what came of it."""
        for member in self._asked:
            member.look(emitted, tree, logits)


class _Member:
    """A drafter, how much of the text it knows, and what its last looks at the logits took."""

    def __init__(self, drafter: SafeDrafter) -> None:
        self.drafter = drafter
        self.n_seen = 0
        self._looks_s: deque[float] = deque(maxlen=_LOOKS)

    def can_look(self, plain_s: float | None) -> bool:
        """Whether a look is cheap next to a plain step; it is taken to be until that is known."""
        known = self._looks_s  # without any for who looks at the text alone
        return plain_s is None or len(known) < _LOOKS or min(known) <= LOOK_SHARE * plain_s

    def catch_up(self, text: Sequence[int]) -> None:
        """Show the drafter what was emitted while it was not asked."""
        unseen = text[self.n_seen :]
        if unseen:
            self.drafter.observe(unseen, DraftTree.root(text[self.n_seen - 1]), _NO_LOGITS)
            self.n_seen = len(text)

    def look(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """Show it the step."""
        start = perf_counter()
        self.drafter.observe(emitted, tree, logits)
        if self.drafter.reads_logits and logits.shape[1]:
            self._looks_s.append(perf_counter() - start)
        self.n_seen += len(emitted)
