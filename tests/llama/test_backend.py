"""The llama.cpp backend on a tiny random model: trees, commits and rewinding are exact.

What may differ is rounding: kernels for one row and for several add in another order. llama.cpp's
for Q8_0, Q4_0 and Q4_1 do not, with flash attention and less than 512 tokens (CPU backend). Ours do
not for any format, nor with more tokens. Those are compared bit for bit, with whatever kernels are
there; elsewhere the tolerance is stated.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from specgen.core.config import ContextConfig
from specgen.core.errors import BackendError, ContextFull, ModelError
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.llama.formats import FORMATS
from specgen.core.llama.layout import Layout
from specgen.core.protocols import Logits
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.tree import DraftTree
from specgen.drafters.prompt_lookup import PromptLookup
from tests.conftest import TinyModel
from tests.models.test_header import write_model
from tests.support import own_kernels
from tests.support.drafting import session_of
from tests.support.guessers import Oracle, RandomTree
from tests.support.tiny import Architecture, Quantization, write_tiny

pytestmark = pytest.mark.llama

EXACT: tuple[Quantization, ...] = ("Q8_0", "Q4_0", "Q4_1")
EXACT_ON_OURS: tuple[Quantization, ...] = (
    *("Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
)

# Largest difference of two logits seen, times about four; the logits' deviation is 1.8.
TOLERANCE: dict[Quantization, float] = {"F32": 0.02, "F16": 0.02, "Q4_K": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's models are written, each once."""
    return tmp_path_factory.mktemp("tiny")


def open_model(
    folder: Path, quantization: Quantization, architecture: Architecture = "llama"
) -> LlamaModel:
    """The tiny model, written when first asked for."""
    path = folder / f"{architecture}-{quantization}.gguf"
    if not path.exists():
        write_tiny(path, architecture, quantization)
    return LlamaModel(path)


def test_all_formats_of_the_kernels_are_compared() -> None:
    """None is written for that the tests below leave out."""
    assert {*EXACT, *EXACT_ON_OURS} == FORMATS.keys()


@pytest.fixture(params=[*EXACT, *EXACT_ON_OURS])
def exact_model(request: pytest.FixtureRequest, folder: Path) -> Iterator[LlamaModel]:
    """A model whose kernels give the same bits for every width."""
    if request.param in EXACT_ON_OURS and not own_kernels.multiplies():
        pytest.skip("llama.cpp's kernels for it depend on the width")
    model = open_model(folder, request.param)
    yield model
    model.close()


@pytest.fixture
def model(folder: Path) -> Iterator[LlamaModel]:
    """A model of the kind of the default one."""
    model = open_model(folder, "Q4_1")
    yield model
    model.close()


def config(n_ctx: int = 512, **changes: int | bool) -> ContextConfig:
    """Flash attention on, one thread: what is compared does not depend on it."""
    return ContextConfig(n_ctx, threads=1, flash_attention=True, **changes)  # type: ignore[arg-type]


def random_tree(rng: random.Random, n_nodes: int, n_vocab: int, root: int) -> DraftTree:
    """A tree whose main chain may be short or all of it."""
    tokens, parents = [root], [-1]
    n_main = rng.randint(1, n_nodes)
    while len(tokens) < n_nodes:
        parent = len(tokens) - 1 if len(tokens) < n_main else rng.randrange(len(tokens))
        token = rng.randrange(5, n_vocab)
        if (parent, token) not in zip(parents, tokens, strict=True):
            tokens.append(token)
            parents.append(parent)
    return DraftTree.from_parents(tokens, parents)


