"""GGUF files with faults in what they say: values, types, arrays, tokens, tensors.

Written by hand, so that a file can say what no writer would.
"""

from __future__ import annotations

import math
import os
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType

_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_U32, _I32, _F32 = GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32
_STRING, _BOOL, _ARRAY = GGUFValueType.STRING, GGUFValueType.BOOL, GGUFValueType.ARRAY

_COUNTS = (0, 1, 2, 3, 5, 7, 8, 64, 255, 511, 513, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_REALS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, math.nan, math.inf, -math.inf, 0.5, 1e6)
_TEXTS = ("", "none", "linear", "yarn", "longrope", "default", "martian", "llama", "gelu", "a\nb")
_TOKENIZERS = (
    *("no_vocab", "none", "bert", "gpt2", "t5", "rwkv", "plamo2", "test", "hybriddna"),
    *("whitespace", "gemma4", "llama", "martian", ""),
)
_PRE_TOKENIZERS = ("", "default", "llama-bpe", "gpt-2", "tekken", "gpt-4o", "kimi-k2", "martian")
_WORDS = ("", " ", "<0x0A>", "<0xZZ>", "<s>", "\u2581", "a", "\ufffd", "x" * 700, "<|im_end|>")

# Keys that a file may have, whatever it has: counts, numbers, texts and truths by their names.
_MORE_COUNTS = (
    *("expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count"),
    *("expert_shared_count", "expert_feed_forward_length", "leading_dense_block_count"),
    *("nextn_predict_layers", "attention.sliding_window", "attention.key_length"),
    *("attention.value_length", "attention.key_length_mla", "attention.value_length_mla"),
    *("attention.key_length_swa", "attention.value_length_swa", "attention.q_lora_rank"),
    *("attention.kv_lora_rank", "attention.shared_kv_layers", "attention.head_count"),
    *("attention.head_count_kv", "attention.indexer.top_k", "attention.temperature_length"),
    *("rope.dimension_count", "rope.dimension_count_swa", "pooling_type", "vocab_size"),
    *("rope.scaling.original_context_length", "ssm.conv_kernel", "ssm.inner_size"),
    *("ssm.state_size", "ssm.time_step_rank", "ssm.group_count", "shortconv.l_cache"),
    *("embedding_length", "embedding_length_out", "block_count", "feed_forward_length"),
    *("context_length", "full_attention_interval", "attention.sliding_window_pattern"),
    *("n_deepstack_layers", "moe_every_n_layers", "interleave_moe_layer_step", "num_loops"),
    *("wkv.head_size", "token_shift_count", "rescale_every_n_layers", "decoder_block_count"),
    *("embedding_length_per_layer_input", "attention.group_norm_groups", "expert_gating_func"),
)
_MORE_REALS = (
    *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "logit_scale"),
    *("attention.group_norm_epsilon", "rope.freq_base", "rope.freq_base_swa", "residual_scale"),
    *("rope.scaling.factor", "rope.scaling.attn_factor", "rope.scale_linear", "attention.scale"),
    *("rope.scaling.yarn_log_multiplier", "attention.clamp_kqv", "attention.max_alibi_bias"),
    *("attn_logit_softcapping", "final_logit_softcapping", "embedding_scale"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "expert_weights_scale"),
)
_MORE_ARRAYS = (
    *("rope.dimension_sections", "attention.head_count", "attention.head_count_kv"),
    *("feed_forward_length", "attention.sliding_window_pattern", "attention.recurrent_layers"),
    *("expert_used_count", "attention.rope_pattern", "deepstack_mapping"),
)
_TOKEN_IDS = (
    *("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id"),
    *("seperator_token_id", "padding_token_id", "mask_token_id", "fim_pre_token_id"),
    *("token_type_count", "prefix_token_id"),
)
_TRUTHS = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix")


@dataclass
class Entry:
    """A value of the header; `item` is the type of an array's items."""

    kind: GGUFValueType
    value: Any
    item: GGUFValueType | None = None


@dataclass
class Tensor:
    """A row of the tensor table, and its bytes."""

    name: str
    shape: list[int]
    kind: int
    data: bytes


