"""What lies on a GPU: by the header, worked examples and a budget of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specgen.core.budget import SHARE, Subject, fit, plan_for
from specgen.core.config import EngineConfig
from specgen.core.errors import MemoryBudgetError
from specgen.core.gguf import TensorInfo
from specgen.core.modelinfo import ModelInfo, read_headers
from specgen.core.offload import split

from .headers import MADE

ROOM = 1 << 40


def info(name: str, n_bytes: int) -> TensorInfo:
    """A tensor of so many bytes."""
    return TensorInfo(name, (n_bytes,), "I8", n_bytes, 0)


TENSORS = [
    info("token_embd.weight", 1000),
    *(info(f"blk.{i}.attn_q.weight", 10 + i) for i in range(12)),
    info("output_norm.weight", 7),
    info("output.weight", 900),
]


@pytest.mark.parametrize(
    ("n", "device", "share"),
    [(0, 0, 0), (1, 907, 0), (2, 907 + 21, 1 / 12), (13, 907 + 186, 1), (99, 907 + 186, 1)],
)
def test_from_the_end(n: int, device: int, share: float) -> None:
    """The output first, then the last layer; embeddings stay."""
    found = split(TENSORS, 12, n)
    assert sum(tensor.n_bytes for tensor in found.device) == found.gone == device
    assert found.share == pytest.approx(share)
    total = sum(tensor.n_bytes for tensor in TENSORS)
    assert sum(tensor.n_bytes for tensor in found.host) == total - device


def test_embeddings_that_are_the_output_are_in_both() -> None:
    """The table is looked up by the CPU and multiplied by the GPU."""
    found = split(TENSORS[:-1], 12, 1)
    assert sum(tensor.n_bytes for tensor in found.device) == 1007
    assert found.gone == 7
    assert TENSORS[0] in found.host


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A 7B of Q4_0 beside a GPU with room for all of it."""
    headers = read_headers(MADE["7b"].write(tmp_path / "m.gguf"))
    info = ModelInfo.from_headers(headers)
    return Subject(headers, info, frozenset(), lambda n_ctx, few: 0, device=ROOM)


WANTED = EngineConfig(n_ctx=4096, flash_attention=True)


def test_what_goes_is_not_on_the_host(subject: Subject) -> None:
    """All layers by default: the host keeps the embeddings, the GPU has the cache."""
    without = plan_for(replace(subject, device=None), WANTED)
    everything = plan_for(subject, WANTED)
    assert without.device == everything.kv == 0
    embeddings = 32_000 * 4096 // 32 * 18
    header = subject.headers[0].data_start
    assert everything.weights == pytest.approx(embeddings + header, abs=4096)
    assert everything.device > without.weights - everything.weights + without.kv
    some = plan_for(subject, replace(WANTED, gpu_layers=17))
    assert some.kv == without.kv // 2
    assert everything.total < some.total < without.total


def test_as_many_layers_as_there_is_room_for(subject: Subject) -> None:
    """One more would not fit; it is told."""
    for room in (100 << 20, 1 << 30, 3 << 30, 5 << 30):
        found = fit(replace(subject, device=room), WANTED, None)
        n = found.config.gpu_layers
        assert n is not None
        assert found.concessions == (f"only {n} layers on the GPU, which has no room for more",)
        assert found.plan.device <= SHARE * room
        one_more = plan_for(subject, replace(WANTED, gpu_layers=n + 1))
        assert one_more.device > SHARE * room
    assert fit(subject, WANTED, None).config == WANTED


def test_layers_that_were_asked_for_are_a_promise(subject: Subject) -> None:
    """Kept, or refused with what would fit."""
    asked = replace(WANTED, gpu_layers=20)
    assert fit(subject, asked, None).config == asked
    small = replace(subject, device=1 << 30)
    with pytest.raises(MemoryBudgetError, match="20 layers need") as failure:
        fit(small, asked, None)
    fitting = int(failure.value.hint.split()[2])
    assert fit(small, replace(WANTED, gpu_layers=fitting), None).plan.device <= SHARE * (1 << 30)


def test_copies_of_what_goes_are_not_on_the_host(subject: Subject) -> None:
    """The CPU copies what it multiplies: nothing, or the embeddings' table, of what is left."""
    subject = replace(subject, features=frozenset({"AVX2", "REPACK"}))
    embeddings = 32_000 * 4096 // 32 * 18
    a_layer = (4 * 4096 * 4096 + 3 * 4096 * 11_008) // 32 * 18
    assert plan_for(subject, replace(WANTED, gpu_layers=0)).copies == embeddings + 32 * a_layer
    some = plan_for(subject, replace(WANTED, gpu_layers=17)).copies
    assert 16 * a_layer <= some <= 16 * a_layer + embeddings
    assert plan_for(subject, WANTED).copies <= embeddings


def test_what_goes_is_on_the_gpu(subject: Subject) -> None:
    """Weights, the table of embeddings once more, the cache, and a compute buffer there, too."""
    without = plan_for(replace(subject, device=None), WANTED)
    everything = plan_for(subject, WANTED)
    embeddings = 32_000 * 4096 // 32 * 18
    weights = without.weights - everything.weights + embeddings
    assert everything.device == weights + without.kv + without.compute
    assert everything.compute == without.compute


def test_states_go_with_their_layers(tmp_path: Path) -> None:
    """As the cache does, by their share of the layers."""
    headers = read_headers(MADE["hybrid"].write(tmp_path / "m.gguf"))
    hybrid = Subject(headers, ModelInfo.from_headers(headers), frozenset(), lambda *_: 0)
    without = plan_for(hybrid, WANTED)
    beside = replace(hybrid, device=ROOM)
    assert without.state > 0
    assert plan_for(beside, replace(WANTED, gpu_layers=5)).state == without.state // 2
    assert plan_for(beside, WANTED).state == 0


@pytest.mark.parametrize("layers", [0, 1, 17, 33])
def test_what_is_copied_stays(tmp_path: Path, layers: int) -> None:
    """Copies of the matrices that the CPU multiplies with; its embeddings are a table then."""
    headers = read_headers(MADE["7b"].write(tmp_path / "m.gguf"))
    subject = Subject(
        headers,
        ModelInfo.from_headers(headers),
        frozenset({"AVX2", "REPACK"}),
        lambda n_ctx, few: 0,
        device=ROOM,
    )
    stays = range(33 - layers) if layers else range(32)
    kept = [
        tensor.n_bytes
        for tensor in headers[0].tensors
        if tensor.type == "Q4_0" and any(tensor.name.startswith(f"blk.{i}.") for i in stays)
    ]
    table = next(t for t in headers[0].tensors if t.name == "token_embd.weight")
    expected = sum(kept) + (0 if layers else table.n_bytes)  # which is the output, too
    assert plan_for(subject, replace(WANTED, gpu_layers=layers)).copies == expected
