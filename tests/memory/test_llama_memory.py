"""Models whose memory cannot branch or go back: what is lossless for each, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from specgen.core.llama.backend import ContextConfig, LlamaBackend, LlamaModel
from specgen.core.protocols import Drafter
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.tree import DraftTree
from tests.conftest import TinyModel
from tests.support.drafting import session_of
from tests.support.guessers import Oracle, RandomTree
from tests.support.tiny import WINDOW, Architecture

pytestmark = pytest.mark.llama

Greedy = Callable[[Session, int], list[int]]


@dataclass(frozen=True)
class Kind:
    """A model, how it is run, and what it must be found to be able to do."""

    architecture: Architecture
    swa_full: bool
    max_rows: int
    can_branch: bool
    can_rewind: bool


KINDS = [
    Kind("llama", True, 64, True, True),
    Kind("gemma3", True, 64, True, True),
    Kind("gemma3", False, 64, False, True),
    Kind("lfm2", True, 9, False, False),
    Kind("granitehybrid", True, 1, False, False),
    Kind("mamba", True, 1, False, False),
]
each_kind = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: kind.architecture + ("" if kind.swa_full else "-windowed")
)


@contextmanager
def opened(tiny_model: TinyModel, kind: Kind) -> Iterator[Callable[[], LlamaBackend]]:
    """A function that makes backends on the model of `kind`; all are closed at the end."""
    model = LlamaModel(tiny_model(kind.architecture, "Q8_0"))
    backends = []

    def make() -> LlamaBackend:
        # From 64 rows on, llama.cpp takes kernels that round differently.
        config = ContextConfig(1024, threads=1, chunk=32, swa_full=kind.swa_full)
        backends.append(LlamaBackend(model, config))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()
    model.close()


def greedy(backend: LlamaBackend, drafters: Sequence[Drafter], prompt: list[int]) -> list[int]:
    """What follows `prompt`: 200 tokens by argmax, well past the sliding window."""
    session = session_of(backend, drafters, 12)
    session.feed(prompt)
    return more(session, 200)


def more(session: Session, n_tokens: int) -> list[int]:
    """The next tokens by argmax."""
    sampler = Sampler(SamplingParams(temperature=0), 395)
    steps = session.generate(sampler, n_tokens, lambda _: False)
    return [token for step in steps for token in step.tokens]


@each_kind
def test_what_a_model_can_do_is_found_out(tiny_model: TinyModel, kind: Kind) -> None:
    """Trees, chains as long as the snapshots reach, or single tokens."""
    with opened(tiny_model, kind) as make:
        limits = make().limits
    found = (limits.max_rows, limits.can_branch, limits.can_rewind)
    assert found == (kind.max_rows, kind.can_branch, kind.can_rewind)
    assert (limits.max_leaves > 1) == kind.can_branch


@each_kind
def test_greedy_text_does_not_depend_on_the_drafter(tiny_model: TinyModel, kind: Kind) -> None:
    """Right and wrong guesses, on main chains and side branches, past the sliding window."""
    prompt = [1, *range(60, 100)]
    with opened(tiny_model, kind) as make:
        truth = greedy(make(), [], prompt)
        for drafter in (
            Oracle([*prompt, *truth], 395, decoys=0),
            Oracle([*prompt, *truth], 395, decoys=2),
            RandomTree(3, 395, 3),
        ):
            assert greedy(make(), [drafter], prompt) == truth


@each_kind
def test_a_prompt_with_another_end_continues_like_a_fresh_one(
    tiny_model: TinyModel, kind: Kind
) -> None:
    """Whatever of the cache is reused, or not, the next tokens are those of a new session."""
    with opened(tiny_model, kind) as make:
        backend = make()
        session = session_of(backend, [RandomTree(3, 395, 3)], 12)
        session.feed([1, *range(50, 150)])
        text = [1, *range(50, 150), *more(session, 100)]
        for keep in (195, 190, 150, 20):
            prompt = [*text[:keep], 33, 44, 55]
            reused = session.feed(prompt)
            assert reused <= keep
            fresh = session_of(make(), [], 0)
            fresh.feed(prompt)
            assert more(session, 30) == more(fresh, 30)


def test_a_windowed_cache_is_only_rewound_as_far_as_it_remembers(tiny_model: TinyModel) -> None:
    """llama.cpp would cut further back without a word; the backend starts anew instead."""
    kind = Kind("gemma3", False, 64, False, True)
    with opened(tiny_model, kind) as make:
        backend = make()
        for start in range(0, 960, 32):
            backend.prefill(np.arange(50 + start % 256, 82 + start % 256, dtype=np.int32))
        assert backend.rewind(950) == 950
        assert backend.rewind(WINDOW) == 0


def test_a_given_up_step_empties_a_memory_that_cannot_go_back(tiny_model: TinyModel) -> None:
    """Snapshots do not reach before a batch, so the state must not be trusted after it."""
    kind = Kind("lfm2", True, 9, False, False)
    with opened(tiny_model, kind) as make:
        backend = make()
        prompt = [1, *range(60, 90)]
        session = session_of(backend, [], 0)
        session.feed(prompt)
        backend.score(DraftTree.from_parents([89, 3, 4], [-1, 0, 1]), [])
        backend.commit(0)
        assert backend.length == 0
        again = more(session, 30)
        assert again == greedy(make(), [], prompt)[:30]
