"""The engine: what the configuration asks of trees, on models that branch and on others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from specgen.core.config import EngineConfig
from specgen.core.engine import Engine
from specgen.core.errors import UsageError
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.tree import DraftTree
from tests.support.command import generate, text_of
from tests.support.guessers import RandomTree

from .conftest import TinyModel

pytestmark = pytest.mark.llama

WORDS = ("the and was the and was the and", "--greedy", "-n", "30", "-t", "1")
WINDOWED = ("--swa-full", "off")
CANNOT = [
    ("gemma3", WINDOWED, "a sliding window without the full cache", "--swa-full on"),
    ("lfm2", (), "a hybrid model", "--tree auto"),
    ("mamba", (), "a recurrent model", "--tree auto"),
]


def trees(model: TinyModel, config: EngineConfig, n_drafters: int) -> list[DraftTree]:
    """The trees of one text, by drafters whose guesses always branch."""
    drafters = [RandomTree(i, 395, 3) for i in range(n_drafters)]
    with Engine(model("llama", "Q8_0"), drafters, config) as engine:
        engine.session.feed(engine.tokenize("the and was"))
        sampler = Sampler(SamplingParams(temperature=0), engine.vocab.n_vocab)
        steps = engine.session.generate(sampler, 40, lambda _: False)
        return [step.tree for step in steps]


@pytest.mark.parametrize(("tree", "branches"), [(None, True), (True, True), (False, False)])
def test_side_branches_as_asked_for(
    tiny_model: TinyModel, tree: bool | None, branches: bool
) -> None:
    """On a model that can have them: unless they are switched off; chains are drafted then."""
    found = trees(tiny_model, EngineConfig(n_ctx=256, threads=1, tree=tree), 1)
    assert any(each.n_main < len(each) for each in found) == branches
    assert any(each.n_main > 1 for each in found)


def test_several_drafters_keep_to_chains(tiny_model: TinyModel) -> None:
    """With the builder's prices, too."""
    found = trees(tiny_model, EngineConfig(n_ctx=256, threads=1, tree=False), 3)
    assert all(each.n_main == len(each) for each in found)


@pytest.mark.parametrize(("tree", "word"), [(None, "trees"), (False, "chains of up to 20 tokens")])
def test_verbose_says_which(
    tiny_model: TinyModel, caplog: pytest.LogCaptureFixture, tree: bool | None, word: str
) -> None:
    """Drafts are described as they will be."""
    caplog.set_level(logging.INFO, "specgen")
    trees(tiny_model, EngineConfig(n_ctx=256, threads=1, tree=tree), 1)
    assert f"drafts are verified as {word}" in caplog.text


@pytest.mark.parametrize("choice", ["on", "off", "auto"])
@pytest.mark.parametrize("drafter", ["auto", "suffix,recycle,prompt-lookup"])
def test_the_text_is_the_same(tiny_model: TinyModel, choice: str, drafter: str) -> None:
    """`--tree` is about speed alone."""
    model = tiny_model("llama", "Q8_0")
    expected = text_of(model, *WORDS, "--drafter", "none")
    assert text_of(model, *WORDS, "--drafter", drafter, "--tree", choice) == expected


@pytest.mark.parametrize(("architecture", "words", "why", "hint"), CANNOT)
def test_a_model_that_cannot_branch(
    tiny_model: TinyModel, architecture: str, words: Sequence[str], why: str, hint: str
) -> None:
    """`--tree on` is refused in one line with a way out; auto and off give the text."""
    model = tiny_model(architecture)  # type: ignore[arg-type]
    outcome = generate(model, *WORDS, *words, "--tree", "on")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"specgen: error: --tree on is not possible: {why} cannot branch")
    assert hint in outcome.err
    assert outcome.err.count("\n") == 1
    for choice in ("auto", "off"):
        assert text_of(model, *WORDS, *words, "--tree", choice)


def test_a_refusal_frees_the_model(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The context is closed before the weights are."""
    closed = []
    for kind in (LlamaModel, LlamaBackend):

        def close(self: Any, real: Callable[[Any], None] = kind.close) -> None:
            closed.append(type(self))
            real(self)

        monkeypatch.setattr(kind, "close", close)
    with pytest.raises(UsageError):
        Engine(tiny_model("lfm2"), [], EngineConfig(n_ctx=256, threads=1, tree=True))
    assert closed == [LlamaBackend, LlamaModel]
