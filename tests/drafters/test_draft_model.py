"""A draft model: what it reads, what it guesses, when it is asked, and as a user has it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.config import ContextConfig, EngineConfig
from specgen.core.cost.model import MAX_ROWS, CostModel
from specgen.core.cost.online import CostTracker
from specgen.core.drafting.effort import worth_starting
from specgen.core.drafting.schedule import BackOff
from specgen.core.engine import Engine
from specgen.core.errors import UsageError
from specgen.core.knowledge.profile import Profile
from specgen.core.llama.backend import LlamaModel
from specgen.core.llama.draft_model import open_draft
from specgen.core.memory.budget import PlanInputs, fit, least, plan_for
from specgen.core.models.modelinfo import ModelInfo, read_headers
from specgen.core.protocols import Candidate, DraftCost, Logits, Tokens
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from specgen.drafters.draft_model import STANDALONE, DraftModel
from tests.conftest import TinyModel
from tests.support import command
from tests.support.drafting import TreeMaker, session_of
from tests.support.guessers import Oracle
from tests.support.headers import MADE

N_VOCAB = 40
TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


class Reading(FakeBackend):
    """Takes down how many tokens are read, and in how many calls."""

    def __init__(self, seed: int = 0, n_vocab: int = N_VOCAB, n_ctx: int = 512) -> None:
        limits = fake_limits(n_vocab, n_ctx=n_ctx, max_rows=4, branch=False)
        super().__init__(HashModel(n_vocab, order=3, seed=seed), limits)
        self.n_read = 0

    def prefill(self, tokens: Tokens) -> None:
        """See Backend."""
        self.n_read += len(tokens)
        super().prefill(tokens)

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """See Backend."""
        self.n_read += len(tree) + len(pending)
        super().submit(tree, pending)


def begun(backend: FakeBackend, text: Sequence[int] = TEXT, **options: Any) -> DraftModel:
    """A drafter that has begun, and read nothing yet but to see what a pass takes."""
    drafter = DraftModel(backend, **options)
    drafter.begin(np.array(text, np.int32))
    if isinstance(backend, Reading):
        backend.n_read = 0
    return drafter


def chain(drafter: DraftModel, length: int) -> list[int]:
    """Its likeliest tokens, one after another."""
    state = drafter.root()
    for _ in range(length):
        assert state is not None
        state = drafter.advance(state, drafter.predict(state)[0].token)
    return list(state or ())


def likeliest(text: Sequence[int], length: int, seed: int = 0) -> list[int]:
    """What the model itself writes, by the model alone."""
    model, text = HashModel(N_VOCAB, order=3, seed=seed), list(text)
    for _ in range(length):
        text.append(int(model.logits(text).argmax()))
    return text[-length:]


def observe(drafter: DraftModel, tokens: Sequence[int]) -> None:
    """The text grew."""
    drafter.observe(tokens, DraftTree.root(0), np.empty((1, 0), np.float32))


def test_it_guesses_what_the_model_writes() -> None:
    """With the softmax of its logits as the chance, rivals beside the first guess."""
    drafter = begun(FakeBackend(HashModel(N_VOCAB, 3), fake_limits(N_VOCAB, branch=False)))
    logits = HashModel(N_VOCAB, 3).logits(TEXT).astype(np.float64)
    probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-probs)[:4]
    guesses = drafter.predict(drafter.root() or ())
    assert [guess.token for guess in guesses] == best.tolist()
    assert [guess.prob for guess in guesses] == pytest.approx(probs[best].tolist(), rel=1e-4)
    assert chain(drafter, 6) == likeliest(TEXT, 6)


def test_every_token_is_read_once() -> None:
    """Right guesses stay in the cache, wrong ones go, and the text is never read again."""
    backend = Reading()
    drafter = begun(backend)
    guessed = chain(drafter, 5)
    unread = len(TEXT) - backend.limits.chunk  # the beginning was, to see how long it takes
    assert backend.n_read == unread + 4  # the fifth was guessed, not read
    assert chain(drafter, 5) == guessed  # asked again, nothing is read
    assert backend.n_read == unread + 4
    observe(drafter, [*guessed[:3], (guessed[3] + 1) % N_VOCAB])  # three right ones
    backend.n_read = 0
    text = [*TEXT, *guessed[:3], (guessed[3] + 1) % N_VOCAB]
    assert chain(drafter, 2) == likeliest(text, 2)
    assert backend.n_read == 1 + 1  # the wrong one's rival, and a guess
    assert backend.cached == [*text, *likeliest(text, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_it_never_loses_the_text(seed: int) -> None:
    """Whatever follows: guesses, some of them, or others of the same tokens, drafted or not."""
    rng = random.Random(seed)
    backend, text = Reading(), list(TEXT)
    drafter = begun(backend)
    for _ in range(60):
        guessed = chain(drafter, rng.randint(0, 4))
        emitted = guessed[: rng.randint(0, len(guessed))]
        emitted += rng.choices([*guessed, 5, 7], k=rng.randint(1, 3))
        observe(drafter, emitted)
        text += emitted
        if rng.random() < 0.1:
            text = [*text[: rng.randint(1, len(text))], *emitted, 3]
            drafter.begin(np.array(text, np.int32))
        if rng.random() < 0.5:
            assert chain(drafter, 2) == likeliest(text, 2)
            assert backend.cached == [*text, *likeliest(text, 1)]


def test_another_turn_goes_on_where_the_last_one_ended() -> None:
    """What both texts begin with is not read again; a shorter text neither."""
    backend = Reading()
    drafter = begun(backend)
    chain(drafter, 2)
    longer = [*TEXT, 7, 7, 7]
    drafter.begin(np.array(longer, np.int32))
    backend.n_read = 0
    assert chain(drafter, 1) == likeliest(longer, 1)
    assert backend.n_read == 3
    drafter.begin(np.array(TEXT[:5], np.int32))
    assert chain(drafter, 1) == likeliest(TEXT[:5], 1)
    assert backend.n_read == 3 + 1  # the last one, for its logits


def test_another_drafter_on_the_same_model_begins_anew() -> None:
    """As a benchmark makes one for each prompt, even where the first one filled the context."""
    backend = Reading(n_ctx=len(TEXT) + 2)
    chain(begun(backend), 2)
    second = begun(backend, TEXT[2:8])
    assert chain(second, 3) == likeliest(TEXT[2:8], 3)
    assert backend.cached == [*TEXT[2:8], *likeliest(TEXT[2:8], 2)]


def test_a_text_that_it_cannot_read() -> None:
    """Tokens that the draft model does not have, or more than it was trained for: no guesses."""
    assert begun(Reading(n_vocab=8)).root() is None
    small = begun(Reading(n_ctx=len(TEXT) + 2))
    assert len(chain(small, 2)) == 2
    assert small.predict(tuple(likeliest(TEXT, 3))) == ()
    observe(small, [1, 2, 3])
    assert small.root() is None


def steps_of(drafter: DraftModel, seed: int) -> tuple[list[int], int]:
    """60 tokens by a target, and how many calls they took."""
    target = FakeBackend(HashModel(N_VOCAB, 3, seed), fake_limits(N_VOCAB))
    session = session_of(target, [drafter], 16)
    session.feed(TEXT)
    sampler = Sampler(SamplingParams(temperature=0), N_VOCAB)
    steps = list(session.generate(sampler, 60, lambda _: False))
    return session.tokens[len(TEXT) :], len(steps)


@pytest.mark.parametrize("draft_seed", [0, 1])
def test_the_text_is_the_targets(draft_seed: int) -> None:
    """Whether the draft model is the target itself or another; alone, it guesses 4 at a time."""
    drafter = DraftModel(Reading(draft_seed), standalone=True)
    text, n_steps = steps_of(drafter, seed=0)
    assert text == likeliest(TEXT, 60)
    if draft_seed == 0:
        assert n_steps == 60 // (STANDALONE + 1)
    else:
        assert n_steps > 30


def test_its_chance_follows_its_guesses() -> None:
    """How often the first guess is right; each text begins with a trial."""
    drafter = begun(Reading())
    on_trial = drafter.effort
    assert on_trial.seconds > 0
    assert on_trial.reading > 0
    chances = []
    for wrong in (0, 1):
        for _ in range(40):
            token = (chain(drafter, 1)[0] + wrong) % N_VOCAB
            observe(drafter, [token])
        chances.append(drafter.effort.chance)
    assert chances[0] > 0.95 > on_trial.chance > 0.8 > 0.2 > chances[1]
    assert drafter.effort.reading < on_trial.reading
    drafter.begin(np.array(TEXT, np.int32))
    assert drafter.effort.chance == on_trial.chance


def best_speedup(chance: float, seconds: float, plain: float, slope: float, room: int) -> float:
    """Of chains of up to 16 guesses, written out: tokens of each outcome by its chance."""
    best = 0.0
    for n in range(1, min(room, 16) + 1):
        tokens = sum((i + 1) * chance**i * (1 - chance) for i in range(n)) + (n + 1) * chance**n
        best = max(best, tokens * plain / (plain + n * (slope + seconds)))
    return best


@given(
    chance=st.floats(0.05, 0.99),
    seconds=st.floats(0, 3),
    slope=st.floats(0, 2),
    n_pending=st.integers(0, 3),
    room=st.integers(1, 20),
    rate=st.sampled_from([1.05, 1.5, 3.0]),
)
def test_it_is_asked_where_the_best_length_gains(
    chance: float, seconds: float, slope: float, n_pending: int, room: int, rate: float
) -> None:
    """On what there is without it, with nothing to be read first; and not if that takes forever."""
    row = [1.0] * n_pending + [1.0 + slope * i for i in range(MAX_ROWS - n_pending)]
    speedup = best_speedup(chance, seconds, 1.0, slope, room)
    if abs(speedup - rate) > 1e-6:
        assert worth_starting(DraftCost(seconds, chance, 0.0), row, n_pending, room, rate) == (
            speedup > rate
        )
    assert not worth_starting(DraftCost(seconds, chance, 1e6), row, n_pending, room, rate)


class SlowDrafter:
    """One guess everywhere, at so many seconds."""

    name = "slow"
    reads_logits = False

    def __init__(self, seconds: float, prob: float = 0.8) -> None:
        self._effort = DraftCost(seconds, prob, 0.0)
        self.n_asked = 0
        self._prob = prob

    @property
    def effort(self) -> DraftCost:
        """See ModelDrafter."""
        return self._effort

    def begin(self, context: Tokens) -> None:
        """See Drafter."""

    def root(self) -> int:
        """See Drafter."""
        return 0

    def predict(self, state: int) -> Sequence[Candidate]:
        """See Drafter."""
        self.n_asked += 1
        return [Candidate(state + 1, (self.name,), self._prob)]

    def advance(self, state: int, token: int) -> int:
        """See Drafter."""
        return state + 1

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""


@pytest.mark.parametrize(("seconds", "n_asked"), [(0.1, 5), (3.0, 4), (4.0, 3), (6.0, 1), (6.3, 0)])
def test_it_is_asked_on_where_a_right_guess_saves_more(seconds: float, n_asked: int) -> None:
    """A plain call takes 10 s and each row 1 s more; guesses are right 8 times in 10.

    Below the first guess 6.4, 5.1, 4.1, 3.3, … s can be paid for an answer and its row. To ask at
    all, (1 + 0.8) / (11 + seconds) must be more than 1.05 / 10, and longer chains ask for more.
    """
    drafter = SlowDrafter(seconds)
    last = 10.0 + MAX_ROWS - 1
    pricing = CostModel((1, MAX_ROWS), (0,), ((10.0, last),))
    builder = TreeMaker([drafter], 5, max_leaves=8, branch=True, pricing=pricing)
    builder.build(0, 99, 99)
    assert drafter.n_asked == n_asked


def test_a_model_that_cannot_draft(tiny_model: TinyModel, tmp_path: Path) -> None:
    """A state cannot undo a guess; and other tokens cannot be guessed with."""
    target = LlamaModel(tiny_model())
    with ExitStack() as stack:
        stack.callback(target.close)
        with pytest.raises(UsageError, match="cannot draft: a recurrent model"):
            open_draft(tiny_model("mamba"), target, ContextConfig(512), None, stack)
        other = with_other_tokens(tiny_model(), tmp_path / "other.gguf")
        with pytest.raises(UsageError, match=r"cannot draft: \d+% of its tokens are not"):
            open_draft(other, target, ContextConfig(512), None, stack)


def with_other_tokens(model: Path, copy: Path) -> Path:
    """The same model, with another letter for each letter."""
    copy.write_bytes(model.read_bytes())
    reader = gguf.GGUFReader(copy, "r+")
    tokens = reader.fields["tokenizer.ggml.tokens"]
    for part in (tokens.parts[i] for i in tokens.data[5:]):
        part[:] = np.where((part >= ord("a")) & (part <= ord("z")), 219 - part, part)
    return copy


@pytest.mark.parametrize(("room", "depth", "asked"), [(1, 9, False), (9, 1, False), (9, 9, True)])
def test_it_is_not_asked_where_only_longer_chains_pay(room: int, depth: int, asked: bool) -> None:
    """The first further row is dear, others are not."""
    drafter = SlowDrafter(0.01, prob=0.9)
    pricing = CostModel((1, 2, MAX_ROWS), (0,), ((1.0, 1.85, 2.0),))
    builder = TreeMaker([drafter], room, max_leaves=8, branch=True, pricing=pricing)
    builder.build(0, 99, depth)
    assert (drafter.n_asked > 0) == asked


@pytest.mark.parametrize("sure", [True, False])
def test_it_is_not_asked_where_others_know_as_much(sure: bool) -> None:
    """A copy that is nearly certain promises more than a chain that takes time to make."""
    copy = Oracle(range(40) if sure else [], 64, decoys=0)
    dear = SlowDrafter(3.0, prob=0.9)
    pricing = CostModel((1, MAX_ROWS), (0,), ((10.0, 10.0 + MAX_ROWS - 1),))
    builder = TreeMaker([copy, dear], 16, max_leaves=8, branch=True, pricing=pricing)
    copy.begin(np.array([0], np.int32))
    builder.build(0, 99, 99)
    assert (dear.n_asked == 0) == sure
    assert (builder.choice and builder.choice.asked_slow) != sure


class Counting(Oracle):
    """Counts how often it is asked."""

    n_asked = 0

    def predict(self, state: Any) -> Sequence[Candidate]:
        """See Drafter."""
        self.n_asked += 1
        return super().predict(state)


class Lost(SlowDrafter):
    """Would pay, but knows nothing of this text."""

    def root(self) -> Any:
        """See Drafter."""
        return None


@pytest.mark.parametrize(
    "costly", [SlowDrafter(9e9), Lost(1e-9, prob=0.99)], ids=["too dear", "lost"]
)
def test_where_it_is_not_asked_the_others_are_asked_once(costly: SlowDrafter) -> None:
    """As often as without it; and its text does not count as one that it was asked for."""
    counts = []
    for others in ([], [costly]):
        copy = Counting(range(10), 64, decoys=2)
        pricing = CostModel((1, MAX_ROWS), (0,), ((10.0, 11.0),))
        drafters: list[Any] = [copy, *others]
        builder = TreeMaker(drafters, 16, max_leaves=8, branch=True, pricing=pricing)
        copy.begin(np.array([0], np.int32))
        builder.build(0, 99, 99)
        assert not (builder.choice and builder.choice.asked_slow)
        counts.append(copy.n_asked)
    assert counts[0] == counts[1] > 3


def test_one_whose_effort_fails_is_switched_off() -> None:
    """As one that fails in any other way; the text goes on."""

    class Failing(SlowDrafter):
        @property
        def effort(self) -> DraftCost:
            raise RuntimeError("no idea")

    target = FakeBackend(HashModel(N_VOCAB, 3), fake_limits(N_VOCAB))
    pricing = CostTracker(CostModel((1, MAX_ROWS), (0,), ((1.0, 2.0),)))
    drafter = Failing(0.1)
    session = session_of(target, [drafter], 4, pricing=pricing)
    session.feed(TEXT)
    sampler = Sampler(SamplingParams(temperature=0), N_VOCAB)
    list(session.generate(sampler, 20, lambda _: False))
    assert session.tokens[len(TEXT) :] == likeliest(TEXT, 20)
    assert drafter.n_asked == 0


def test_a_session_heeds_the_effort() -> None:
    """A drafter that takes too long is never asked, one that does not in every step.

    Even where it gains nothing: it is not for the pace of the others to say.
    """
    for seconds in (1e9, 1e-9):
        drafter = SlowDrafter(seconds)
        pricing = CostTracker(CostModel((1, MAX_ROWS), (0,), ((1e-6, 2e-6),)))
        target = FakeBackend(HashModel(N_VOCAB, 3), fake_limits(N_VOCAB))
        session = session_of(target, [drafter], 1, pricing=pricing, back_off=BackOff())
        session.feed(TEXT)
        sampler = Sampler(SamplingParams(temperature=0), N_VOCAB)
        n_steps = len(list(session.generate(sampler, 20, lambda _: False)))
        assert drafter.n_asked == (0 if seconds > 1 else n_steps - 1)  # the last has no room


FLAT = CostModel((1, MAX_ROWS), (0,), ((1.0, 1.1),))  # s; a tiny model takes a thousandth of it
PROFILE = Profile(FLAT, True, None, {128: ((1, 2, 4, 8),)}, {128: {2: True, 4: True}}, 1.0)


@pytest.mark.parametrize("drafter", ["none", "auto"])
def test_generate_with_a_draft_model(
    drafter: str, endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's own text; what the draft model guessed is told: being the same, all is right."""
    monkeypatch.setattr("specgen.cli.run.find_profile", lambda *_: PROFILE)
    words = ("--greedy", "-n", "40", "-p", "the sea", "-c", "512", "--no-learn")
    plain = command.record_of(endless, *words, "--drafter", "none")
    drafted = command.record_of(endless, *words, "--drafter", drafter, "-md", endless)
    assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]
    guesses = drafted["specgen"]["by_drafter"]["draft-model"]
    assert guesses["accepted"] > 5
    missing = command.generate(endless, *words, "-md", tmp_path / "missing.gguf")
    assert missing.code == 3
    assert "missing.gguf" in missing.err


