"""One generation through Session and the same through a loop that shares no code with it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from specgen.core.cost.model import load_curve
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.errors import ContextFull
from specgen.core.protocols import Drafter
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.text.stream import TextStream
from specgen.drafters.prompt_lookup import PromptLookup
from tests.support.drafting import session_of

from .guessers import AsksAtRandom, Faulty, Letters, Oracle, RandomTree, Stutterer, TriesSizes

DRAFTERS = (
    "none", "random", "oracle", "side oracle", "liar", "stutterer", "faulty", "twins", "lookup",
    "crowd",
)  # fmt: skip
_KNOWING = ("oracle", "side oracle", "liar", "crowd")


@dataclass(frozen=True)
class Case:
    """All that a generation depends on."""

    n_vocab: int
    order: int
    model_seed: int
    prompt: tuple[int, ...]
    params: SamplingParams
    eog: frozenset[int]
    stops: tuple[str, ...]
    max_tokens: int | None
    n_ctx: int
    drafter: str
    budget: int
    branch: bool
    rewind: bool
    judged: bool
    max_leaves: int
    explores: bool = False
    rests: bool = False
    behind: bool = False  # calls are computed while their caller does other things


@dataclass(frozen=True)
class Outcome:
    """What a generation came to."""

    tokens: tuple[int, ...]
    text: str
    finish: str
    next_draw: float  # tells how many random numbers were used


def plain(case: Case) -> Outcome:
    """The reference: one token after another from the whole text, strings searched naively."""
    model = HashModel(case.n_vocab, case.order, case.model_seed)
    vocab = Letters(case.n_vocab, case.eog)
    sampler = Sampler(case.params, case.n_vocab)
    sampler.begin(case.prompt)
    tokens: list[int] = []
    text, finish = "", "length"
    while case.max_tokens is None or len(tokens) < case.max_tokens:
        if len(case.prompt) + len(tokens) > case.n_ctx:
            finish = "context"
            break
        token = sampler.next(model.logits([*case.prompt, *tokens]))
        tokens.append(token)
        if token in case.eog:
            finish = "eog"
            break
        cut, text = _append(text, vocab.piece(token).decode(), case.stops)
        if cut:
            finish = "stop"
            break
    return Outcome(tuple(tokens), text, finish, _next_draw(sampler))


def _append(text: str, piece: str, stops: tuple[str, ...]) -> tuple[bool, str]:
    """Add letter by letter; cut before the stop string that completes first."""
    for letter in piece:
        text += letter
        matches = [stop for stop in stops if text.endswith(stop)]
        if matches:
            return True, text[: -max(map(len, matches))]
    return False, text


def speculative(case: Case) -> Outcome:
    """The same generation through Session; also checks the cache it leaves."""
    limits = fake_limits(
        case.n_vocab,
        n_ctx=case.n_ctx,
        max_leaves=case.max_leaves,
        branch=case.branch,
        rewind=case.rewind,
        computes_behind=case.behind and case.rewind,
    )
    backend = FakeBackend(HashModel(case.n_vocab, case.order, case.model_seed), limits)
    curve = load_curve("mi50") if case.judged else None
    session = session_of(
        backend,
        _drafters(case),
        case.budget,
        acceptance=AcceptanceModel() if case.judged else None,
        pricing=TriesSizes(curve, case.model_seed) if curve and case.explores else curve,
        back_off=AsksAtRandom(case.model_seed) if case.rests else None,
    )
    stream = TextStream(Letters(case.n_vocab, case.eog), case.stops)
    sampler = Sampler(case.params, case.n_vocab)
    tokens: list[int] = []
    text = ""
    finish: str | None = None
    session.feed(case.prompt)
    _check_cache(session, backend)
    try:
        for step in session.generate(sampler, case.max_tokens, stream.push):
            tokens += step.tokens
            text += stream.take()
            assert len(step.tree) - 1 <= case.budget
            _check_cache(session, backend)
        finish = stream.finish_reason or "length"
    except ContextFull:
        finish = "context"
    assert session.tokens == [*case.prompt, *tokens]
    return Outcome(tuple(tokens), text + stream.finish(), finish, _next_draw(sampler))


def _check_cache(session: Session, backend: FakeBackend) -> None:
    """The cache is a proper prefix of the text."""
    assert backend.cached == session.tokens[: backend.length]
    assert backend.length < len(session.tokens)


def _next_draw(sampler: Sampler) -> float:
    return float(sampler._rng.random())


def _drafters(case: Case) -> list[Drafter]:
    n, seed = case.n_vocab, case.model_seed
    truth = [*case.prompt, *plain(case).tokens] if case.drafter in _KNOWING else []
    makers: dict[str, Callable[[], list[Drafter]]] = {
        "none": list,
        "random": lambda: [RandomTree(seed, n, 3)],
        "oracle": lambda: [Oracle(truth, n, decoys=0)],
        "side oracle": lambda: [Oracle(truth, n, decoys=1)],
        "liar": lambda: [Oracle(truth, n, decoys=2, lie=True)],
        "stutterer": lambda: [Stutterer(n)],
        "twins": lambda: [RandomTree(seed, n, 2), RandomTree(seed, n, 2)],
        "lookup": lambda: [PromptLookup()],
        "faulty": lambda: [Faulty(seed, n), RandomTree(seed, n, 2)],
        "crowd": lambda: [Oracle(truth, n, decoys=2), PromptLookup(), RandomTree(seed, n, 2)],
    }
    return makers[case.drafter]()


def random_case(seed: int) -> Case:
    """A case made of a seed, every option at random."""
    rng = random.Random(seed)
    n_vocab = rng.randint(2, 17)
    letters = "abcdefghijklmnopq"[:n_vocab]
    return Case(
        n_vocab=n_vocab,
        order=rng.randint(1, 3),
        model_seed=seed,
        prompt=tuple(rng.randrange(n_vocab) for _ in range(rng.randint(1, 20))),
        params=random_params(rng),
        eog=frozenset(rng.sample(range(n_vocab), rng.choice((0, 0, 1, 2)))),
        stops=tuple(
            "".join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(rng.randint(0, 2))
        ),
        max_tokens=rng.choice((0, 1, 2, 7, 30, 30, 30, None)),
        n_ctx=rng.choice((24, 40, 64)),
        drafter=rng.choice(DRAFTERS),
        budget=rng.randint(0, 16),
        branch=(branch := rng.random() < 0.7),
        rewind=branch or rng.random() < 0.5,
        judged=rng.random() < 0.4,
        max_leaves=rng.choice((1, 2, 16)),
        explores=rng.random() < 0.5,
        rests=rng.random() < 0.3,
        behind=rng.random() < 0.4,
    )


def random_params(rng: random.Random) -> SamplingParams:
    """Sampling parameters, half of them as they are by default."""

    def sometimes(value: float, default: float) -> float:
        return value if rng.random() < 0.5 else default

    return SamplingParams(
        temperature=rng.choice((0.0, 0.3, 0.8, 1.0, 2.0)),
        top_k=rng.choice((0, 1, 3, 40)),
        top_p=sometimes(rng.uniform(0.3, 1), 0.95),
        min_p=sometimes(rng.uniform(0, 0.3), 0.05),
        typical_p=sometimes(rng.uniform(0.3, 1), 1.0),
        repeat_penalty=sometimes(rng.uniform(0.9, 1.5), 1.0),
        repeat_last_n=rng.choice((0, 5, 64, -1)),
        presence_penalty=sometimes(rng.uniform(-0.5, 1), 0.0),
        frequency_penalty=sometimes(rng.uniform(-0.5, 1), 0.0),
        seed=rng.randrange(1000),
    )
