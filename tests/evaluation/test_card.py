"""The machine card: what a token reads, by tensors that the `gguf` package wrote and reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

import specgen
from specgen.core.errors import ModelError
from specgen.core.evaluation import machine
from specgen.core.evaluation.card import Card, read_bytes
from specgen.core.evaluation.machine import card_of
from specgen.core.llama.library import device_names
from specgen.core.models.modelinfo import read_headers
from tests.conftest import TinyModel
from tests.support.tiny import Architecture, Quantization

Shapes: TypeAlias = dict[str, tuple[int, ...]]

N_EMBD, N_VOCAB, N_EXPERTS = 64, 40, 8
Q8_ROW = 34 * N_EMBD // 32  # bytes of N_EMBD numbers
ENDS: Shapes = {"token_embd.weight": (N_VOCAB, N_EMBD), "output_norm.weight": (N_EMBD,)}
OUTPUT: Shapes = {"output.weight": (N_VOCAB, N_EMBD)}
LAYER: Shapes = {"blk.0.attn_q.weight": (N_EMBD, N_EMBD), "blk.1.attn_q.weight": (N_EMBD, N_EMBD)}
SECOND = datetime(2026, 3, 1, 0, 30, 5, 999, timezone(timedelta(hours=2)))


def write(path: Path, shapes: Shapes, **numbers: int) -> Path:
    """A file with tensors of these shapes, outermost first; matrices are Q8_0, vectors F32."""
    writer = GGUFWriter(path, "llama")
    for key, number in numbers.items():
        full = f"split.{key}" if key in ("no", "count") else f"llama.{key}"
        writer.add_uint32(full, number)
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(name, np.zeros(shape, np.float32))
            continue
        packed = np.zeros((*shape[:-1], shape[-1] // 32 * 34), np.uint8)
        writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sizes(*paths: Path) -> dict[str, int]:
    """Bytes of each tensor, as the reference reads them."""
    tensors = [tensor for path in paths for tensor in GGUFReader(path).tensors]
    return {tensor.name: int(tensor.n_bytes) for tensor in tensors}


@pytest.mark.parametrize("quantization", ["F32", "Q4_1"])
@pytest.mark.parametrize("architecture", ["llama", "mamba", "granitehybrid"])
def test_all_is_read_but_the_embeddings(
    tiny_model: TinyModel, architecture: Architecture, quantization: Quantization
) -> None:
    """With an output matrix, one row of the embeddings and everything else."""
    path = tiny_model(architecture, quantization)
    embeddings = next(t for t in GGUFReader(path).tensors if t.name == "token_embd.weight")
    n_rows = int(embeddings.shape[1])
    expected = sum(sizes(path).values()) - int(embeddings.n_bytes) * (n_rows - 1) // n_rows
    assert read_bytes(read_headers(path)) == expected


def test_embeddings_that_are_the_output_are_read(tmp_path: Path) -> None:
    """Without an output matrix, the embeddings are the output and read whole."""
    tied = write(tmp_path / "tied.gguf", ENDS | LAYER)
    assert read_bytes(read_headers(tied)) == sum(sizes(tied).values())


@pytest.mark.parametrize("name", ["per_layer_token_embd.weight", "position_embd.weight"])
def test_one_row_of_other_tables(tmp_path: Path, name: str) -> None:
    """A token looks up its row of per-layer and of position embeddings, whatever the output is."""
    path = write(tmp_path / "m.gguf", ENDS | LAYER | {name: (N_VOCAB, N_EMBD)})
    expected = sum(sizes(path).values()) - (N_VOCAB - 1) * Q8_ROW
    assert read_bytes(read_headers(path)) == expected


EXPERTS: Shapes = {
    "blk.0.ffn_gate_exps.weight": (N_EXPERTS, 96, N_EMBD),
    "blk.0.ffn_up_exps.weight": (N_EXPERTS, 96, N_EMBD),
    "blk.0.ffn_down_exps.weight": (N_EXPERTS, N_EMBD, 96),
    "blk.1.ffn_gate_up_exps.weight": (N_EXPERTS, 192, N_EMBD),
    "blk.1.ffn_down_exps.weight": (N_EXPERTS, N_EMBD, 96),
}
SHARED: Shapes = {
    "blk.0.ffn_gate_inp.weight": (N_EXPERTS, N_EMBD),
    "blk.0.ffn_down_shexp.weight": (N_EMBD, 96),
    "blk.0.ffn_norm_exps.weight": (N_EMBD,),
    "blk.0.exp_probs_b.bias": (N_EXPERTS,),
}


@pytest.mark.parametrize("n_used", [1, 3, N_EXPERTS])
def test_experts_in_use(tmp_path: Path, n_used: int) -> None:
    """Of a mixture, the experts that a token uses; the router and shared experts always."""
    path = tmp_path / "moe.gguf"
    write(
        path,
        ENDS | LAYER | EXPERTS | SHARED,
        expert_count=N_EXPERTS,
        expert_used_count=n_used,
    )
    n_bytes = sizes(path)
    idle = sum(n_bytes[name] for name in EXPERTS) * (N_EXPERTS - n_used) // N_EXPERTS
    assert read_bytes(read_headers(path)) == sum(n_bytes.values()) - idle


@pytest.mark.parametrize("n_used", [0, 99])
def test_impossible_numbers_of_experts(tmp_path: Path, n_used: int) -> None:
    """Where none or too many are in use by the file, all are counted."""
    path = write(tmp_path / "moe.gguf", ENDS | EXPERTS, expert_used_count=n_used)
    assert read_bytes(read_headers(path)) == sum(sizes(path).values())


def test_layers_that_predict_further_tokens_are_idle(tmp_path: Path) -> None:
    """The last layers, for drafts by the model itself, take no part in decoding."""
    layers: Shapes = LAYER | {"blk.1.nextn.eh_proj.weight": (N_EMBD, 2 * N_EMBD)}
    path = write(tmp_path / "m.gguf", ENDS | layers, block_count=2, nextn_predict_layers=1)
    n_bytes = sizes(path)
    idle = n_bytes["blk.1.attn_q.weight"] + n_bytes["blk.1.nextn.eh_proj.weight"]
    assert read_bytes(read_headers(path)) == sum(n_bytes.values()) - idle


def test_a_number_of_layers_that_is_not_stated(tmp_path: Path) -> None:
    """The output is read even if the file has fewer layers than idle ones."""
    path = write(tmp_path / "m.gguf", ENDS, nextn_predict_layers=1)
    assert read_bytes(read_headers(path)) == sum(sizes(path).values())


def test_parts_are_one_model(tmp_path: Path) -> None:
    """The output matrix in another part counts for the embeddings in the first."""
    paths = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    write(paths[0], ENDS, count=2, no=0)
    write(paths[1], LAYER | OUTPUT, count=2, no=1)
    expected = sum(sizes(*paths).values()) - (N_VOCAB - 1) * Q8_ROW
    assert read_bytes(read_headers(paths[0])) == expected


@pytest.fixture
def card(tiny_model: TinyModel) -> Card:
    """The card of a tiny model, at 1 GB/s."""
    path = tiny_model("llama", "Q8_0")
    return card_of(path, threads=3, flash_attention=True, n_ctx=512, now=SECOND, bandwidth=1e9)


@pytest.mark.llama
def test_a_card_says_what_figures_depend_on(card: Card, tiny_model: TinyModel) -> None:
    """The model by its header, the settings as given, and the builds."""
    path = tiny_model("llama", "Q8_0")
    assert card.date == "2026-02-28T22:30:05+00:00"
    assert (card.model, card.architecture, card.quantization) == (path.name, "llama", "Q8_0")
    assert card.n_params == sum(int(t.n_elements) for t in GGUFReader(path).tensors)
    assert card.weight_bytes == sum(sizes(path).values()) > card.read_bytes
    assert card.kv_bytes_per_token == 2 * 2 * (2 * 32 + 2 * 32)  # layers, f16, heads of k and v
    assert (card.threads, card.flash_attention, card.n_ctx) == (3, True, 512)
    assert card.devices == device_names()
    assert f"specgen {specgen.__version__}, llama-cpp-python " in card.build


@pytest.mark.llama
def test_the_bandwidth_is_measured_with_these_threads(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is given, bandwidth is measured, with as many threads as will decode."""
    monkeypatch.setattr(machine, "measure_bandwidth", lambda threads: threads * 1e9)
    path = tiny_model("llama", "F32")
    made = card_of(path, threads=5, flash_attention=None, n_ctx=64, now=SECOND)
    assert made.bandwidth == 5e9


@pytest.mark.llama
def test_a_card_comes_back_from_json(card: Card) -> None:
    """A record is JSON, and the card made from it is the same."""
    assert Card.from_record(json.loads(json.dumps(card.record()))) == card


@pytest.mark.llama
def test_the_ceiling_falls_with_the_context(card: Card) -> None:
    """A token reads the weights, and the cache of all tokens before it."""
    assert card.ceiling(0) == pytest.approx(1e9 / card.read_bytes)
    n_bytes = card.read_bytes + 100 * card.kv_bytes_per_token
    assert card.ceiling(100) == pytest.approx(1e9 / n_bytes)


def test_no_card_without_a_model(tmp_path: Path) -> None:
    """A file that is missing is an error before anything is measured."""
    with pytest.raises(ModelError):
        card_of(
            tmp_path / "no.gguf",
            threads=1,
            flash_attention=None,
            n_ctx=64,
            now=datetime.now(UTC),
        )
