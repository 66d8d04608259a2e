"""The GGUF header reader, against files that the `gguf` package writes and files that lie."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specgen.core.errors import ModelError
from specgen.core.models import header as reader
from specgen.core.models.header import ArrayInfo, read_header
from specgen.core.models.modelinfo import ModelInfo, read_model
from specgen.core.models.types import BLOCKS

N_VOCAB = 300


def write_model(
    path: Path,
    arch: str = "llama",
    *,
    extra: dict[str, Any] | None = None,
    tensors: bool = True,
    n_vocab: int = N_VOCAB,
) -> Path:
    """A small model file by the reference writer; `extra` are unsigned integers by full key."""
    writer = GGUFWriter(path, arch)
    writer.add_name("Tiny")
    writer.add_license("mit")
    writer.add_tokenizer_model("llama")
    writer.add_file_type(15)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_chat_template("{{ messages }}")
    writer.add_token_list([f"token {i} é" for i in range(n_vocab)])
    writer.add_token_scores([0.5] * n_vocab)
    writer.add_array("general.tags", ["small", "test"])
    for key, value in (extra or {}).items():
        add_value(writer, key, value)
    if tensors:
        rng = np.random.default_rng(0)
        writer.add_tensor("token_embd.weight", rng.random((n_vocab, 64), dtype=np.float32))
        writer.add_tensor("half", rng.random((5, 32), dtype=np.float32).astype(np.float16))
        packed = np.zeros((3, 34 * 2), dtype=np.uint8)
        writer.add_tensor("packed", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add a key of the type that fits `value`."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def pack(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def raw_file(
    path: Path,
    *,
    keys: bytes = b"",
    n_keys: int = 0,
    rows: bytes = b"",
    n_tensors: int = 0,
    data: bytes = b"",
    version: int = 3,
) -> Path:
    """A file of hand-made bytes: header, keys, tensor rows, padding, data."""
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + keys + rows
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def row(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return pack(name) + dims + struct.pack("<IQ", kind, offset)


def refusal(path: str | Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_model(path)
    return caught.value


def test_header_equals_the_reference_reader(model: Path) -> None:
    """Tensors, sizes, offsets and metadata are what the gguf package reads."""
    header, reference = read_header(model), GGUFReader(model)
    assert header.data_start == reference.data_offset
    for ours, theirs in zip(header.tensors, reference.tensors, strict=True):
        assert ours.name == theirs.name
        assert ours.shape == tuple(int(n) for n in theirs.shape)
        assert ours.type == theirs.tensor_type.name
        assert ours.n_bytes == theirs.n_bytes
        assert header.data_start + ours.offset == theirs.data_offset
    for key, field in reference.fields.items():
        if key.startswith("GGUF."):
            continue
        value, expected = header.metadata[key], field.contents()
        if isinstance(value, ArrayInfo):
            assert value.length == len(expected)
        else:
            assert (list(value) if isinstance(value, tuple) else value) == expected


def test_long_arrays_are_only_described(model: Path) -> None:
    """A vocabulary is summarised as type and length, a short array is kept."""
    metadata = read_header(model).metadata
    assert metadata["tokenizer.ggml.tokens"] == ArrayInfo("str", N_VOCAB)
    assert metadata["general.tags"] == ("small", "test")


def test_model_info_of_a_plain_decoder(model: Path) -> None:
    """ModelInfo states what the header says, in numbers."""
    info = read_model(model)
    assert (info.name, info.architecture, info.quantization) == ("Tiny", "llama", "Q4_K_M")
    assert (info.n_layer, info.n_ctx_train, info.n_embd) == (2, 128, 64)
    assert (info.heads, info.kv_heads, info.n_vocab) == (4, 2, N_VOCAB)
    assert info.n_params == N_VOCAB * 64 + 5 * 32 + 3 * 64
    assert info.weight_bytes == N_VOCAB * 64 * 4 + 5 * 32 * 2 + 3 * 68
    assert info.file_bytes == model.stat().st_size
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2  # layers, heads, K and V, width, f16
    assert (info.chat_template, info.licence) == ("{{ messages }}", "mit")
    assert (info.drafting, info.refusal, info.sliding_window) == ("tree", "", 0)


@pytest.mark.parametrize(
    ("arch", "extra", "drafting", "window"),
    [
        ("gemma3", {"gemma3.attention.sliding_window": 512}, "tree", 512),
        ("phi3", {"phi3.attention.sliding_window": 512}, "tree", 0),
        ("llama4", {}, "tree", 8192),
        ("llama4", {"llama4.attention.sliding_window": 0}, "tree", 0),
        ("mamba", {}, "plain", 0),
        ("rwkv7", {}, "plain", 0),
        ("jamba", {}, "plain", 0),
        ("qwen35", {}, "chain", 0),
        ("lfm2", {}, "chain", 0),
        ("bert", {}, "none", 0),
        ("t5", {}, "none", 0),
        ("llada", {}, "none", 0),
        ("clip", {}, "none", 0),
        ("qwen3", {"qwen3.attention.causal": False}, "none", 0),
    ],
)
def test_what_an_architecture_can_do(
    tmp_path: Path, arch: str, extra: dict[str, Any], drafting: str, window: int
) -> None:
    """The architecture decides between trees, chains, plain decoding and refusal."""
    info = read_model(write_model(tmp_path / "m.gguf", arch, extra=extra))
    assert (info.drafting, info.sliding_window) == (drafting, window)
    assert bool(info.refusal) == (drafting == "none")


def test_heads_by_layer(tmp_path: Path) -> None:
    """Head counts may differ by layer, also beyond 64 layers, and the cache follows them."""
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "deci")
    writer.add_block_count(80)
    writer.add_embedding_length(64)
    writer.add_head_count([4] * 80)
    writer.add_head_count_kv([0, 2] * 40)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    info = read_model(path)
    assert (info.heads, info.kv_heads) == (4, (0, 2) * 40)
    assert info.kv_bytes_per_token == 40 * 2 * 16 * 2 * 2


def test_quantization_without_a_file_type(tmp_path: Path) -> None:
    """Where the file does not name its quantization, the commonest type by bytes does."""
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("big", np.zeros((64, 64), dtype=np.float16))
    writer.add_tensor("small", np.zeros(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_model(path).quantization == "F16"


def test_a_type_of_the_future_is_no_error(tmp_path: Path) -> None:
    """A tensor type that we do not know is left to llama.cpp, its size taken from its room."""
    rows = row("a", (32,), 99, 0) + row("b", (8,), 0, 64)
    header = read_header(raw_file(tmp_path / "m", rows=rows, n_tensors=2, data=b"\0" * 96))
    assert [(t.type, t.n_bytes) for t in header.tensors] == [("type 99", 64), ("F32", 32)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"Once upon a time\nthere was", "looks like a text file"),
        ("Grüße, 世界".encode()[:-1], "looks like a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"PK\x03\x04\0\0\0\0archive/data.pkl", "PyTorch"),
        (b"\x80\x02}q\0", "pickle"),
        (struct.pack("<Q", 20) + b'{"__metadata__":{}}  ', "safetensors"),
        (b"lmgg\0\0\0\0", "old GGML"),
        (b"tjgg\1\0\0\0", "old GGJT"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (bytes(range(128, 160)), "begins with 80 81 82 83"),
        (b"GGUF", "truncated"),
        (b"GGUF\x03\0\0\0", "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1, and only 2 and 3"),
        (b"GGUF" + struct.pack("<IQQ", 7, 0, 0), "version 7, and only 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    ],
)
def test_what_is_not_a_gguf(tmp_path: Path, content: bytes, words: str) -> None:
    """A file of another kind is refused by saying what it is and what to do."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    error = refusal(path)
    assert words in error.message
    assert str(path) in error.message
    assert error.hint


