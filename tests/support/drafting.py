"""A drafter at work on a text, in few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from specgen.core.cost.strict import WidthClass
from specgen.core.drafting.builder import Builder, Choice, TextState
from specgen.core.drafting.guarded import SafeDrafter
from specgen.core.drafting.outlook import Trend
from specgen.core.drafting.schedule import BackOff
from specgen.core.drafting.speculator import Speculator
from specgen.core.protocols import Backend, Candidate, Drafter
from specgen.core.session import Session
from specgen.core.testing.fakes import fake_limits
from specgen.core.tree import DraftTree

N_VOCAB = 50


def session_of(
    backend: Backend,
    drafters: Sequence[Drafter] = (),
    max_drafts: int = 0,
    *,
    back_off: BackOff | None = None,
    strict: WidthClass | None = None,
    **options: Any,
) -> Session:
    """A session with drafters; `options` are those of Builder."""
    builder = Builder(backend.limits, max_drafts, strict=strict, **options)
    return Session(backend, Speculator(builder, drafters, back_off), strict=strict)


class TreeMaker:
    """A builder and drafters, for trees without a session; `options` are those of Builder.

    Attributes:
        choice: what was made last.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        max_drafts: int,
        *,
        max_leaves: int = 16,
        branch: bool = True,
        n_vocab: int = 1 << 20,
        **options: Any,
    ) -> None:
        limits = fake_limits(n_vocab, max_rows=1 << 20, max_leaves=max_leaves)
        self._builder = Builder(limits, max_drafts, branch=branch, **options)
        self._drafters = [SafeDrafter(drafter, n_vocab) for drafter in drafters]
        self.choice: Choice | None = None

    def build(
        self, root: int, budget: int, depth: int, *, n_pending: int = 0, context: int = 0
    ) -> DraftTree:
        """The tree below `root`."""
        request = self._builder.request(root, n_pending, context, depth=depth, free=budget)
        self.choice = self._builder.build(request, self._drafters, TextState(0, Trend()))
        return self.choice.tree


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
