"""The first use of a model: it is measured behind the prompt, told once, and kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import specgen.core.knowledge.profile as profiles
from specgen.cli import prepare
from specgen.core.config import EngineConfig
from specgen.core.cost.model import UNKNOWN, CostModel, load_curve
from specgen.core.cost.online import EXPLORED, CostTracker
from specgen.core.engine import Engine
from specgen.core.errors import BackendError, UsageError
from specgen.core.knowledge import profiling
from specgen.core.knowledge.first_use import VARIABLE, FirstUse, begin_with, prices_of
from specgen.core.knowledge.profile import (
    Profile,
    find_profile,
    keep_profile,
    keep_provisional,
    require_profile,
)
from specgen.core.protocols import Change, Logits
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.stop import Interrupted, never
from specgen.core.testing.fakes import fake_limits
from specgen.core.tree import DraftTree
from specgen.drafters.ensemble import ensemble
from tests.conftest import TinyModel
from tests.support.clocked import CurvedBackend
from tests.support.command import generate
from tests.support.tiny import Architecture

CURVE = CostModel((1, 4, 8), (0,), ((8e-3, 10e-3, 14e-3),), Change(0.5e-3, 0.0))
TEXT = [index % 16 for index in range(9)]


@pytest.fixture(autouse=True)
def _is_not_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which other tests do without, see conftest.py."""
    monkeypatch.delenv(VARIABLE)


CONFIG = EngineConfig(n_ctx=512, threads=1)


def first_use(
    backend: CurvedBackend, n_tokens: int | None = None, spent_s: float = 1.0
) -> Profile | None:
    """What is found behind a prompt of nine tokens, eight of which are in the cache."""
    found = FirstUse(backend.filled(8), CostTracker(), never, backend.clock)
    return found.measure(TEXT, n_tokens, spent_s)


def test_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """In one line, with what it took and what it means."""
    found = first_use(CurvedBackend(CURVE))
    assert found is not None and found.is_provisional and found.flash_attention is None
    assert [record.getMessage() for record in caplog.records] == [
        "measured this machine in 0.16 s: a call with 4 rows takes 1.2 times one with 1"
    ]