def test_paths_that_hold_no_file(tmp_path: Path) -> None:
    """A missing path, a directory, a device and a name with NUL have messages of their own."""
    assert "no such file" in refusal(tmp_path / "none.gguf").message
    assert "is a directory" in refusal(tmp_path).message
    assert "not a regular file" in refusal("/dev/null").message
    assert "cannot read" in refusal("a\0b").message


def test_lost_tensor_data_is_counted(model: Path, tmp_path: Path) -> None:
    """A file cut in its weights is truncated, with the bytes that it has, needs and lacks."""
    data = model.read_bytes()
    header = read_header(model)
    needed = header.data_start + max(t.offset + t.n_bytes for t in header.tensors)
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: needed - 100])
    message = refusal(path).message
    assert f"it has {needed - 100:,} of {needed:,} bytes (100 missing)" in message
    path.write_bytes(data[:needed])
    assert read_model(path).n_params


def test_every_cut_is_noticed(model: Path, tmp_path: Path) -> None:
    """Wherever the file is cut before its end, the answer is a ModelError that says so."""
    data, path = model.read_bytes(), tmp_path / "cut.gguf"
    start = read_header(model).data_start
    for length in [*range(1, start, 37), start, start + 1]:
        path.write_bytes(data[:length])
        refusal(path)