@dataclass
class Model:
    """A file that can be changed and written again."""

    keys: dict[str, Entry] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Model:
        """What is in a file, read by the gguf package."""
        reader = GGUFReader(path)
        model = cls()
        for key, found in reader.fields.items():
            if not key.startswith("GGUF."):
                kinds = found.types
                item = kinds[-1] if kinds[0] == _ARRAY else None
                model.keys[key] = Entry(kinds[0], found.contents(), item)
        for row in reader.tensors:
            shape = [int(n) for n in row.shape]
            tensor = Tensor(row.name, shape, int(row.tensor_type), row.data.tobytes())
            model.tensors.append(tensor)
        return model

    def copy(self) -> Model:
        """Another one, to be changed by itself."""
        keys = {
            key: Entry(entry.kind, _copied(entry.value), entry.item)
            for key, entry in self.keys.items()
        }
        tensors = [Tensor(t.name, [*t.shape], t.kind, t.data) for t in self.tensors]
        return Model(keys, tensors)

    def write(self, path: Path, *, weights: bool = True) -> Path:
        """As version 3, with tensors in their order; without `weights` they are a hole."""
        head = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))]
        for key, entry in self.keys.items():
            head += [_text(key), struct.pack("<I", entry.kind), _packed(entry)]
        offset = 0
        for tensor in self.tensors:
            n = len(tensor.shape)
            head += [_text(tensor.name), struct.pack(f"<I{n}Q", n, *tensor.shape)]
            head += [struct.pack("<IQ", tensor.kind, offset)]
            offset += -(-len(tensor.data) // 32) * 32
        start = b"".join(head)
        parts = [start, b"\0" * (-len(start) % 32)]
        for tensor in self.tensors if weights else ():
            parts += [tensor.data, b"\0" * (-len(tensor.data) % 32)]
        path.write_bytes(b"".join(parts))
        if not weights:
            os.truncate(path, path.stat().st_size + offset)
        return path

    @property
    def architecture(self) -> str:
        return str(self.keys["general.architecture"].value)


def mutated(model: Model, rng: random.Random, architectures: Sequence[str] = ()) -> Model:
    """A copy with one fault or a few; with `architectures`, perhaps as one of these."""
    changed = model.copy()
    if architectures and rng.random() < 0.15:
        _rename_architecture(changed, rng.choice(architectures))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        rng.choice(_FAULTS)(changed, rng)
    return changed


def _rename_architecture(model: Model, name: str) -> None:
    prefix = f"{model.architecture}."
    model.keys["general.architecture"].value = name
    model.keys = {
        f"{name}.{key[len(prefix) :]}" if key.startswith(prefix) else key: entry
        for key, entry in model.keys.items()
    }


def _change_value(model: Model, rng: random.Random) -> None:
    keys = [key for key, entry in model.keys.items() if entry.kind != _ARRAY]
    own = [key for key in keys if not key.startswith(("general", "tokenizer"))]
    key = rng.choice(own if own and rng.random() < 0.7 else keys)
    entry = model.keys[key]
    if key == "general.architecture":
        return
    if entry.kind == _STRING:
        entry.value = rng.choice(_TEXTS)
    elif entry.kind == _BOOL:
        entry.value = not entry.value
    elif entry.kind in (_F32, GGUFValueType.FLOAT64):
        entry.value = rng.choice((*_REALS, entry.value * 1e6, -entry.value))
    else:
        value = int(entry.value)
        near = (2 * value, value // 2, value + 1, max(0, value - 1))
        entry.value = rng.choice((*_COUNTS, *near)) % (1 << 32)


def _change_type(model: Model, rng: random.Random) -> None:
    key = rng.choice([key for key in model.keys if key != "general.architecture"])
    model.keys[key] = rng.choice(
        (
            Entry(_STRING, "8"),
            Entry(GGUFValueType.UINT64, 8),
            Entry(GGUFValueType.UINT8, 8),
            Entry(_I32, -1),
            Entry(_F32, 8.0),
            Entry(_BOOL, True),
            Entry(_ARRAY, [8, 8], _U32),
            Entry(_ARRAY, [], _F32),
            Entry(_ARRAY, ["a"], _STRING),
        )
    )


def _drop_key(model: Model, rng: random.Random) -> None:
    del model.keys[rng.choice([key for key in model.keys if key != "general.architecture"])]


def _add_key(model: Model, rng: random.Random) -> None:
    prefix = model.architecture
    kind = rng.randrange(6)
    if kind < 3:
        n = len(model.keys["tokenizer.ggml.tokens"].value) if _has_tokens(model) else 1
        name = rng.choice((*(f"{prefix}.{key}" for key in _MORE_COUNTS),))
        model.keys[name] = Entry(_U32, rng.choice((*_COUNTS, n)))
    elif kind == 3:
        model.keys[f"{prefix}.{rng.choice(_MORE_REALS)}"] = Entry(_F32, rng.choice(_REALS))
    elif kind == 4:
        n_items = rng.choice((0, 1, 2, 3, 4, 5, 100, 600))
        items = [rng.choice(_COUNTS[:9]) for _ in range(n_items)]
        item = rng.choice((_U32, _I32, _BOOL, _F32))
        model.keys[f"{prefix}.{rng.choice(_MORE_ARRAYS)}"] = Entry(_ARRAY, items, item)
    else:
        model.keys[f"{prefix}.rope.scaling.type"] = Entry(_STRING, rng.choice(_TEXTS))


def _change_tokenizer(model: Model, rng: random.Random) -> None:
    name = "tokenizer.ggml."
    kind = rng.randrange(6)
    if kind == 0:
        model.keys[f"{name}model"] = Entry(_STRING, rng.choice(_TOKENIZERS))
        if rng.random() < 0.6:
            merges = rng.choice(([], ["a b"], ["a"], [""], ["t h", "th e", " "], ["\u2581 t"]))
            model.keys[f"{name}merges"] = Entry(_ARRAY, merges, _STRING)
    elif kind == 1:
        model.keys[f"{name}pre"] = Entry(_STRING, rng.choice(_PRE_TOKENIZERS))
    elif kind == 2:
        n = len(model.keys[f"{name}tokens"].value) if _has_tokens(model) else 1
        value = rng.choice((0, 1, n - 1, n, n + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1))
        model.keys[f"{name}{rng.choice(_TOKEN_IDS)}"] = Entry(_U32, max(0, value))
    elif kind == 3:
        model.keys[f"{name}{rng.choice(_TRUTHS)}"] = Entry(_BOOL, rng.random() < 0.7)
    elif kind == 4:
        ids = [rng.choice((-1, 0, 5, 10**6, -(1 << 31))) for _ in range(3)]
        model.keys[f"{name}suppress_tokens"] = Entry(_ARRAY, ids, _I32)
    else:
        size = rng.choice((0, 3, 4, 8, 40))
        data = [rng.randrange(256) for _ in range(size)]
        model.keys[f"{name}precompiled_charsmap"] = Entry(_ARRAY, data, GGUFValueType.UINT8)


def _has_tokens(model: Model) -> bool:
    entry = model.keys.get("tokenizer.ggml.tokens")
    return entry is not None and isinstance(entry.value, list)


def _change_array(model: Model, rng: random.Random) -> None:
    arrays = [entry for entry in model.keys.values() if entry.kind == _ARRAY]
    if not arrays:
        return
    entry = rng.choice(arrays)
    items: list[Any] = entry.value
    kind = rng.randrange(4)
    if kind == 0:
        del items[rng.choice((0, 1, len(items) // 2, max(0, len(items) - 1))) :]
    elif kind == 1 and items:
        items += items[: rng.choice((1, 2, 100))]
    elif items:
        for _ in range(rng.choice((1, 1, 3, 300))):
            items[rng.randrange(len(items))] = _item(entry.item, rng)


def _item(kind: GGUFValueType | None, rng: random.Random) -> Any:
    if kind == _STRING:
        return rng.choice(_WORDS)
    if kind in (_F32, GGUFValueType.FLOAT64):
        return rng.choice(_REALS)
    if kind == _BOOL:
        return rng.random() < 0.5
    return rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 100, -1 if kind == _I32 else 9))


def _change_tensor(model: Model, rng: random.Random) -> None:
    if len(model.tensors) < 2:
        return
    one, other = rng.sample(model.tensors, 2)
    kind = rng.randrange(7)
    if kind == 0:
        model.tensors.remove(one)
    elif kind == 1:
        one.name, other.name = other.name, one.name
    elif kind == 2:
        one.shape.reverse()
    elif kind == 3:
        one.shape = rng.choice(([], [1], [*one.shape, 1], [1, *one.shape], [*one.shape, 2]))
    elif kind == 4:
        one.shape[rng.randrange(len(one.shape) or 1) :] = [rng.choice((1, 2, 32, 256))]
    elif kind == 5:
        one.kind = rng.choice((0, 1, 2, 3, 8, 12, 24, 26, 28, 30, 39))
    else:
        one.name = rng.choice(("output.weight", "x", "rope_freqs.weight", f"{one.name}.more", ""))
    if kind in (3, 4, 5) and rng.random() < 0.8:  # as many bytes as it says, which may be too many
        one.data = (one.data * 4)[: _n_bytes(one)] or b"\0"


def _n_bytes(tensor: Tensor) -> int:
    block, n = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    return math.prod(tensor.shape) // int(block) * int(n)


_FAULTS: tuple[Callable[[Model, random.Random], None], ...] = (
    *(_change_value, _change_value, _change_value),
    *(_add_key, _add_key, _change_type, _drop_key),
    *(_change_tokenizer, _change_tokenizer, _change_array, _change_array),
    *(_change_tensor, _change_tensor),
)


def _copied(value: Any) -> Any:
    return [*value] if isinstance(value, list) else value


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _packed(entry: Entry) -> bytes:
    if entry.kind != _ARRAY:
        return _packed_value(entry.kind, entry.value)
    assert entry.item is not None
    start = struct.pack("<IQ", entry.item, len(entry.value))
    return start + b"".join(_packed_value(entry.item, value) for value in entry.value)


def _packed_value(kind: GGUFValueType, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    if kind in (_F32, GGUFValueType.FLOAT64, _BOOL):
        return struct.pack(f"<{_FORMATS[kind]}", value)
    n = struct.calcsize(_FORMATS[kind])
    return (int(value) % (1 << 8 * n)).to_bytes(n, "little")  # a sign is a matter of reading
