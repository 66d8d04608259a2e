"""Is the text with drafts the target's own? The same questions plainly and with drafts, compared.

Kernels for several rows add in another order than kernels for one, so where two tokens are nearly
as likely the text may go on with either. To tell such a tie from a fault, the differing text is
scored again one token at a time: of a tie each token is nearly the one that plain decoding would
have chosen after the tokens before it; of a fault some token is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from specgen.core.engine import Engine
from specgen.core.errors import ContextFull
from specgen.core.protocols import Drafter
from specgen.core.sampling import Sampler, SamplingParams, top_k_ids, typical_ids

from .chi_square import LEAST_EXPECTED, ChiSquare, chi_square

Check: TypeAlias = Callable[..., None]  # called again and again; may raise to stop

TIE: Final = 1.0  # logits that a token of a tie may be behind the one that plain decoding chooses

_AHEAD: Final = 8  # tokens that drafts may reach for where two are counted
_FARTHEST: Final = 1e9  # logits; beyond them no token is looked for
_HALVINGS: Final = 24
_LEAST_TEMPERATURE: Final = 1e-3  # below it a draw is as good as greedy


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
        n_accepted: guesses among the tokens.
    """

    tokens: tuple[int, ...]
    widths: tuple[int, ...]
    n_accepted: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a text differs from the plain one.

    Attributes:
        position: tokens of the answer before it.
        context: tokens before it in all.
        tokens: the plain one and the other; None where a text has ended.
        widths: rows of the calls that they come from.
        gap: logits by which the other token is behind the plain one, scored one at a time;
            infinite where one text has ended and the other has not.
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
    """What became of one question in one setting.

    Attributes:
        n_accepted: guesses among the tokens of the answer; without any it proves little.
    """

    question: int
    setting: str
    n_tokens: int
    n_accepted: int
    difference: Difference | None


def _never(*_: object) -> None:
    """Go on."""


def audit(
    engine: Engine,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    n_predict: int,
    check: Check = _never,
) -> Iterator[Finding]:
    """Answer each question plainly and in each setting; a finding for each setting.

    Raises ContextFull for a question that does not fit.
    """
    for number, question in enumerate(questions):
        plain = answer(engine, question, (), n_predict, check=check)
        for setting in settings:
            other = answer(
                engine, question, setting.drafters(), n_predict, tree=setting.tree, check=check
            )
            difference = None
            if other.tokens != plain.tokens:
                difference = _explain(engine, question, plain, other)
            yield Finding(number, setting.name, len(other.tokens), other.n_accepted, difference)


def answer(
    engine: Engine,
    question: Question,
    drafters: Sequence[Drafter],
    n_predict: int,
    *,
    tree: bool | None = None,
    check: Check = _never,
) -> Answer:
    """The answer of at most `n_predict` tokens, from an empty cache.

    Raises ContextFull if the question does not fit; that the answer does not is an end like others.
    """
    engine.renew(drafters, tree=tree)
    sampler = Sampler(question.params, engine.vocab.n_vocab)
    tokens: list[int] = []
    widths: list[int] = []
    n_accepted = 0
    engine.session.feed(question.tokens, check)
    with suppress(ContextFull):
        for step in engine.session.generate(sampler, n_predict, engine.vocab.eog.__contains__):
            tokens += step.tokens
            widths += [step.n_rows] * len(step.tokens)
            n_accepted += len(step.path)
            check()
    return Answer(tuple(tokens), tuple(widths), n_accepted)