def one_by_one(backend: LlamaBackend, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits after `tokens`, decoded one at a time; the cache is put back."""
    length = backend.length
    logits = np.empty(0, np.float32)
    for token in tokens:
        logits = backend.score(DraftTree.root(token), [])[0].copy()
        backend.commit(1)
    backend.rewind(length)
    return logits


def path_to(tree: DraftTree, node: int) -> list[int]:
    """Tokens from the root down to `node`."""
    path: list[int] = []
    while node >= 0:
        path.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return path


def tree_errors(model: LlamaModel, n_context: int, seed: int) -> float:
    """Largest difference between a tree's logits and those of decoding one by one."""
    rng = random.Random(seed)
    n_vocab = model.vocab.n_vocab
    backend, reference = LlamaBackend(model, config(1024)), LlamaBackend(model, config(1024))
    context = np.array([rng.randrange(5, n_vocab) for _ in range(n_context)], np.int32)
    for start in range(0, n_context, 512):
        backend.prefill(context[start : start + 512])
        reference.prefill(context[start : start + 512])
    worst = 0.0
    for n_nodes in (1, 2, 3, 4, 5, 8, 11, 16):
        tree = random_tree(rng, n_nodes, n_vocab, root=7)
        pending = [rng.randrange(5, n_vocab) for _ in range(rng.randint(0, 3))]
        logits = backend.score(tree, pending).copy()
        backend.commit(0)
        for node in range(len(tree)):
            expected = one_by_one(reference, [*pending, *path_to(tree, node)])
            worst = max(worst, float(np.abs(logits[node] - expected).max()))
    backend.close()
    reference.close()
    return worst


def test_tree_logits_equal_sequential_ones_bit_for_bit(exact_model: LlamaModel) -> None:
    """Every node of a random tree, behind a random lead, has the logits of plain decoding."""
    assert tree_errors(exact_model, 200, seed=1) == 0.0


@pytest.mark.parametrize("quantization", TOLERANCE)
def test_tree_logits_equal_sequential_ones_within_rounding(
    folder: Path, quantization: Quantization
) -> None:
    """The same for weights whose kernels, or llama.cpp's at least, depend on the width."""
    model = open_model(folder, quantization)
    assert tree_errors(model, 200, seed=2) <= TOLERANCE[quantization]
    model.close()


def test_tree_logits_beyond_512_tokens_within_rounding(model: LlamaModel) -> None:
    """From 512 tokens on, one row alone takes another path through flash attention.

    Through llama.cpp's, that is: the model's heads are of a size that ours leave to it.
    """
    assert tree_errors(model, 600, seed=3) <= 1.0


@pytest.mark.parametrize("quantization", ["Q4_K", "Q6_K"])
def test_tree_logits_beyond_512_tokens_bit_for_bit(
    folder: Path, quantization: Quantization
) -> None:
    """Through our attention it does not; the heads of these models have 64 dimensions."""
    if not own_kernels.attends():
        pytest.skip("attention is llama.cpp's")
    model = open_model(folder, quantization)
    assert tree_errors(model, 600, seed=3) == 0.0
    model.close()


def state(backend: LlamaBackend) -> bytes:
    """The cache's cells and contents, as llama.cpp itself would save them."""
    size = llama_cpp.llama_state_seq_get_size(backend._context, 0)
    buffer = (ctypes.c_uint8 * size)()
    assert llama_cpp.llama_state_seq_get_data(backend._context, buffer, size, 0) == size
    return bytes(buffer)


def fresh_state(backend: LlamaBackend, tokens: list[int]) -> bytes:
    """The state after nothing but a prefill of `tokens`.

    In chunks of 32: from 64 rows on flash attention takes a kernel that rounds differently.
    """
    backend.rewind(0)
    for start in range(0, len(tokens), 32):
        backend.prefill(np.array(tokens[start : start + 32], np.int32))
    return state(backend)


def test_after_500_random_steps_the_cache_is_that_of_a_fresh_prefill(model: LlamaModel) -> None:
    """Accepting, rejecting, side branches and rewinding leave no trace, to the last bit."""
    rng = random.Random(5)
    n_vocab = model.vocab.n_vocab
    backend, reference = LlamaBackend(model, config()), LlamaBackend(model, config())
    text = [7]
    sides = rewinds = 0
    for _ in range(500):
        *pending, root = text[backend.length :]
        tree = random_tree(rng, rng.randint(1, 12), n_vocab, root)
        backend.score(tree, pending)
        node = rng.randrange(len(tree))
        accepted = path_to(tree, node)[1:]
        on_main = 0
        while on_main < len(accepted) and on_main + 1 < tree.n_main:
            if tree.tokens[on_main + 1] != accepted[on_main]:
                break
            on_main += 1
        backend.commit(len(pending) + 1 + on_main)
        sides += on_main < len(accepted)
        text += [*accepted, rng.randrange(5, n_vocab)]
        if len(text) > 300 or rng.random() < 0.1:
            text = text[: rng.randint(1, min(len(text), 200))]
            backend.rewind(min(backend.length, len(text) - 1))
            rewinds += 1
        check_positions(backend)
        cached = text[: backend.length]
        assert state(backend) == fresh_state(reference, cached), f"after {len(cached)} tokens"
    assert sides > 50 and rewinds > 20
    backend.close()
    reference.close()


@pytest.mark.parametrize("widths", [(4,), (5, 6)])
def test_the_graph_is_taken_again_where_the_width_stays(
    model: LlamaModel, widths: Sequence[int]
) -> None:
    """Whatever the tree, its leaves and the rows ahead of it; never where widths take turns."""
    rng = random.Random(4)
    n_vocab = model.vocab.n_vocab
    backend = LlamaBackend(model, config())
    backend.prefill(np.arange(5, 25, dtype=np.int32))
    before = 0
    for call in range(42):
        if call == 2:
            before = backend.n_reused
        pending = [rng.randrange(5, n_vocab) for _ in range(rng.randrange(3))]
        width = widths[call % len(widths)]
        tree = random_tree(rng, width - len(pending), n_vocab, 7)
        backend.score(tree, pending)
        backend.commit(len(pending) + 1)
        if backend.length > 200:
            backend.rewind(20)
    assert backend.n_reused - before == (40 if len(widths) == 1 else 0)
    backend.close()


def check_positions(backend: LlamaBackend) -> None:
    """All sequences cover positions 0..length-1."""
    memory = backend._memory
    for sequence in range(backend.limits.max_leaves):
        assert llama_cpp.llama_memory_seq_pos_max(memory, sequence) == backend.length - 1
        first = llama_cpp.llama_memory_seq_pos_min(memory, sequence)
        assert first == (0 if backend.length else -1)


def greedy(session: Session, n_vocab: int, n_tokens: int) -> list[int]:
    """The next tokens by argmax."""
    sampler = Sampler(SamplingParams(temperature=0), n_vocab)
    steps = session.generate(sampler, n_tokens, lambda _: False)
    return [token for step in steps for token in step.tokens]


@pytest.mark.parametrize("decoys", [0, 1, 3])
def test_greedy_text_does_not_depend_on_the_drafter(exact_model: LlamaModel, decoys: int) -> None:
    """Truth on the main chain or on side branches, the tokens are those of plain decoding."""
    n_vocab = exact_model.vocab.n_vocab
    prompt = exact_model.vocab.tokenize("that was the one he had", add_bos=True, special=False)
    backend = LlamaBackend(exact_model, config())
    plain_session = session_of(backend, [], 0)
    plain_session.feed(prompt)
    truth = greedy(plain_session, n_vocab, 150)
    for drafter in (
        Oracle([*prompt, *truth], n_vocab, decoys),
        RandomTree(1, n_vocab, 3),
    ):
        backend.rewind(0)
        session = session_of(backend, [drafter], 12)
        session.feed(prompt)
        assert greedy(session, n_vocab, 150) == truth
    backend.close()


def test_a_sampled_text_does_not_depend_on_the_drafter(model: LlamaModel) -> None:
    """With a seed, the same holds for sampling: one random number belongs to each token."""
    n_vocab = model.vocab.n_vocab
    backend = LlamaBackend(model, config())
    texts = []
    for drafters in ([], [RandomTree(1, n_vocab, 3)]):
        backend.rewind(0)
        session = session_of(backend, drafters, 12)
        session.feed([1, 7, 9])
        sampler = Sampler(SamplingParams(seed=4), n_vocab)
        steps = session.generate(sampler, 200, lambda _: False)
        texts.append([token for step in steps for token in step.tokens])
    assert texts[0] == texts[1]
    backend.close()


def test_a_context_that_is_full_is_an_error_with_numbers(model: LlamaModel) -> None:
    """Neither prefill nor score goes beyond the context, and the cache stays as it was."""
    backend = LlamaBackend(model, config(256))
    backend.prefill(np.full(250, 7, np.int32))
    with pytest.raises(ContextFull, match="260 tokens exceed the available context size of 256"):
        backend.prefill(np.full(10, 7, np.int32))
    with pytest.raises(ContextFull):
        backend.score(DraftTree.from_parents([7] * 7, range(-1, 6)), [])
    assert backend.length == 250
    check_positions(backend)
    backend.close()


def test_a_failing_decode_is_a_backend_error_and_leaves_the_cache(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each code of llama_decode becomes one line that says what to do."""
    backend = LlamaBackend(model, config(256))
    backend.prefill(np.full(20, 7, np.int32))
    tree = DraftTree.from_parents([7, 8, 9], [-1, 0, 0])
    before = state(backend)
    real = backend._api.llama_decode
    for code, words in ((1, "no room for 3 tokens"), (2, "abort"), (-3, "code -3")):
        monkeypatch.setattr(
            backend._api, "llama_decode", lambda context, batch, c=code: real(context, batch) or c
        )
        with pytest.raises(BackendError, match=words):
            backend.score(tree, [])
        monkeypatch.undo()
        assert state(backend) == before
    check_positions(backend)
    backend.close()


def test_a_cut_that_llama_cpp_refuses_is_a_backend_error(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bool of llama_memory_seq_rm is not ignored."""
    backend = LlamaBackend(model, config(256))
    backend.prefill(np.full(20, 7, np.int32))
    monkeypatch.setattr(backend._api, "llama_memory_seq_rm", lambda *_: False)
    with pytest.raises(BackendError, match="could not cut the cache back to 5"):
        backend.rewind(5)
    backend.close()


def test_a_context_that_cannot_be_made_is_a_backend_error(model: LlamaModel) -> None:
    """A setting that llama.cpp refuses ends in a message, not in a crash."""
    with pytest.raises(BackendError, match="cannot create a context"):
        LlamaBackend(model, ContextConfig(512, type_v="q8_0", flash_attention=False))


def test_what_llama_cpp_refuses_is_a_model_error(tmp_path: Path) -> None:
    """Its own reason is quoted, where the header alone did not tell."""
    path = write_model(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match=r"cannot load .*x\.gguf: .*layer_norm_rms_epsilon"):
        LlamaModel(path)


def test_vocabulary_round_trip(model: LlamaModel) -> None:
    """Text to tokens and back; control tokens only when asked for; all EOG tokens known."""
    vocab = model.vocab
    text = "The other one: was it 'Ωμέγα' 🙂?"
    tokens = vocab.tokenize(text, add_bos=True, special=False)
    assert tokens[0] == llama_cpp.llama_vocab_bos(vocab._handle)
    assert b"".join(map(vocab.piece, tokens)).decode().strip() == text
    assert len(vocab.tokenize("<|im_end|>", add_bos=False, special=True)) <= 2
    assert len(vocab.tokenize("<|im_end|>", add_bos=False, special=False)) > 2
    end = vocab.tokenize("<|im_end|>", add_bos=False, special=True)[-1]
    assert end in vocab.eog
    assert vocab.piece(end) == b""
    assert vocab.piece(end, special=True) == b"<|im_end|>"
    assert "<|im_end|>" in vocab.marks()


def test_logits_view_is_of_the_tree_only(model: LlamaModel) -> None:
    """The lead's rows are not returned: row 0 belongs to the root."""
    backend = LlamaBackend(model, config())
    tree = DraftTree.from_parents([9, 10], [-1, 0])
    logits: Logits = backend.score(tree, [7, 8])
    assert logits.shape == (2, model.vocab.n_vocab)
    first = logits[0].copy()
    backend.commit(0)
    assert np.array_equal(first, one_by_one(backend, [7, 8, 9]))
    backend.close()


@pytest.mark.parametrize("architecture", get_args(Architecture))
@pytest.mark.parametrize("call", ["prefill", "score"])
def test_a_call_that_is_broken_off_leaves_nothing(
    architecture: Architecture, call: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C in a Python program, right behind llama_decode: the next text is as ever."""
    opened = LlamaModel(tiny_model(architecture))
    backend = LlamaBackend(opened, config(256, chunk=32))
    sampler = Sampler(SamplingParams(temperature=0), opened.vocab.n_vocab)
    prompt = [5, 9, 3, 7, 5, 9, 3]

    def text() -> list[int]:
        session = session_of(backend, [PromptLookup()], 4)
        session.feed(prompt)
        list(session.generate(sampler, 12, lambda _: False))
        return session.tokens

    expected = text()
    decode = LlamaBackend._decode

    def broken_off(self: LlamaBackend, rows: Layout, *, outputs: bool) -> None:
        decode(self, rows, outputs=outputs)
        if outputs == (call == "score"):
            raise KeyboardInterrupt

    backend.rewind(0)
    monkeypatch.setattr(LlamaBackend, "_decode", broken_off)
    with pytest.raises(KeyboardInterrupt):
        text()
    monkeypatch.undo()
    assert text() == expected
    backend.close()
    opened.close()
