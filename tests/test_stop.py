"""Being asked to stop: what is loaded or read is given up, and what there was is as it was."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specgen.core import session as session_module
from specgen.core.config import ContextConfig, EngineConfig
from specgen.core.cost.measure import measure
from specgen.core.cost.strict import WidthClass
from specgen.core.cost.timed import TimedBackend
from specgen.core.engine import Engine
from specgen.core.errors import BackendError
from specgen.core.knowledge.profiling import measure_profile
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.llama.library import library
from specgen.core.protocols import Tokens
from specgen.core.stop import Interrupted, heed
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree
from specgen.drafters.draft_model import DraftModel
from tests.support.command import run
from tests.support.drafting import session_of

from .conftest import TinyModel

TEXT = [5 + i % 90 for i in range(400)]
each_signal = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"]
)


class Countdown:
    """A `should_stop` that says yes from call number `at` on."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.calls = 0

    def __call__(self) -> bool:
        self.calls += 1
        return self.at is not None and self.calls >= self.at


# ---- core asks


@pytest.mark.llama
@pytest.mark.parametrize("at", [1, 2, 5])
def test_loading_is_stopped(tiny_model: TinyModel, at: int) -> None:
    """A model that is to be given up is not loaded to its end, at its first tensor or later."""
    asked = Countdown(at)
    with pytest.raises(Interrupted):
        LlamaModel(tiny_model(), should_stop=asked)
    assert at <= asked.calls <= at + 1
    whole = Countdown()
    LlamaModel(tiny_model(), should_stop=whole).close()
    assert whole.calls > 5


@pytest.mark.llama
def test_opening_is_stopped(tiny_model: TinyModel) -> None:
    """Wherever it comes while a model and its draft model are opened, the question is heard."""
    asked = Countdown()
    config = EngineConfig(n_ctx=128, threads=1, draft_model=tiny_model())
    with Engine(tiny_model(), (), config, should_stop=asked) as engine:
        assert engine.draft
    for at in range(1, asked.calls + 1):
        with pytest.raises(Interrupted):
            Engine(tiny_model(), (), config, should_stop=Countdown(at))


KINDS: dict[str, tuple[Any, bool]] = {
    "full": ("llama", True),
    "window, full cache": ("gemma3", True),
    "window": ("gemma3", False),
    "recurrent": ("mamba", True),
    "hybrid with snapshots": ("lfm2", True),
    "hybrid": ("granitehybrid", True),
}


@pytest.mark.llama
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_stopped(tiny_model: TinyModel, kind: str, share: float) -> None:
    """Within a call; then the text goes on with the bits of a cache that was never disturbed."""
    architecture, swa_full = KINDS[kind]
    config = ContextConfig(1024, threads=1, chunk=200, swa_full=swa_full)
    model, asked = LlamaModel(tiny_model(architecture)), Countdown()
    backend = LlamaBackend(model, config, asked)
    backend.prefill(np.array(TEXT[:150], np.int32))
    before = asked.calls
    backend.prefill(np.array(TEXT[150:350], np.int32))
    a_call = asked.calls - before
    assert a_call > 10  # asked within the call
    backend.rewind(0)

    backend.prefill(np.array(TEXT[:150], np.int32))
    asked.at = asked.calls + 1 + int(share * a_call)
    with pytest.raises(Interrupted):
        backend.prefill(np.array(TEXT[150:350][::-1], np.int32))
    assert asked.calls - asked.at < 0.1 * a_call + 2
    asked.at = None
    assert backend.length in (0, 150)
    fresh = LlamaBackend(model, config)
    if backend.length == 0:
        backend.prefill(np.array(TEXT[:150], np.int32))
    fresh.prefill(np.array(TEXT[:150], np.int32))
    for each in (backend, fresh):
        each.prefill(np.array(TEXT[150:160], np.int32))
    for token in (7, 8, 9):
        expected = fresh.score(DraftTree.root(token), ()).copy()
        assert backend.score(DraftTree.root(token), ()).tobytes() == expected.tobytes()
        fresh.commit(1)
        backend.commit(1)
    assert backend.length == fresh.length == 163
    backend.close()
    fresh.close()
    model.close()


