"""The audit: silent about lossless code, it finds what was planted, and tells ties from faults."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from specgen.core.config import EngineConfig
from specgen.core.cost.model import load_curve
from specgen.core.engine import Engine
from specgen.core.errors import ContextFull
from specgen.core.evaluation.lossless import (
    Difference,
    Finding,
    Question,
    Setting,
    answer,
    audit,
    first_tokens,
    gaps_of,
)
from specgen.core.knowledge.profile import Profile
from specgen.core.protocols import Drafter, Limits, Logits
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from specgen.core.verify import Verdict, verify
from specgen.drafters.ensemble import ensemble
from tests.conftest import TinyModel
from tests.support.drafting import session_of
from tests.support.guessers import Letters, Oracle, RandomTree
from tests.support.lossless import random_params

Row = NDArray[np.float32]
Verify = Callable[..., Verdict]

N_VOCAB = 12
OFF = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
TIE = 1.0  # logits; the gap that the command allows
ROUNDED = 0.1  # logits by which `Rounding` rounds


class Rounding(FakeBackend):
    """A fake model whose logits depend a little on the width of the call, but for one row."""

    def wait(self) -> Logits:
        """See Backend."""
        rows = super().wait()
        assert self._scored is not None
        tokens = self._scored.tokens
        if len(tokens) == 1:
            return rows
        tree = tokens[len(tokens) - len(rows) :]
        rng = np.random.default_rng([len(tokens), self.length, *tree])
        return rows + rng.uniform(0, ROUNDED, rows.shape).astype(np.float32)


class FakeEngine:
    """What the audit uses of an engine, over a fake model."""

    def __init__(
        self,
        seed: int = 0,
        *,
        kind: type[FakeBackend] = FakeBackend,
        eog: frozenset[int] = frozenset(),
        limits: Limits | None = None,
    ) -> None:
        self.model = HashModel(N_VOCAB, 3, seed)
        self.vocab = Letters(N_VOCAB, eog)
        self.profile = None
        self.strict = None
        self._backend = kind(self.model, limits or fake_limits(N_VOCAB))
        self.renew(())

    def renew(
        self, drafters: Sequence[Drafter], *, tree: bool | None = None, strict: bool | None = None
    ) -> None:
        """See Engine."""
        assert not strict
        self._backend.rewind(0)
        branch = tree is not False
        self.session = session_of(self._backend, drafters, 12, branch=branch, eog=self.vocab.eog)


def fake(seed: int = 0, **options: Any) -> Engine:
    """A FakeEngine, which the audit takes for an engine."""
    return cast(Engine, FakeEngine(seed, **options))


def settings(seed: int) -> list[Setting]:
    """Drafters that guess well and badly, with side branches and without."""
    makers: dict[str, Callable[[], Sequence[Drafter]]] = {
        "none": list,
        "random": lambda: [RandomTree(seed, N_VOCAB, 4)],
        "recycle": lambda: ensemble("recycle"),
        "lookup": lambda: ensemble("prompt-lookup"),
        "crowd": lambda: [*ensemble("recycle"), RandomTree(seed, N_VOCAB, 3)],
    }
    return [
        Setting(f"{name}, {'tree' if tree else 'chains'}", make, tree=tree)
        for name, make in makers.items()
        for tree in (True, False)
    ]


def question(seed: int, params: SamplingParams | None = None) -> Question:
    """A question of some tokens, answered as `params` say, or at random."""
    rng = random.Random(seed)
    tokens = tuple(rng.randrange(N_VOCAB) for _ in range(rng.randint(1, 20)))
    return Question(tokens, params or random_params(rng))


def differences(findings: Sequence[Finding]) -> list[Difference]:
    return [finding.difference for finding in findings if finding.difference]


def test_lossless_code_shows_no_difference() -> None:
    """Whatever drafts, with side branches and without, and however tokens are chosen."""
    n_accepted = n_answers = 0
    for seed in range(16):
        limits = fake_limits(N_VOCAB, n_ctx=(40, 512)[seed % 2])
        engine = fake(seed, eog=frozenset({3} if seed % 3 == 0 else ()), limits=limits)
        findings = list(audit(engine, [question(seed)], settings(seed), 30))
        assert not differences(findings), seed
        n_answers += len(findings)
        n_accepted += sum(finding.n_accepted for finding in findings)
    assert n_answers == 160
    assert n_accepted > 300


def test_findings_come_in_order() -> None:
    """One for each question and setting, with the length of the answer and the guesses in it."""
    tokens = question(1).tokens
    asked = [Question(tokens, SamplingParams(temperature=0.0)), question(2)]
    engine = fake()
    truth = answer(engine, asked[0], (), 20).tokens
    knows = Setting("knows", lambda: [Oracle([*tokens, *truth], N_VOCAB, decoys=0)], tree=True)
    found = list(audit(engine, asked, [Setting("none", list, tree=False), knows], 20))
    assert [(f.question, f.setting) for f in found] == [
        (i, name) for i in range(2) for name in ("none", "knows")
    ]
    assert found[0] == Finding(0, "none", 20, 0, None)
    assert found[1] == Finding(0, "knows", 20, 18, None)  # two steps: the last token is no guess


def test_an_answer_and_the_widths_of_its_calls() -> None:
    """Each token with the rows of the call that it was sampled from."""
    asked = question(1, SamplingParams(temperature=0.0))
    truth = answer(fake(), asked, (), 20)
    assert truth.widths == (1,) * 20
    drafters = [Oracle([*asked.tokens, *truth.tokens], N_VOCAB, decoys=0)]
    assert answer(fake(), asked, drafters, 20) == replace(
        truth, widths=(13,) * 13 + (7,) * 7, n_accepted=18
    )


def test_a_question_that_does_not_fit() -> None:
    """An answer may meet the end of the context, a question may not."""
    engine = fake(limits=fake_limits(N_VOCAB, n_ctx=30))
    short, long = Question((1,) * 20, OFF), Question((1,) * 31, OFF)
    assert len(answer(engine, replace(short, params=replace(OFF, seed=1)), (), 40).tokens) == 11
    with pytest.raises(ContextFull):
        answer(engine, long, (), 40)


def test_it_can_be_stopped() -> None:
    """`check` is called with every step, and what it raises comes out."""
    calls = iter(range(25))

    def check(*_: object) -> None:
        if next(calls, None) is None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(audit(fake(), [Question((1,), replace(OFF, seed=1))], settings(0), 20, check))
    with pytest.raises(InterruptedError):
        first_tokens(fake(), Question((1,), OFF), (), 50, check)


# Faults. Each one strikes only where something is drafted, as a fault of drafting does.


def typical(
    tree: DraftTree,
    logits: Logits,
    sampler: Sampler,
    limit: int,
    ends: Callable[[int], bool],
) -> Verdict:
    """A guess among the two likeliest tokens is good enough ("typical acceptance")."""
    tokens: list[int] = []
    path: list[int] = []
    node = 0
    while True:
        token = sampler.next(logits[node])
        for likely in np.argsort(logits[node])[-2:].tolist():
            if tree.child(node, likely) is not None:
                token = likely
        tokens.append(token)
        child = tree.child(node, token)
        finished = ends(token)
        if finished or child is None or len(tokens) == limit:
            return Verdict(tuple(tokens), tuple(path), finished)
        path.append(child)
        node = child


class _AskedTwice:
    """A sampler that draws once more for every node that has children."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def next(self, logits: Row) -> int:
        self._sampler._rng.random()
        return self._sampler.next(logits)


