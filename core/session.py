"""One text on one backend: feed a prompt, then step until it ends.

Invariant: the backend's cache holds a prefix of `tokens`; what follows is *pending*. Between
steps at least the last token is pending. Tokens accepted on a side branch stay pending too
and ride ahead of the next tree, so the cache never has holes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np

from .builder import Builder, Pricing
from .calibrate import Calibrator
from .errors import ContextFull, UsageError
from .guard import Guarded
from .pace import Looks, Pace
from .protocols import Backend, Drafter, Logits
from .sampling import Sampler
from .stats import Step
from .tree import DraftTree, Evidence
from .verify import verify

_PADDING: Evidence = ("padding",)
_NO_LOGITS = np.empty((1, 0), np.float32)


class Prices(Pricing, Protocol):
    """What calls cost, told what they took: a cost.CostModel or a tracker.CostTracker."""

    def observe(self, n: int, context: int, seconds: float, *, explored: bool = False) -> None:
        """A call with `n` rows took `seconds`; `explored` if it is larger for `explore`."""
        ...

    def explore(self, context: int, max_rows: int) -> int | None:
        """Rows to give the next call, to see what it costs, or None; see CostTracker."""
        ...


class Session:
    """Tokens, cache and drafters of one text.

    Args:
        backend: the target model; the session is its only user.
        drafters: guess what comes next; none means plain decoding. One that fails is switched
            off.
        max_drafts: most guesses in one tree.
        branch: whether trees may have side branches, where the backend can have them.
        calibrator: judges guesses, see Builder.
        pricing: what calls cost, see Builder; told what they take.
        pace: says when to ask the drafters; without it they are asked in every step.
        host_s: seconds of host time that each further row costs, see Builder.
        eog: tokens that end a text, see Builder.
    """

    def __init__(
        self,
        backend: Backend,
        drafters: Sequence[Drafter],
        max_drafts: int,
        *,
        branch: bool = True,
        calibrator: Calibrator | None = None,
        pricing: Prices | None = None,
        pace: Pace | None = None,
        host_s: float = 0.0,
        eog: Container[int] = (),
    ) -> None:
        limits = backend.limits
        self.tokens: list[int] = []
        self._backend = backend
        self._drafters = tuple([Guarded(drafter, limits.n_vocab) for drafter in drafters])
        self._max_drafts = max_drafts
        self._builder = Builder(
            self._drafters,
            max_drafts,
            max_leaves=limits.max_leaves,
            branch=branch and limits.can_branch,
            calibrator=calibrator,
            pricing=pricing,
            host_s=host_s,
            eog=eog,
        )
        self._pricing = pricing
        self._pace = pace
        self._looks = [Looks() for _ in self._drafters]
        self._unseen: list[int] = []  # emitted, and not yet shown to the drafters

    def feed(
        self, tokens: Sequence[int], on_chunk: Callable[[int, int], None] | None = None
    ) -> int:
        """Make `tokens` the text, and return how many of them the cache already held.

        `on_chunk(done, total)` is called after every chunk with tokens in the cache; it may
        raise to stop, and the session stays usable.

        Raises UsageError if there are no tokens, ContextFull if they do not fit.
        """
        limit = self._backend.limits.n_ctx
        if not tokens:
            raise UsageError("the prompt is empty", "give at least one character")
        if len(tokens) > limit:
            raise ContextFull(
                f"the prompt of {len(tokens)} tokens exceeds the available context size of {limit}",
                "use a larger context (-c) or a shorter prompt",
            )
        cached = self.tokens[: self._backend.length]
        reused = self._backend.rewind(_common_prefix(cached, tokens[:-1]))
        self.tokens = list(tokens)
        self._prefill(on_chunk)
        context = np.array(self.tokens, np.int32)
        self._unseen = []
        self._builder.begin()
        if self._pace is not None:
            self._pace.begin()
        for drafter in self._drafters:
            drafter.begin(context)
        return reused

    def _prefill(self, on_chunk: Callable[[int, int], None] | None) -> None:
        """Bring all tokens but the last into the cache."""
        total = len(self.tokens) - 1
        while (done := self._backend.length) < total:
            end = min(done + self._backend.limits.chunk, total)
            self._backend.prefill(np.array(self.tokens[done:end], np.int32))
            if on_chunk:
                on_chunk(end, total)

    def generate(
        self, sampler: Sampler, max_tokens: int | None, ends: Callable[[int], bool]
    ) -> Iterator[Step]:
        """Steps until `ends` says so, `max_tokens` were emitted, or the context is full.

        `ends` is told every emitted token, in order; True makes it the last one.

        Raises ContextFull when the text fills the context before it ends.
        """
        sampler.begin(self.tokens)
        self._prefill(None)  # for a cache that a failed step left behind the text
        limit = self._backend.limits.n_ctx
        left = limit + 1 if max_tokens is None else max_tokens
        while left > 0:
            if len(self.tokens) > limit:
                raise ContextFull(
                    f"the text reached the available context size of {limit} tokens",
                    "use a larger context (-c) or limit the answer (-n)",
                )
            step = self.step(sampler, left, ends)
            left -= len(step.tokens)
            yield step
            if step.finished:
                return

    def step(self, sampler: Sampler, limit: int, ends: Callable[[int], bool]) -> Step:
        """One target call: draft, score, verify, commit, learn. Emits 1..`limit` tokens."""
        start = perf_counter()
        backend = self._backend
        *lead, root = self.tokens[backend.length :]
        asks = self._pace is None or self._pace.asks()
        tree = self._draft(root, len(lead), limit - 1) if asks else DraftTree.root(root)
        drafted = perf_counter()
        logits = backend.score(tree, lead)
        scored = perf_counter()
        kept = 0  # if anything below fails, nothing of this step stays in the cache
        try:
            verdict = verify(tree, logits, sampler, limit, ends)
            kept = len(lead) + 1 + _accepted_on_main(tree, verdict.path)
            self.tokens += verdict.tokens
            if asks:
                call = _Call(len(lead) + len(tree), backend.length, scored - drafted)
                self._learn(call, tree, logits, verdict.tokens, drafted - start)
            else:
                self._unseen += verdict.tokens
        finally:
            backend.commit(kept)
        return Step(
            verdict.tokens,
            tree,
            verdict.path,
            verdict.finished,
            draft_s=drafted - start,
            score_s=scored - drafted,
            total_s=perf_counter() - start,
        )

    def _draft(self, root: int, n_lead: int, depth: int) -> DraftTree:
        """The next tree, padded where its size is worth trying."""
        self._catch_up()
        limits, context = self._backend.limits, self._backend.length
        room = min(limits.max_rows - n_lead - 1, limits.n_ctx - len(self.tokens), self._max_drafts)
        tree = self._builder.build(root, room, depth, context=context, n_lead=n_lead)
        if self._pricing is None:
            return tree
        size = self._pricing.explore(context, n_lead + 1 + room)
        missing = 0 if size is None else size - n_lead - len(tree)
        if not 0 < missing <= len(self.tokens):
            return tree
        # Text, not one token over and over: the experts of a mixture would be the same ones.
        return tree.extended(self.tokens[-missing:], _PADDING)

    def _catch_up(self) -> None:
        """Show the drafters what was emitted in steps that did not ask them."""
        if self._unseen:
            tree = DraftTree.root(self.tokens[-len(self._unseen) - 1])
            for drafter in self._drafters:
                drafter.observe(self._unseen, tree, _NO_LOGITS)
            self._unseen = []

    def _learn(
        self, call: _Call, tree: DraftTree, logits: Logits, emitted: Sequence[int], draft_s: float
    ) -> None:
        """Everyone learns from a step: pricing, drafters, calibrator, pace."""
        start = perf_counter()
        pricing = self._pricing
        if pricing is None:
            for drafter in self._drafters:
                drafter.observe(emitted, tree, logits)
            self._builder.learn(emitted)
            return
        is_padded = _PADDING in tree.evidence[-1]
        pricing.observe(call.n_rows, call.context, call.seconds, explored=is_padded)
        row = pricing.row(call.context)
        for drafter, looks in zip(self._drafters, self._looks, strict=True):
            if looks.affordable(row[0]):
                before = perf_counter()
                drafter.observe(emitted, tree, logits)
                looks.took(perf_counter() - before)
            else:
                drafter.observe(emitted, tree, logits[:, :0])
        self._builder.learn(emitted)
        if self._pace is not None:
            host_s = draft_s + perf_counter() - start
            cost_s = row[0] if is_padded else row[call.n_rows - 1]
            self._pace.settle(row[0], len(emitted) * row[0] - cost_s - host_s)


class _Call(NamedTuple):
    """What a target call took."""

    n_rows: int
    context: int
    seconds: float


def _accepted_on_main(tree: DraftTree, path: Sequence[int]) -> int:
    """Length of the part of `path` that lies on the main chain."""
    count = 0
    while count < len(path) and path[count] == count + 1 < tree.n_main:
        count += 1
    return count


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    differs = np.asarray(a[:n], np.int64) != np.asarray(b[:n], np.int64)
    return int(differs.argmax()) if differs.any() else n