@pytest.mark.parametrize(
    "words", [("--strict",), ("--tree", "on"), ("--predicted-output", "FILE"), ("-c", "200")]
)
def test_a_draft_model_beside_other_options(
    words: tuple[str, ...], endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text stays; the context may be longer than the draft model can read."""
    (tmp_path / "FILE").write_text("the sea the sea the sea")
    monkeypatch.chdir(tmp_path)
    for place in ("cli.run.find_profile", "cli.run.ensure_profile"):
        monkeypatch.setattr(f"specgen.{place}", lambda *_: PROFILE)
    monkeypatch.setattr(LlamaModel, "__init__", shorter(LlamaModel.__init__, tmp_path / "s.gguf"))
    (tmp_path / "s.gguf").write_bytes(endless.read_bytes())
    line = ("--greedy", "-n", "60", "-p", "the sea", "--no-learn", *words)
    plain = command.record_of(endless, *line, "--drafter", "none")
    drafted = command.record_of(endless, *line, "-md", tmp_path / "s.gguf")
    assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]


def shorter(init: Callable[..., None], path: Path) -> Callable[..., None]:
    """A model in `path` is said to be trained for 32 tokens."""

    def initialize(self: LlamaModel, *args: Any) -> None:
        init(self, *args)
        if args[0] == path:
            self.n_ctx_train = 32

    return initialize


def test_no_drafts_need_no_draft_model(endless: Path, tiny_model: TinyModel) -> None:
    """It is neither planned nor opened; and one that cannot draft is refused before that."""
    plan = json.loads(
        command.run("plan", endless, "-md", endless, "--draft-max", "0", "--json").out
    )
    assert plan["plan"]["draft"] == 0
    refused = command.run("plan", endless, "-md", tiny_model("mamba"))
    assert (refused.code, refused.out) == (2, "")
    assert "cannot draft: a recurrent model" in refused.err
    config = EngineConfig(n_ctx=256, max_drafts=0, draft_model=tiny_model("mamba"))
    with Engine(endless, (), config) as engine:
        assert engine.draft is None


def test_an_unknown_price_is_told(endless: Path) -> None:
    """Without a measured curve nobody knows whether it pays."""
    outcome = command.generate(endless, "-md", endless, "-n", "2", "-p", "a")
    assert outcome.code == 0
    assert "is not known: `specgen calibrate" in outcome.err


def test_a_tight_budget_with_heads_that_no_quantized_cache_stores(tmp_path: Path) -> None:
    """The draft model's cache is not quantized with the target's."""
    headers = read_headers(MADE["1b"].write(tmp_path / "m.gguf"))
    odd = replace(MADE["1b"], head=80)
    others = read_headers(odd.write(tmp_path / "d.gguf"))
    info = ModelInfo.from_headers(headers)
    subject = PlanInputs(headers, info, frozenset(), lambda *_: 0, draft=others)
    config = EngineConfig(draft_model=tmp_path / "d.gguf")
    asked = replace(config, type_k="q4_0", type_v="q4_0", flash_attention=True)
    assert plan_for(subject, asked).draft == plan_for(subject, config).draft
    smallest = least(subject, config).total
    for budget in (smallest, smallest + (50 << 20), smallest + (500 << 20)):
        assert fit(subject, config, budget).plan.total <= budget


def test_the_plan_has_it(endless: Path) -> None:
    """A term of its own, and the first to go where drafts are to be given up."""

    def plan(*words: str | Path) -> Any:
        return json.loads(command.run("plan", endless, "--json", *words).out)

    without, beside = plan(), plan("-md", endless)
    assert without["plan"]["draft"] == 0
    # The same model again, but for the process and the drafters' tables.
    again = without["plan"]["total"] - without["plan"]["baseline"] - without["plan"]["drafters"]
    assert 0.5 * again < beside["plan"]["draft"] <= again
    assert beside["plan"]["total"] == without["plan"]["total"] + beside["plan"]["draft"]
    words = ("-c", "512", "--drafter", "suffix,prompt-lookup", "--no-learn")
    budget = plan(*words)["plan"]["total"]
    short = plan(*words, "-md", endless, "--memory-budget", str(budget))
    assert short["concessions"] == ["draft model left out"]
    assert short["plan"]["draft"] == 0


def test_on_a_gpu_both_take_room(tmp_path: Path) -> None:
    """The draft model's layers are offloaded, too."""
    headers = read_headers(MADE["1b"].write(tmp_path / "m.gguf"))
    info = ModelInfo.from_headers(headers)
    subject = PlanInputs(headers, info, frozenset(), lambda *_: 0, device=1 << 40, draft=headers)
    config = EngineConfig(n_ctx=1024)
    standalone = plan_for(subject, config)
    beside = plan_for(subject, replace(config, draft_model=tmp_path / "m.gguf"))
    assert 1.9 * standalone.device < beside.device <= 2 * standalone.device
    assert beside.total == standalone.total + beside.draft


def test_copies_of_both_models_are_copies(tmp_path: Path) -> None:
    """Their originals are not read again, so the system may drop them."""
    headers = read_headers(MADE["1b"].write(tmp_path / "m.gguf"))
    features = frozenset({"AVX2", "REPACK"})
    subject = PlanInputs(headers, ModelInfo.from_headers(headers), features, lambda *_: 0)
    subject = replace(subject, draft=headers)
    config = EngineConfig(n_ctx=1024)
    standalone = plan_for(subject, config)
    beside = plan_for(subject, replace(config, draft_model=tmp_path / "m.gguf"))
    assert beside.copies == 2 * standalone.copies > 0
    assert beside.used == standalone.used + beside.draft