def twice(tree: DraftTree, logits: Logits, sampler: Sampler, *rest: Any) -> Verdict:
    """Random numbers are used up twice."""
    asked = sampler if len(tree) == 1 else cast(Sampler, _AskedTwice(sampler))
    return verify(tree, logits, asked, *rest)


class _Forgetful:
    """A sampler whose penalties do not see the tokens that it chooses."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def next(self, logits: Row) -> int:
        recent, counts = self._sampler._recent.copy(), self._sampler._counts.copy()
        token = self._sampler.next(logits)
        self._sampler._recent, self._sampler._counts = recent, counts
        return token


def forgetful(tree: DraftTree, logits: Logits, sampler: Sampler, *rest: Any) -> Verdict:
    """Penalties forget what drafts brought."""
    asked = sampler if len(tree) == 1 else cast(Sampler, _Forgetful(sampler))
    return verify(tree, logits, asked, *rest)


class _Bonus:
    """A sampler that leaves temperature and filters out at the last node of a path."""

    def __init__(self, sampler: Sampler, tree: DraftTree, logits: Logits) -> None:
        self._sampler = sampler
        self._leaves = [logits[leaf] for leaf in tree.leaves]

    def next(self, logits: Row) -> int:
        if not any(np.shares_memory(logits, leaf) for leaf in self._leaves):
            return self._sampler.next(logits)
        bare = Sampler(replace(OFF, seed=0), N_VOCAB)
        bare._rng = self._sampler._rng
        token = bare.next(logits)
        self._sampler._remember(token)
        return token


def bonus(tree: DraftTree, logits: Logits, sampler: Sampler, *rest: Any) -> Verdict:
    """The token after the last accepted guess comes from the logits as they are."""
    asked = sampler if len(tree) == 1 else cast(Sampler, _Bonus(sampler, tree, logits))
    return verify(tree, logits, asked, *rest)


def keeps_wrong_rows(tree: DraftTree, path: Sequence[int]) -> int:
    """Accepted on a side branch, the main chain's rows stay in the cache in its place."""
    return min(len(path), tree.n_main - 1)


GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(seed=5)
PENALIZED = SamplingParams(temperature=0.0, presence_penalty=4.0, repeat_last_n=6)
COLD = SamplingParams(temperature=0.3, top_k=2, seed=5)
FAULTS: dict[str, tuple[str, Callable[..., Any], SamplingParams]] = {
    "typical acceptance, greedy": ("verify", typical, GREEDY),
    "typical acceptance, sampled": ("verify", typical, SAMPLED),
    "rows left in the cache, greedy": ("_accepted_on_main", keeps_wrong_rows, GREEDY),
    "rows left in the cache, sampled": ("_accepted_on_main", keeps_wrong_rows, SAMPLED),
    "asked twice": ("verify", twice, SAMPLED),
    "forgetful penalties": ("verify", forgetful, PENALIZED),
    "bonus token as it is": ("verify", bonus, COLD),
}


def _drafter(fault: Callable[..., Any], seed: int) -> Sequence[Drafter]:
    """Guesses at random; where it takes a whole path to be accepted, short ones that are better."""
    return ensemble("prompt-lookup") if fault is bonus else [RandomTree(seed, N_VOCAB, 4)]


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the place where the texts part: greedy ones by a gap that no rounding makes."""
    where, fault, params = FAULTS[name]
    n_faults = 0
    for seed in range(6):
        engine, asked = fake(seed), question(seed, params)
        plain = answer(engine, asked, (), 60)
        setting = Setting("one", partial(_drafter, fault, seed), tree=True)
        with monkeypatch.context() as patched:
            patched.setattr(f"specgen.core.session.{where}", fault)
            other = answer(engine, asked, setting.drafters(), 60)
            found_all = differences(list(audit(engine, [asked], [setting], 60)))
        if fault is bonus and other.tokens == plain.tokens:  # a text has few bonus tokens
            assert found_all == []
            continue
        (found,) = found_all
        n_faults += found.worst > TIE
        at = next(i for i in range(60) if plain.tokens[i] != other.tokens[i])
        assert (found.position, found.context) == (at, len(asked.tokens) + at)
        assert found.tokens == (plain.tokens[at], other.tokens[at])
        assert found.widths == (1, other.widths[at])
        assert 0 < found.gap <= found.worst
        assert params.greedy or found.gap == math.inf
    assert n_faults >= (3 if fault is bonus else 6)


def test_faults_do_not_strike_plain_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would compare something else."""
    for where, fault, params in FAULTS.values():
        asked = question(1, params)
        plain = answer(fake(1), asked, (), 60)
        with monkeypatch.context() as patched:
            patched.setattr(f"specgen.core.session.{where}", fault)
            assert answer(fake(1), asked, (), 60) == plain


