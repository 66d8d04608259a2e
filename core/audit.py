"""Is the text with drafts the target's own? The same questions plainly and with drafts, compared.

Kernels for several rows add in another order than kernels for one, so where two tokens are nearly
as likely the text may go on with either. To tell such a tie from a fault, the differing text is
scored again one token at a time: of a tie each token is nearly the one that plain decoding would
have chosen after the tokens before it; of a fault some token is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .engine import Engine
from .errors import ContextFull
from .fit import LEAST_EXPECTED, Fit, chi_square
from .protocols import Drafter
from .sampling import Sampler, SamplingParams

TIE: Final = 1.0  # logits that a token of a tie may be behind the one that plain decoding chooses

_NEVER: Final = 1e-12  # a probability that stands for 0, whose log-odds are not finite


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how the tokens of the answer are chosen."""

    tokens: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of drafting.

    Attributes:
        drafters: makes new ones.
        tree: whether drafts may have side branches.
    """

    name: str
    drafters: Callable[[], Sequence[Drafter]]
    tree: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A text, and how wide the calls were that its tokens come from.

    Attributes:
        tokens: of the answer.
        widths: (n,) rows of the call that each token was sampled from.
    """

    tokens: tuple[int, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a text differs from the plain one.

    Attributes:
        position: tokens of the answer before it.
        context: tokens before it in all.
        tokens: the plain one and the other; None where a text has ended.
        widths: rows of the calls that they come from.
        gap: logits by which the other token is behind the plain one, scored one at a time.
        worst: the largest such gap in all of the other text.
    """

    position: int
    context: int
    tokens: tuple[int | None, int | None]
    widths: tuple[int, int]
    gap: float
    worst: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one question in one setting."""

    question: int
    setting: str
    n_tokens: int
    difference: Difference | None


def audit(
    engine: Engine, questions: Sequence[Question], settings: Sequence[Setting], n_predict: int
) -> Iterator[Finding]:
    """Answer each question plainly and in each setting; a finding for each setting."""
    for number, question in enumerate(questions):
        plain = answer(engine, question, (), n_predict)
        for setting in settings:
            other = answer(engine, question, setting.drafters(), n_predict, tree=setting.tree)
            difference = None
            if other.tokens != plain.tokens:
                difference = _explain(engine, question, plain, other)
            yield Finding(number, setting.name, len(other.tokens), difference)


def answer(
    engine: Engine,
    question: Question,
    drafters: Sequence[Drafter],
    n_predict: int,
    *,
    tree: bool | None = None,
) -> Answer:
    """The answer of at most `n_predict` tokens, from an empty cache."""
    engine.renew(drafters, tree=tree)
    sampler = Sampler(question.params, engine.vocab.n_vocab)
    tokens: list[int] = []
    widths: list[int] = []
    try:
        engine.session.feed(question.tokens)
        for step in engine.session.generate(sampler, n_predict, engine.vocab.eog.__contains__):
            tokens += step.tokens
            widths += [step.n_rows] * len(step.tokens)
    except ContextFull:  # an end like others
        pass
    return Answer(tuple(tokens), tuple(widths))


def _explain(engine: Engine, question: Question, plain: Answer, other: Answer) -> Difference:
    pairs = list(zip_longest(plain.tokens, other.tokens))
    position = next(i for i, (a, b) in enumerate(pairs) if a != b)
    gaps = gaps_of(engine, question, other.tokens)
    return Difference(
        position=position,
        context=len(question.tokens) + position,
        tokens=pairs[position],
        widths=(_at(plain.widths, position), _at(other.widths, position)),
        gap=gaps[position] if position < len(gaps) else 0.0,
        worst=max(gaps, default=0.0),
    )


def _at(widths: Sequence[int], position: int) -> int:
    return widths[position] if position < len(widths) else 0


def gaps_of(engine: Engine, question: Question, tokens: Sequence[int]) -> list[float]:
    """How far each token of an answer is from the one that plain decoding would choose there.

    In logits; 0 for a token that it would choose.
    """
    engine.renew(())
    judge = Judge(question.params, engine.vocab.n_vocab, tokens)
    engine.session.feed(question.tokens)
    for _ in engine.session.generate(judge, len(tokens), lambda _: False):
        pass
    return judge.gaps


class Judge(Sampler):
    """Follows a text, and takes down how far each of its tokens is from being chosen.

    Args:
        params: how tokens are chosen; the seed must be given unless greedy.
        n_vocab: values in a row.
        text: the tokens to follow.

    Attributes:
        gaps: of the tokens so far, in logits.
    """

    def __init__(self, params: SamplingParams, n_vocab: int, text: Sequence[int]) -> None:
        super().__init__(params, n_vocab)
        self.gaps: list[float] = []
        self._text = iter(text)

    def next(self, logits: NDArray[np.float32]) -> int:
        """The next token of the text."""
        token = next(self._text)
        row = self._row(logits)
        if self.params.greedy:
            self.gaps.append(float(row.max() - row[token]))
        else:
            self.gaps.append(self._gap(row, token))
        self._remember(token)
        return token

    def _gap(self, row: NDArray[np.float32], token: int) -> float:
        """By how much logits must differ for the random number to choose `token`.

        A draw falls into the part of 0..1 that belongs to a token. If logits move by d in all, the
        odds of its borders change by the factor exp(d / temperature) at most.
        """
        ids, weights = self._weighted(row)
        cumulative = weights.cumsum() / weights.sum()
        draw = self._rng.random()
        at = int(ids.searchsorted(token))
        known = at < len(ids) and int(ids[at]) == token
        low = float(cumulative[at - 1]) if at else 0.0
        high = float(cumulative[at]) if known else low
        missing = 0.0 if known else max(0.0, float(row[ids].min() - row[token]))
        above, below = _log_odds(low) - _log_odds(draw), _log_odds(draw) - _log_odds(high)
        return max(missing, max(above, below, 0.0) * self.params.temperature)


def _log_odds(p: float) -> float:
    p = min(max(p, _NEVER), 1 - _NEVER)
    return math.log(p / (1 - p))


def first_tokens(
    engine: Engine, question: Question, drafters: Sequence[Drafter], n_draws: int
) -> Fit:
    """Do the first two tokens of answers, sampled with drafts, have the target's distribution?

    `n_draws` answers with seeds of their own are counted, by both tokens. The drafters go on from
    one to the next, so that they know well what may come. Where strict decoding is possible it is
    used, so that rounding does not count.
    """
    exact = engine.profile is not None
    engine.renew((), strict=exact)
    expected = _expected(engine, question, n_draws)
    engine.renew(drafters, strict=exact)
    draws = []
    for seed in range(n_draws):
        engine.session.feed(question.tokens)
        sampler = Sampler(replace(question.params, seed=seed), engine.vocab.n_vocab)
        steps = engine.session.generate(sampler, 2, engine.vocab.eog.__contains__)
        draws.append(tuple(token for step in steps for token in step.tokens))
    return chi_square(draws, expected)


def _expected(engine: Engine, question: Question, n_draws: int) -> dict[Hashable, float]:
    """Probabilities of the first two tokens, one at a time; of those that matter in `n_draws`."""
    found: dict[Hashable, float] = {}
    for first, p in _distribution(engine, question, ()):
        if p * n_draws < LEAST_EXPECTED:
            continue
        if first in engine.vocab.eog:
            found[(first,)] = p
            continue
        for second, q in _distribution(engine, question, (first,)):
            found[(first, second)] = p * q
    return found


def _distribution(
    engine: Engine, question: Question, tokens: tuple[int, ...]
) -> list[tuple[int, float]]:
    """Tokens that may follow the question and `tokens`, and their probabilities."""
    asking = _Asking(question.params, engine.vocab.n_vocab)
    engine.session.feed((*question.tokens, *tokens))
    next(engine.session.generate(asking, 1, lambda _: False))
    return asking.found


class _Asking(Sampler):
    """Takes down what it could choose from."""

    def next(self, logits: NDArray[np.float32]) -> int:
        """The next token."""
        ids, probabilities = self.distribution(logits)
        self.found = list(zip(ids.tolist(), probabilities.tolist(), strict=True))
        return super().next(logits)
