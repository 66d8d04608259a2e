"""A budget is kept while a text grows: drafts are given up before it is crossed."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest

from specgen.core import generation
from specgen.core.cost.model import load_curve
from specgen.core.generation import Generation
from specgen.core.memory.keeper import LOOK_EVERY, Keeper
from specgen.core.protocols import Logits
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.text.stream import TextStream
from specgen.core.tree import DraftTree
from tests.support.drafting import session_of
from tests.support.guessers import Letters, Oracle, RandomTree, TriesSizes

N_VOCAB = 9
N_TOKENS = 500
MIB = 1 << 20


def looks(keeper: Keeper, n: int) -> list[bool]:
    """What is said after the next `n` looks; between them nothing is."""
    said = []
    for _ in range(n):
        assert not any(keeper.is_short() for _ in range(LOOK_EVERY - 1))
        said.append(keeper.is_short())
    return said


def test_memory_is_short_before_the_budget_is_crossed() -> None:
    """When a few growths like the last would cross it, or what is left is next to nothing."""
    sizes = iter([500, 500, 600, 700, 850, 850, 985, 989, 991])
    keeper = Keeper(1000, lambda: next(sizes))
    assert looks(keeper, 9) == [False, False, True, True, True, False, True, True, True]


def test_what_a_prompt_takes_is_no_growth() -> None:
    """A long prompt between two texts fills buffers that are there from then on."""
    sizes = iter([500, 700, 700, 700])
    keeper = Keeper(1000, lambda: next(sizes))
    assert looks(keeper, 1) == [False]
    keeper.begin()
    assert looks(keeper, 3) == [False] * 3


def test_a_system_that_tells_nothing() -> None:
    """Nothing is ever short there."""
    assert looks(Keeper(1, lambda: None), 3) == [False] * 3


class Hog(RandomTree):
    """Guesses at random, and keeps another `taken` bytes after every step."""

    def __init__(self, taken: int) -> None:
        super().__init__(5, N_VOCAB, 4)
        self._taken = taken
        self._kept: list[bytes] = []

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        super().observe(emitted, tree, logits)
        self._kept.append(b"x" * self._taken)


def text_of(drafters: Sequence[RandomTree], keeper: Keeper | None) -> tuple[list[int], list[int]]:
    """The tokens of a text, and how many guesses each of its steps checked."""
    backend = FakeBackend(HashModel(N_VOCAB, 2, 3), fake_limits(N_VOCAB, n_ctx=N_TOKENS + 50))
    session = session_of(backend, drafters, 16)
    sampler = Sampler(SamplingParams(seed=4), N_VOCAB)
    stream = TextStream(Letters(N_VOCAB), ())
    generation = Generation(session, stream, [0, 1], sampler, N_TOKENS, None, keeper=keeper)
    n_drafts = []
    before = 0
    for _ in generation:
        n_drafts.append(generation.stats.drafted - before)
        before = generation.stats.drafted
    return generation.tokens, n_drafts


def test_the_text_stays_and_drafts_go(caplog: pytest.LogCaptureFixture) -> None:
    """First trees become small, then the first drafter is left, then none; each is said once."""
    plain, _ = text_of([], None)
    drafters = [RandomTree(seed, N_VOCAB, 4) for seed in (1, 2)]
    tokens, n_drafts = text_of(drafters, Keeper(100, lambda: 100))
    assert tokens == plain
    told = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert told[:2] == ["drafts of at most 8 tokens", "drafts of at most 4 tokens"]
    assert len(told) == 4
    assert all(line.startswith("no drafts by ") for line in told[2:])
    assert max(n_drafts[LOOK_EVERY : 2 * LOOK_EVERY]) <= 8
    assert max(n_drafts[2 * LOOK_EVERY : 3 * LOOK_EVERY]) <= 4
    assert sum(n_drafts[:LOOK_EVERY]) > 0
    assert sum(n_drafts[4 * LOOK_EVERY :]) == 0


# In a process of its own, so that nothing else takes or frees memory.
_SCRIPT = f"""
import json, sys
from specgen.core.memory.keeper import Keeper
from specgen.core.host.process_memory import peak_bytes, reset_peak, resident_bytes
from tests.memory.test_keeper import Hog, text_of
text_of([], None)
reset_peak()
budget = resident_bytes() + 100 * {MIB}
keeper = Keeper(budget) if sys.argv[1] == "kept" else None
tokens, n_drafts = text_of([Hog({MIB} // 2)], keeper)
print(json.dumps([tokens == text_of([], None)[0], budget, peak_bytes(), n_drafts]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize("mode", ["kept", "not kept"])
def test_a_drafter_that_takes_ever_more(mode: str) -> None:
    """Its real memory goes before the budget is crossed; without a keeper it crosses it."""
    command, root = [sys.executable, "-c", _SCRIPT, mode], Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    is_same, budget, peak, n_drafts = json.loads(run.stdout)
    assert is_same
    assert (peak <= budget) == (mode == "kept")
    assert (sum(n_drafts[-100:]) == 0) == (mode == "kept")
    assert sum(n_drafts[:100]) > 0


class Named(RandomTree):
    """Guesses at random, and goes by a name."""

    def __init__(self, name: str) -> None:
        super().__init__(5, N_VOCAB, 4)
        self.name = name


def test_what_is_given_up_is_let_go_of() -> None:
    """All drafters but the first at once, and then the first; nobody holds them any more."""
    backend = FakeBackend(HashModel(N_VOCAB, 2, 3), fake_limits(N_VOCAB))
    drafters: list[Named] = [Named("a"), Named("b"), Named("c")]
    held = [weakref.ref(drafter) for drafter in drafters]
    session = session_of(backend, drafters, 8)
    session.feed([0, 1])
    del drafters
    assert session.shrink() == "drafts of at most 4 tokens"
    assert session.shrink() == "no drafts by b, c"
    gc.collect()
    assert [ref() is None for ref in held] == [False, True, True]
    assert session.shrink() == "no drafts by a"
    gc.collect()
    assert held[0]() is None
    assert session.shrink() is None


def test_no_larger_calls_are_tried_after_shrinking() -> None:
    """Rows that are only tried take memory, too."""
    backend = FakeBackend(HashModel(N_VOCAB, 2, 3), fake_limits(N_VOCAB, max_rows=24))
    prices = TriesSizes(load_curve("flat"), 1)
    session = session_of(backend, [RandomTree(1, N_VOCAB, 4)], 16, pricing=prices)
    session.feed([0, 1])
    while session.shrink():
        pass
    sampler = Sampler(SamplingParams(seed=4), N_VOCAB)
    steps = list(session.generate(sampler, 200, lambda _: False))
    assert max(len(step.tree) for step in steps) == 1 + 4


def test_room_is_what_calls_and_context_leave() -> None:
    """A drafter that is always right fills calls of 6 rows and the context, not a row more."""
    limits = fake_limits(N_VOCAB, n_ctx=60, max_rows=6)
    plain = session_of(FakeBackend(HashModel(N_VOCAB, 2, 3), limits), [], 0)
    sampler = Sampler(SamplingParams(temperature=0), N_VOCAB)
    plain.feed([0, 1])
    list(plain.generate(sampler, 58, lambda _: False))
    session = session_of(
        FakeBackend(HashModel(N_VOCAB, 2, 3), limits),
        [Oracle(plain.tokens, N_VOCAB, decoys=2)],
        16,
    )
    session.feed([0, 1])
    steps = list(session.generate(sampler, 58, lambda _: False))
    assert session.tokens == plain.tokens
    assert max(step.n_rows for step in steps) == 6
    assert any(step.n_rows > len(step.tree) for step in steps)  # some were pending


def test_freed_memory_goes_back_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system gets what was freed, once for each thing that is given up."""
    trimmed: list[int] = []
    monkeypatch.setattr(generation, "trim_heap", lambda: trimmed.append(1))
    drafters = [RandomTree(seed, N_VOCAB, 4) for seed in (1, 2)]
    text_of(drafters, Keeper(100, lambda: 100))
    assert len(trimmed) == 4
    text_of(drafters, Keeper(100, lambda: 10))
    assert len(trimmed) == 4
