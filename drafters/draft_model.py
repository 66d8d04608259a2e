"""A draft model: a smaller model writes on, and the target checks what it wrote.

Its likeliest tokens are the candidates, a chain of them with their rivals beside it, so the text is
the target's for every sampler. A pass of a model takes time, unlike a look into the other
drafters' tables. So one is made only where it is worth it (see specgen.core.drafting.effort).

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", arXiv
2211.17192, section 2. Mamou et al., "Dynamic Speculation Lookahead", arXiv 2405.04304, go on while
a trained classifier says so; here measured times do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import Final, TypeAlias

import numpy as np

from specgen.core.protocols import Backend, Candidate, DraftCost, Logits, Tokens
from specgen.core.rows import likeliest
from specgen.core.tree import DraftTree, common_prefix

from .evidence import chance_bucket

STANDALONE: Final = 4  # a standalone draft model drafts so many tokens in a row

_WIDTH = 4  # a state has at most so many candidates
_LEAST = 0.01  # candidates that are less likely than this are not worth offering
_PASSES = 5  # the times of so many passes are remembered, the latest
_BEGINNING = 32  # so many tokens of a text are read first, to see what reading takes
# At the beginning of a text its first draft tokens are thought to be accepted with this chance,
# which counts as so many of them.
_CHANCE, _VISITS = 0.7, 4.0
_DECAY = 0.95  # with each draft token, what was seen before counts less by this factor
# So many passes at the beginning of a text are a trial: they are made as if first draft tokens were
# accepted with this chance, which is as high as one can hope for.
_TRIAL = 6
_GOOD = 0.85

_State: TypeAlias = tuple[int, ...]  # tokens after the end of the text, its likeliest ones


class DraftModel:
    """See specgen.core.protocols.Drafter.

    Memory: what the backend takes, and 8 bytes a token of the text.

    Args:
        backend: the draft model, which must be able to rewind; this is its only user from now on.
        standalone: a chain of STANDALONE draft tokens, however sure the model is.
        label: tells its evidence from that of other draft models.
    """

    name = "draft-model"
    reads_logits = False

    def __init__(self, backend: Backend, standalone: bool = False, label: str = "") -> None:
        self._backend = backend
        self._standalone = standalone
        self._label = label
        self._seconds: deque[float] = deque(maxlen=_PASSES)
        self._reading = 0.0  # seconds a token
        self._hits, self._visits = _CHANCE * _VISITS, _VISITS
        self._text: list[int] = []
        self._agreed = 0  # tokens in the cache that are the beginning of the text
        self._tail: list[int] = []  # tokens in the cache after them
        self._answers: dict[_State, Sequence[Candidate]] = {}
        self._trial = _TRIAL  # passes left of it

    @property
    def effort(self) -> DraftCost:
        """What a pass takes; while the model is on trial, the best that can be hoped for."""
        seconds = sorted(self._seconds)[len(self._seconds) // 2] if self._seconds else 0.0
        chance = _GOOD if self._trial else self._hits / self._visits
        return DraftCost(seconds, chance, (len(self._text) - self._agreed) * self._reading)

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        held = self._text[: self._agreed] + self._tail
        self._text = context.tolist()
        self._agreed = common_prefix(held, self._text)
        self._tail = held[self._agreed :]
        self._answers = {}
        self._trial = _TRIAL
        if self._text and not self._seconds:
            self._measure()

    def root(self) -> _State | None:
        """See Drafter. None where the model cannot read the text: too long, or other tokens."""
        limits = self._backend.limits
        if not self._text or len(self._text) > limits.n_ctx:
            return None
        unread = self._text[self._agreed :]
        return () if max(unread, default=0) < limits.n_vocab else None

    def predict(self, state: _State) -> Sequence[Candidate]:
        """The likeliest tokens: one pass of the model, unless it was asked before."""
        if self._standalone and len(state) >= STANDALONE:
            return ()
        if len(self._text) + len(state) > self._backend.limits.n_ctx:
            return ()
        if state not in self._answers:
            self._trial = max(0, self._trial - 1)
            self._answers[state] = self._candidates(len(state), self._logits(state))
        return self._answers[state]

    def advance(self, state: _State, token: int) -> _State | None:
        """The model follows its own likeliest token; what comes after others is another pass."""
        candidates = self._answers.get(state)
        return (*state, token) if candidates and candidates[0].token == token else None

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        self._learn(emitted)
        self._text += emitted
        n_right = common_prefix(
            self._tail, self._text[self._agreed : self._agreed + len(self._tail)]
        )
        self._agreed += n_right
        self._tail = self._tail[n_right:]
        self._answers = {}

    def _learn(self, emitted: Sequence[int]) -> None:
        """Count how often the first candidate is accepted, where its parent was."""
        for i, token in enumerate(emitted):
            if not (candidates := self._answers.get(tuple(emitted[:i]))):
                break
            self._hits = self._hits * _DECAY + (candidates[0].token == token)
            self._visits = self._visits * _DECAY + 1

    def _measure(self) -> None:
        """See what a pass and reading take, before all of a text is read that may not be worth it.

        The beginning of a text that is longer stays read.
        """
        beginning = self._text[: min(_BEGINNING, self._backend.limits.chunk)]
        if max(beginning) >= self._backend.limits.n_vocab:
            return
        for _ in range(_PASSES):
            self._backend.rewind(0)
            self._pass(beginning[:1])
        self._reading = min(self._seconds)
        self._agreed, self._tail = 1, []
        if len(beginning) > 2 and len(self._text) > len(beginning):
            start = perf_counter()
            self._backend.prefill(np.array(beginning[1:], np.int32))
            self._reading = (perf_counter() - start) / (len(beginning) - 1)
            self._agreed = len(beginning)

    def _pass(self, tokens: Sequence[int]) -> Logits:  # (1, n_vocab)
        """Read on, and give the logits of what may follow."""
        start = perf_counter()
        *pending, last = tokens
        logits = self._backend.score(DraftTree.root(last), pending)
        self._backend.commit(len(tokens))
        if not pending:
            self._seconds.append(perf_counter() - start)
        return logits

    def _candidates(self, depth: int, logits: Logits) -> Sequence[Candidate]:
        width = 1 if self._standalone else _WIDTH
        return [
            Candidate(
                token, (self.name, self._label, rank, chance_bucket(prob), min(depth, 3)), prob
            )
            for rank, (token, prob) in enumerate(zip(*likeliest(logits, width), strict=True))
            if prob > _LEAST
        ]

    def _logits(self, state: _State) -> Logits:  # (1, n_vocab)
        """The logits of the token after the text and `state`: one pass, and what is unread."""
        backend = self._backend
        wanted = [*self._text[self._agreed :], *state]
        if not wanted:  # all was read, but its logits are gone
            self._agreed -= 1
            wanted = self._text[-1:]
        kept = common_prefix(self._tail, wanted[:-1])
        backend.rewind(self._agreed + kept)
        unread = wanted[kept:]
        try:
            while len(unread) > backend.limits.max_rows:
                n = min(backend.limits.chunk, len(unread) - 1)
                backend.prefill(np.array(unread[:n], np.int32))
                unread = unread[n:]
            return self._pass(unread)
        finally:  # as far as it came: reading a long text may be stopped
            n_text = len(self._text)
            self._agreed = min(backend.length, n_text)
            self._tail = list(state[: backend.length - self._agreed])
