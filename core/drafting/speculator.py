"""Speculation on one text: what is drafted next, and what is learnt from how it went.

The Builder holds what texts share (prices, acceptance, rows); the Speculator holds what belongs to
a text: its drafters' states, its back-off, and how its last draft was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np

from specgen.core.protocols import Drafter, Logits
from specgen.core.tree import DraftTree
from specgen.core.verify import Verdict

from .best_first import TreeRequest
from .builder import Builder, Choice, TextState
from .outlook import Trend
from .schedule import BackOff, DrafterPool


class Made(NamedTuple):
    """How a draft was made.

    Attributes:
        request: what the tree was made for.
        choice: what was drafted.
        seconds: host time that it took.
    """

    request: TreeRequest
    choice: Choice
    seconds: float


class Draft(NamedTuple):
    """What is verified next.

    Attributes:
        tree: draft tokens below the last token of the text, and what the call is padded with.
        made: how it was made, to learn from; None where the drafters were not asked.
        explored: whether it was made larger, to see what such a call costs.
    """

    tree: DraftTree
    made: Made | None = None
    explored: bool = False


class Call(NamedTuple):
    """A target call.

    Attributes:
        n_rows: its rows.
        context: committed tokens before it.
        seconds: that it took; None where it was done before anybody looked.
    """

    n_rows: int
    context: int
    seconds: float | None


class _Due(NamedTuple):
    """What is to be learnt from a step: its draft, how many tokens it emitted, its call, and the
    seconds that learning took so far.
    """

    draft: Draft
    n_emitted: int
    call: Call
    seconds: float


class Speculator:
    """Drafts for one text.

    Args:
        builder: what texts share, and the choice of draft tokens.
        drafters: name candidates; without any, decoding is plain. One that fails is switched off.
        back_off: says when to draft; without it, every step does.
    """

    def __init__(
        self, builder: Builder, drafters: Sequence[Drafter] = (), back_off: BackOff | None = None
    ) -> None:
        self._builder = builder
        self._pool = DrafterPool(drafters, builder.n_vocab)
        self._back_off = back_off
        self._due: _Due | None = None
        self._run = 0  # accepted first choices in a row
        self._trend = Trend()

    def begin(self, text: Sequence[int]) -> None:
        """Another text begins, or the text goes on with another turn."""
        self.settle()
        self._run, self._trend = 0, Trend()
        if self._builder.acceptance is not None:
            self._builder.acceptance.begin()
        if self._back_off is not None:
            self._back_off.begin()
        self._pool.begin(np.array(text, np.int32))

    def propose(self, text: Sequence[int], n_pending: int, *, depth: int, free: int) -> Draft:
        """The next draft.

        Args:
            text: all tokens.
            n_pending: tokens before the last one that are not in the cache yet.
            depth: most draft tokens on a path.
            free: cells that are left for draft tokens.
        """
        start = perf_counter()
        builder, root = self._builder, text[-1]
        if self._back_off is not None and not self._back_off.should_draft():
            width = builder.least_width(n_pending)
            return Draft(builder.filled(DraftTree.root(root), text, n_pending, width))
        context = len(text) - n_pending - 1
        request = builder.request(root, n_pending, context, depth=depth, free=free)
        drafters = self._pool.ready(text, _plain_s(request.costs))
        choice = builder.build(request, drafters, TextState(self._run, self._trend))
        width = builder.explored(request)
        is_larger = width > choice.width
        tree = builder.filled(choice.tree, text, n_pending, max(width, choice.width))
        return Draft(tree, Made(request, choice, perf_counter() - start), is_larger)

    def learn(self, draft: Draft, verdict: Verdict, logits: Logits, call: Call) -> None:
        """Learn from a step what the next draft needs: drafters, acceptance and trend.

        `logits` (len(draft.tree), n_vocab) are what the call gave; they are not looked at later.
        """
        start = perf_counter()
        self._builder.called(call.n_rows)
        emitted = verdict.tokens
        self._trend.passed(len(emitted))
        if draft.made is not None:
            self._pool.observe(emitted, draft.tree, logits)
            self._count(draft.made.choice, emitted)
        self._due = _Due(draft, len(emitted), call, perf_counter() - start)

    def settle(self) -> None:
        """Learn what has time until the draft after the next one: prices and back-off."""
        due, self._due = self._due, None
        if due is None:
            return
        call, made = due.call, due.draft.made
        self._builder.observe(*call, explored=due.draft.explored)
        if made is None or self._back_off is None or made.choice.asked_slow:
            # A model that drafts knows what it is worth, and steps without it leave it behind.
            return
        costs = self._builder.costs(made.request.context)
        if costs is not None:
            cost_s = costs[made.choice.width - 1] + made.seconds + due.seconds
            self._back_off.settle(costs[0], due.n_emitted * costs[0] - cost_s)

    def _count(self, choice: Choice, emitted: Sequence[int]) -> None:
        """Tell the acceptance model what became of the candidates, scored or not.

        Only children of accepted nodes count: of others nothing is known.
        """
        if self._builder.acceptance is None:
            return
        node, best_first = 0, choice.best_first
        for token in emitted:
            first, matching = best_first.learn(node, token) if best_first else (None, 0)
            self._run = self._run + 1 if first == token else 0
            if not matching:
                best_first = None
            node = matching


def _plain_s(costs: Sequence[float] | None) -> float | None:
    """Seconds of a plain step, where they are known."""
    return None if costs is None else costs[0]
