"""Headers of models of all sizes, whose weights are a hole in the file."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np

Keys: TypeAlias = dict[str, int | list[int]]
Shapes: TypeAlias = dict[str, tuple[int, ...]]


def write(
    path: Path,
    architecture: str,
    keys: Keys,
    n_vocab: int,
    shapes: Shapes,
    tokenizer: str = "no_vocab",
) -> Path:
    """A model of Q4_0 matrices and F32 vectors, whose weights are a hole in the file.

    llama.cpp opens it with the tokenizer "no_vocab" only, specgen with others, which have tokens.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model(tokenizer)
    writer.add_vocab_size(n_vocab)
    if tokenizer != "no_vocab":
        writer.add_token_list(["a"] * n_vocab)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in keys.items():
        add: Any = writer.add_array if isinstance(value, list) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    total = 0
    for name, shape in shapes.items():
        is_matrix = min(shape[-2:]) >= 32 and len(shape) > 1 and "gate_inp" not in name
        kind = gguf.GGMLQuantizationType.Q4_0 if is_matrix else gguf.GGMLQuantizationType.F32
        n_values, n_stored = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = math.prod(shape) // n_values * n_stored
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_dtype=kind)
        total += -(-n_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // 32) * 32
    os.truncate(path, start + total)
    return path


@dataclass(frozen=True)
class Made:
    """Sizes of a model that was never trained; `kv_heads` one for each layer, 0 for none."""

    architecture: str
    kv_heads: tuple[int, ...]
    n_embd: int
    n_ff: int
    heads: int
    head: int
    n_vocab: int
    experts: int = 0
    used: int = 0

    def write(self, path: Path, tokenizer: str = "no_vocab") -> Path:
        """Write the header, and no weights."""
        kv = set(self.kv_heads)
        keys: Keys = {
            "block_count": len(self.kv_heads),
            "context_length": 8192,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.heads,
            "attention.head_count_kv": [*self.kv_heads] if len(kv) > 1 else kv.pop(),
            "attention.key_length": self.head,
            "attention.value_length": self.head,
            "rope.dimension_count": self.head,
            "shortconv.l_cache": 3,
        }
        if self.experts:
            keys |= {"expert_count": self.experts, "expert_used_count": self.used}
            keys["expert_feed_forward_length"] = self.n_ff
        norm = "token_embd_norm" if self.architecture == "lfm2" else "output_norm"
        shapes: Shapes = {
            "token_embd.weight": (self.n_vocab, self.n_embd),
            f"{norm}.weight": (self.n_embd,),
        }
        for i, heads in enumerate(self.kv_heads):
            layer = self._mixer(heads) | self._feed_forward()
            shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
        return write(path, self.architecture, keys, self.n_vocab, shapes, tokenizer)

    def _mixer(self, kv_heads: int) -> Shapes:
        n, width = self.n_embd, kv_heads * self.head
        norms: Shapes = {"attn_norm": (n,), "ffn_norm": (n,)}
        if not kv_heads:
            return norms | {
                "shortconv.in_proj": (3 * n, n),
                "shortconv.conv": (n, 3),
                "shortconv.out_proj": (n, n),
            }
        if self.architecture != "llama":
            norms |= {"attn_q_norm": (self.head,), "attn_k_norm": (self.head,)}
        queries = self.heads * self.head
        return norms | {
            "attn_q": (queries, n),
            "attn_k": (width, n),
            "attn_v": (width, n),
            "attn_output": (n, queries),
        }

    def _feed_forward(self) -> Shapes:
        up, down = (self.n_ff, self.n_embd), (self.n_embd, self.n_ff)
        if not self.experts:
            return {"ffn_gate": up, "ffn_up": up, "ffn_down": down}
        n = self.experts
        mixed: Shapes = {f"ffn_{name}_exps": (n, *up) for name in ("gate", "up")}
        return mixed | {"ffn_down_exps": (n, *down), "ffn_gate_inp": (n, self.n_embd)}


MADE = {
    "1b": Made("llama", (8,) * 16, 2048, 8192, 32, 64, 128_256),
    "7b": Made("llama", (32,) * 32, 4096, 11_008, 32, 128, 32_000),
    "70b": Made("llama", (8,) * 80, 8192, 28_672, 64, 128, 128_256),
    "moe": Made("qwen3moe", (4,) * 48, 2048, 768, 32, 128, 151_936, experts=128, used=8),
    "mixtral": Made("llama", (8,) * 32, 4096, 14_336, 32, 128, 32_000, experts=8, used=2),
    "hybrid": Made("lfm2", (0, 0, 8, 0, 0, 8, 0, 8), 2048, 8192, 32, 64, 65_536),
}
