"""Plain decoding: drafts nothing. The baseline that every other drafter is measured against."""

from __future__ import annotations

from collections.abc import Sequence

from specgen.core.protocols import Candidate, Logits, Tokens
from specgen.core.tree import DraftTree


class NoDrafter:
    """See specgen.core.protocols.Drafter."""

    name = "none"
    effort = None
    reads_logits = False

    def __init__(self, standalone: bool = True) -> None:
        """There is but one way to draft nothing."""

    def begin(self, context: Tokens) -> None:
        """See Drafter."""

    def root(self) -> None:
        """Nothing is ever known."""
        return None

    def predict(self, state: None) -> Sequence[Candidate]:
        """See Drafter."""
        return ()

    def advance(self, state: None, token: int) -> None:
        """See Drafter."""
        return None

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