@pytest.mark.parametrize("ends_early", [True, False])
def test_an_end_elsewhere_is_a_fault(ends_early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that is cut short, or goes on behind its end, has no token to be a tie."""

    def ending(tree: DraftTree, logits: Logits, sampler: Sampler, limit: int, ends: Any) -> Verdict:
        if ends_early:
            verdict = verify(tree, logits, sampler, limit, ends)
            return replace(verdict, finished=verdict.finished or len(verdict.path) > 1)
        if len(tree) > 1:
            return replace(verify(tree, logits, sampler, limit, lambda _: False), finished=False)
        return verify(tree, logits, sampler, limit, ends)

    asked = question(4, GREEDY)
    text = answer(fake(4), asked, (), 30).tokens
    last = next(token for token in text[8:] if token not in text[:8])
    eog = frozenset({last} if not ends_early else ())
    plain = answer(fake(4, eog=eog), asked, (), 30).tokens
    setting = Setting("oracle", lambda: [Oracle([*asked.tokens, *text], N_VOCAB, 0)], tree=True)
    monkeypatch.setattr("specgen.core.session.verify", ending)
    (found,) = differences(list(audit(fake(4, eog=eog), [asked], [setting], 30)))
    assert (found.gap, found.worst) == (math.inf, math.inf)
    end = 13 if ends_early else len(plain)  # a call of 13 rows gives as many tokens
    assert found.position == end
    assert found.tokens == ((text[end], None) if ends_early else (None, text[end]))
    assert (found.widths[1] == 0) == ends_early


# Ties.


def test_rounding_is_a_tie() -> None:
    """Gaps of greedy answers are those of the model itself, and no larger than what was rounded."""
    n_different = 0
    for seed in range(14):
        engine, asked = fake(seed, kind=Rounding), question(seed, GREEDY)
        ways = settings(seed)[2:5]
        plain = answer(engine, asked, (), 40).tokens
        for way, finding in zip(ways, audit(engine, [asked], ways, 40), strict=True):
            other = answer(engine, asked, way.drafters(), 40, tree=way.tree)
            if plain == other.tokens:
                assert finding.difference is None
                continue
            n_different += 1
            found = finding.difference
            assert found is not None
            at = next(i for i in range(40) if plain[i] != other.tokens[i])
            assert (found.position, found.widths) == (at, (1, other.widths[at]))
            assert 0 < found.gap <= found.worst <= ROUNDED + 1e-4
            gaps = greedy_gaps(HashModel(N_VOCAB, 3, seed), asked.tokens, other.tokens)
            assert (found.gap, found.worst) == pytest.approx((gaps[at], max(gaps)))
    assert n_different > 5


def greedy_gaps(model: HashModel, asked: Sequence[int], text: Sequence[int]) -> list[float]:
    """How far each token of `text` is behind the likeliest one."""
    rows = [model.logits([*asked, *text[:i]]) for i in range(len(text))]
    return [float(row.max() - row[token]) for row, token in zip(rows, text, strict=True)]


def test_any_difference_of_sampled_answers_is_a_fault() -> None:
    """They are compared where nothing rounds; so one that is as small as rounding is none."""
    found = []
    for seed in range(14):
        asked = question(seed, SamplingParams(seed=seed))
        found += differences(list(audit(fake(seed, kind=Rounding), [asked], settings(seed), 40)))
    assert len(found) > 5
    assert {(difference.gap, difference.worst) for difference in found} == {(math.inf, math.inf)}


def test_gaps_of_a_text() -> None:
    """Penalties count: plain decoding's own text has no gap, other tokens have what they lack."""
    for seed in range(30):
        params = replace(random_params(random.Random(seed)), temperature=0.0)
        engine, asked = fake(seed), question(seed, params)
        text = list(answer(engine, asked, (), 20).tokens)
        assert gaps_of(engine, asked, text) == [0.0] * len(text)
        sampler = Sampler(params, N_VOCAB)
        sampler.begin(asked.tokens)
        for token in text[:7]:
            sampler._remember(token)
        row = sampler._row(HashModel(N_VOCAB, 3, seed).logits([*asked.tokens, *text[:7]]))
        text[7] = int(row.argmin())
        assert gaps_of(engine, asked, text)[:8] == [*[0.0] * 7, float(row.max() - row.min())]


# The distribution.


def per_path(tree: DraftTree, logits: Logits, sampler: Sampler, limit: int, ends: Any) -> Verdict:
    """Each path of the tree is sampled for itself, and the longest match kept, as REST does."""
    best: tuple[int, Verdict] | None = None
    for leaf in tree.leaves:
        nodes = [leaf]
        while nodes[0]:
            nodes.insert(0, tree.parents[nodes[0]])
        chain = DraftTree.from_parents([tree.tokens[i] for i in nodes], range(-1, len(nodes) - 1))
        verdict = verify(chain, logits[nodes], sampler, limit, ends)
        verdict = replace(verdict, path=tuple(nodes[i] for i in verdict.path))
        if best is None or len(verdict.path) > best[0]:
            best = len(verdict.path), verdict
    assert best is not None
    return best[1]


@dataclass(frozen=True)
class _Draws:
    seed: int
    params: SamplingParams

    def fit(self) -> Any:
        asked = Question(question(self.seed).tokens, self.params)
        eog = frozenset({self.seed % N_VOCAB})
        return first_tokens(fake(self.seed, eog=eog), asked, ensemble("recycle"), 300)


DISTRIBUTIONS = [_Draws(seed, params) for seed in range(2) for params in (OFF, SamplingParams())]


def test_first_tokens_have_the_distribution() -> None:
    """300 answers with drafts, at several places, with filters and without."""
    fits = [draws.fit() for draws in DISTRIBUTIONS]
    assert all(fit.is_good for fit in fits)
    assert all(fit.draws == 300 and fit.cells > 1 for fit in fits)
    assert min(fit.p for fit in fits) > 0.001
    assert max(fit.p for fit in fits) > 0.1


def test_a_sampler_that_draws_per_path_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses get a chance for each path, and so come too often."""
    monkeypatch.setattr("specgen.core.session.verify", per_path)
    fits = [draws.fit() for draws in DISTRIBUTIONS]
    assert not any(fit.is_good for fit in fits)
    # As an answer with a seed of its own is another text, the comparison of texts finds it, too.
    asked = question(1, SAMPLED)
    setting = Setting("random", lambda: [RandomTree(1, N_VOCAB, 4)], tree=True)
    assert differences(list(audit(fake(1), [asked], [setting], 60)))[0].worst > TIE


# llama.cpp.

LLAMA = EngineConfig(n_ctx=512, threads=1)


@pytest.fixture
def llama(tiny_model: TinyModel) -> Any:
    """A real engine, with a profile that says what is so for these weights and this context."""
    widths = (2, 3, 4, 5, 8, 12, 16)
    branching = {4: True, 8: True}
    profile = Profile(load_curve("cpu2"), True, None, {128: (widths,)}, {128: branching}, 1.0)
    with Engine(tiny_model("llama", "Q4_0"), (), LLAMA, profile=profile) as engine:
        yield engine


LLAMA_SETTINGS = [
    Setting(name, partial(ensemble, name), tree=tree)
    for name in ("recycle", "auto", "suffix")
    for tree in (True, False)
]


def llama_questions(engine: Engine) -> list[Question]:
    tokens = tuple(engine.tokenize("the cat was in the house and the cat was in the"))
    return [Question(tokens, GREEDY), Question(tokens, SAMPLED)]


@pytest.mark.llama
def test_llama_is_lossless(llama: Engine) -> None:
    """With weights whose kernels round alike, and with the distribution of plain decoding."""
    asked = llama_questions(llama)
    findings = list(audit(llama, asked, LLAMA_SETTINGS, 40))
    assert len(findings) == 12
    assert not differences(findings)
    assert sum(finding.n_accepted for finding in findings) > 20
    draws = first_tokens(llama, replace(asked[0], params=OFF), ensemble("recycle"), 100)
    assert draws.is_good
    assert draws.draws == 100


@pytest.mark.llama
def test_sampled_answers_have_strict_widths(llama: Engine) -> None:
    """Though the configuration is not strict; greedy ones have the widths that users have."""
    greedy, sampled = (answer(llama, asked, (), 20) for asked in llama_questions(llama))
    assert set(greedy.widths) == {1}
    assert set(sampled.widths) == {2}
    drafters = ensemble("recycle")
    assert set(answer(llama, llama_questions(llama)[1], drafters, 40).widths) > {2}


@pytest.mark.llama
@pytest.mark.parametrize("name", ["typical acceptance", "rows left in the cache"])
def test_faults_in_llama_are_found(
    name: str, llama: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and sampled."""
    where, fault, _ = FAULTS[f"{name}, greedy"]
    monkeypatch.setattr(f"specgen.core.session.{where}", fault)
    for asked in llama_questions(llama):
        findings = list(audit(llama, [asked], LLAMA_SETTINGS, 200))
        assert max(found.worst for found in differences(findings)) > TIE, asked.params
