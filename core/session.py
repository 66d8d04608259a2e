"""One text on one backend: feed a prompt, then step until it ends.

Invariant: the backend's cache holds a prefix of `tokens`; what follows is *pending*. Between
steps at least the last token is pending. Tokens accepted on a side branch stay pending too
and ride ahead of the next tree, so the cache never has holes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np

from specgen.core.cost.strict import StrictPrices, WidthClass
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.drafting.builder import Builder
from specgen.core.drafting.pace import BackOff
from specgen.core.drafting.panel import DrafterPool

from .errors import ContextFull, UsageError
from .protocols import Backend, Drafter, Logits, Prices
from .sampling import Sampler
from .stats import Step
from .tree import DraftTree, Evidence, common_prefix
from .verify import Verdict, verify

_PADDING: Evidence = ("padding",)
_FIRST_PART = 64  # tokens of a prompt, where calls cannot be stopped,
_QUICK_S = 0.15  # and the seconds up to which the next part is twice as long


class Session:
    """Tokens, cache and drafters of one text.

    Args:
        backend: the target model; the session is its only user.
        drafters: guess what comes next; none means plain decoding. One that fails is switched
            off.
        max_drafts: most guesses in one tree.
        branch: whether trees may have side branches, where the backend can have them.
        acceptance model: judges guesses, see Builder.
        pricing: what calls cost, see Builder; told what they take.
        back_off: says when to ask the drafters; without it they are asked in every step.
        host_s: seconds of host time that each further row costs, see Builder.
        eog: tokens that end a text, see Builder.
        strict: what calls are padded to; None leaves them as they are. The text may then have as
            many tokens less than the backend's cells as padding takes.
    """

    def __init__(
        self,
        backend: Backend,
        drafters: Sequence[Drafter],
        max_drafts: int,
        *,
        branch: bool = True,
        acceptance: AcceptanceModel | None = None,
        pricing: Prices | None = None,
        back_off: BackOff | None = None,
        host_s: float = 0.0,
        eog: Container[int] = (),
        strict: WidthClass | None = None,
    ) -> None:
        limits = backend.limits
        if strict is not None and pricing is not None:
            pricing = StrictPrices(pricing, strict)
        self.tokens: list[int] = []
        self._backend = backend
        self._pool = DrafterPool(drafters, limits.n_vocab)
        self._max_drafts = max_drafts
        self._builder = Builder(
            self._pool.drafters,
            max_drafts,
            max_leaves=limits.max_leaves,
            branch=branch and limits.can_branch and (strict is None or strict.branch),
            acceptance=acceptance,
            pricing=pricing,
            host_s=host_s,
            eog=eog,
        )
        self._n_ctx = limits.n_ctx - (strict.slack if strict else 0)
        self._max_rows = min(limits.max_rows, strict.largest) if strict else limits.max_rows
        self._strict = strict
        self._pricing = pricing
        self._back_off = back_off

    def feed(
        self, tokens: Sequence[int], on_chunk: Callable[[int, int], None] | None = None
    ) -> int:
        """Make `tokens` the text, and return how many of them the cache already held.

        `on_chunk(done, total)` is called after every chunk with tokens in the cache; it may
        raise to stop, and the session stays usable, as it does when the backend is to stop.

        Raises UsageError if there are no tokens, ContextFull if they do not fit.
        """
        limit = self._n_ctx
        if not tokens:
            raise UsageError("the prompt is empty", "give at least one character")
        if len(tokens) > limit:
            raise ContextFull(
                f"the prompt of {len(tokens)} tokens exceeds the available context size of {limit}",
                "use a larger context (-c) or a shorter prompt",
            )
        if self._strict:
            self._settle(self._strict)
        cached = self.tokens[: self._backend.length]
        reused = self._backend.rewind(common_prefix(cached, tokens[:-1]))
        self.tokens = list(tokens)
        self._prefill(on_chunk)
        context = np.array(self.tokens, np.int32)
        self._builder.begin()
        if self._back_off is not None:
            self._back_off.begin()
        self._pool.begin(context)
        return reused

    def _prefill(self, on_chunk: Callable[[int, int], None] | None) -> None:
        """Bring all tokens but the last into the cache."""
        total = len(self.tokens) - 1
        limits = self._backend.limits
        # Strict decoding rounds alike only if parts do not depend on the time that they take.
        is_fixed = limits.can_stop or self._strict is not None
        size = limits.chunk if is_fixed else min(_FIRST_PART, limits.chunk)
        while (done := self._backend.length) < total:
            end = min(done + size, total)
            start = perf_counter()
            self._backend.prefill(np.array(self.tokens[done:end], np.int32))
            if perf_counter() - start < _QUICK_S:
                size = min(2 * size, limits.chunk)
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
        limit = self._n_ctx
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
        limit = min(limit, self._n_ctx + 1 - len(self.tokens))  # padding may be right, too
        *pending, root = self.tokens[backend.length :]
        should_draft = self._back_off is None or self._back_off.should_draft()
        guesses = (
            self._draft(root, len(pending), limit - 1) if should_draft else DraftTree.root(root)
        )
        tree = self._padded(guesses, len(pending), explore=should_draft)
        drafted = perf_counter()
        logits = backend.score(tree, pending)
        scored = perf_counter()
        kept = 0  # if anything below fails, nothing of this step stays in the cache
        try:
            verdict = verify(tree, logits, sampler, limit, ends)
            kept = len(pending) + 1 + _accepted_on_main(tree, verdict.path)
            self.tokens += verdict.tokens
            if should_draft:
                call = _Call(guesses, tree, len(pending), backend.length, scored - drafted)
                self._learn(call, logits, verdict, drafted - start)
        finally:
            backend.commit(kept)
        return Step(
            verdict.tokens,
            tree,
            len(pending) + len(tree),
            verdict.path,
            verdict.finished,
            draft_s=drafted - start,
            score_s=scored - drafted,
            total_s=perf_counter() - start,
        )

    def _draft(self, root: int, n_pending: int, depth: int) -> DraftTree:
        """The next tree."""
        paused = self._pool.catch_up(self.tokens)
        budget, context = self._budget(n_pending), self._backend.length
        return self._builder.build(
            root, budget, depth, context=context, n_pending=n_pending, paused=paused
        )

    def _budget(self, n_pending: int) -> int:
        """Most guesses of the next tree."""
        free = self._n_ctx - len(self.tokens)
        return min(self._max_rows - n_pending - 1, free, self._max_drafts)

    def _padded(self, tree: DraftTree, n_pending: int, *, explore: bool) -> DraftTree:
        """The tree with as many rows as an exact class wants, or as are worth trying."""
        n = n_pending + len(tree)
        size: int | None = n
        if self._strict:
            size = self._strict.padded(n)
        elif explore and self._pricing is not None:
            size = self._pricing.explore(
                self._backend.length, n_pending + 1 + self._budget(n_pending)
            )
        if size is None or size <= n:
            return tree
        # Text, not one token over and over: the experts of a mixture would be the same ones.
        return tree.extended(self._filler(size - n), _PADDING)

    def _filler(self, n: int) -> Sequence[int]:
        """The last `n` tokens of the text, which is repeated where it is shorter."""
        return (self.tokens[-n:] * n)[:n]

    def _settle(self, strict: WidthClass) -> None:
        """Bring pending tokens but the last into the cache, in calls of the exact class.

        How many are pending depends on the drafts, and what is done with them must not.
        """
        backend = self._backend
        while backend.length and (pending := self.tokens[backend.length : -1][: strict.largest]):
            n = len(pending)
            filler = self._filler(strict.padded(n) - n)
            chain = DraftTree.from_parents((*pending, *filler), range(-1, n + len(filler) - 1))
            backend.score(chain, ())
            backend.commit(n)

    def _learn(self, call: _Call, logits: Logits, verdict: Verdict, draft_s: float) -> None:
        """Everyone learns from a step: pricing, drafters, acceptance model, pace."""
        start = perf_counter()
        pricing, emitted = self._pricing, verdict.tokens
        if pricing is None:
            self._pool.observe(emitted, call.tree, logits)
            self._builder.learn(emitted)
            return
        is_explored = self._strict is None and len(call.tree) > len(call.guesses)
        n_rows, n_wanted = call.n_pending + len(call.tree), call.n_pending + len(call.guesses)
        pricing.observe(n_rows, call.context, call.seconds, explored=is_explored)
        row = pricing.row(call.context)
        plain_s, cost_s = row[0], row[n_wanted - 1]
        self._pool.observe(emitted, call.tree, logits, plain_s)
        self._builder.learn(emitted)
        if self._back_off is None:
            return
        row_s = (cost_s - row[call.n_pending]) / max(1, len(call.guesses) - 1)
        self._pool.settle(call.guesses, verdict.path, plain_s, row_s)
        # A costly drafter knows what it is worth, and steps without it would leave it behind.
        if not self._builder.asked_costly:
            host_s = draft_s + perf_counter() - start
            self._back_off.settle(plain_s, len(emitted) * plain_s - cost_s - host_s)


class _Call(NamedTuple):
    """What a target call was made for, and what it took."""

    guesses: DraftTree
    tree: DraftTree  # the guesses, and what they were padded with
    n_pending: int
    context: int
    seconds: float


def _accepted_on_main(tree: DraftTree, path: Sequence[int]) -> int:
    """Length of the part of `path` that lies on the main chain."""
    count = 0
    while count < len(path) and path[count] == count + 1 < tree.n_main:
        count += 1
    return count
