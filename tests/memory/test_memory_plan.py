"""The memory of a generation by the header, against llama.cpp's own sizes and worked examples."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from specgen.core.config import ContextConfig
from specgen.core.errors import SpecgenError, UsageError
from specgen.core.llama.kernels import NONE, laid_out_bytes
from specgen.core.llama.library import library, system_info
from specgen.core.memory.plan import MemoryPlan, plan_memory
from specgen.core.memory.repacked import cpu_features, is_copied
from specgen.core.models.header import TensorInfo
from specgen.core.models.modelinfo import read_headers, read_model
from tests.conftest import TinyModel
from tests.support.headers import MADE, Keys, write
from tests.support.tiny import QUANTIZATIONS, Architecture, Quantization

MIB = 1 << 20
NO_FEATURES: frozenset[str] = frozenset()


def context(n_ctx: int, **changes: Any) -> ContextConfig:
    """A context with flash attention and no snapshots, but for `changes`."""
    return ContextConfig(n_ctx, **({"flash_attention": True, "snapshots": 0} | changes))


SETTINGS = (
    context(n_ctx=2048),
    context(n_ctx=1000, chunk=128, max_rows=16, max_leaves=4, flash_attention=False),
    context(n_ctx=512, chunk=64, max_rows=1, max_leaves=1),
    context(n_ctx=4096, chunk=64, max_rows=9, max_leaves=1, swa_full=False, snapshots=8),
    context(n_ctx=4096, chunk=512, max_rows=64, max_leaves=1, type_k="q8_0", type_v="q5_1"),
    context(n_ctx=1024, chunk=64, max_leaves=1, type_k="q4_1", flash_attention=False),
)
each_setting = pytest.mark.parametrize("shape", SETTINGS, ids=lambda s: f"{s.n_ctx}x{s.chunk}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`made("7b")` is the path of such a model."""
    folder = tmp_path_factory.mktemp("made")

    def path(name: str) -> Path:
        file = folder / f"{name}.gguf"
        return file if file.exists() else MADE[name].write(file)

    return path


def plan(
    path: Path, shape: ContextConfig, features: frozenset[str] = NO_FEATURES, **others: Any
) -> MemoryPlan:
    """The plan for a file."""
    return plan_memory(read_headers(path), shape, features, **others)


@dataclass(frozen=True)
class Reported:
    """MiB as llama.cpp logs them, rounded to 0.01 for each of `n_caches` caches."""

    kv: float
    state: float
    compute: float
    outputs: float
    n_caches: int


class Dry:
    """llama.cpp with a model whose weights are not loaded and whose buffers are not allocated."""

    def __init__(self, path: Path, log: pytest.LogCaptureFixture, *, load: bool = False) -> None:
        import llama_cpp

        system_info()  # installs the log
        self._api: Any = llama_cpp
        self._log = log
        log.set_level(logging.DEBUG, "specgen.llama")
        params = self._api.llama_model_default_params()
        if not load:
            params.no_alloc, params.load_mode = True, 0
        self._model = self._api.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, log.text[-500:]

    def sizes(self, shape: ContextConfig) -> Reported:
        """The sizes that a context of this shape would have."""
        params = self._api.llama_context_default_params()
        params.n_ctx = shape.n_ctx
        params.n_batch = params.n_ubatch = shape.batch_rows
        params.n_outputs_max = max(shape.max_rows, shape.max_leaves)
        params.n_seq_max, params.n_rs_seq = shape.max_leaves, shape.snapshots
        params.flash_attn_type = int(shape.flash_attention is not False)
        params.swa_full = shape.swa_full
        kinds = {"f16": 1, "q4_0": 2, "q4_1": 3, "q5_1": 7, "q8_0": 8}
        params.type_k, params.type_v = kinds[shape.type_k], kinds[shape.type_v]
        params.kv_unified, params.n_threads, params.n_threads_batch = True, 1, 1
        self._log.clear()
        context = self._api.llama_init_from_model(self._model, params)
        assert context, self._log.text[-500:]
        self._api.llama_free(context)
        caches = [*self._logged(r"llama_kv_cache: size = ")]
        return Reported(
            kv=sum(caches),
            state=sum(self._logged(r"llama_memory_recurrent: size = ")),
            compute=sum(self._logged(r"compute buffer size = ")),
            outputs=sum(self._logged(r"output buffer size = ")),
            n_caches=len(caches),
        )

    def weights(self, buffer: str) -> float:
        """MiB of weights in a buffer, such as "CPU_REPACK"."""
        return sum(self._logged(rf"{buffer} model buffer size = "))

    def _logged(self, what: str) -> Iterator[float]:
        found = re.findall(what + r" *([\d.]+) MiB", self._log.text)
        return map(float, found)

    def close(self) -> None:
        """Free the model."""
        self._api.llama_model_free(self._model)


