"""What lies on a GPU: by the header, worked examples and a budget of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specgen.core.config import EngineConfig
from specgen.core.errors import MemoryBudgetError
from specgen.core.llama.library import LogBridge
from specgen.core.memory.budget import SHARE, PlanInputs, fit, plan_for
from specgen.core.memory.offload import split
from specgen.core.memory.plan import BASELINE
from specgen.core.models.header import TensorInfo
from specgen.core.models.modelinfo import ModelInfo, read_headers
from tests.support.headers import MADE

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


def test_embeddings_that_are_the_output_are_in_both() -> None:
    """The table is looked up by the CPU and multiplied by the GPU."""
    found = split(TENSORS[:-1], 12, 1)
    assert sum(tensor.n_bytes for tensor in found.device) == 1007
    assert found.gone == 7


@pytest.fixture
def inputs(tmp_path: Path) -> PlanInputs:
    """A 7B of Q4_0 beside a GPU with room for all of it."""
    headers = read_headers(MADE["7b"].write(tmp_path / "m.gguf"))
    info = ModelInfo.from_headers(headers)
    return PlanInputs(headers, info, frozenset(), lambda n_ctx, few: 0, device=ROOM)


WANTED = EngineConfig(n_ctx=4096, flash_attention=True)


def test_what_goes_is_not_on_the_host(inputs: PlanInputs) -> None:
    """All layers by default: the GPU has the cache; what the host needs most is to read them."""
    without = plan_for(replace(inputs, device=None), WANTED)
    everything = plan_for(inputs, WANTED)
    assert without.device == everything.kv == 0
    file_bytes = inputs.headers[0].file_bytes
    assert everything.total == file_bytes + everything.vocabulary + BASELINE
    some = plan_for(inputs, replace(WANTED, gpu_layers=17))
    assert some.kv == without.kv // 2
    assert everything.total <= some.total < without.total


def test_weights_that_stay_are_on_the_host(inputs: PlanInputs) -> None:
    """Where the context takes more than they took while they were read."""
    long = replace(WANTED, n_ctx=8192, gpu_layers=9)
    a_layer = (4 * 4096 * 4096 + 3 * 4096 * 11_008) // 32 * 18
    expected = inputs.headers[0].file_bytes - 8 * a_layer
    assert plan_for(inputs, long).weights == pytest.approx(expected, abs=10 << 20)


def test_as_many_layers_as_there_is_room_for(inputs: PlanInputs) -> None:
    """One more would not fit; it is told."""
    for room in (200 << 20, 1 << 30, 3 << 30, 5 << 30):
        found = fit(replace(inputs, device=room), WANTED, None)
        n = found.config.gpu_layers
        assert n is not None
        assert found.concessions == (f"only {n} layers on the GPU, which has no room for more",)
        assert found.plan.device <= SHARE * room
        one_more = plan_for(inputs, replace(WANTED, gpu_layers=n + 1))
        assert one_more.device > SHARE * room
    assert fit(inputs, WANTED, None).config == WANTED


def test_layers_that_were_asked_for_are_a_promise(inputs: PlanInputs) -> None:
    """Kept, or refused with what would fit."""
    asked = replace(WANTED, gpu_layers=20)
    assert fit(inputs, asked, None).config == asked
    small = replace(inputs, device=1 << 30)
    with pytest.raises(MemoryBudgetError, match="20 layers need") as failure:
        fit(small, asked, None)
    fitting = int(failure.value.hint.split()[2])
    assert fit(small, replace(WANTED, gpu_layers=fitting), None).plan.device <= SHARE * (1 << 30)


@pytest.mark.parametrize("layers", [0, 17, None])
def test_nothing_is_copied_beside_a_gpu(inputs: PlanInputs, layers: int | None) -> None:
    """Not even of what the CPU multiplies: long prompts are, on the GPU."""
    copying = replace(inputs, features=frozenset({"AVX2", "REPACK"}))
    assert plan_for(replace(copying, device=None), WANTED).copies > 0
    assert plan_for(copying, replace(WANTED, gpu_layers=layers)).copies == 0


def test_a_gpu_computes_prompts_even_without_layers(inputs: PlanInputs) -> None:
    """So its buffer is there, and nothing else; the host has the mask and embeddings twice."""
    without = plan_for(replace(inputs, device=None), WANTED)
    none = plan_for(inputs, replace(WANTED, gpu_layers=0))
    assert none.device == without.compute
    assert none.compute == 64 * 512 + 2 * 512 * 4096 + 2 * 4 * 512 * 4096
    assert none.kv == without.kv
    assert none.weights == without.weights


def test_what_goes_is_on_the_gpu(inputs: PlanInputs) -> None:
    """The layers' weights and the output, the cache, and the compute buffer."""
    without = plan_for(replace(inputs, device=None), WANTED)
    tensors = inputs.headers[0].tensors
    weights = sum(tensor.n_bytes for tensor in tensors)
    table = next(t.n_bytes for t in tensors if t.name == "token_embd.weight")
    has_output = any(t.name == "output.weight" for t in tensors)
    assert plan_for(inputs, WANTED).device == (
        weights - (table if has_output else 0) + without.kv + without.compute
    )


def test_states_go_with_their_layers(tmp_path: Path) -> None:
    """As the cache does, by their share of the layers."""
    headers = read_headers(MADE["hybrid"].write(tmp_path / "m.gguf"))
    hybrid = PlanInputs(headers, ModelInfo.from_headers(headers), frozenset(), lambda *_: 0)
    without = plan_for(hybrid, WANTED)
    beside = replace(hybrid, device=ROOM)
    assert without.state > 0
    assert plan_for(beside, replace(WANTED, gpu_layers=5)).state == without.state // 2
    assert plan_for(beside, WANTED).state == 0


def test_what_llama_cpp_says_of_its_buffers() -> None:
    """Those on GPUs are added up; what the host has, or sees, is not there."""
    bridge = LogBridge()
    for line in (
        "load_tensors:   CPU_Mapped model buffer size =    28.69 MiB",
        "load_tensors:      Vulkan0 model buffer size =    92.00 MiB",
        "llama_context:  CUDA_Host  output buffer size =     0.19 MiB",
        "llama_kv_cache:        CPU KV buffer size =    31.50 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =    13.50 MiB",
        "sched_reserve:     Vulkan0 compute buffer size =    15.50 MiB",
        "sched_reserve: Vulkan_Host compute buffer size =     4.26 MiB",
        "~llama_context:    Vulkan0 compute buffer size is  13.2598 MiB, matches expectation",
    ):
        bridge(2, f"{line}\n".encode(), None)
    assert bridge.device_bytes == (92 + 13.5 + 15.5) * (1 << 20)
