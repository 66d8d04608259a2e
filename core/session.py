"""One text on one backend: feed a prompt, then step until it ends.

Invariant: the backend's cache holds a prefix of `tokens`; what follows is *pending*. Between
steps at least the last token is pending. Tokens accepted on a side branch stay pending too
and ride ahead of the next tree, so the cache never has holes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

import numpy as np

from .builder import Builder, Pricing
from .calibrate import Calibrator
from .errors import ContextFull, UsageError
from .protocols import Backend, Drafter
from .sampling import Sampler
from .stats import Step
from .tracker import CostTracker
from .tree import DraftTree
from .verify import verify

_HOST_S = 40e-6  # host time of a further row, see benchmarks/host_overhead.py


class Session:
    """Tokens, cache and drafters of one text.

    Args:
        backend: the target model; the session is its only user.
        drafters: guess what comes next; none means plain decoding.
        max_drafts: most guesses in one tree.
        calibrator: judges guesses, see Builder.
        pricing: what calls cost, see Builder; told what they take if it is a CostTracker.
    """

    def __init__(
        self,
        backend: Backend,
        drafters: Sequence[Drafter],
        max_drafts: int,
        *,
        calibrator: Calibrator | None = None,
        pricing: Pricing | None = None,
    ) -> None:
        limits = backend.limits
        self.tokens: list[int] = []
        self._backend = backend
        self._drafters = tuple(drafters)
        self._builder = Builder(
            drafters,
            max_drafts,
            max_leaves=limits.max_leaves,
            branch=limits.can_branch,
            calibrator=calibrator,
            pricing=pricing,
            host_s=_HOST_S if isinstance(pricing, CostTracker) else 0.0,
        )
        self._tracker = pricing if isinstance(pricing, CostTracker) else None

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
        tree = self._draft(root, len(lead), limit - 1)
        drafted = perf_counter()
        logits = backend.score(tree, lead)
        scored = perf_counter()
        if self._tracker:
            self._tracker.observe(len(lead) + len(tree), backend.length, scored - drafted)
        kept = 0  # if anything below fails, nothing of this step stays in the cache
        try:
            verdict = verify(tree, logits, sampler, limit, ends)
            kept = len(lead) + 1 + _accepted_on_main(tree, verdict.path)
            for drafter in self._drafters:
                drafter.observe(verdict.tokens, tree, logits)
            self._builder.learn(verdict.tokens)
            self.tokens += verdict.tokens
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
        limits = self._backend.limits
        room = min(limits.max_rows - n_lead - 1, limits.n_ctx - len(self.tokens))
        return self._builder.build(root, room, depth, context=self._backend.length, n_lead=n_lead)


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