@pytest.fixture
def dry(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Path], Dry]]:
    """`dry(path)` opens a model that is closed after the test."""
    opened: list[Dry] = []

    def open_dry(path: Path) -> Dry:
        opened.append(Dry(path, caplog))
        return opened[-1]

    yield open_dry
    for model in opened:
        model.close()


def compare(planned: MemoryPlan, reported: Reported, shape: ContextConfig) -> None:
    """What llama.cpp lays out is exact; its compute buffer may be planned a bit too large."""
    rounding = 0.006 * max(1, reported.n_caches)
    assert planned.kv / MIB == pytest.approx(reported.kv, abs=rounding)
    assert planned.state / MIB == pytest.approx(reported.state, abs=0.006)
    # llama.cpp starts with a row a sequence, and grows to the rows of the largest call.
    rows = max(shape.max_rows, shape.max_leaves)
    grown = reported.outputs * rows / shape.max_leaves
    assert planned.outputs / MIB == pytest.approx(grown, abs=0.006 * rows / shape.max_leaves)
    assert 0.92 * reported.compute - 1 < planned.compute / MIB < 1.15 * reported.compute + 8


@pytest.mark.llama
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_tiny_models(
    architecture: Architecture, tiny_model: TinyModel, dry: Callable[[Path], Dry]
) -> None:
    """Cache, states, logits and compute buffer as llama.cpp has them, for each kind of memory."""
    path = tiny_model(architecture)
    model = dry(path)
    for shape in SETTINGS:
        compare(plan(path, shape), model.sizes(shape), shape)


@pytest.mark.llama
@pytest.mark.parametrize("name", MADE)
def test_real_sizes(name: str, made: Callable[[str], Path], dry: Callable[[Path], Dry]) -> None:
    """The same for models from 1B to 70B, mixtures and a hybrid, which need no weights for it."""
    path = made(name)
    model = dry(path)
    for shape in SETTINGS:
        compare(plan(path, shape), model.sizes(shape), shape)