@pytest.mark.parametrize(
    ("keys", "n_keys", "words"),
    [
        (b"", 1 << 60, "metadata keys"),
        (struct.pack("<Q", 1 << 50) + b"x" * 64, 1, "the name of key 0"),
        (pack("") + struct.pack("<IB", 0, 1), 1, "empty or there twice"),
        (pack("a") + struct.pack("<II", 4, 1) + pack("a") + struct.pack("<II", 4, 1), 2, "twice"),
        (pack("a") + struct.pack("<IQ", 77, 1), 1, "unknown type 77"),
        (pack("a") + struct.pack("<IQ", 8, 1 << 62), 1, "the value of a"),
        (pack("a") + struct.pack("<IIQ", 9, 0, 1 << 63), 1, "items in 'a'"),
        (pack("a") + struct.pack("<IIQ", 9, 8, 1 << 40), 1, "strings in 'a'"),
        (pack("a") + struct.pack("<IIQ", 9, 9, 1), 1, "unknown item type 9"),
        (pack("general.alignment") + struct.pack("<II", 4, 0), 1, "alignment is 0"),
        (pack("general.alignment") + struct.pack("<II", 4, 48), 1, "alignment is 48"),
        (pack("general.alignment") + struct.pack("<I", 8) + pack("32"), 1, "alignment is '32'"),
    ],
)
def test_lying_metadata(tmp_path: Path, keys: bytes, n_keys: int, words: str) -> None:
    """A count, length or type that cannot be is refused with its name."""
    path = raw_file(tmp_path / "m", keys=keys, n_keys=n_keys, data=b"\0" * 64)
    assert words in refusal(path).message


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row("a" * 64, (1,), 0, 0)], "the name of tensor 0"),
        ([row("a", (1,) * 5, 0, 0)], "5 dimensions"),
        ([row("a", (1 << 62, 1 << 62), 0, 0)], "has the shape"),
        ([row("a", (0, 4), 0, 0)], "has the shape"),
        ([row("a", (31,), 2, 0)], "has the shape"),
        ([row("a", (1,), 0, 7)], "not aligned to 32"),
        ([row("a", (1,), 0, 0), row("a", (1,), 0, 32)], "same name"),
        ([row("a", (16,), 0, 0), row("b", (1,), 0, 32)], "overlaps"),
        ([row("a", (1,), 0, 1 << 62)], "truncated"),
        ([row("a", (1 << 40,), 0, 0)], "truncated"),
    ],
)
def test_lying_tensors(tmp_path: Path, rows: list[bytes], words: str) -> None:
    """A tensor that cannot be where it claims to be is refused with its name."""
    path = raw_file(tmp_path / "m", rows=b"".join(rows), n_tensors=len(rows), data=b"\0" * 128)
    assert words in refusal(path).message


def test_hostile_sparse_file_costs_nothing(tmp_path: Path) -> None:
    """A huge sparse file with huge counts is refused in under a second and a few megabytes."""
    path = tmp_path / "huge.gguf"
    keys = pack("a") + struct.pack("<IIQ", 9, 8, 1 << 34)
    raw_file(path, keys=keys, n_keys=1)
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    began = time.perf_counter()
    tracemalloc.start()
    assert "strings in 'a'" in refusal(path).message
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - began < 1.0
    assert peak < 8 << 20


def test_a_real_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    """A header with 49,152 tokens is read in well under 0.3 s."""
    path = write_model(tmp_path / "m.gguf", n_vocab=49_152)
    began = time.perf_counter()
    read_header(path)
    assert time.perf_counter() - began < 0.3


def test_seeded_mutations_end_in_a_header_or_a_model_error(model: Path, tmp_path: Path) -> None:
    """3,000 damaged copies, each read to a result or a ModelError within the time limit."""
    rng = random.Random(20)
    start = read_header(model).data_start
    original, path = model.read_bytes()[: start + 256], tmp_path / "m.gguf"
    began, n_read = time.perf_counter(), 0
    for _ in range(3000):
        data = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            place = rng.choice((rng.randrange(200), rng.randrange(len(data))))
            value = rng.choice((0, 1, 255, rng.randrange(256)))
            data[place : place + rng.choice((1, 1, 4, 8))] = bytes([value])
        path.write_bytes(data)
        try:
            n_read += bool(read_model(path))
        except ModelError as error:
            assert error.message
    assert time.perf_counter() - began < 30
    assert n_read < 3000


