"""The drafters of a session: which are asked in a step, and what each may look at.

Asking a drafter takes host time, which is nothing next to a call of a large model and a
hundredth or two of a call of a small one. So each keeps an account: it is credited with the
calls that its guesses saved where no drafter before it guessed the same, and charged with the
rows of those that were wrong and with the time it took. One whose account is empty rests, until
a small allowance has filled it again. Drafts change no text, so whoever rests costs nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np

from specgen.core.protocols import Drafter, Logits, Tokens
from specgen.core.tree import DraftTree

from .guarded import SafeDrafter

# In plain steps, so that the same rules serve small models and large ones.
ALLOWANCE: Final = 0.002  # a step, that a drafter may take for nothing
START: Final = 0.02  # that it may take before it has gained anything
WAKE: Final = 0.03  # that one which rests saves up before it is asked again
MOST: Final = 0.5  # that are put by

LOOK_SHARE: Final = 0.01  # of a plain step, that a drafter's look at the logits may take

_LOOKS: Final = 5  # remembered; the quickest counts, for a look is slowed down by what is around
_NO_LOGITS = np.empty((1, 0), np.float32)


class Looks:
    """Whether a drafter may look at the logits, by what its last looks took."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_LOOKS)

    def affordable(self, plain_s: float) -> bool:
        """Whether a look is cheap next to a plain step of `plain_s` seconds."""
        known = self._seconds
        return len(known) < _LOOKS or min(known) <= LOOK_SHARE * plain_s

    def took(self, seconds: float) -> None:
        """A look took so long."""
        self._seconds.append(seconds)


class _Member:
    """A drafter, the tokens it knows, and its account if it is `on_account`."""

    def __init__(self, drafter: SafeDrafter, *, on_account: bool) -> None:
        self.drafter = drafter
        self.on_account = on_account
        self.looks = Looks()
        self.n_seen = 0
        self.account = START
        self.paused = False

    def catch_up(self, text: Sequence[int]) -> None:
        """Show the drafter what was emitted while it was not asked."""
        unseen = text[self.n_seen :]
        if unseen:
            self.drafter.observe(unseen, DraftTree.root(text[self.n_seen - 1]), _NO_LOGITS)
            self.n_seen = len(text)

    def settle(self, gain: float) -> None:
        """Put `gain` plain steps to its account, beside the allowance."""
        if not self.on_account:
            return
        # A debt is bounded: what one step took may have been due to other programs.
        self.account = max(-WAKE, min(MOST, self.account + ALLOWANCE + gain))
        self.paused = self.account < (WAKE if self.paused else 0)


class DrafterPool:
    """Drafters, in the order in which they are credited with a guess that several made.

    The first one always is asked, for the pace says when it pays to ask at all; and so is one
    whose answers take time, which is asked by rules of its own.
    """

    def __init__(self, drafters: Sequence[Drafter], n_vocab: int) -> None:
        self.drafters = tuple([SafeDrafter(drafter, n_vocab) for drafter in drafters])
        self._members = [
            _Member(drafter, on_account=i > 0 and drafter.effort is None)
            for i, drafter in enumerate(self.drafters)
        ]
        self._order: dict[object, int] = {
            drafter.name: i for i, drafter in enumerate(self.drafters)
        }

    def begin(self, context: Tokens) -> None:
        """Start on a text."""
        for member in self._members:
            member.drafter.begin(context)
            member.n_seen = len(context)

    def catch_up(self, text: Sequence[int]) -> tuple[SafeDrafter, ...]:
        """Let those who are asked know all of `text`, and return the others."""
        paused = []
        for member in self._members:
            if member.paused:
                paused.append(member.drafter)
            else:
                member.catch_up(text)
        return tuple(paused)

    def observe(
        self,
        emitted: Sequence[int],
        tree: DraftTree,
        logits: Logits,
        plain_s: float | None = None,
    ) -> None:
        """Show those who were asked what came of it.

        Where `plain_s`, the seconds of a plain step, are known, a drafter sees the logits only
        if its looks take little next to them.
        """
        for member in self._members:
            if member.paused:
                continue
            looks, drafter = member.looks, member.drafter
            member.n_seen += len(emitted)
            if plain_s is None:
                drafter.observe(emitted, tree, logits)
            elif looks.affordable(plain_s):
                before = drafter.seconds
                drafter.observe(emitted, tree, logits)
                looks.took(drafter.seconds - before)
                drafter.seconds = before  # what a look may take is settled there
            else:
                drafter.observe(emitted, tree, logits[:, :0])

    def settle(self, tree: DraftTree, path: Sequence[int], plain_s: float, row_s: float) -> None:
        """Settle all accounts after a step that asked.

        Args:
            tree: what was drafted.
            path: nodes that were right; others may be there that were not drafted.
            plain_s: seconds of a plain step.
            row_s: seconds that a row of the tree took beyond those.
        """
        right = set(path)
        gains = [-drafter.seconds for drafter in self.drafters]
        for node in range(1, len(tree)):
            first = min([self._order[item[0]] for item in tree.evidence[node]])
            gains[first] += (plain_s if node in right else 0.0) - row_s
        for member, gain in zip(self._members, gains, strict=True):
            member.settle(gain / plain_s)
            member.drafter.seconds = 0.0
