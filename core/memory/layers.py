"""What the layers of a model keep and compute, as far as memory depends on it, by its header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from specgen.core.models import architectures
from specgen.core.models.header import ArrayInfo, Header
from specgen.core.models.modelinfo import Fields, PerLayer

_HEADS: Final = "attention.head_count"

# Of so many layers one has full attention, the last, or, where True, the first.
_PATTERN: Final = MappingProxyType(
    {
        **dict.fromkeys(("afmoe", "cohere2", "exaone-moe", "exaone4", "llama4"), (4, False)),
        **dict.fromkeys(("mellum", "muse-glimmer", "olmo2"), (4, False)),
        **dict.fromkeys(("cohere2moe", "laguna", "smallthinker"), (4, True)),
        **{"gemma2": (2, False), "gpt-oss": (2, False), "gemma3": (6, False)},
        **{"gemma3n": (5, False), "plamo3": (8, False)},
    }
)
_GEMMA3N_CACHED: Final = 20  # so many layers have a cache of their own; the file does not say
_MINIMAX_INTERVAL: Final = 8


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """The cache of one layer: `heads` of `key` and `value` numbers for each token.

    With latent attention the values are a part of the keys, and `value` is 0.
    """

    heads: int
    key: int
    value: int
    is_sliding: bool


@dataclass(frozen=True, slots=True)
class Layers:
    """Widths are numbers for each token; 0 where the model has none.

    Attributes:
        cached: layers with keys and values of their own.
        window: tokens that sliding layers see.
        state: numbers that recurrent layers keep, all together.
        layer_state: the same of one layer.
        has_snapshots: whether llama.cpp keeps older states, too.
        n_layer: all layers.
        n_embd, n_vocab: of the embeddings.
        heads: of queries, most in any layer.
        queries: width of all queries.
        attention: width of what attention holds at once, besides the scores.
        feed_forward: width of the hidden layer.
        experts, expert: experts that a token uses, width of one.
        recurrent: width of what a recurrent layer holds at once.
        n_tokens, n_merges: entries of the vocabulary in the file.
    """

    cached: tuple[CachedLayer, ...]
    window: int
    state: int
    layer_state: int
    has_snapshots: bool
    n_layer: int
    n_embd: int
    n_vocab: int
    heads: int
    queries: int
    attention: int
    feed_forward: int
    experts: int
    expert: int
    recurrent: int
    n_tokens: int
    n_merges: int


def read_layers(headers: Sequence[Header]) -> Layers:
    """The layers of the model in one file, or in all its parts. Raises ModelError."""
    fields = Fields(headers[0])
    architecture = fields.architecture()
    recurrent = _recurrent_layers(fields, architecture)
    cached = _cached_layers(fields, architecture, recurrent)
    state = sum(_state(fields, architecture)) if any(recurrent) else 0
    n_embd, heads = fields.number("embedding_length"), _most(fields.per_layer(_HEADS))
    key = fields.number("attention.key_length", n_embd // heads if heads else 0)
    return Layers(
        cached=cached,
        window=fields.window() if any(layer.is_sliding for layer in cached) else 0,
        state=state * sum(recurrent),
        layer_state=state,
        has_snapshots=architecture in architectures.SNAPSHOTS,
        n_layer=fields.n_layer,
        n_embd=n_embd,
        n_vocab=fields.n_vocab(),
        heads=heads if cached else 0,
        queries=heads * key if cached else 0,
        attention=_attention(fields, heads, cached),
        feed_forward=_most(fields.per_layer("feed_forward_length")),
        experts=_most(fields.per_layer("expert_used_count")),
        expert=_most(fields.per_layer("expert_feed_forward_length"))
        or _most(fields.per_layer("feed_forward_length")),
        recurrent=_recurrent(fields) if any(recurrent) else 0,
        n_tokens=_length(headers[0], "tokenizer.ggml.tokens"),
        n_merges=_length(headers[0], "tokenizer.ggml.merges"),
    )


def _recurrent_layers(fields: Fields, architecture: str) -> list[bool]:
    """For each layer that decodes, whether it keeps a state."""
    n = _n_decoding(fields)
    if architecture in architectures.RECURRENT or architecture == "falcon-h1":
        return [True] * n
    if architecture not in architectures.HYBRID or architecture == "deepseek4":
        return [False] * n
    stated = fields.get("attention.recurrent_layers")
    if isinstance(stated, tuple) and len(stated) >= n:
        return [bool(value) for value in stated[:n]]
    if architecture in architectures.INTERVAL:
        usual = _MINIMAX_INTERVAL if architecture == "minimax-01" else 4
        interval = max(1, fields.number("full_attention_interval", usual))
        return [(i + 1) % interval != 0 for i in range(n)]
    kv_heads = _each(fields.kv_heads(), n)
    feed_forward = _each(fields.per_layer("feed_forward_length"), n)
    alone = architecture.startswith("nemotron")  # a layer is one thing there, not two
    return [not kv_heads[i] and not (alone and feed_forward[i]) for i in range(n)]


def _cached_layers(
    fields: Fields, architecture: str, recurrent: Sequence[bool]
) -> tuple[CachedLayer, ...]:
    n = len(recurrent)
    n_own = max(0, n - fields.number("attention.shared_kv_layers"))
    if architecture == "gemma3n":
        n_own = min(n, _GEMMA3N_CACHED)
    heads, sliding = _each(fields.kv_heads(), n), _sliding_layers(fields, architecture, n)
    most = _most(fields.per_layer(_HEADS))
    usual = fields.number("embedding_length") // most if most else 0
    key = fields.number("attention.key_length", usual)
    value = fields.number("attention.value_length", usual)
    keys = key, fields.number("attention.key_length_swa", key)
    values = value, fields.number("attention.value_length_swa", value)
    if fields.get("attention.key_length_mla") is not None:
        values = 0, 0
    has_both = architecture == "falcon-h1"
    return tuple(
        CachedLayer(heads[i], keys[sliding[i]], values[sliding[i]], sliding[i])
        for i in range(n_own)
        if heads[i] and (has_both or not recurrent[i])
    )


def _sliding_layers(fields: Fields, architecture: str, n: int) -> list[bool]:
    if not fields.window():
        return [False] * n
    stated = fields.get("attention.sliding_window_pattern")
    if isinstance(stated, tuple):
        return [bool(value) for value in (*stated, *[False] * n)][:n]
    usual, dense_first = _PATTERN.get(architecture, (0, False))
    period = fields.number("attention.sliding_window_pattern", usual)
    full = 0 if dense_first else period - 1
    return [not period or i % period != full for i in range(n)]


def _state(fields: Fields, architecture: str) -> tuple[int, int]:
    """Numbers of one layer's convolution (or token shift) and of its state."""
    n_embd, heads = fields.number("embedding_length"), _most(fields.per_layer(_HEADS))
    n_conv = fields.number("ssm.conv_kernel")
    if head := fields.number("wkv.head_size"):
        return fields.number("token_shift_count", 2) * n_embd, n_embd * head
    if n := fields.number("shortconv.l_cache"):
        return (n - 1) * n_embd, 0
    if head := fields.number("kda.head_dim"):
        return 3 * (n_conv - 1 if n_conv else 3) * heads * head, heads * head * head
    if architecture == "minimax-01":
        head = fields.number("attention.key_length", n_embd // heads if heads else 0)
        return 0, heads * head * head
    inner, n_state = fields.number("ssm.inner_size"), fields.number("ssm.state_size")
    mixed = inner + 2 * fields.number("ssm.group_count") * n_state
    return max(0, n_conv - 1) * mixed, inner * n_state


def _attention(fields: Fields, heads: int, cached: Sequence[CachedLayer]) -> int:
    """Found by comparing llama.cpp's sizes for models of many shapes.

    The input, its norm and a sum; queries before and after their rotation; keys and values.
    With latent attention, the queries and results of all heads in both forms.
    """
    if not cached:
        return 0
    n_embd, keys = fields.number("embedding_length"), max(c.heads * c.key for c in cached)
    key, value = max(c.key for c in cached), fields.number("attention.value_length")
    if latent := fields.number("attention.key_length_mla"):
        return 4 * n_embd + keys + heads * (key + value + 2 * latent)
    return 3 * n_embd + 2 * heads * key + 2 * keys


def _recurrent(fields: Fields) -> int:
    """Found as that of attention, with Mamba 1 and 2 and short convolutions."""
    n_embd, inner = fields.number("embedding_length"), fields.number("ssm.inner_size")
    mixed = 2 * fields.number("ssm.group_count") * fields.number("ssm.state_size")
    return 6 * inner + 2 * n_embd + 4 * mixed if inner else 7 * n_embd


def _n_decoding(fields: Fields) -> int:
    """Layers but those at the end that predict further tokens."""
    n_next = fields.number("nextn_predict_layers")
    return fields.n_layer - n_next if n_next < fields.n_layer else fields.n_layer


def _each(values: PerLayer, n: int) -> list[int]:
    """One number for each of `n` layers."""
    if isinstance(values, tuple):
        return [*values, *[0] * n][:n]
    return [values] * n


def _most(values: PerLayer) -> int:
    return max(values) if isinstance(values, tuple) else values


def _length(header: Header, key: str) -> int:
    """Items of an array, 0 where there is none."""
    value = header.metadata.get(key)
    if isinstance(value, ArrayInfo):
        return value.length
    return len(value) if isinstance(value, tuple) else 0
