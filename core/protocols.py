"""What the parts promise each other: Backend, Vocab, Drafter and Prices, and the arrays they pass.

Shapes are in trailing comments. Token ids are int32, logits float32, probabilities in 0..1.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .tree import DraftTree, Evidence

Tokens: TypeAlias = NDArray[np.int32]  # (n,)
Logits: TypeAlias = NDArray[np.float32]  # (rows, n_vocab)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a backend can hold and do. Sizes count tokens, rows or sequences."""

    n_vocab: int
    n_ctx: int  # cells: committed tokens plus everything scored at once
    max_rows: int  # rows of one `score` call: pending tokens before the root, plus tree nodes
    max_leaves: int  # leaves of one tree; 1 where the model cannot branch
    chunk: int  # most tokens of one `prefill` call
    can_branch: bool  # several children per node
    can_rewind: bool  # tokens may be dropped from the end of the cache
    can_stop: bool = True  # a `prefill` that is to stop does so before all of it is done
    computes_behind: bool = False  # `submit` returns while the call is computed, and can be undone


class Backend(Protocol):
    """A target model with one gap-free cache: committed tokens at positions 0..length-1.

    A call of the model is submitted and waited for; `score` does both. It leaves the scored rows in
    the cache; `commit` must follow before anything else, and keeps the first of them, which lie on
    the pending tokens and the main chain. So the cache never has holes.
    """

    @property
    def limits(self) -> Limits: ...

    @property
    def length(self) -> int:
        """Committed tokens."""
        ...

    def prefill(self, tokens: Tokens) -> None:
        """Append 1..`limits.chunk` committed tokens, asking for no logits.

        Raises BackendError, and Interrupted where it is to stop; then nothing was appended, or
        the cache is empty where the model cannot go back.
        """
        ...

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """Begin a call of the model with `pending`, the pending tokens before the root, and `tree`.

        Rows of logits that were given before are not valid any more. Raises BackendError like
        `prefill`.
        """
        ...

    def wait(self) -> Logits:  # (len(tree), n_vocab)
        """Logits after each node of the tree that was submitted, once they are there.

        The rows are a view, valid until the next `submit` or `prefill`. Without this, `commit(0)`
        gives the call up.
        """
        ...

    def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:  # (len(tree), n_vocab)
        """Submit, and wait."""
        ...

    def commit(self, n_kept: int) -> None:
        """Keep the first `n_kept` scored rows, of pending tokens and main chain; drop all others.

        0 gives the step up: where the model cannot rewind, the cache is empty then.
        """
        ...

    def rewind(self, length: int) -> int:
        """Shorten the cache to at most `length` tokens and return what is left.

        That is `length` where the model can rewind, and 0 where it can only start anew.
        """
        ...

    def close(self) -> None: ...


class Vocab(Protocol):
    """Text to tokens and back. Pieces are bytes: one token may hold half a character."""

    @property
    def n_vocab(self) -> int: ...

    @property
    def eog(self) -> Container[int]:
        """Every token that ends a generation."""
        ...

    def tokenize(self, text: str, *, add_bos: bool, special: bool, cut: str = "") -> list[int]:
        """Tokens of `text`.

        `add_bos` adds what the model wants at the start of a text, unless it is there; `special`
        reads control tokens such as `<|im_end|>` out of the text. `cut` is a character that is no
        part of the text: no token reaches across it, and where it comes first, the text goes on
        behind another one.
        """
        ...

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that `token` adds to a text; control tokens give b"" unless `special`."""
        ...


class Candidate(NamedTuple):
    """A token that a drafter thinks may come next."""

    token: int
    evidence: Evidence  # why: (drafter, match order, rank, ...), a small bucket to count by
    prob: float  # the drafter's own estimate of P(token is accepted | its parent was)


class DraftCost(NamedTuple):
    """What asking a drafter takes that computes, such as a model, and what may come of it."""

    seconds: float  # an answer takes so long
    chance: float  # its first candidate is accepted with this probability
    reading: float  # seconds until it has read the text


class Drafter(Protocol):
    """A tiny language model: in a state, it names what may come next and says why.

    States are the drafter's own immutable values. None means "knows nothing here".
    Drafters are deterministic and keep no reference to the arrays they are given.
    """

    @property
    def name(self) -> str: ...

    @property
    def effort(self) -> DraftCost | None:
        """What the next answer takes and may bring; None for one that takes next to nothing."""
        ...

    @property
    def reads_logits(self) -> bool:
        """Whether `observe` looks at the logits: it is not asked where that takes too long."""
        ...

    def begin(self, context: Tokens) -> None:  # (n,) the whole text so far, n may be 0
        """Start on a text. What was learnt of other texts may stay, their tokens may not."""
        ...

    def root(self) -> Any:
        """The state at the end of the text, or None."""
        ...

    def predict(self, state: Any) -> Sequence[Candidate]:
        """Guesses in `state`, best first, no token twice."""
        ...

    def advance(self, state: Any, token: int) -> Any:
        """The state after `token`, or None."""
        ...

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """The text grew by `emitted`, and `tree` was scored.

        `logits` (len(tree), n_vocab) are valid during the call. They have no columns where there
        are none to see, as for what was emitted while the drafter was not asked; then `tree` is
        its last token before that, alone.
        """
        ...


class Change(NamedTuple):
    """What calls take more whose width is not that of the call before."""

    first_s: float = 0.0  # seconds: llama.cpp builds its graph anew
    second_s: float = 0.0  # seconds: where graphs are captured, that is done at the second call


class Pricing(Protocol):
    """What calls cost: a CostModel, or a CostTracker that refines one."""

    @property
    def change(self) -> Change:
        """What calls of a new width take more."""
        ...

    def costs(self, context: int) -> Sequence[float]:
        """Seconds of a call with 1, 2, …, MAX_ROWS rows at `context` committed tokens."""
        ...


class Prices(Pricing, Protocol):
    """What calls cost, told what they took."""

    def observe(
        self, n: int, context: int, seconds: float | None, *, explored: bool = False
    ) -> None:
        """A call with `n` rows took `seconds`; `explored` if it is larger for `explore`.

        None where nobody knows how long it took. To be told of all calls, in order.
        """
        ...

    def explore(self, context: int, max_rows: int) -> int | None:
        """Rows to give the next call, to see what it costs, or None; see CostTracker."""
        ...
