"""The tiny models are what the tests that use them take for granted."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from specgen.core.config import ContextConfig
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.llama.library import library
from specgen.core.tree import DraftTree
from tests.conftest import TinyModel
from tests.support.tiny import QUANTIZATIONS, Architecture, Quantization, write_tiny

MAX_BYTES = 2_000_000
N_TOKENS = 64

pytestmark = pytest.mark.llama
each_architecture = pytest.mark.parametrize("architecture", get_args(Architecture))
each_quantization = pytest.mark.parametrize("quantization", QUANTIZATIONS)


@each_architecture
@each_quantization
def test_small_and_reproducible(
    architecture: Architecture, quantization: Quantization, tmp_path: Path
) -> None:
    """The same arguments give the same bytes, under 2 MB; another seed gives others."""
    first, again, other = (
        write_tiny(tmp_path / name, architecture, quantization, seed=seed).read_bytes()
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again != other
    assert len(first) < MAX_BYTES


@each_architecture
@each_quantization
def test_greedy_text_wanders(
    architecture: Architecture, quantization: Quantization, tiny_model: TinyModel
) -> None:
    """llama.cpp runs it; its distributions are neither flat nor saturated, its text no loop."""
    model = LlamaModel(tiny_model(architecture, quantization))
    backend = LlamaBackend(model, ContextConfig(n_ctx=256, threads=1))
    tokens = model.vocab.tokenize("Hello, world: é\n", add_bos=True, special=True)
    backend.prefill(np.array(tokens[:-1], np.int32))
    tops = []
    for _ in range(N_TOKENS):
        (row,) = backend.score(DraftTree.root(tokens[-1]), [])
        backend.commit(1)
        tops.append(1 / np.exp(row - row.max()).sum())
        tokens.append(int(row.argmax()))
    backend.close()
    model.close()
    assert 0.1 < np.median(tops) < 0.6
    assert len(set(tokens[-N_TOKENS:])) > N_TOKENS // 5


def test_ends_are_asked_for_once(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each token llama.cpp is asked when it is first looked for, and none before."""
    api = library().api
    asked: list[int] = []
    is_end = api.llama_vocab_is_eog

    def counted(vocab: int, token: int) -> bool:
        asked.append(token)
        return bool(is_end(vocab, token))

    monkeypatch.setattr(api, "llama_vocab_is_eog", counted)
    model = LlamaModel(tiny_model())
    assert not asked
    ends = [token for _ in range(2) for token in (3, 0, 5, 3) if token in model.vocab.eog]
    handle = api.llama_model_get_vocab(model.handle)
    assert ends == [token for token in (3, 0, 5, 3) * 2 if is_end(handle, token)]
    assert asked == [3, 0, 5]
    model.close()


def test_any_text_survives_tokenizing(tiny_model: TinyModel) -> None:
    """The vocabulary falls back to bytes, knows words and control tokens, and loses nothing."""
    model = LlamaModel(tiny_model())
    vocab = model.vocab
    text = " the World, naïve 日本\t\x00 of\n"
    tokens = vocab.tokenize(text, add_bos=False, special=False)
    assert b"".join(vocab.piece(token) for token in tokens).decode() == text
    assert len(vocab.tokenize(" the", add_bos=False, special=False)) == 1
    assert sum(token in vocab.eog for token in range(vocab.n_vocab)) == 2
    (end,) = vocab.tokenize("<|im_end|>", add_bos=False, special=True)
    assert end in vocab.eog
    assert "<|im_start|>" in (model.chat_template() or "")
    model.close()
