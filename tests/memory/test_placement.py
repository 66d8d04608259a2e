"""Where weights are put, and whose kernels multiply them: worked examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.core.memory.placement import Share, place, shares, shares_text
from specgen.core.models.header import Header, TensorInfo

X86 = frozenset({"REPACK", "AVX2", "AVX512"})
Q4_K, Q6_K = 12, 14  # ggml_type


def laid_out(number: int, columns: int, rows: int) -> int:
    """Kernels for Q6_K, which add a byte a row."""
    return 210 * columns // 256 * rows + rows if number == Q6_K else 0


def header(*tensors: TensorInfo, start: int = 0) -> Header:
    """Tensors that lie behind each other in a file."""
    placed, offset = [], 0
    for tensor in tensors:
        placed.append(TensorInfo(tensor.name, tensor.shape, tensor.type, tensor.n_bytes, offset))
        offset += tensor.n_bytes
    return Header(Path("m.gguf"), 3, {}, tuple(placed), 32, start, start + offset)


def matrix(name: str, kind: str, *shape: int) -> TensorInfo:
    """A matrix in a format with blocks of 256."""
    n_values = 1
    for size in shape:
        n_values *= size
    return TensorInfo(
        f"{name}.weight", shape, kind, n_values // 256 * {"Q6_K": 210, "Q4_K": 144}[kind], 0
    )


OURS = matrix("blk.0.attn_q", "Q6_K", 256, 64)
THEIRS = matrix("blk.0.ffn_up", "Q4_K", 256, 64)
PLAIN = matrix("blk.0.ffn_down", "Q4_K", 256, 60)  # rows do not come by 8
EXPERTS = matrix("blk.0.ffn_up_exps", "Q6_K", 256, 64, 4)
NORM = TensorInfo("blk.0.attn_norm.weight", (256,), "F32", 1024, 0)
TABLE = matrix("token_embd", "Q6_K", 256, 100)
OUTPUT = matrix("output", "Q6_K", 256, 100)


def test_each_weight_is_in_one_place() -> None:
    """specgen's kernels first, then llama.cpp's copies; of others nothing is there twice."""
    every = [header(OURS, THEIRS, PLAIN, EXPERTS, NORM, TABLE, OUTPUT)]
    found = place(every, X86, laid_out, has_gpu=False)
    assert found.laid_out == 211 * 64 + 4 * 211 * 64 + 211 * 100
    assert found.copies == THEIRS.n_bytes
    assert found.others


def test_without_kernels_nothing_is_laid_out() -> None:
    """llama.cpp copies what it would by itself, and the whole file stays."""
    found = place([header(OURS, THEIRS)], X86, None, has_gpu=False)
    assert (found.laid_out, found.let_go, found.while_loading) == (0, 0, 0)
    assert found.copies == THEIRS.n_bytes


def test_beside_a_gpu_weights_stay_as_they_are() -> None:
    """Neither laid out nor copied."""
    found = place([header(OURS, THEIRS)], X86, laid_out, has_gpu=True)
    assert (found.laid_out, found.copies, found.let_go) == (0, 0, 0)


@pytest.mark.parametrize(
    ("start", "pages"), [(0, 3), (1, 2), (4096 - 13_440 % 4096, 3), (4095, 3), (2000, 2)]
)
def test_pages_at_the_edges_stay(start: int, pages: int) -> None:
    """13,440 bytes: only pages that hold nothing else are let go."""
    assert OURS.n_bytes == 13_440
    found = place([header(OURS, start=start)], X86, laid_out, has_gpu=False)
    assert found.let_go == 4096 * pages


def test_a_table_is_laid_out_as_the_output_only() -> None:
    """Then rows are looked up there, and nothing of it in the file comes back."""
    tied = place([header(TABLE)], X86, laid_out, has_gpu=False)
    assert (tied.laid_out, tied.let_go) == (211 * 100, 5 * 4096)
    both = place([header(TABLE, OUTPUT)], X86, laid_out, has_gpu=False)
    assert (both.laid_out, both.let_go) == (211 * 100, 4 * 4096)
    apart = place([header(TABLE), header(OUTPUT)], X86, laid_out, has_gpu=False)
    assert apart.laid_out == 211 * 100


def test_copies_of_a_table() -> None:
    """llama.cpp copies it as the output only, too."""
    table, output = matrix("token_embd", "Q4_K", 256, 64), matrix("output", "Q4_K", 256, 64)
    assert place([header(table)], X86, None, has_gpu=False).copies == table.n_bytes
    assert place([header(table, output)], X86, None, has_gpu=False).copies == output.n_bytes


def test_while_loading_a_piece_is_there_twice() -> None:
    """2 MiB of the file at most, and what the layout takes more than the file."""
    found = place([header(*[OURS] * 100)], X86, laid_out, has_gpu=False)
    assert found.while_loading == found.laid_out - found.let_go + 211 * 64
    large = place(
        [header(matrix("output", "Q6_K", 1 << 15, 1 << 15))], X86, laid_out, has_gpu=False
    )
    more = large.laid_out - large.let_go
    assert 2 << 20 < large.while_loading - more < 4 << 20


def test_shares() -> None:
    """By kernels and type, in bytes of the file; a table that is only looked up has no share."""
    every = [header(NORM, OURS, PLAIN, THEIRS, OURS, EXPERTS, TABLE, OUTPUT)]
    assert shares(every, X86, laid_out) == (
        Share("specgen", "Q6_K", 2 * OURS.n_bytes + EXPERTS.n_bytes + OUTPUT.n_bytes),
        Share("repacked", "Q4_K", THEIRS.n_bytes),
        Share("plain", "Q4_K", PLAIN.n_bytes),
        Share("plain", "F32", NORM.n_bytes),
    )
    assert {share.kernels for share in shares(every, X86, None)} == {"repacked", "plain"}
    assert shares([header(OURS)], X86, laid_out)[0].record() == {
        "kernels": "specgen",
        "type": "Q6_K",
        "bytes": OURS.n_bytes,
    }


def test_shares_beside_a_gpu() -> None:
    """What goes there, and what stays, which llama.cpp multiplies as it is."""
    found = shares([header(OURS, OUTPUT)], X86, laid_out, n_layer=1, gpu_layers=1)
    assert found == (
        Share("plain", "Q6_K", OURS.n_bytes),
        Share("gpu", "Q6_K", OUTPUT.n_bytes),
    )


def test_shares_in_words() -> None:
    """In percent, what rounds to nothing left out."""
    found = (
        Share("specgen", "Q4_K", 700),
        Share("specgen", "Q6_K", 200),
        Share("specgen", "Q8_0", 50),
        Share("plain", "F16", 49),
        Share("plain", "F32", 1),
    )
    assert shares_text(found, "avx2") == (
        "70 % Q4_K, 20 % Q6_K and 5 % Q8_0 on specgen's kernels (avx2), 5 % F16 on llama.cpp's"
    )
    alone = (Share("repacked", "Q4_0", 60), Share("plain", "Q6_K", 30), Share("gpu", "F16", 10))
    assert shares_text(alone, "none") == (
        "60 % Q4_0 on llama.cpp's (repacked), 30 % Q6_K on llama.cpp's, 10 % F16 on the GPU"
    )
    assert shares_text((), "none") == "none"