@pytest.mark.llama
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_where_weights_are(
    architecture: Architecture,
    quantization: Quantization,
    tiny_model: TinyModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As many bytes are copied and laid out as llama.cpp says when it loads the weights on this
    CPU, and no more of the file stays mapped than is planned.
    """
    features = cpu_features(system_info())
    has_kernels = library().kernels != NONE
    if not has_kernels and "AMX_INT8" in features:
        pytest.skip("AMX copies are not in the buffer that is read here")
    path = tiny_model(architecture, quantization)
    model = Dry(path, caplog, load=True)
    copies, laid_out = model.weights("CPU_REPACK"), model.weights("CPU_SPECGEN")
    mapped = mapped_bytes(path)
    model.close()
    ours = laid_out_bytes if has_kernels else None
    planned = plan(path, SETTINGS[0], features - {"AMX_INT8"}, laid_out=ours)
    assert planned.copies / MIB == pytest.approx(copies, abs=0.006)
    assert planned.laid_out / MIB == pytest.approx(laid_out, abs=0.006)
    assert mapped is None or mapped <= planned.weights + 4096  # the last page is not all the file's


def mapped_bytes(path: Path) -> int | None:
    """What is resident of a file that is mapped into this process; None if Linux does not say."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    found, is_of_file = 0, False
    for line in lines:
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            is_of_file = line.endswith(str(path))
        elif is_of_file and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.parametrize(
    ("name", "kv", "state"),
    [
        ("1b", 16 * 2 * 8 * 64 * 2 * 2048, 0),
        ("7b", 32 * 2 * 32 * 128 * 2 * 2048, 0),
        ("70b", 80 * 2 * 8 * 128 * 2 * 2048, 0),
        ("moe", 48 * 2 * 4 * 128 * 2 * 2048, 0),
        ("hybrid", 3 * 2 * 8 * 64 * 2 * 2048, 5 * (3 - 1) * 2048 * 4 * (1 + 8)),
    ],
)
def test_by_hand(name: str, kv: int, state: int, made: Callable[[str], Path]) -> None:
    """Layers x (key + value) x heads x width x 2 bytes x cells; states with 8 older ones."""
    path = made(name)
    planned = plan(path, context(n_ctx=2048, max_leaves=1, snapshots=8))
    assert (planned.kv, planned.state) == (kv, state)
    assert planned.kv == 2048 * read_model(path).kv_bytes_per_token
    assert planned.weights == path.stat().st_size
    assert planned.outputs == MADE[name].n_vocab * 4 * 64


def header_of(path: Path, architecture: str, keys: Keys) -> Path:
    """A model of which only the metadata matter here."""
    usual: Keys = {"block_count": 6, "embedding_length": 64, "attention.head_count": 4}
    return write(path, architecture, usual | keys, 100, {"token_embd.weight": (100, 64)})


@pytest.mark.parametrize(
    ("architecture", "keys", "kv_numbers"),
    [
        # Latent attention: one row of keys, which holds the values, too.
        (
            "deepseek2",
            {
                "attention.head_count_kv": 1,
                "attention.key_length": 576,
                "attention.value_length": 512,
                "attention.key_length_mla": 192,
                "attention.value_length_mla": 128,
            },
            6 * 576 * 256,
        ),
        ("llama", {"attention.head_count_kv": [1, 2, 4, 1, 1, 1]}, 10 * 2 * 16 * 256),
        # The last layer predicts further tokens.
        ("glm4moe", {"attention.head_count_kv": 2, "nextn_predict_layers": 1}, 5 * 64 * 256),
        # Every third layer has a cache, the others a state.
        (
            "qwen3next",
            {"attention.head_count_kv": 2, "full_attention_interval": 3},
            2 * 64 * 256,
        ),
        ("gemma4", {"attention.head_count_kv": 2, "attention.shared_kv_layers": 4}, 2 * 64 * 256),
        ("mamba", {"attention.head_count_kv": 2}, 0),
    ],
)
def test_layers_with_a_cache(
    architecture: str, keys: Keys, kv_numbers: int, tmp_path: Path
) -> None:
    """Only layers that keep keys and values of their own count, each with its own heads."""
    path = header_of(tmp_path / "m.gguf", architecture, keys)
    assert plan(path, context(n_ctx=1)).kv == 2 * kv_numbers


@pytest.mark.parametrize(
    ("architecture", "keys", "n_sliding"),
    [
        ("gemma3", {}, 5),
        ("gemma3", {"attention.sliding_window_pattern": 2}, 3),
        ("gemma2", {}, 3),
        ("cohere2moe", {}, 4),
        ("gemma4", {"attention.sliding_window_pattern": [1, 1, 0, 0, 0, 1]}, 3),
        ("phi3", {}, 0),
    ],
)
def test_windows(architecture: str, keys: Keys, n_sliding: int, tmp_path: Path) -> None:
    """A sliding layer keeps its window for each sequence and a chunk, or all, as asked for."""
    keys = keys | {"attention.sliding_window": 512, "attention.head_count_kv": 1}
    path = header_of(tmp_path / "m.gguf", architecture, keys)
    shape = context(n_ctx=8192, chunk=100, max_leaves=2, swa_full=False)
    a_cell = 2 * 16 * 2
    assert plan(path, replace(shape, swa_full=True)).kv == 6 * 8192 * a_cell
    expected = (6 - n_sliding) * 8192 + n_sliding * 1280  # 2 * 512 + 100, padded
    assert plan(path, shape).kv == expected * a_cell


def test_which_layers_slide(tmp_path: Path) -> None:
    """In gemma3 the sixth layer sees all, in cohere2moe the first."""
    shape = context(n_ctx=8192, chunk=100, max_leaves=2, swa_full=False)
    keys: Keys = {"attention.sliding_window": 512, "attention.head_count_kv": [7, 1, 1, 1, 1, 3]}
    for architecture, heads in (("gemma3", 3), ("cohere2moe", 7 + 1)):
        path = header_of(tmp_path / f"{architecture}.gguf", architecture, keys)
        assert plan(path, shape).kv == (heads * 8192 + (14 - heads) * 1280) * 2 * 16 * 2


def test_values_without_flash_attention(tmp_path: Path) -> None:
    """They are stored across, as wide in all layers as in the widest."""
    keys: Keys = {"attention.head_count_kv": [1, 2, 4, 1, 1, 1]}
    path = header_of(tmp_path / "m.gguf", "llama", keys)
    planned = plan(path, context(n_ctx=256, flash_attention=False))
    assert planned.kv == (10 + 6 * 4) * 16 * 2 * 256


def test_rows_of_logits(made: Callable[[str], Path]) -> None:
    """As many as calls have, and one for each sequence."""
    a_row = 4 * MADE["7b"].n_vocab
    assert plan(made("7b"), context(n_ctx=512, max_rows=1, max_leaves=32)).outputs == 32 * a_row
    assert plan(made("7b"), context(n_ctx=512, max_rows=64, max_leaves=32)).outputs == 64 * a_row


@pytest.mark.llama
@pytest.mark.parametrize("flash_attention", [True, False])
def test_compute_by_context(
    flash_attention: bool, made: Callable[[str], Path], dry: Callable[[Path], Dry]
) -> None:
    """A cell of context adds a mask, and without flash attention scores, for each row."""
    model, sizes, planned = dry(made("1b")), [], []
    for n_ctx in (4096, 8192):
        shape = context(n_ctx=n_ctx, max_leaves=1, flash_attention=flash_attention)
        sizes.append(model.sizes(shape).compute)
        planned.append(plan(made("1b"), shape).compute / MIB)
    assert planned[1] - planned[0] == pytest.approx(sizes[1] - sizes[0], abs=0.011)


@pytest.mark.parametrize(("kv_type", "a_block"), [("f16", 64), ("q8_0", 34), ("q4_0", 18)])
def test_types_of_cache(kv_type: str, a_block: int, made: Callable[[str], Path]) -> None:
    """32 numbers of keys or values take so many bytes."""
    numbers = 16 * 2 * 8 * 64 * 2048
    planned = plan(made("1b"), context(n_ctx=2048, type_k=kv_type, type_v=kv_type))
    assert planned.kv == numbers // 32 * a_block


def test_heads_that_are_no_whole_blocks(tmp_path: Path) -> None:
    """llama.cpp has no quantized cache for heads of 16 numbers."""
    path = header_of(tmp_path / "m.gguf", "llama", {})
    with pytest.raises(UsageError, match="16 numbers"):
        plan(path, context(n_ctx=512, type_k="q8_0", type_v="q8_0"))


def info(name: str, kind: str, *shape: int) -> TensorInfo:
    """A tensor of 100 bytes."""
    return TensorInfo(name, shape, kind, 100, 0)


X86, ARM = {"REPACK", "AVX2", "AVX512"}, {"REPACK", "NEON", "DOTPROD"}


@pytest.mark.parametrize(
    ("tensor", "features", "expected"),
    [
        (info("blk.0.attn_q.weight", "Q4_0", 64, 64), X86, True),
        (info("blk.0.attn_q.weight", "Q4_0", 64, 64), {"REPACK"}, False),
        (info("blk.0.attn_q.weight", "Q4_0", 64, 64), {"AVX2"}, False),
        (info("blk.0.attn_q.weight", "Q4_0", 64, 68), X86, False),
        (info("blk.0.attn_q.weight", "Q4_0", 64, 68), ARM, True),
        (info("blk.0.attn_q.weight", "Q4_1", 64, 64), X86 | ARM, False),
        (info("blk.0.attn_q.weight", "Q8_0", 64, 64), X86, False),
        (info("blk.0.attn_q.weight", "Q8_0", 64, 64), ARM, True),
        (info("blk.0.attn_q.weight", "Q6_K", 256, 64), ARM, True),
        (info("blk.0.attn_q.weight", "Q2_K", 256, 64), {"REPACK", "AVX2"}, False),
        (info("blk.0.attn_q.weight", "Q8_0", 64, 64), {"AMX_INT8"}, True),
        (info("blk.0.attn_q.weight", "Q8_0", 64, 40), {"AMX_INT8"}, False),
        (info("blk.0.ffn_up_exps.weight", "Q4_0", 64, 64, 8), X86, True),
        (info("blk.0.attn_k_b.weight", "Q4_0", 64, 64, 8), X86, False),
        (info("blk.0.attn_norm.weight", "F32", 64), X86, False),
    ],
)
def test_what_is_copied(tensor: TensorInfo, features: set[str], expected: bool) -> None:
    """By type, number of rows, and what the CPU can do."""
    assert is_copied(tensor, frozenset(features)) is expected


def test_features_by_llama_cpps_line() -> None:
    """What is 0 is missing."""
    line = "CPU : AVX2 = 1 | AVX512 = 0 | SVE_CNT = 32 | REPACK = 1 | "
    assert cpu_features(line) == {"AVX2", "SVE_CNT", "REPACK"}


def half(number: int, columns: int, rows: int) -> int:
    """Kernels that take matrices with as many rows as columns."""
    return columns * rows // 32 * 18 if columns == rows else 0


@each_setting
def test_the_total_is_the_sum(shape: ContextConfig, made: Callable[[str], Path]) -> None:
    """No term is negative, and generation is all but the weights, wherever they are."""
    planned = plan(made("hybrid"), shape, frozenset(X86), drafters=12_345, laid_out=half)
    terms = [getattr(planned, field.name) for field in fields(planned)]
    assert min(terms) >= 0
    assert planned.total == sum(terms) == planned.record()["total"]
    weights = planned.weights + planned.laid_out + planned.copies + planned.loading
    assert min(planned.laid_out, planned.copies) > 0
    assert planned.generation == planned.total - weights
    assert planned.drafters == 12_345


def test_what_another_context_takes(made: Callable[[str], Path]) -> None:
    """All but what there is once: the model, its vocabulary, the drafters and the process."""
    shape = context(n_ctx=2048)
    planned = plan(made("hybrid"), shape, frozenset(X86), drafters=12_345, interface=678)
    once = planned.weights + planned.copies + planned.vocabulary
    assert planned.context == planned.total - once - planned.drafters - planned.baseline


def test_notes_about_cells(tiny_model: TinyModel) -> None:
    """For each cell of each cache, and for each sequence that may be in it."""
    shape = context(n_ctx=2048, chunk=32, max_leaves=1, swa_full=False)
    one, windowed = plan(tiny_model(), shape).cells, plan(tiny_model("gemma3"), shape).cells
    assert windowed * 2048 == one * (2048 + 256)  # one of 32 cells and a call, padded
    two, three = (plan(tiny_model(), replace(shape, max_leaves=n)).cells for n in (2, 3))
    assert three - two == two - one > 2048 * 8


def test_work_without_flash_attention(made: Callable[[str], Path]) -> None:
    """Kernels want the scores of a whole call as halves: rows x heads x cells x 2 bytes."""
    shape = context(n_ctx=8192, chunk=512, flash_attention=False)
    assert plan(made("7b"), shape).work == 512 * 32 * 8192 * 2
    assert plan(made("7b"), replace(shape, flash_attention=True)).work == 512 * 11_008 * 2


def test_work_of_specgens_kernels(made: Callable[[str], Path]) -> None:
    """They pack 64 columns at a time; llama.cpp converts those of a whole call, if it does."""
    shape = context(n_ctx=8192, chunk=512)
    every = plan(made("7b"), shape, laid_out=lambda number, columns, rows: columns * rows)
    assert every.work == 512 * 4096 * 2 > 64 * 11_008 * 3 // 2
    assert plan(made("7b"), shape, laid_out=half).work == 512 * 11_008 * 2
    small = replace(shape, chunk=8, max_rows=8)
    few = plan(made("7b"), small, laid_out=lambda number, columns, rows: columns * rows)
    assert few.work == 8 * 11_008 * 3 // 2


def test_merges_take_memory(tiny_model: TinyModel) -> None:
    """Each is kept as two strings and a place in a hash table."""
    (header,) = read_headers(tiny_model())
    with_merges = replace(
        header, metadata={**header.metadata, "tokenizer.ggml.merges": ("a b",) * 1000}
    )
    without, planned = (
        plan_memory([each], SETTINGS[0], NO_FEATURES).vocabulary for each in (header, with_merges)
    )
    assert 1000 * 100 < planned - without < 1000 * 300


LADDERS: dict[str, Sequence[Any]] = {
    "n_ctx": [1, 256, 257, 1000, 8192, 1 << 20],
    "chunk": [1, 7, 64, 512, 2048],
    "max_rows": [1, 2, 64, 512],
    "max_leaves": [1, 2, 32, 256],
    "type_k": ["q4_0", "q8_0", "f16"],
    "type_v": ["q4_0", "q5_1", "f16"],
    "flash_attention": [True, False],
    "swa_full": [False, True],
    "snapshots": [0, 1, 8, 64],
}


@pytest.mark.parametrize("name", ["1b", "moe", "hybrid", "gemma3", "mamba", "granitehybrid"])
def test_more_takes_no_less(name: str, made: Callable[[str], Path], tiny_model: TinyModel) -> None:
    """In every setting, whatever the model."""
    tiny: dict[str, Architecture] = {a: a for a in get_args(Architecture)}
    headers = read_headers(tiny_model(tiny[name]) if name in tiny else made(name))
    for setting, values in LADDERS.items():
        shapes = [context(**{"n_ctx": 4096, "snapshots": 4} | {setting: value}) for value in values]
        totals = [plan_memory(headers, shape, NO_FEATURES).total for shape in shapes]
        assert totals == sorted(totals), setting


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_ctx": 0}, "n_ctx is 0, and 1 to 2,147,483,648 are possible"),
        ({"n_ctx": -1}, "n_ctx is -1"),
        ({"n_ctx": 10**30}, "n_ctx is 1,000,000"),
        ({"chunk": 0}, "chunk is 0"),
        ({"max_rows": -5}, "max_rows is -5"),
        ({"max_leaves": 257}, "max_leaves is 257, and 1 to 256"),
        ({"snapshots": -1}, "snapshots is -1, and 0 to"),
        ({"type_k": "q3_9"}, "'q3_9'"),
        ({"type_v": "q8_0", "flash_attention": False}, "q8_0 need flash attention"),
    ],
)
def test_impossible_settings(
    wrong: dict[str, Any], message: str, made: Callable[[str], Path]
) -> None:
    """One line that says which, and what is possible."""
    with pytest.raises(UsageError) as caught:
        plan(made("1b"), context(**{"n_ctx": 512} | wrong))
    assert message in caught.value.message


