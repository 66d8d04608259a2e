"""A draft model: what it reads, what it guesses, when it is asked, and as a user has it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.budget import Subject, plan_for
from specgen.core.builder import Builder
from specgen.core.config import EngineConfig
from specgen.core.cost import MAX_ROWS, CostModel
from specgen.core.dear import pays
from specgen.core.draft import open_draft
from specgen.core.errors import UsageError
from specgen.core.llama import LlamaModel
from specgen.core.modelinfo import ModelInfo, read_headers
from specgen.core.profile import Profile
from specgen.core.protocols import Candidate, Effort, Logits, Tokens
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.testing import FakeBackend, HashModel, fake_limits
from specgen.core.tracker import CostTracker
from specgen.core.tree import DraftTree
from specgen.drafters.draft_model import ALONE, DraftModel

from . import command
from .conftest import TinyModel
from .headers import MADE

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

    def score(self, tree: DraftTree, lead: Sequence[int]) -> Logits:
        """See Backend."""
        self.n_read += len(tree) + len(lead)
        return super().score(tree, lead)


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
    assert backend.n_read == len(TEXT) + 4  # the fifth was guessed, not read
    assert chain(drafter, 5) == guessed  # asked again, nothing is read
    assert backend.n_read == len(TEXT) + 4
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
    session = Session(target, [drafter], 16)
    session.feed(TEXT)
    sampler = Sampler(SamplingParams(temperature=0), N_VOCAB)
    steps = list(session.generate(sampler, 60, lambda _: False))
    return session.tokens[len(TEXT) :], len(steps)


@pytest.mark.parametrize("draft_seed", [0, 1])
def test_the_text_is_the_targets(draft_seed: int) -> None:
    """Whether the draft model is the target itself or another; alone, it guesses 4 at a time."""
    drafter = DraftModel(Reading(draft_seed), alone=True)
    text, n_steps = steps_of(drafter, seed=0)
    assert text == likeliest(TEXT, 60)
    if draft_seed == 0:
        assert n_steps == 60 // (ALONE + 1)
    else:
        assert n_steps > 30


def test_its_hope_follows_its_guesses() -> None:
    """How often the first guess is right; each text begins with a trial."""
    drafter = begun(Reading())
    on_trial = drafter.effort
    assert on_trial.seconds > 0
    assert on_trial.reading == pytest.approx(len(TEXT) * on_trial.seconds / 2)
    hopes = []
    for wrong in (0, 1):
        for _ in range(40):
            token = (chain(drafter, 1)[0] + wrong) % N_VOCAB
            observe(drafter, [token])
        hopes.append(drafter.effort.hope)
    assert hopes[0] > 0.95 > on_trial.hope > 0.8 > 0.2 > hopes[1]
    assert drafter.effort.reading < on_trial.reading
    drafter.begin(np.array(TEXT, np.int32))
    assert drafter.effort.hope == on_trial.hope


def best_speedup(hope: float, seconds: float, plain: float, slope: float) -> float:
    """Of chains of 1 to 16 guesses, written out: tokens of each outcome by its chance."""
    best = 0.0
    for n in range(1, 17):
        tokens = sum((i + 1) * hope**i * (1 - hope) for i in range(n)) + (n + 1) * hope**n
        best = max(best, tokens * plain / (plain + n * (slope + seconds)))
    return best


@given(
    hope=st.floats(0.05, 0.99),
    seconds=st.floats(0, 3),
    slope=st.floats(0, 2),
    n_lead=st.integers(0, 3),
)
def test_it_is_asked_where_the_best_length_gains(
    hope: float, seconds: float, slope: float, n_lead: int
) -> None:
    """By more than 5 %, with nothing to be read first; and not if reading takes forever."""
    row = [1.0] * n_lead + [1.0 + slope * i for i in range(MAX_ROWS - n_lead)]
    speedup = best_speedup(hope, seconds, 1.0, slope)
    if abs(speedup - 1.05) > 1e-6:
        assert pays(Effort(seconds, hope, 0.0), row, n_lead) == (speedup > 1.05)
    assert not pays(Effort(seconds, hope, 1e6), row, n_lead)


class Dear:
    """One guess everywhere, at so many seconds."""

    name = "dear"

    def __init__(self, seconds: float, prob: float = 0.8) -> None:
        self.effort = Effort(seconds, prob, 0.0)
        self.n_asked = 0
        self._prob = prob

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
    drafter = Dear(seconds)
    last = 10.0 + MAX_ROWS - 1
    pricing = CostModel((1, MAX_ROWS), (0,), ((10.0, last),))
    builder = Builder([drafter], 5, max_leaves=8, branch=True, pricing=pricing)
    builder.build(0, 99, 99)
    assert drafter.n_asked == n_asked


def test_a_model_that_cannot_draft(tiny_model: TinyModel, tmp_path: Path) -> None:
    """A state cannot undo a guess; and other tokens cannot be guessed with."""
    target = LlamaModel(tiny_model())
    with ExitStack() as stack:
        stack.callback(target.close)
        with pytest.raises(UsageError, match="cannot draft: a recurrent model"):
            open_draft(tiny_model("mamba"), target, 512, EngineConfig(), stack)
        other = with_other_tokens(tiny_model(), tmp_path / "other.gguf")
        with pytest.raises(UsageError, match=r"cannot draft: \d+% of its tokens are not"):
            open_draft(other, target, 512, EngineConfig(), stack)


def with_other_tokens(model: Path, copy: Path) -> Path:
    """The same model, with another letter for each letter."""
    copy.write_bytes(model.read_bytes())
    reader = gguf.GGUFReader(copy, "r+")
    tokens = reader.fields["tokenizer.ggml.tokens"]
    for part in (tokens.parts[i] for i in tokens.data[5:]):
        part[:] = np.where((part >= ord("a")) & (part <= ord("z")), 219 - part, part)
    return copy


def test_a_session_heeds_the_effort() -> None:
    """A drafter that takes too long is never asked, one that does not in every step."""
    for seconds in (1e9, 1e-9):
        drafter = Dear(seconds)
        pricing = CostTracker(CostModel((1, MAX_ROWS), (0,), ((1.0, 2.0),)))
        target = FakeBackend(HashModel(N_VOCAB, 3), fake_limits(N_VOCAB))
        session = Session(target, [drafter], 1, pricing=pricing)
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
    short = plan("-md", endless, "--memory-budget", str(beside["needs"]["least"]))
    assert "draft model left out" in short["concessions"]
    assert short["plan"]["draft"] == 0


def test_on_a_gpu_both_take_room(tmp_path: Path) -> None:
    """The draft model's layers are offloaded, too."""
    headers = read_headers(MADE["1b"].write(tmp_path / "m.gguf"))
    info = ModelInfo.from_headers(headers)
    subject = Subject(headers, info, frozenset(), lambda *_: 0, device=1 << 40, draft=headers)
    config = EngineConfig(n_ctx=1024)
    alone = plan_for(subject, config)
    beside = plan_for(subject, replace(config, draft_model=tmp_path / "m.gguf"))
    assert 1.9 * alone.device < beside.device <= 2 * alone.device
    assert beside.total == alone.total + beside.draft
