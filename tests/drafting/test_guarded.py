"""A drafter that fails or lies costs its drafts, and nothing else."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.drafting.guarded import MOST_CANDIDATES, SafeDrafter, find_fault
from specgen.core.protocols import Candidate, Drafter, Logits, Tokens
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from specgen.drafters.prompt_lookup import PromptLookup
from tests.support.command import run, text_of
from tests.support.drafting import TreeMaker, session_of
from tests.support.guessers import Faulty, Oracle, RandomTree, lies

N_VOCAB = 9
CALLS = ("begin", "root", "predict", "advance", "observe")
PROMPT = [0, 1, 0]
NO_LOGITS = np.empty((0, N_VOCAB), np.float32)

each_call = pytest.mark.parametrize("call", CALLS)


class Spy(RandomTree):
    """Guesses at random; from its call number `fails_at` of `fails_in` on, it raises `error`."""

    name = "spy"
    effort = None
    reads_logits = False

    def __init__(self, fails_in: str = "", fails_at: int = 0, error: Any = None) -> None:
        super().__init__(5, N_VOCAB, 3)
        self.calls = dict.fromkeys(CALLS, 0)
        self._fails_in, self._fails_at = fails_in, fails_at
        self._error = error or ZeroDivisionError("in the midst\n of it")

    def _call(self, call: str) -> None:
        self.calls[call] += 1
        if call == self._fails_in and self.calls[call] > self._fails_at:
            raise self._error

    def begin(self, context: Tokens) -> None:
        self._call("begin")
        super().begin(context)

    def root(self) -> Any:
        self._call("root")
        return super().root()

    def predict(self, state: Any) -> Sequence[Candidate]:
        self._call("predict")
        return super().predict(state)

    def advance(self, state: Any, token: int) -> Any:
        self._call("advance")
        return super().advance(state, token)

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        self._call("observe")
        super().observe(emitted, tree, logits)


def plain(n_tokens: int) -> list[int]:
    """The text without drafts, by a loop of its own."""
    model, sampler = HashModel(N_VOCAB, 2, 3), Sampler(SamplingParams(seed=1), N_VOCAB)
    text = list(PROMPT)
    sampler.begin(text)
    while len(text) < len(PROMPT) + n_tokens:
        text.append(sampler.next(model.logits(text)))
    return text


def begun(*drafters: Drafter, judged: bool = False) -> Session:
    """A session on the model of `plain`, fed with the prompt."""
    backend = FakeBackend(HashModel(N_VOCAB, 2, 3), fake_limits(N_VOCAB))
    session = session_of(backend, drafters, 8, acceptance=AcceptanceModel() if judged else None)
    session.feed(PROMPT)
    return session


def write(session: Session, n_tokens: int) -> list[int]:
    """The text after `n_tokens` more tokens, sampled like `plain`."""
    sampler = Sampler(SamplingParams(seed=1), N_VOCAB)
    list(session.generate(sampler, n_tokens, lambda _: False))
    return session.tokens


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of drafters, all of it warnings."""
    records = [record for record in caplog.records if record.name == "specgen.drafters"]
    assert all(record.levelno == logging.WARNING for record in records)
    return [record.getMessage() for record in records]


# --- the rule -----------------------------------------------------------------------------------


def is_allowed(guesses: Sequence[Any]) -> bool:
    """The rule, word by word; of answers that have three parts a guess."""
    tokens = [token for token, _, _ in guesses]
    return (
        len(guesses) <= 64
        and all(type(token) is int and token in range(N_VOCAB) for token in tokens)
        and all(tokens.count(token) == 1 for token in tokens)
        and all(isinstance(e, tuple) and len(e) > 0 and e[0] == "me" for _, e, _ in guesses)
        and all(not math.isnan(p) and p > 0 and p <= 1 for _, _, p in guesses)
    )


