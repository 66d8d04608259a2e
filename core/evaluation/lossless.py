"""Is the text with drafts the target's own? The same questions plainly and with drafts, compared.

Kernels for several rows add in another order than kernels for one, so where two tokens are nearly
as likely, a greedy text may go on with either. To tell such a tie from a fault, the differing text
is scored again one token at a time: each token of a tie is nearly as likely as the likeliest token
after the tokens before it; some token of a fault is not.

A sampled token can change by rounding without being nearly as likely as another. So sampled
answers are compared in strict widths, where no rounding depends on the drafts: any difference is a
fault.
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
from specgen.core.sampling import Sampler, SamplingParams

from .chi_square import LEAST_EXPECTED, ChiSquare, chi_square

Check: TypeAlias = Callable[..., None]  # called again and again; may raise to stop

# Two tokens of each answer are counted; drafts may reach this far, so that paths share tokens.
_AHEAD: Final = 8


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how the tokens of the answer are chosen.

    Attributes:
        tokens: the prompt.
        params: of the sampler. A seed must be given unless they are greedy.
    """

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
        n_accepted: draft tokens among them.
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
        gap: logits by which the other token is behind the likeliest one, scored one at a time;
            infinite where the difference cannot come from rounding: the answer is sampled, or one
            text has ended and the other has not.
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
        n_accepted: draft tokens among those of the answer; without any it proves little.
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

    Answers that are sampled are decoded strictly, if the engine has a profile.

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
    engine.renew(drafters, tree=tree, strict=_strict(engine, question.params))
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


def _strict(engine: Engine, params: SamplingParams) -> bool | None:
    """Whether to decode strictly; None leaves that to the engine's configuration."""
    return True if engine.profile is not None and not params.greedy else None


def _explain(engine: Engine, question: Question, plain: Answer, other: Answer) -> Difference:
    pairs = list(zip_longest(plain.tokens, other.tokens))
    position = next(i for i, (a, b) in enumerate(pairs) if a != b)
    gap = worst = math.inf
    # A text that ends elsewhere is no matter of rounding, nor is anything in strict widths.
    if question.params.greedy and None not in pairs[position]:
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
    """Logits by which each token of a greedy answer is behind the one that plain decoding chooses.

    0 for a token that it would choose.
    """
    engine.renew(())
    follower = _Follower(question.params, engine.vocab.n_vocab, tokens)
    engine.session.feed(question.tokens)
    for _ in engine.session.generate(follower, len(tokens), lambda _: False):
        pass
    return follower.gaps


class _Follower(Sampler):
    """Follows a text instead of choosing tokens, and notes how far each is behind the likeliest.

    Args:
        params: how tokens were chosen; penalties count.
        n_vocab: values in a row.
        text: the tokens to follow.

    Attributes:
        gaps: logits by which each of the tokens so far is behind the likeliest one of its row.
    """

    def __init__(self, params: SamplingParams, n_vocab: int, text: Sequence[int]) -> None:
        super().__init__(params, n_vocab)
        self.gaps: list[float] = []
        self._text = iter(text)

    def next(self, logits: NDArray[np.float32]) -> int:
        """The next token of the text."""
        token = next(self._text)
        row = self._row(logits)
        self.gaps.append(float(row.max() - row[token]))
        self._remember(token)
        return token


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
    strict = _strict(engine, question.params)
    engine.renew((), strict=strict)
    expected = _expected(engine, question, n_draws)
    engine.renew(drafters, strict=strict)
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
