"""A drafter at work on a text, in few words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specgen.core.protocols import Candidate, Drafter
from specgen.core.tree import DraftTree

N_VOCAB = 50


def begun(drafter: Drafter, context: Sequence[int]) -> Drafter:
    """The drafter, at the end of a text."""
    drafter.begin(np.array(context, np.int32))
    return drafter


def observe(drafter: Drafter, tokens: Sequence[int]) -> None:
    """Let the text grow without logits."""
    drafter.observe(tokens, DraftTree.root(0), np.empty((0, N_VOCAB), np.float32))


def guesses_at_root(drafter: Drafter) -> Sequence[Candidate]:
    """What the drafter says may come next."""
    state = drafter.root()
    return () if state is None else drafter.predict(state)


def best_chain(drafter: Drafter, length: int = 100) -> list[int]:
    """The tokens that the drafter's first guesses make."""
    chain: list[int] = []
    state = drafter.root()
    while state is not None and len(chain) < length:
        guesses = drafter.predict(state)
        if not guesses:
            break
        chain.append(guesses[0].token)
        state = drafter.advance(state, chain[-1])
    return chain