TOKENS: st.SearchStrategy[Any] = st.integers(-1, N_VOCAB) | st.sampled_from([1.0, False, "2"])
EVIDENCE: st.SearchStrategy[Any] = st.sampled_from(
    [("me",), ("me", 3), ("me", "x", 0), (), ("you", 1), ["me"], "me"]
)
PROBS = st.floats(-0.5, 1.5) | st.sampled_from([0.0, 1.0, 1, math.nan, math.inf, 5e-324])
GOOD = st.tuples(st.integers(0, N_VOCAB - 1), st.just(("me", 1)), st.floats(0.01, 1))


@settings(max_examples=500, deadline=None)
@given(st.lists(GOOD | st.tuples(TOKENS, EVIDENCE, PROBS), max_size=6) | st.lists(GOOD, max_size=9))
def test_the_rule(guesses: list[Any]) -> None:
    """`find_fault` objects to exactly the answers that the rule, written naively, forbids."""
    assert (find_fault(guesses, "me", N_VOCAB) is None) == is_allowed(guesses)


@pytest.mark.parametrize("n", [0, 1, MOST_CANDIDATES, MOST_CANDIDATES + 1])
def test_the_most_candidates(n: int) -> None:
    """Up to 64 in one state."""
    guesses = [Candidate(token, ("me",), 0.5) for token in range(n)]
    assert (find_fault(guesses, "me", 1000) is None) == (n <= 64)