@pytest.mark.llama
def test_stopping_is_no_failure(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What llama.cpp gives up for another reason stays an error."""
    model = LlamaModel(tiny_model())
    backend = LlamaBackend(model, ContextConfig(256, threads=1), Countdown())
    monkeypatch.setattr(library().api, "llama_decode", lambda *_: 2)
    with pytest.raises(BackendError, match="told to abort"):
        backend.prefill(np.array(TEXT[:9], np.int32))


@pytest.mark.llama
def test_measuring_is_stopped(tiny_model: TinyModel) -> None:
    """A measurement asks before every call, and has no result when it is to stop."""
    config = EngineConfig(n_ctx=512, threads=1)
    asked = Countdown()
    # What it does in no time is done on a busy machine as well.
    measure_profile(tiny_model(), config, 1e-3, should_stop=asked)
    assert asked.calls > 10
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(Interrupted):
            measure_profile(
                tiny_model(), config, 0.2, should_stop=Countdown(int(share * asked.calls))
            )


def test_calls_are_counted() -> None:
    """Of a fake backend: not one more call is made after the question was answered with yes."""
    backend = FakeBackend(HashModel(40), fake_limits(40, n_ctx=256, chunk=64))
    asked = Countdown(10)
    with pytest.raises(Interrupted):
        measure(TimedBackend(backend, TEXT, count().__next__, should_stop=asked), 1e6)
    assert backend.calls == 9


# ---- prompts where a call cannot be stopped


class Noted(FakeBackend):
    """A backend whose calls cannot be stopped. Notes the sizes of its prefills."""

    def __init__(self, *, can_stop: bool = False, chunk: int = 512) -> None:
        limits = fake_limits(50, n_ctx=4096, chunk=chunk)
        super().__init__(HashModel(50), replace(limits, can_stop=can_stop))
        self.sizes: list[int] = []

    def prefill(self, tokens: Tokens) -> None:
        """Note how many."""
        self.sizes.append(len(tokens))
        super().prefill(tokens)


def sizes(backend: Noted, strict: WidthClass | None = None, n: int = 2000) -> list[int]:
    """Of the parts that a prompt of `n` tokens is processed in."""
    session_of(backend, (), 8, strict=strict).feed([i % 50 for i in range(n)])
    return backend.sizes


def clock(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
    """Have the call with so many tokens take so many seconds."""
    now = [0.0]
    work = Noted.prefill

    def slow(backend: Noted, tokens: Tokens) -> None:
        now[0] += seconds(len(tokens))
        work(backend, tokens)

    monkeypatch.setattr(Noted, "prefill", slow)
    monkeypatch.setattr(session_module, "perf_counter", lambda: now[0])


def test_parts_grow_while_they_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 64 tokens on, up to the chunk; a slow machine stays where a part takes long enough."""
    clock(monkeypatch, lambda n: 0.0)
    assert sizes(Noted()) == [64, 128, 256, 512, 512, 512, 15]
    assert sizes(Noted(chunk=100), n=301) == [64, 100, 100, 36]
    assert sizes(Noted(chunk=40), n=101) == [40, 40, 20]
    clock(monkeypatch, lambda n: n / 1000)
    slow = sizes(Noted())
    assert slow == [64, 128] + [256] * 7 + [15]
    assert max(slow) / 1000 <= 0.3


def test_parts_that_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that can be stopped needs no parts, and strict decoding may not depend on time."""
    clock(monkeypatch, lambda n: n / 1000)
    assert sizes(Noted(can_stop=True)) == [512, 512, 512, 463]
    assert sizes(Noted(), WidthClass((1, 2), branch=False)) == [512, 512, 512, 463]


# ---- a draft model that was stopped while it read


class Stoppable(FakeBackend):
    """A backend that is stopped in a prefill, where that is asked for."""

    stop_at: int | None = None

    def prefill(self, tokens: Tokens) -> None:
        """Unless it is to stop."""
        heed(lambda: self.stop_at is not None and self.length >= self.stop_at)
        super().prefill(tokens)


@pytest.mark.parametrize("at", [0, 20, 33, 40, 90])
def test_a_draft_model_that_is_stopped(at: int) -> None:
    """While it reads a long text: what it holds is known, and it drafts as if nothing had been."""

    def drafted(drafter: DraftModel, text: Sequence[int]) -> list[int]:
        drafter.begin(np.array(text, np.int32))
        return [guess.token for guess in drafter.predict(())]

    text, other = [i * i % 37 for i in range(120)], [i * i % 31 for i in range(120)]
    backend = Stoppable(HashModel(40), fake_limits(40, n_ctx=256))
    drafter = DraftModel(backend)
    drafted(drafter, text[:50])
    backend.stop_at = at
    drafter.begin(np.array(other if at == 20 else text, np.int32))
    try:
        drafter.predict(())
    except Interrupted:
        pass
    else:
        assert at < 50  # that was read before
    backend.stop_at = None
    expected = drafted(DraftModel(FakeBackend(HashModel(40), fake_limits(40, n_ctx=256))), text)
    assert drafted(drafter, text) == expected
    assert backend.cached == text


# ---- the command listens


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`at(place, name, number)` has a signal come where `place.name` is called."""

    def interrupt(place: Any, name: str, number: int) -> None:
        work = getattr(place, name)

        def interrupted(*args: Any, **options: Any) -> Any:
            signal.raise_signal(number)
            return work(*args, **options)

        monkeypatch.setattr(place, name, interrupted)

    return interrupt


PLACES = [
    "llama_model_load_from_file",
    "llama_vocab_n_tokens",
    "llama_init_from_model",
    "llama_tokenize",
    "llama_decode",
]


@pytest.mark.llama
@each_signal
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", ["generate", "generate --chat -md", "calibrate", "verify"])
def test_a_signal_while_a_model_is_opened(
    endless: Path, at: Callable[..., None], command: str, place: str, number: int
) -> None:
    """Ends the command with 128 + its number and not a word, wherever in llama.cpp it comes."""
    name, *options = command.split()
    words: list[str | Path] = [name, endless, "-t", "1", "-c", "256", *options]
    if "-md" in options:
        words.append(endless)
    at(library().api, place, number)
    outcome = run(*words, stdin="" if name != "generate" else "who was he and what did she have")
    assert outcome.code == 128 + number
    assert outcome.out == ""
    assert "Traceback" not in outcome.err and "Error" not in outcome.err
    if name == "generate" and "-md" not in options:
        assert outcome.err == ""
