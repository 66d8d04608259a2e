"""The model's own log-probabilities of the tokens that a sampler chose.

Natural logarithms at temperature 1, before penalties and filters: what the model said, not what
was drawn from. Each comes from the row that its token was chosen from, so those of tokens that
were accepted from a draft are right as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sampling import Sampler, SamplingParams, top_k_ids


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a chosen token was, and the likeliest in its place.

    Attributes:
        token: the chosen one.
        logprob: of that one.
        top: the likeliest tokens with theirs, best first, the lowest id first among equals;
            -inf where the model rules a token out.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class RecordingSampler(Sampler):
    """A sampler that also takes down how likely the tokens were that it chose.

    It chooses as a Sampler does, and takes one more pass over a row.

    Args:
        params, n_vocab: see Sampler.
        n_top: how many of the likeliest tokens are taken down with each.

    Attributes:
        recorded: one entry for each token since `begin`, in order. A step that fails may have
            chosen tokens that are then not emitted; they come last.
    """

    def __init__(self, params: SamplingParams, n_vocab: int, n_top: int) -> None:
        super().__init__(params, n_vocab)
        self.recorded: list[TokenLogprobs] = []
        self._n_top = n_top

    def begin(self, history: Sequence[int]) -> None:
        """See Sampler. A new record begins."""
        super().begin(history)
        self.recorded = []

    def next(self, logits: NDArray[np.float32]) -> int:  # (n_vocab,)
        """See Sampler."""
        token = super().next(logits)
        self.recorded.append(_logprobs(logits, token, self._n_top))
        return token


def _logprobs(row: NDArray[np.float32], token: int, n_top: int) -> TokenLogprobs:
    """Those of a row that `token` could be chosen from: its largest logit is finite."""
    ids = top_k_ids(row, n_top)
    peak = row.max()
    # Relative to the peak: nothing overflows, and no rounding makes a probability exceed 1.
    total = math.log(np.exp(np.subtract(row, peak, dtype=np.float64)).sum())
    own, *top = (np.subtract(row[[token, *ids]], peak, dtype=np.float64) - total).tolist()
    return TokenLogprobs(token, own, tuple(zip(ids.tolist(), top, strict=True)))