@settings(max_examples=200, deadline=2000, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=300), counts=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_arbitrary_bytes_after_the_magic(
    tmp_path: Path, body: bytes, counts: tuple[int, int]
) -> None:
    """Random bytes behind a valid start never raise anything but ModelError."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + body)
    try:
        read_model(path)
    except ModelError as error:
        assert str(path) in error.message


def write_parts(folder: Path, n_parts: int) -> list[Path]:
    """A split model: metadata in the first part, a tensor in each."""
    paths = [folder / f"m-{i + 1:05}-of-{n_parts:05}.gguf" for i in range(n_parts)]
    for i, path in enumerate(paths):
        writer = GGUFWriter(path, "llama")
        writer.add_uint16("split.count", n_parts)
        writer.add_uint16("split.no", i)
        writer.add_tensor(f"t{i}", np.zeros(64, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_parts_of_a_split_model(tmp_path: Path) -> None:
    """The first part stands for all; a later, a missing or a renamed one is refused."""
    paths = write_parts(tmp_path, 3)
    info = read_model(paths[0])
    assert (info.n_parts, info.n_params) == (3, 192)
    assert info.file_bytes == sum(path.stat().st_size for path in paths)
    error = refusal(paths[1])
    assert "part 2 of 3" in error.message
    assert paths[0].name in error.hint
    paths[2].unlink()
    assert paths[2].name in refusal(paths[0]).message
    renamed = paths[0].rename(tmp_path / "other.gguf")
    assert "is not named so" in refusal(renamed).message


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_files_that_belong_to_a_model(tmp_path: Path, kind: str) -> None:
    """An adapter or projector is refused as what it is."""
    error = refusal(write_model(tmp_path / "m.gguf", extra={"general.type": kind}))
    assert "not a model" in error.message


def test_metadata_of_wrong_types_do_no_harm(tmp_path: Path) -> None:
    """Strings where numbers belong count as not stated."""
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    for key in ("block_count", "context_length", "embedding_length", "attention.head_count"):
        writer.add_string(f"llama.{key}", "many")
    writer.add_uint32("tokenizer.chat_template", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    info = read_model(path)
    assert isinstance(info, ModelInfo)
    assert (info.n_layer, info.heads, info.chat_template) == (0, 0, None)
    assert info.refusal == "the file has a vocabulary but no weights"


def test_vocabulary_without_architecture(tmp_path: Path) -> None:
    """A file that names no architecture, or absurdly many layers, is refused."""
    assert "which architecture" in refusal(raw_file(tmp_path / "m")).message
    path = tmp_path / "deep.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1 << 30)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "layers" in refusal(path).message


def test_types_are_those_of_the_gguf_package() -> None:
    """Numbers, names, values and bytes of a block, but for Q8_1, which no file holds, and Q2_0."""
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    ours = {number: (block.name, block.n_values, block.n_bytes) for number, block in BLOCKS.items()}
    newer = {number for number in theirs if number > max(ours)}  # of a later package
    differ = {n for n in theirs.keys() - newer if ours.get(n) != theirs[n]}
    assert differ <= {int(GGMLQuantizationType.Q8_1)}
    assert {ours[n][0] for n in ours.keys() - theirs.keys()} <= {"Q2_0", "Q1_0", "NVFP4"}


def test_a_file_that_changes_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it stays as it is, it is not; it may keep its size."""
    monkeypatch.setattr(reader, "_SETTLED_S", 0.0)
    path = write_model(tmp_path / "m.gguf")
    first = read_header(path)
    assert read_header(path) is first
    data = path.read_bytes()
    time.sleep(0.02)  # else it may get the same time
    path.write_bytes(data.replace(b"Tiny", b"Huge"))
    assert read_header(path).metadata["general.name"] == "Huge"
    path.unlink()
    with pytest.raises(ModelError, match="no such file"):
        read_header(path)


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path) -> None:
    """It may change once more, and the system tell the same time."""
    path = write_model(tmp_path / "m.gguf")
    assert read_header(path) is not read_header(path)