@pytest.mark.parametrize("lie", lies("faulty", N_VOCAB), ids=lambda lie: repr(lie)[:16])
def test_every_lie_is_found_out(lie: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The answer does not reach the builder, and one line names drafter, call and reason."""

    class Liar(RandomTree):
        name = "faulty"

        def predict(self, state: Any) -> Sequence[Candidate]:
            return lie  # type: ignore[no-any-return]

    guarded = SafeDrafter(Liar(1, N_VOCAB, 2), N_VOCAB)
    guarded.begin(np.array(PROMPT, np.int32))
    assert guarded.predict(guarded.root()) == ()
    (line,) = warnings(caplog)
    assert line.startswith("drafter faulty is switched off: predict: ")
    assert len(line) < 400 and "\n" not in line
    assert guarded.root() is None


def test_honest_answers_pass_as_they_are() -> None:
    """Nothing is copied or changed, be it a list or a tuple."""
    drafter = Spy()
    guarded = SafeDrafter(drafter, N_VOCAB)
    assert guarded.name == "spy"
    guarded.begin(np.array(PROMPT, np.int32))
    state = guarded.root()
    assert state == drafter.root()
    assert guarded.predict(state) == drafter.predict(state) != []
    assert guarded.advance(state, 4) == drafter.advance(state, 4)
    guarded.observe([1, 2], DraftTree.root(0), NO_LOGITS)
    assert drafter.length == 5


# --- in use -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    call=st.sampled_from(CALLS),
    at=st.integers(0, 25),
    error=st.sampled_from([ValueError("x"), RecursionError(), MemoryError(), StopIteration()]),
    judged=st.booleans(),
)
def test_a_failure_changes_no_text(call: str, at: int, error: Exception, judged: bool) -> None:
    """Whichever call fails, the tokens are the plain ones, and the drafter is not called again."""
    spy = Spy(call, at, error)
    session = begun(spy, RandomTree(2, N_VOCAB, 2), judged=judged)
    assert write(session, 30) == plain(30)
    if spy.calls[call] > at:
        before = dict(spy.calls)
        session.feed([*session.tokens, 3])
        write(session, 5)
        assert spy.calls == before
        assert spy.calls[call] == at + 1


@each_call
def test_a_failure_is_told_once(call: str, caplog: pytest.LogCaptureFixture) -> None:
    """One warning of one line with drafter, call and reason; the other drafters go on."""
    spy = Spy(call)
    session = begun(Oracle(plain(60), N_VOCAB, decoys=1), spy)
    assert write(session, 20) == plain(20)
    session.feed(PROMPT)
    assert write(session, 20) == plain(20)
    assert warnings(caplog) == [
        f"drafter spy is switched off: {call}: ZeroDivisionError: in the midst of it"
    ]
    sampler = Sampler(SamplingParams(seed=1), N_VOCAB)
    session.feed(PROMPT)
    assert len(session.step(sampler, 30, lambda _: False).tree) > 1


@each_call
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_through(
    call: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """What is no Exception ends the step, nothing is said, and the drafter stays on."""
    spy = Spy(call, 0, error())
    with pytest.raises(error):
        write(begun(spy), 20)
    assert not warnings(caplog)
    guarded = SafeDrafter(spy, N_VOCAB)
    with pytest.raises(error):
        getattr(guarded, call)(*_arguments(call))
    with pytest.raises(error):
        getattr(guarded, call)(*_arguments(call))


def _arguments(call: str) -> tuple[Any, ...]:
    state = Spy().root()
    return {
        "begin": (np.array(PROMPT, np.int32),),
        "root": (),
        "predict": (state,),
        "advance": (state, 1),
        "observe": ([1], DraftTree.root(0), NO_LOGITS),
    }[call]


@pytest.mark.parametrize("call", ["predict", "advance"])
@pytest.mark.parametrize("at", range(6))
def test_a_failure_midway_leaves_a_sound_tree(call: str, at: int) -> None:
    """What was guessed before is kept, what the failing call would have said is not."""
    spy = SafeDrafter(Spy(call, at), N_VOCAB)
    other = SafeDrafter(RandomTree(2, N_VOCAB, 2), N_VOCAB)
    for drafter in (spy, other):
        drafter.begin(np.array(PROMPT, np.int32))
    tree = TreeMaker([spy, other], 16, max_leaves=8).build(0, 16, 9)
    tree.check()
    assert spy.root() is None
    asked = Spy()
    asked.begin(np.array(PROMPT, np.int32))
    by_spy = [i for i, items in enumerate(tree.evidence) if ("spy" in {e[0] for e in items})]
    known = {}  # all that the spy would say at nodes of the tree
    for node, depth in enumerate(tree.depths):
        path: list[int] = []
        above = node
        for _ in range(depth):
            path.insert(0, tree.tokens[above])
            above = tree.parents[above]
        state = asked.root()
        for token in path:
            state = asked.advance(state, token)
        known[node] = {guess.token for guess in asked.predict(state)}
    assert all(tree.tokens[node] in known[tree.parents[node]] for node in by_spy)
    parents = {tree.parents[node] for node in by_spy}
    assert len(parents) <= (at if call == "predict" else at + 1)
    assert bool(by_spy) == (call == "advance" or at > 0)


def test_the_faults_of_the_lossless_cases_come_up(caplog: pytest.LogCaptureFixture) -> None:
    """The broken drafter of tests/support/lossless.py breaks down in every call, and lies."""
    caplog.set_level(logging.CRITICAL, "specgen.drafters")
    seen = set()
    for seed in range(200):
        faulty = Faulty(seed, N_VOCAB)
        session = begun(faulty)
        write(session, 40)
        if isinstance(session._speculator._pool._members[0].drafter._drafter, Faulty):
            continue
        seen.add((faulty.fails_in, faulty.fails_in == "predict" and faulty.lie is not None))
    assert seen == {(call, False) for call in CALLS} | {("predict", True)}


@pytest.mark.llama
def test_the_command_says_so_in_one_line(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` writes the same text, and a line on stderr."""
    words = (endless, "the and was the and was the and", "--greedy", "-n", "30", "-t", "1")
    expected = text_of(*words, "--drafter", "none")

    def fail(self: PromptLookup, emitted: Any, tree: Any, logits: Any) -> None:
        raise LookupError("lost my place")  # at once, for in "auto" it may soon rest

    monkeypatch.setattr(PromptLookup, "observe", fail)
    for drafter in ("prompt-lookup", "auto"):
        outcome = run("generate", *words, "--drafter", drafter)
        assert (outcome.code, outcome.out) == (0, expected)
        assert outcome.err == (
            "specgen: drafter prompt-lookup is switched off: observe: LookupError: lost my place\n"
        )
