"""The threads of a context: no text depends on them, and calls that go wrong are made again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from specgen.core.config import ContextConfig, EngineConfig
from specgen.core.cost.strict import WidthClass
from specgen.core.engine import Engine
from specgen.core.host.threads import Use
from specgen.core.llama import deadline
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.llama.exact import is_steady
from specgen.core.llama.kernels import INSTRUCTIONS
from specgen.core.llama.library import library
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.tree import DraftTree
from tests.conftest import TinyModel
from tests.support.drafting import session_of
from tests.support.guessers import RandomTree
from tests.support.tiny import Architecture, Quantization

pytestmark = pytest.mark.llama

N_VOCAB = 395
PROMPT = np.arange(280, 380, dtype=np.int32)


class Script:
    """Stands in for a choice: the uses that are given, then one thread."""

    def __init__(self, *uses: Use) -> None:
        self.uses = list(uses)
        self.seen: list[tuple[int, int, int, bool]] = []
        self.settled = 2
        self.total_s = 1.0

    def use(self, rows: int) -> Use:
        """The next one."""
        self._threads, limit_s = self.uses.pop(0) if self.uses else Use(1, None)
        return Use(self._threads, limit_s)

    def observe(self, rows: int, context: int, seconds: float, *, finished: bool = True) -> None:
        """Keep what there was, but for the time."""
        self.seen.append((self._threads, rows, context, finished))
        self.settled = self._threads
        self.total_s += seconds


@contextmanager
def opened(
    tiny_model: TinyModel,
    architecture: Architecture = "llama",
    quantization: Quantization = "Q4_K",
    **config: Any,
) -> Iterator[LlamaBackend]:
    """A context of a tiny model, with two threads."""
    model = LlamaModel(tiny_model(architecture, quantization))
    settings = ContextConfig(512, threads=2, max_rows=16, max_leaves=4, chunk=128)
    backend = LlamaBackend(model, replace(settings, **config))
    try:
        yield backend
    finally:
        backend.close()
        model.close()


def chain(tokens: Sequence[int]) -> DraftTree:
    return DraftTree.from_parents(tuple(tokens), range(-1, len(tokens) - 1))


def follow(backend: LlamaBackend, *uses: Use) -> Script:
    """Have the number of threads follow a script."""
    script = Script(*uses)
    backend._threads._choice = script  # type: ignore[assignment]
    return script


class Switching(LlamaBackend):
    """Another number of threads in every call."""

    n_calls = 0

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """As always."""
        self.n_calls += 1
        self._threads.set(1 + self.n_calls % 2)
        super().submit(tree, pending)

    def prefill(self, tokens: NDArray[np.int32]) -> None:
        """As always."""
        self.n_calls += 1
        self._threads.set(1 + self.n_calls % 2)
        super().prefill(tokens)


@pytest.mark.parametrize("quantization", ["Q4_K", "Q4_1"])
@pytest.mark.parametrize(
    ("temperature", "strict"),
    [(0.0, None), (0.9, None), (0.9, WidthClass((4, 8), branch=True))],
)
def test_no_text_depends_on_threads(
    tiny_model: TinyModel,
    quantization: Quantization,
    temperature: float,
    strict: WidthClass | None,
) -> None:
    """Nor does a single bit of the logits, of a long prompt and of steps with drafts."""
    if library().kernels not in INSTRUCTIONS:
        pytest.skip("only llama.cpp's kernels are in use")
    config = ContextConfig(512, threads=1, max_rows=16, max_leaves=4, chunk=80)
    model = LlamaModel(tiny_model("llama", quantization))
    texts, logits = [], []
    for kind in (LlamaBackend, Switching):
        backend = kind(model, config)
        session = session_of(backend, [RandomTree(5, N_VOCAB, 4)], 8, strict=strict)
        session.feed(PROMPT.tolist())
        sampler = Sampler(SamplingParams(temperature=temperature, seed=7), model.vocab.n_vocab)
        for _ in session.generate(sampler, 10, lambda token: False):
            pass
        texts.append(session.tokens)
        backend.rewind(0)
        backend.prefill(PROMPT[:80])
        backend.prefill(PROMPT[80:])
        logits.append(backend.score(chain(range(300, 309)), ()).copy())
        backend.commit(0)
        backend.close()
    model.close()
    assert texts[0] == texts[1]
    assert logits[0].tobytes() == logits[1].tobytes()


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_call_that_takes_too_long_is_made_again(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, is_compiled: bool
) -> None:
    """What it left in the cache is taken back, be it a prompt's or a tree's."""
    if not is_compiled:
        monkeypatch.setattr(deadline, "_compiled", lambda: None)
    late = Use(2, 0.0)
    with opened(tiny_model) as backend:
        backend.prefill(PROMPT)
        tree = DraftTree.from_parents((300, 301, 302, 303), (-1, 0, 0, 1))
        expected = backend.score(tree, (305,)).copy()
        backend.commit(2)
        after = backend.score(chain((310, 311)), ()).copy()
        backend.commit(1)
        backend.rewind(0)
        script = follow(backend, late, Use(1, None), late, Use(1, 60.0), late)
        backend.prefill(PROMPT)
        script.settled = 1  # so that two are on trial
        found = backend.score(tree, (305,)).copy()
        backend.commit(2)
        script.settled = 1
        assert np.abs(backend.score(chain((310, 311)), ()) - after).max() < 1e-4
        backend.commit(1)
        assert np.abs(found - expected).max() < 1e-4
        assert backend.length == 103
    assert script.seen == [
        (2, 100, 0, False),
        (1, 100, 0, True),
        (2, 5, 100, False),
        (1, 5, 100, True),
        (2, 2, 102, False),
        (1, 2, 102, True),
    ]
    assert not library().log.errors


@pytest.mark.parametrize(("architecture", "swa_full"), [("lfm2", True), ("gemma3", False)])
def test_a_call_that_cannot_be_undone_is_seen_to_its_end(
    tiny_model: TinyModel, architecture: Architecture, swa_full: bool
) -> None:
    """But for the first one, before which there is nothing to lose."""
    with opened(tiny_model, architecture, "F32", swa_full=swa_full) as backend:
        script = follow(backend, Use(2, 0.0), Use(1, None), Use(2, 0.0))
        backend.prefill(PROMPT[:40])
        backend.prefill(PROMPT[40:80])
        assert backend.length == 80
    assert [(threads, done) for threads, _, _, done in script.seen] == [
        (2, False),
        (1, True),
        (2, True),
    ]


def test_the_first_calls_find_out_how_many_threads_there_are_to_be(
    tiny_model: TinyModel,
) -> None:
    """Two, of which nothing is left; where the number is given, there are none."""
    counts = []
    for follow_threads in (False, True):
        with opened(tiny_model, follow_threads=follow_threads) as backend:
            script = follow(backend) if follow_threads else None
            if script:
                script.total_s = 0.0
            backend.prefill(PROMPT)
            assert backend.length == 100
            counts.append(backend.score(chain((300,)), ()).copy())
            if script:
                assert [seen[1:3] for seen in script.seen[:3]] == [(2, 0), (2, 0), (100, 0)]
    assert np.abs(counts[0] - counts[1]).max() < 1e-4


def test_a_number_that_is_given_is_a_promise(tiny_model: TinyModel) -> None:
    """Without one it is followed, and with --strict only where it shows in no bit."""
    path = tiny_model("llama", "F16")
    with Engine(path, (), EngineConfig(threads=2)) as engine:
        assert not engine.backend._threads.is_new
    with Engine(path, (), EngineConfig()) as engine:
        has_several = engine.backend._threads._told > 1
        assert engine.backend._threads.is_new == has_several


def test_where_threads_show_in_no_bit(tiny_model: TinyModel) -> None:
    """All products and all attention must be by specgen's kernels."""
    if library().kernels not in INSTRUCTIONS:
        pytest.skip("only llama.cpp's kernels are in use")
    ours, context = tiny_model("llama", "Q4_K"), ContextConfig(512, flash_attention=True)
    assert is_steady(ours, context)
    assert is_steady(ours, ContextConfig(512, flash_attention=True, type_k="q8_0"))
    assert not is_steady(ours, ContextConfig(512, flash_attention=True, type_v="q4_0"))
    assert not is_steady(ours, ContextConfig(512, flash_attention=False))
    assert not is_steady(ours, ContextConfig(512))
    assert not is_steady(tiny_model("llama", "F16"), context)
    assert not is_steady(tiny_model("llama", "Q8_0"), context)  # heads of 32 dimensions
    assert not is_steady(tiny_model("lfm2", "Q8_0"), context)


def test_a_change_is_told(tiny_model: TinyModel, caplog: pytest.LogCaptureFixture) -> None:
    """In one line, and none for a trial."""
    with opened(tiny_model) as backend, caplog.at_level(logging.INFO, "specgen.threads"):
        follow(backend, Use(2, None), Use(1, None), Use(1, None), Use(2, None))
        for _ in range(4):
            backend.prefill(PROMPT[:2])
    told = [record.getMessage() for record in caplog.records if record.name == "specgen.threads"]
    assert told == [
        "the machine is busy: 1 thread from here on",
        "the machine is quieter: 2 threads from here on",
    ]