@pytest.mark.parametrize(
    "keys",
    [
        {"embedding_length": (1 << 32) - 1},
        {"attention.head_count": 0},
        {"attention.head_count": (1 << 32) - 1, "attention.head_count_kv": (1 << 32) - 1},
        {"block_count": 0},
        {"block_count": (1 << 32) - 1},
        {"nextn_predict_layers": 99},
        {"attention.shared_kv_layers": 99},
        {"attention.sliding_window": (1 << 32) - 1},
        {"attention.sliding_window_pattern": 0, "attention.sliding_window": 8},
        {"attention.sliding_window_pattern": [1], "attention.sliding_window": 8},
        {"full_attention_interval": 0},
        {"ssm.conv_kernel": 0, "ssm.inner_size": 8},
    ],
    ids=str,
)
def test_absurd_headers(keys: Keys, tmp_path: Path) -> None:
    """Whatever a file claims, there is a plan or an error in one line, and no waiting."""
    for architecture in ("llama", "gemma3", "qwen3next", "mamba", "lfm2"):
        path = header_of(tmp_path / f"{architecture}.gguf", architecture, keys)
        try:
            planned = plan(path, context(n_ctx=1 << 20, swa_full=False))
        except SpecgenError as error:
            assert "\n" not in error.message
        else:
            assert min(planned.record().values()) >= 0
