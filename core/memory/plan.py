"""The memory that generating takes, worked out from a model's header: nothing is read or allocated.

Exact are the cache, the states and the rows of logits, as llama.cpp lays them out, and the
weights. llama.cpp's compute buffer depends on how its allocator places the tensors of a graph;
here it is the largest of the phases that follow each other in that buffer, a little too much
rather than too little. The rest was measured on Linux, with the CPU backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Final

from specgen.core.config import ContextConfig
from specgen.core.errors import UsageError
from specgen.core.models.header import Header
from specgen.core.models.types import BLOCKS, type_id

from .layers import CachedLayer, Layers, read_layers
from .offload import split
from .placement import LaidOut, place

MIB: Final = 1 << 20

_FLOAT: Final = 4  # bytes of a 32-bit number
_HALF: Final = 2
_PADDING: Final = 256  # a cache has a multiple of so many cells
# Those that llama.cpp's option has.
_NAMES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
CACHE_TYPES: Final = MappingProxyType({name: BLOCKS[type_id(name)] for name in _NAMES})

# Bytes that llama.cpp notes about a cell, about each sequence in it, a token and a merge of
# the vocabulary (strings, hash tables, what glibc keeps of what was freed).
_CELL: Final = 96
_CELL_SEQUENCE: Final = 48
_TOKEN: Final = 166
_MERGE: Final = 184
# Rows that a product of specgen's kernels packs at a time, and by how many; see product.h there.
# A number takes up to 1.4 bytes then; see columns.h.
_PACKED_ROWS: Final = 64
_GROUP: Final = 8
_INPUTS: Final = 64  # a row takes so many bytes of input: ids of token, position, cell and output

# Python, NumPy, specgen with its command line, and llama.cpp's libraries.
BASELINE: Final = 54 << 20


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes at the most that will be resident at once, and what GPUs hold besides.

    Attributes:
        weights: what stays mapped of the file: all of it, but for what goes to GPUs or is laid out.
        copies: of weights, in the layout that llama.cpp's kernels want; of a draft model's, too.
        kv: keys and values.
        cells: llama.cpp's notes about who is in which cell, once the context is full.
        state: of recurrent layers, with snapshots.
        compute: llama.cpp's compute buffer.
        work: numbers that the CPU's kernels want in another type, of the largest product.
        outputs: rows of logits.
        vocabulary: llama.cpp's tables of tokens and merges.
        drafters: tables of the drafters.
        baseline: of a process that does nothing yet: Python, NumPy, specgen, libraries.
        laid_out: weights in the layout of specgen's kernels, in place of those in the file.
        loading: what there is more while weights are read than afterwards.
        draft: what a draft model takes on the host, but for copies of its weights.
        device: on GPUs: weights, cache and compute buffer of what is offloaded; not in the total.
    """

    weights: int
    copies: int
    kv: int
    cells: int
    state: int
    compute: int
    work: int
    outputs: int
    vocabulary: int
    drafters: int
    baseline: int
    laid_out: int = 0
    loading: int = 0
    draft: int = 0
    device: int = 0

    @property
    def total(self) -> int:
        """All of it, but for what is on GPUs."""
        on_host = (field.name for field in fields(self) if field.name != "device")
        return sum(getattr(self, name) for name in on_host)

    @property
    def used(self) -> int:
        """What generating uses: nobody reads the file's own bytes of what was copied again, or of
        what is loaded already.
        """
        return self.total - self.copies - self.loading

    @property
    def context(self) -> int:
        """What another context would take besides: the model is there once."""
        return self.kv + self.cells + self.state + self.compute + self.work + self.outputs

    @property
    def generation(self) -> int:
        """All but the weights, wherever they are."""
        return self.total - self.weights - self.laid_out - self.copies - self.loading

    def beside(self, draft: MemoryPlan) -> MemoryPlan:
        """This one with a draft model opened after it, whose own plan is `draft`."""
        return replace(
            self,
            copies=self.copies + draft.copies,
            draft=draft.total - draft.baseline - draft.copies,
            device=self.device + draft.device,
        )

    def record(self) -> dict[str, int]:
        """As JSON."""
        return asdict(self) | {"total": self.total}


