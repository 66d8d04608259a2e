"""One text on one backend: feed a prompt, then step until it ends.

Invariant: the backend's cache holds a prefix of `tokens`; what follows is *pending*. Between
steps at least the last token is pending. Tokens accepted on a side branch stay pending too
and ride ahead of the next tree, so the cache never has holes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np

from specgen.core.cost.strict import WidthClass
from specgen.core.drafting.builder import Builder, filler
from specgen.core.drafting.speculator import Call, Draft, Speculator

from .errors import ContextFull, SpecgenError, UsageError
from .protocols import Backend, Logits
from .sampling import Sampler
from .stats import Step
from .tree import DraftTree, common_prefix
from .verify import Verdict, verify

_FIRST_PART = 64  # tokens of a prompt's first part, where calls cannot be stopped
_AT_ONCE = 0.05  # of the time since it was submitted: a call that is waited for no longer is over
_QUICK_S = 0.15  # a part that takes fewer seconds is followed by one of twice its size


class _Begun(NamedTuple):
    """A call that was submitted, and when: its draft was begun, was there, and was handed over."""

    draft: Draft
    n_pending: int
    context: int
    start: float
    drafted: float
    submitted: float

    def is_over(self, asked: float, ready: float) -> bool:
        """Whether it was over before anybody asked, so that nobody knows how long it took."""
        return ready - asked < _AT_ONCE * (ready - self.drafted)


class Session:
    """Tokens and cache of one text.

    Args:
        backend: the target model; the session is its only user.
        speculator: says what to draft, and learns from it; None decodes plainly.
        strict: the widths that calls are padded to; None leaves them as they are. The text may
            then have as many tokens less than the backend's cells as padding takes.

    Attributes:
        tokens: the text.
        n_ctx: tokens of it that the cache can hold; one more, the last, needs no place there.
    """

    def __init__(
        self,
        backend: Backend,
        speculator: Speculator | None = None,
        *,
        strict: WidthClass | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self.n_ctx = backend.limits.n_ctx - (strict.slack if strict else 0)
        self._backend = backend
        self._speculator = speculator or Speculator(Builder(backend.limits, 0, strict=strict))
        self._strict = strict
        self._is_read = False  # whether a prompt was read to its end, and not stopped
        self._submitted: _Begun | None = None  # a call that nobody has waited for yet

    def feed(
        self, tokens: Sequence[int], on_chunk: Callable[[int, int], None] | None = None
    ) -> int:
        """Make `tokens` the text, and return how many of them the cache already held.

        `on_chunk(done, total)` is called after every chunk with tokens in the cache; it may
        raise to stop, and the session stays usable, as it does when the backend is to stop.

        Raises UsageError if there are no tokens, ContextFull if they do not fit.
        """
        limit = self.n_ctx
        if not tokens:
            raise UsageError("the prompt is empty", "give at least one character")
        if len(tokens) > limit:
            raise ContextFull(
                f"the prompt of {len(tokens)} tokens exceeds the available context size of {limit}",
                "use a larger context (-c) or a shorter prompt",
            )
        self._give_up()
        if self._strict and self._is_read:
            self._settle(self._strict)
        cached = self.tokens[: self._backend.length]
        reused = self._backend.rewind(common_prefix(cached, tokens[:-1]))
        self.tokens, self._is_read = list(tokens), False
        self._prefill(on_chunk)
        self._is_read = True
        self._speculator.begin(self.tokens)
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

        Raises ContextFull when the text fills the context before it ends, and UsageError when
        another text was fed meanwhile.
        """
        text = self.tokens
        self._give_up()
        sampler.begin(text)
        self._prefill(None)  # for a cache that a failed step left behind the text
        limit = self.n_ctx
        left = limit + 1 if max_tokens is None else max_tokens
        behind = self._backend.limits.computes_behind
        try:
            while left > 0:
                if len(self.tokens) > limit:
                    raise ContextFull(
                        f"the text reached the available context size of {limit} tokens",
                        "use a larger context (-c) or limit the answer (-n)",
                    )
                step = self.step(sampler, left, ends)
                left -= len(step.tokens)
                failure = None
                # What is done with a step can be done while the next one is computed.
                if behind and left > 0 and not step.finished and len(self.tokens) <= limit:
                    try:
                        self._submitted = self._submit(left)
                    except (SpecgenError, KeyboardInterrupt) as error:
                        failure = error  # it is not this step's
                yield step
                if failure is not None:
                    raise failure
                if self.tokens is not text:
                    raise UsageError("another text was begun", "finish one before the next")
                if step.finished:
                    return
        finally:
            if self.tokens is text:
                self._give_up()

    def step(self, sampler: Sampler, limit: int, ends: Callable[[int], bool]) -> Step:
        """One target call: propose, score, verify and commit, learn. Emits 1..`limit` tokens."""
        begun, self._submitted = self._submitted or self._submit(limit), None
        start = perf_counter()
        logits = self._backend.wait()
        ready = perf_counter()
        limit = min(limit, self.n_ctx - len(self.tokens) + 1)
        n_rows = begun.n_pending + len(begun.draft.tree)
        verdict = self._commit(begun, logits, sampler, limit, ends)
        behind = self._backend.limits.computes_behind
        seconds = None if behind and begun.is_over(start, ready) else ready - begun.drafted
        call = Call(n_rows, begun.context, seconds)
        self._speculator.learn(begun.draft, verdict, logits, call)
        if not behind:
            self._speculator.settle()
        score_s = begun.submitted - begun.drafted + ready - start
        return Step(
            verdict.tokens,
            begun.draft.tree,
            n_rows,
            verdict.path,
            verdict.finished,
            draft_s=begun.drafted - begun.start,
            score_s=score_s,
            total_s=begun.submitted - begun.start + perf_counter() - start,
        )

    def _submit(self, limit: int) -> _Begun:
        """Draft at most `limit` - 1 tokens, and begin the call that verifies them."""
        start = perf_counter()
        context = self._backend.length
        free = self.n_ctx - len(self.tokens)  # padding may be accepted, too
        pending = self.tokens[context:-1]
        depth = min(limit, free + 1) - 1
        draft = self._speculator.propose(self.tokens, len(pending), depth=depth, free=free)
        drafted = perf_counter()
        self._backend.submit(draft.tree, pending)
        submitted = perf_counter()
        self._speculator.settle()
        return _Begun(draft, len(pending), context, start, drafted, submitted)

    def end(self) -> None:
        """Another session takes the backend: this one is not to be used any more."""
        self._give_up()
        self.tokens = []

    def _give_up(self) -> None:
        """Take back a call that nobody waits for."""
        begun, self._submitted = self._submitted, None
        if begun is not None:
            self._backend.commit(0)

    def _commit(
        self,
        begun: _Begun,
        logits: Logits,
        sampler: Sampler,
        limit: int,
        ends: Callable[[int], bool],
    ) -> Verdict:
        """Verify the tree, and keep in the cache what was accepted; nothing, if that fails."""
        kept, tree = 0, begun.draft.tree
        try:
            verdict = verify(tree, logits, sampler, limit, ends)
            kept = begun.n_pending + 1 + _accepted_on_main(tree, verdict.path)
            self.tokens += verdict.tokens
        finally:
            self._backend.commit(kept)
        return verdict

    def _settle(self, strict: WidthClass) -> None:
        """Bring pending tokens but the last into the cache, in calls of the exact class.

        How many are pending depends on the drafts, and what is done with them must not.
        """
        backend = self._backend
        while backend.length and (pending := self.tokens[backend.length : -1][: strict.largest]):
            n = len(pending)
            tokens = (*pending, *filler(self.tokens, strict.padded(n) - n))
            chain = DraftTree.from_parents(tokens, range(-1, len(tokens) - 1))
            backend.score(chain, ())
            backend.commit(n)


def _accepted_on_main(tree: DraftTree, path: Sequence[int]) -> int:
    """Length of the part of `path` that lies on the main chain."""
    count = 0
    while count < len(path) and path[count] == count + 1 < tree.n_main:
        count += 1
    return count