def _explain(engine: Engine, question: Question, plain: Answer, other: Answer) -> Difference:
    pairs = list(zip_longest(plain.tokens, other.tokens))
    position = next(i for i, (a, b) in enumerate(pairs) if a != b)
    gap = worst = math.inf
    if None not in pairs[position]:  # both texts end at the same token, or else it is no rounding
        gaps = gaps_of(engine, question, other.tokens)
        gap, worst = gaps[position], max(gaps)
    return Difference(
        position=position,
        context=len(question.tokens) + position,
        tokens=pairs[position],
        widths=(_at(plain.widths, position), _at(other.widths, position)),
        gap=gap,
        worst=worst,
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
        """By how much logits must differ, at least, for the random number to choose `token`."""
        ids, weights = self._weighted(row)
        cumulative = weights.cumsum()
        draw = self._rng.random()
        at = int(cumulative.searchsorted(draw * cumulative[-1], side="right"))
        if int(ids[at]) == token:
            return 0.0
        if math.isinf(row[token]):
            return math.inf
        leeway = _Leeway(row, self.params, token)
        low, high = 0.0, 1.0
        while not leeway.chooses(draw, high):
            low, high = high, 2 * high
            if high > _FARTHEST:
                return math.inf
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if leeway.chooses(draw, middle) else (middle, high)
        return high


class _Leeway:
    """What a sampler could do if the logits moved, each by at most d against any other.

    A draw falls into the part of 0..1 that belongs to a token. Of the borders of that part, the
    odds change by the factor exp(d / temperature) at most, and by the candidates that pass the
    filters only after the move, or only before it. All that is taken at its best, so a gap is
    never too large; with few candidates on the edge it is hardly too small. What typical
    sampling leaves out is taken as it is.

    Args:
        row: logits after penalties.
        params: of a sampler that is not greedy.
        token: the one to be chosen.
    """

    def __init__(self, row: NDArray[np.float32], params: SamplingParams, token: int) -> None:
        n = len(row)
        k = params.top_k if 0 < params.top_k < n else n
        self._row = row.astype(np.float64)
        if params.typical_p < 1:
            best = np.sort(top_k_ids(row, k))
            kept = best[typical_ids(row[best], params.typical_p)]
            self._row[~np.isin(np.arange(n), [*kept, token])] = -math.inf
        self._token = token
        self._ranked = np.sort(self._row)[::-1]
        self._temperature = max(params.temperature, _LEAST_TEMPERATURE)
        weights = np.exp(self._ranked[:k] - self._ranked[0])
        after = weights[::-1].cumsum()[::-1]
        self._k = k
        with np.errstate(divide="ignore"):
            # Of each candidate: log-odds of all that are likelier; top-p keeps it below a bound.
            self._log_odds = np.log(after[0] - after) - np.log(after)
            self._top_p = np.log(params.top_p) - np.log1p(-params.top_p)
            self._floor = self._ranked[0] + np.log(params.min_p)

    def chooses(self, draw: float, d: float) -> bool:
        """Whether the number `draw` may choose the token where logits moved by `d`."""
        row, token = self._row, self._token
        may = row >= max(self._ranked[self._n_kept(d) - 1], self._floor) - d
        if not may[token]:
            return False
        n_kept = self._n_kept(-d)
        next_best = self._ranked[n_kept] if n_kept < len(row) else -math.inf
        must = (row > next_best + d) & (row >= self._floor + d)
        logs = row / self._temperature
        shift = d / self._temperature
        below, above = slice(token), slice(token + 1, None)
        low = _log_sum(logs[below][must[below]]) - _log_sum(logs[token:][may[token:]]) - shift
        high = _log_sum(logs[: token + 1][may[: token + 1]]) - _log_sum(logs[above][must[above]])
        odds = math.log(draw) - math.log1p(-draw) if draw else -math.inf
        return bool(low <= odds <= high + shift)

    def _n_kept(self, d: float) -> int:
        """How many candidates pass top-k and top-p where `d` is in their favour."""
        if math.isinf(self._top_p) and self._top_p > 0:
            return self._k
        return max(1, int(self._log_odds.searchsorted(self._top_p + d)))


def _log_sum(logs: NDArray[np.float64]) -> float:
    """Logarithm of the sum of the exponentials."""
    if not len(logs) or math.isinf(peak := float(logs.max())):
        return -math.inf
    return peak + math.log(np.exp(logs - peak).sum())


def first_tokens(
    engine: Engine,
    question: Question,
    drafters: Sequence[Drafter],
    n_draws: int,
    on_draw: Callable[[int], None] = _never,
) -> ChiSquare:
    """Do the first two tokens of answers, sampled with drafts, have the target's distribution?

    `n_draws` answers with seeds of their own are counted, by both tokens. The drafters go on from
    one to the next, so that they know well what may come, and reach further than two tokens, so
    that paths of their trees share tokens. Where strict decoding is possible it is used, so that
    rounding does not count. `on_draw` is told how many were counted; it may raise.
    """
    exact = engine.profile is not None
    engine.renew((), strict=exact)
    expected = _expected(engine, question, n_draws)
    engine.renew(drafters, strict=exact)
    draws = []
    for seed in range(n_draws):
        engine.session.feed(question.tokens)
        sampler = Sampler(replace(question.params, seed=seed), engine.vocab.n_vocab)
        tokens: list[int] = []
        for step in engine.session.generate(sampler, _AHEAD, engine.vocab.eog.__contains__):
            tokens += step.tokens
            if len(tokens) >= 2:
                break
        draws.append(tuple(tokens[:2]))
        on_draw(len(draws))
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