def plan_memory(
    headers: Sequence[Header],
    context: ContextConfig,
    features: frozenset[str],
    *,
    laid_out: LaidOut | None = None,
    drafters: int = 0,
    interface: int = 0,
    gpu_layers: int | None = None,
) -> MemoryPlan:
    """What generating with the model in one file, or in all its parts, takes.

    Where `context` leaves flash attention to llama.cpp, it is taken to be on.

    Args:
        headers: of the files.
        context: how the context is set up.
        features: of the CPU, as from `repacked.cpu_features`.
        laid_out: of specgen's kernels; None without them.
        drafters: bytes of the drafters' tables.
        interface: bytes that the command takes beyond what `generate` does, and GPUs' drivers.
        gpu_layers: layers on a GPU, the output counted as one; None where there is no GPU.

    Raises ModelError where the header lacks what a model must have, UsageError where the cache
    cannot be of the type that is asked for.

    Not counted: indexers of sparse attention, projectors and adapters.
    """
    _check_types(context)
    shape = _Shape(context)
    layers = read_layers(headers)
    tensors = [tensor for header in headers for tensor in header.tensors]
    file_bytes = sum(header.file_bytes for header in headers)
    has_gpu = gpu_layers is not None
    held = place(headers, features, laid_out, has_gpu=has_gpu)
    placed = split(tensors, layers.n_layer, gpu_layers or 0)
    kv, state, compute = _kv(layers, shape), _state(layers, shape), _compute(layers, shape)
    kv_away, state_away = int(placed.share * kv), int(placed.share * state)
    plan = MemoryPlan(
        weights=file_bytes - (placed.gone + held.let_go + held.headers),
        laid_out=held.laid_out,
        copies=held.copies,
        kv=kv - kv_away,
        cells=_cells(layers, shape),
        state=state - state_away,
        compute=_inputs(layers, shape) if has_gpu else compute,
        work=_work(layers, shape, converts=laid_out is None or held.others),
        outputs=_FLOAT * layers.n_vocab * max(context.max_rows, context.max_leaves),
        vocabulary=_TOKEN * layers.n_tokens + _MERGE * layers.n_merges,
        drafters=drafters,
        baseline=BASELINE + interface,
        # Long prompts are computed there even where no layer is.
        device=sum(tensor.n_bytes for tensor in placed.device) + kv_away + state_away + compute
        if has_gpu
        else 0,
    )
    # Weights go to a GPU, or are laid out, after they were read.
    loading = file_bytes + held.while_loading + plan.vocabulary + plan.baseline
    return replace(plan, loading=max(0, loading - plan.total))


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes that follow from how a context is set up."""

    context: ContextConfig

    @property
    def flash_attention(self) -> bool:
        """Whether scores of a whole chunk are never stored."""
        return self.context.flash_attention is not False

    @property
    def cells(self) -> int:
        """Of a cache that keeps the whole text."""
        return _pad(self.context.n_ctx)

    @property
    def rows(self) -> int:
        """Of the largest call that fits the context."""
        return min(self.context.batch_rows, self.cells)

    def window_cells(self, window: int) -> int:
        """Of a cache of layers with a sliding window."""
        if self.context.swa_full:
            return self.cells
        return _pad(min(self.cells, window * self.context.max_leaves + self.rows))


def _check_types(context: ContextConfig) -> None:
    """Raise UsageError where llama.cpp has no cache of such types."""
    for kind in (context.type_k, context.type_v):
        if kind not in CACHE_TYPES:
            raise UsageError(
                f"the cache cannot be of type {kind!r}", f"use one of {', '.join(CACHE_TYPES)}"
            )
    if needs_flash_attention(context.type_v) and context.flash_attention is False:
        message = f"values of type {context.type_v} need flash attention"
        raise UsageError(message, "use --flash-attn on, or values of type f16")


def _kv(layers: Layers, shape: _Shape) -> int:
    """Keys and values of all cells. Without flash attention, values are as wide everywhere."""
    widest = max((layer.heads * layer.value for layer in layers.cached), default=0)
    total = 0
    for layer in layers.cached:
        _check_blocks(layer, shape)
        values = layer.heads * layer.value
        if values and not shape.flash_attention:
            values = widest
        cells = shape.window_cells(layers.window) if layer.is_sliding else shape.cells
        total += cells * _stored(layer.heads * layer.key, shape.context.type_k)
        total += cells * _stored(values, shape.context.type_v)
    return total


def cannot_store(headers: Sequence[Header], kind: str) -> bool:
    """Whether heads of the model are no whole blocks of a cache type. Raises ModelError."""
    layers = read_layers(headers).cached
    return any(not _is_whole(n, kind) for layer in layers for n in (layer.key, layer.value))


def needs_flash_attention(type_v: str) -> bool:
    """Whether llama.cpp keeps values of this type only with flash attention."""
    return type_v in CACHE_TYPES and CACHE_TYPES[type_v].n_values > 1


def _check_blocks(layer: CachedLayer, shape: _Shape) -> None:
    for width, kind in ((layer.key, shape.context.type_k), (layer.value, shape.context.type_v)):
        if not _is_whole(width, kind):
            n_values = CACHE_TYPES[kind].n_values
            message = f"heads of {width} numbers are no whole blocks of {n_values}"
            raise UsageError(f"{message}, which a cache of type {kind} needs", "use f16")


def _is_whole(width: int, kind: str) -> bool:
    return width % CACHE_TYPES[kind].n_values == 0


def _stored(n: int, kind: str) -> int:
    block = CACHE_TYPES[kind]
    return n // block.n_values * block.n_bytes


def _cells(layers: Layers, shape: _Shape) -> int:
    """Sliding layers have a cache of their own, with its own notes."""
    a_cell = _CELL + _CELL_SEQUENCE * shape.context.max_leaves
    return a_cell * sum(_caches(layers, shape))


def _caches(layers: Layers, shape: _Shape) -> Iterable[int]:
    """Cells of each cache; a model with a window has two."""
    if layers.cached:
        yield shape.cells
    if layers.window:
        yield shape.window_cells(layers.window)


def _state(layers: Layers, shape: _Shape) -> int:
    n_states = 1 + (shape.context.snapshots if layers.has_snapshots else 0)
    return _FLOAT * layers.state * shape.context.max_leaves * n_states


def _compute(layers: Layers, shape: _Shape) -> int:
    """The inputs, and the largest of the phases that share the rest of the buffer."""
    rows = shape.rows
    mask = _mask(layers, shape)
    scores = 0 if shape.flash_attention else layers.heads * shape.cells
    states = layers.layer_state * shape.context.max_leaves
    widest = max(
        rows * (layers.attention + scores),
        rows * max(layers.recurrent, _feed_forward(layers)) + states,
    )
    return _INPUTS * rows + max(mask + _FLOAT * widest, _logits(layers, shape))


def _inputs(layers: Layers, shape: _Shape) -> int:
    """What the host keeps of the compute buffer beside a GPU: the mask, and embeddings twice."""
    embeddings = _FLOAT * shape.rows * layers.n_embd
    return _INPUTS * shape.rows + _mask(layers, shape) + 2 * embeddings


def _mask(layers: Layers, shape: _Shape) -> int:
    """Which row sees which cell."""
    a_place = _HALF if shape.flash_attention else _FLOAT
    return a_place * shape.rows * sum(_caches(layers, shape))


def _feed_forward(layers: Layers) -> int:
    """Width of what is held at once: the hidden layer three times, what it is made from, and,
    as the allocator leaves gaps, as much as the queries before it."""
    around = 3 * layers.n_embd + layers.queries
    dense = 3 * layers.feed_forward
    if not layers.experts:
        return dense + around
    mixed = layers.experts * max(3 * layers.expert, 2 * layers.n_embd)
    return max(dense, mixed) + layers.n_embd + around


def _work(layers: Layers, shape: _Shape, *, converts: bool) -> int:
    """Without flash attention, the scores of a whole chunk.

    llama.cpp `converts` all numbers that a matrix is multiplied with, if it does so at all;
    specgen's kernels those of a few rows at a time.
    """
    scores = 0 if shape.flash_attention else layers.heads * shape.cells
    widest = max(layers.queries, layers.n_embd, layers.feed_forward)
    if converts:
        return _HALF * shape.rows * max(scores, widest)
    ours = 3 * min(_PACKED_ROWS, _pad(shape.rows, _GROUP)) * widest // 2
    return max(ours, _HALF * shape.rows * max(scores, layers.queries))


def _logits(layers: Layers, shape: _Shape) -> int:
    """Rows of logits behind what the last layer left."""
    rows = min(shape.rows, shape.context.max_rows)
    left = 2 * layers.n_embd * (shape.rows + 2 * rows)
    return _FLOAT * (rows * layers.n_vocab + left)


def _pad(n: int, to: int = _PADDING) -> int:
    return -(-n // to) * to


def memory_text(n_bytes: int) -> str:
    """Bytes of memory in MiB, which is what budgets are counted in."""
    return f"{n_bytes / MIB:,.0f} MiB"