def test_where_it_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A model that cannot go back, a short answer, a slow or busy machine: nothing is said."""
    stuck = CurvedBackend(CURVE, fake_limits(16, rewind=False, branch=False))
    assert first_use(stuck) is None and not stuck.widths
    short = CurvedBackend(CURVE)
    assert first_use(short, 20) is None and not short.widths
    slow = CurvedBackend(CostModel((1, 2), (0,), ((1.0, 1.1),)))
    assert first_use(slow) is None and slow.widths == [1]
    assert first_use(CurvedBackend(CURVE, load=lambda call: 1.0 + call % 2)) is None
    assert not caplog.records


def test_what_loading_took_allows_for_more() -> None:
    """A twentieth of it, where that is more than two seconds."""
    slow = CostModel((1, 8), (0,), ((0.5, 0.8),))
    for spent_s, sizes in ((1.0, None), (100.0, (1, 4)), (1000.0, (1, 2, 4, 8))):
        found = first_use(CurvedBackend(slow), spent_s=spent_s)
        assert (found and found.curve.sizes) == sizes


def test_it_is_tried_three_times() -> None:
    """A busy machine may be quiet again; short answers are no tries. Then prices begin with it."""
    loads = [1.0, 2.0] * 50
    backend = CurvedBackend(CURVE, load=lambda call: loads[call]).filled(8)
    prices = CostTracker()
    found = FirstUse(backend, prices, never, backend.clock)
    for n_tokens in (5, None, 31, None):
        assert found.measure(TEXT, n_tokens, 1.0) is None
    n_busy = len(backend.widths)
    loads[n_busy:] = [1.0] * 50
    profile = found.measure(TEXT, None, 1.0)
    assert profile is not None
    assert prices.costs(8)[3] == pytest.approx(10e-3)
    assert found.measure(TEXT, None, 1.0) is None


def test_a_call_that_fails_is_no_error() -> None:
    """Nobody asked for it: the text is generated all the same."""

    class Failing(CurvedBackend):
        def score(self, *_: object) -> Logits:
            raise BackendError("no memory")

    assert first_use(Failing(CURVE)) is None


def test_prices_begin_with_it() -> None:
    """Sizes beyond the widest are as dear as on any known machine, and are tried."""
    profile = Profile.provisional(replace(CURVE, sizes=(1, 2, 4)), 1.0)
    prices, unknown = prices_of(profile), load_curve(UNKNOWN)
    assert prices.costs(0)[:4] == pytest.approx([8e-3, 10e-3, 12e-3, 14e-3])
    assert prices.costs(0)[15] == pytest.approx(
        14e-3 * unknown.seconds(16, 0) / unknown.seconds(4, 0)
    )
    assert prices.change == CURVE.change
    for _ in range(500):
        prices.observe(1, 0, 8e-3)
    assert prices.explore(0, 64) == next(n for n in EXPLORED if n > 4)
    assert prices_of(replace(profile, noise=3.0)).costs(0) == unknown.costs(0)
    whole = prices_of(Profile(CURVE, True, None, {}, {}, 1.0))
    for _ in range(5000):
        whole.observe(1, 0, 8e-3)
    assert whole.explore(0, 64) is None


def test_prices_in_use_begin_anew() -> None:
    """What was seen under another table does not count any more."""
    prices = CostTracker()
    for _ in range(50):
        prices.observe(1, 0, 80e-3)
    begin_with(prices, Profile.provisional(CURVE, 1.0))
    assert prices.costs(0)[:8] == pytest.approx(CURVE.costs(0)[:8])


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of profiles without asking llama.cpp."""
    monkeypatch.setattr(profiles, "profile_key", lambda _, config: {"threads": config.threads})


@pytest.mark.usefixtures("no_library")
def test_a_provisional_profile_is_kept_apart(tmp_path: Path) -> None:
    """It survives its file, does not do for strict decoding, and replaces nothing better."""
    provisional = Profile.provisional(CURVE, 1.1)
    keep_provisional(tmp_path, CONFIG, provisional)
    assert find_profile(tmp_path, CONFIG) == provisional
    assert provisional.settled(CONFIG) == CONFIG
    with pytest.raises(UsageError, match="was not measured"):
        require_profile(provisional)
    whole = Profile(CURVE, False, None, {8: ((1, 4),)}, {}, 1.0)
    keep_profile(tmp_path, CONFIG, whole)
    keep_provisional(tmp_path, CONFIG, provisional)
    assert find_profile(tmp_path, CONFIG) == whole
    assert require_profile(whole) is whole


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("strict", [False, True])
def test_whoever_needs_more_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    """As `bench`, `verify` and --strict do; it takes the place of what the first use left."""
    whole = Profile(CURVE, True, None, {128: ((1, 4),)}, {}, 1.0)
    monkeypatch.setattr(prepare, "require_room_to_measure", lambda *_: None)
    monkeypatch.setattr(profiling, "measure_profile", lambda *_, **__: whole)
    config = replace(CONFIG, strict=strict)
    keep_provisional(tmp_path, config, Profile.provisional(CURVE, 1.0))
    for _ in range(2):
        assert prepare.ensure_profile(tmp_path, config) == whole
        assert find_profile(tmp_path, config) == whole
        monkeypatch.setattr(profiling, "measure_profile", None)  # it is not measured twice


# ---- in the engine, where tests do without it but for these


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    """It is done, however short the answer and busy the machine."""
    monkeypatch.setattr("specgen.core.cost.quick._WORTH", 1e-9)


