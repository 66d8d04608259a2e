"""One text being generated: the prompt is read, then pieces come until it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

from specgen.core.text.stream import TextStream

from .errors import ContextFull, UsageError
from .sampling import Sampler
from .session import Session
from .stats import GenerationStats


class Generation:
    """One text being generated. Iterating yields what each step adds to it, often "".

    Args:
        session: what steps.
        stream: tokens to text.
        prompt: see below.
        sampler: see below.
        max_tokens: None goes on until the text ends.
        on_chunk: told how much of the prompt is processed; may raise to stop.
        on_prompt: told the seconds that the prompt took, before the first step; may raise to stop.

    Attributes:
        prompt: tokens it continues.
        reused: how many of them the cache held already.
        tokens: emitted tokens so far.
        text: text so far.
        finish: "eog", "stop" (a stop string), "length", "context", or None while it runs and
            for good if it was stopped from outside.
        prefill_s: seconds spent on the prompt.
        first_token_s: seconds from the start to the first emitted token.
        stats: sums over the steps.
        sampler: what chose the tokens.
    """

    def __init__(
        self,
        session: Session,
        stream: TextStream,
        prompt: Sequence[int],
        sampler: Sampler,
        max_tokens: int | None,
        on_chunk: Callable[[int, int], None] | None,
        on_prompt: Callable[[float], None] | None = None,
    ) -> None:
        self.prompt = tuple(prompt)
        self.sampler = sampler
        self.reused = 0
        self.tokens: list[int] = []
        self.text = ""
        self.finish: str | None = None
        self.prefill_s = 0.0
        self.first_token_s = 0.0
        self.stats = GenerationStats()
        self._session = session
        self._stream = stream
        self._max_tokens = max_tokens
        self._on_chunk = on_chunk
        self._on_prompt = on_prompt
        self._is_begun = False

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stream.stop_string

    def __iter__(self) -> Iterator[str]:
        """Raises what Session.feed and Session.generate raise; the text so far is kept.

        Raises UsageError where it was iterated over before.
        """
        if self._is_begun:
            raise UsageError("this text was generated before", "generate it anew")
        self._is_begun = True
        start = perf_counter()
        self.reused = self._session.feed(self.prompt, self._on_chunk)
        self.prefill_s = perf_counter() - start
        if self._on_prompt:
            self._on_prompt(self.prefill_s)
        try:
            for step in self._session.generate(self.sampler, self._max_tokens, self._stream.push):
                if not self.tokens:
                    self.first_token_s = perf_counter() - start
                self.tokens += step.tokens
                self.stats.add(step)
                yield self._keep(self._stream.take())
        except ContextFull:
            self.finish = "context"
            raise
        self.finish = self._stream.finish_reason or "length"
        yield self.rest()

    def rest(self) -> str:
        """Text that was held back, in case a stop string or a character would complete.

        To be called once when the iteration was left early.
        """
        return self._keep(self._stream.finish())

    def _keep(self, piece: str) -> str:
        self.text += piece
        return piece