PROMPT = "the and was the and was the and was"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is measured, by the tokens of the text; it always succeeds at once."""
    calls: list[int] = []

    def measure(_: FirstUse, text: list[int], *__: object) -> Profile:
        calls.append(len(text))
        return Profile.provisional(CURVE, 1.0)

    monkeypatch.setattr(FirstUse, "measure", measure)
    return calls


def greedy(engine: Engine, n: int = 40) -> list[int]:
    """An answer."""
    sampler = Sampler(SamplingParams(temperature=0), engine.vocab.n_vocab)
    generation = engine.generate(engine.tokenize(PROMPT), sampler, max_tokens=n)
    for _ in generation:
        pass
    return generation.tokens


@pytest.mark.llama
def test_once_and_for_several_drafters(tiny_model: TinyModel, measured: list[int]) -> None:
    """At the first text of the first run; a later engine finds it in the store."""
    for _ in range(2):
        with Engine(tiny_model(), ensemble("auto"), CONFIG) as engine:
            for _ in range(2):
                greedy(engine)
            engine.renew(ensemble("auto"))
            greedy(engine)
            assert engine.profile == Profile.provisional(CURVE, 1.0)
            with pytest.raises(UsageError):
                engine.renew((), strict=True)
    assert len(measured) == 1


@pytest.mark.llama
@pytest.mark.parametrize("drafter", ["none", "suffix"])
def test_not_for_fewer(tiny_model: TinyModel, measured: list[int], drafter: str) -> None:
    """Nothing is weighed there."""
    with Engine(tiny_model(), ensemble(drafter), CONFIG) as engine:
        greedy(engine)
        assert engine.profile is None
    assert not measured


@pytest.mark.llama
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(("architecture", "swa_full"), [("llama", True), ("gemma3", False)])
def test_the_text_is_the_same(
    tiny_model: TinyModel, architecture: Architecture, swa_full: bool
) -> None:
    """With the calls that measure, of a real model, and without; a window forgets nothing more."""
    texts = []
    path = tiny_model(architecture, "Q8_0")
    config = replace(CONFIG, flash_attention=True, swa_full=swa_full)
    for is_measured in (True, False):
        with Engine(path, ensemble("auto"), config) as engine:
            if not is_measured:
                engine.profile = Profile.provisional(CURVE, 1.0)
                engine.renew(ensemble("auto"))
            texts.append(greedy(engine, 400))
            assert engine.profile is not None
            assert (engine.profile.curve.sizes == (1, 2, 4, 8)) == is_measured
    assert texts[0] == texts[1]


@pytest.mark.llama
@pytest.mark.usefixtures("real")
def test_a_note_at_the_first_run(tiny_model: TinyModel) -> None:
    """On stderr; the next run finds what was measured."""
    words = (tiny_model(), PROMPT, "-n", "40", "-t", "1", "--greedy")
    first, second = generate(*words), generate(*words)
    assert (first.code, second.code, second.err) == (0, 0, "")
    assert re.fullmatch(r"specgen: measured this machine in .* times one with 1\n", first.err)
    assert first.out == second.out


@pytest.mark.llama
@pytest.mark.usefixtures("real")
def test_an_interrupt_ends_it(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine can be used again."""
    stops: Iterator[bool] = iter([])
    with Engine(
        tiny_model(), ensemble("auto"), CONFIG, should_stop=lambda: next(stops, False)
    ) as engine:
        sampler = Sampler(SamplingParams(temperature=0), engine.vocab.n_vocab)
        generation = engine.generate(engine.tokenize(PROMPT), sampler, max_tokens=400)
        backend = engine.backend

        def score(tree: DraftTree, pending: Sequence[int]) -> Logits:
            nonlocal stops
            stops = iter([True])
            return original(tree, pending)

        original = backend.score
        monkeypatch.setattr(backend, "score", score)
        with pytest.raises(Interrupted):
            list(generation)
        monkeypatch.setattr(backend, "score", original)
        assert not generation.tokens
        assert len(greedy(engine, 5)) == 5
