"""Tiny random models in GGUF, for tests that run llama.cpp itself.

Each file is under 2 MB, the same bytes for the same arguments, and as a language model neither
flat nor saturated: greedy text wanders, and sampling finds several likely tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
from numpy.typing import NDArray

Architecture = Literal["llama", "gemma3", "mamba", "lfm2", "granitehybrid", "qwen3moe"]
Plain = Literal["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
Requantized = Literal["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
Quantization = Plain | Requantized
QUANTIZATIONS: tuple[Quantization, ...] = (*get_args(Plain), *get_args(Requantized))
Array = NDArray[np.float32]
Metadata = dict[str, Any]  # by key, of gguf's values

CONTEXT = 2048
WINDOW = 32  # of gemma3's sliding layers
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

UNK, BOS, EOS, IM_START, IM_END = range(5)
_CONTROL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_CHARACTERS = "\u2581abcdefghijklmnopqrstuvwxyzABEHIOTW0123456789.,:;!?'-()"
_WORDS = (
    "the of and to in is that was he for it with as his on be at by had not are but from or "
    "have an they which one you were her all she there would their we him been has"
)

# What the gguf package reads but does not write, as llama_ftype. Models of these have rows of 256
# values, which the blocks of most of them ask for, and so heads of 64 dimensions.
_FILE_TYPES: dict[str, int] = {
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
}
_HEADS, _KV_HEADS = 4, 2
_EXPERTS, _EXPERTS_USED = 5, 2


def write_tiny(
    path: Path,
    architecture: Architecture = "llama",
    quantization: Quantization = "F32",
    *,
    seed: int = 0,
    end_gain: float = 1.0,
    template: str | None = CHAT_TEMPLATE,
    change: Callable[[Metadata], None] = lambda metadata: None,
) -> Path:
    """Write a tiny random model to `path` and return it.

    llama: plain attention. gemma3: sliding windows of WINDOW between full layers. mamba: a
    recurrent state only. lfm2: state and attention, with snapshots to roll back to.
    granitehybrid: state and attention, without them. qwen3moe: attention and a mixture of experts.

    Matrices carry `quantization` where their rows fill its blocks; all else is F32. End
    tokens have `end_gain` times their logits: greedy text has none at 0, and soon one at 30.
    `change` may edit the metadata before they are written.
    """
    if quantization not in _FILE_TYPES:
        _write(path, architecture, quantization, seed, 128, end_gain, template, change)
        return path
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "full.gguf"
        _write(full, architecture, "F32", seed, 256, end_gain, template, change)
        _requantize(full, path, _FILE_TYPES[quantization])
    return path


def put(metadata: Metadata, key: str, value: Any, kind: str, items: str | None = None) -> None:
    """Set a key to a value of a GGUF type such as "UINT32", or to an "ARRAY" of `items`."""
    kinds = gguf.GGUFValueType
    sub_type = kinds[items] if items else None
    metadata[key] = gguf.gguf_writer.GGUFValue(value=value, type=kinds[kind], sub_type=sub_type)


def _write(
    path: Path,
    architecture: Architecture,
    quantization: Quantization,
    seed: int,
    n_embd: int,
    end_gain: float,
    template: str | None,
    change: Callable[[Metadata], None],
) -> None:
    weights = _Weights(np.random.default_rng(seed), n_embd)
    writer = gguf.GGUFWriter(path, architecture)
    _add_common(writer, weights)
    _BUILDERS[architecture](writer, weights)
    weights.tensors["output.weight"][[EOS, IM_END]] *= np.float32(end_gain)
    _add_vocabulary(writer)
    if template is not None:
        writer.add_chat_template(template)
    for name, data in weights.tensors.items():
        _add_tensor(writer, name, data, gguf.GGMLQuantizationType[quantization])
    change(writer.kv_data[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(writer: Any, name: str, data: Array, kind: Any) -> None:
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    *_, n_out, n_in = (1, *data.shape)
    is_matrix = data.ndim >= 2 and min(n_out, n_in) >= 32 and n_in % block == 0
    if kind.name == "F32" or not is_matrix:
        writer.add_tensor(name, data)
    elif kind.name == "F16":
        writer.add_tensor(name, data.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)


def _requantize(source: Path, target: Path, file_type: int) -> None:
    """Have llama.cpp write what the gguf package only reads."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 1
    params.pure = True  # the embeddings too, or the file grows
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    if code != 0:
        raise RuntimeError(f"llama.cpp could not quantize {source} (code {code})")


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    kind: int  # gguf.TokenType
    score: float


@cache
def _vocabulary() -> tuple[_Piece, ...]:
    """Control tokens, all bytes, characters, then words with the prefixes that lead to them."""
    words = {f"\u2581{word}"[:n] for word in _WORDS.split() for n in range(2, len(word) + 2)}
    texts = [*_CHARACTERS, *sorted(words, key=lambda text: (len(text), text))]
    kinds = gguf.TokenType
    return (
        _Piece(_CONTROL[UNK], int(kinds.UNKNOWN), 0.0),
        *(_Piece(text, int(kinds.CONTROL), 0.0) for text in _CONTROL[1:]),
        *(_Piece(f"<0x{byte:02X}>", int(kinds.BYTE), 0.0) for byte in range(256)),
        # The longest piece wins, as in trained vocabularies.
        *(_Piece(text, int(kinds.NORMAL), len(text) - 20.0) for text in texts),
    )


def _add_vocabulary(writer: Any) -> None:
    pieces = _vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.kind for piece in pieces])
    writer.add_unk_token_id(UNK)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(IM_END)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _output_gains() -> Array:
    """Words are likelier than bytes and control tokens, so that most text can be read."""
    normal = int(gguf.TokenType.NORMAL)
    gains = [2.5 if piece.kind == normal else 1.2 for piece in _vocabulary()]
    return np.array(gains, np.float32)[:, None]


class _Weights:
    """Named random tensors, in rows of outputs by columns of inputs."""

    def __init__(self, rng: np.random.Generator, n_embd: int) -> None:
        self.n_embd = n_embd
        self.n_ff = n_embd
        self.head = n_embd // _HEADS
        self.tensors: dict[str, Array] = {}
        self._rng = rng

    def matrix(self, name: str, n_in: int, n_out: int, gain: float = 1.0) -> None:
        """Outputs have `gain` times the size of the inputs."""
        data = self._rng.standard_normal((n_out, n_in)) * (gain / np.sqrt(n_in))
        self.tensors[f"{name}.weight"] = data.astype(np.float32)

    def experts(self, name: str, n_in: int, n_out: int, gain: float = 1.0) -> None:
        """A matrix for each expert."""
        for i in range(_EXPERTS):
            self.matrix(f"{name}.{i}", n_in, n_out, gain)
        each = [self.tensors.pop(f"{name}.{i}.weight") for i in range(_EXPERTS)]
        self.tensors[f"{name}.weight"] = np.stack(each)

    def norm(self, name: str, n: int) -> None:
        """Scales around 1."""
        self.tensors[f"{name}.weight"] = self.around(1.0, n)

    def around(self, centre: float, *shape: int) -> Array:
        """Numbers around `centre`."""
        noise = 0.1 * self._rng.standard_normal(shape)
        return (centre + noise).astype(np.float32)

    def ends(self, output_norm: str = "output_norm", embedding: float = 1.0) -> None:
        """Embeddings of size `embedding`, the last norm and the output matrix."""
        n_vocab = len(_vocabulary())
        size = embedding * float(np.sqrt(n_vocab))
        self.matrix("token_embd", n_vocab, self.n_embd, size)
        table = self.tensors["token_embd.weight"]
        self.tensors["token_embd.weight"] = np.ascontiguousarray(table.T)
        self.norm(output_norm, self.n_embd)
        self.matrix("output", self.n_embd, n_vocab)
        self.tensors["output.weight"] *= _output_gains()

    def attention(self, block: str, *, head_norms: bool = False) -> None:
        """Queries and keys are large, so that tokens attend to few others."""
        n_kv = self.head * _KV_HEADS
        self.matrix(f"{block}.attn_q", self.n_embd, self.n_embd, 1.5)
        self.matrix(f"{block}.attn_k", self.n_embd, n_kv, 1.5)
        self.matrix(f"{block}.attn_v", self.n_embd, n_kv)
        self.matrix(f"{block}.attn_output", self.n_embd, self.n_embd, 2.0)
        if head_norms:
            self.norm(f"{block}.attn_q_norm", self.head)
            self.norm(f"{block}.attn_k_norm", self.head)

    def feed_forward(self, block: str) -> None:
        """A gated layer."""
        self.norm(f"{block}.ffn_norm", self.n_embd)
        self.matrix(f"{block}.ffn_gate", self.n_embd, self.n_ff)
        self.matrix(f"{block}.ffn_up", self.n_embd, self.n_ff)
        self.matrix(f"{block}.ffn_down", self.n_ff, self.n_embd, 2.0)


def _add_common(writer: Any, weights: _Weights) -> None:
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(weights.n_embd)
    writer.add_feed_forward_length(weights.n_ff)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(_vocabulary()))


def _add_heads(writer: Any, weights: _Weights, kv_heads: int | list[int] = _KV_HEADS) -> None:
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(weights.head)
    writer.add_value_length(weights.head)
    writer.add_rope_dimension_count(weights.head)
    writer.add_rope_freq_base(10_000.0)


def _llama(writer: Any, weights: _Weights) -> None:
    writer.add_block_count(2)
    _add_heads(writer, weights)
    weights.ends()
    for block in ("blk.0", "blk.1"):
        weights.norm(f"{block}.attn_norm", weights.n_embd)
        weights.attention(block)
        weights.feed_forward(block)


def _gemma3(writer: Any, weights: _Weights) -> None:
    is_sliding = [True, False, True]
    writer.add_block_count(len(is_sliding))
    _add_heads(writer, weights)
    writer.add_sliding_window(WINDOW)
    writer.add_sliding_window_pattern(is_sliding)
    # The graph multiplies embeddings by sqrt(n_embd).
    weights.ends(embedding=weights.n_embd**-0.5)
    for i in range(len(is_sliding)):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm", weights.n_embd)
        weights.attention(block, head_norms=True)
        weights.norm(f"{block}.post_attention_norm", weights.n_embd)
        weights.feed_forward(block)
        weights.norm(f"{block}.post_ffw_norm", weights.n_embd)


def _mamba(writer: Any, weights: _Weights) -> None:
    n_inner, n_state, n_conv, n_step = 2 * weights.n_embd, 16, 4, 8
    writer.add_block_count(2)
    _add_state_space(writer, n_inner, n_state, n_conv, n_step)
    weights.ends()
    for block in ("blk.0", "blk.1"):
        weights.norm(f"{block}.attn_norm", weights.n_embd)
        weights.matrix(f"{block}.ssm_in", weights.n_embd, 2 * n_inner)
        weights.tensors[f"{block}.ssm_conv1d.weight"] = weights.around(0.3, n_inner, n_conv)
        weights.tensors[f"{block}.ssm_conv1d.bias"] = weights.around(0.0, n_inner)
        weights.matrix(f"{block}.ssm_x", n_inner, n_step + 2 * n_state)
        weights.matrix(f"{block}.ssm_dt", n_step, n_inner)
        weights.tensors[f"{block}.ssm_dt.bias"] = weights.around(-1.0, n_inner)
        decay = -np.arange(1, n_state + 1, dtype=np.float32)
        weights.tensors[f"{block}.ssm_a"] = np.tile(decay, (n_inner, 1))
        weights.tensors[f"{block}.ssm_d"] = weights.around(1.0, n_inner)
        weights.matrix(f"{block}.ssm_out", n_inner, weights.n_embd, 2.0)


def _lfm2(writer: Any, weights: _Weights) -> None:
    kv_heads = [0, _KV_HEADS, 0]  # none: a short convolution in place of attention
    n_conv = 3
    writer.add_block_count(len(kv_heads))
    _add_heads(writer, weights, kv_heads)
    writer.add_shortconv_l_cache(n_conv)
    weights.ends("token_embd_norm")
    for i, heads in enumerate(kv_heads):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm", weights.n_embd)
        if heads:
            weights.attention(block, head_norms=True)
        else:
            weights.matrix(f"{block}.shortconv.in_proj", weights.n_embd, 3 * weights.n_embd)
            conv = weights.around(0.5, weights.n_embd, n_conv)
            weights.tensors[f"{block}.shortconv.conv.weight"] = conv
            weights.matrix(f"{block}.shortconv.out_proj", weights.n_embd, weights.n_embd)
        weights.feed_forward(block)


def _granitehybrid(writer: Any, weights: _Weights) -> None:
    kv_heads = [0, _KV_HEADS]  # none: a state-space layer in place of attention
    n_inner, n_state, n_conv, n_heads = 2 * weights.n_embd, 16, 4, 8
    n_mixed = n_inner + 2 * n_state
    writer.add_block_count(len(kv_heads))
    _add_heads(writer, weights, kv_heads)
    _add_state_space(writer, n_inner, n_state, n_conv, n_heads)
    writer.add_ssm_group_count(1)
    weights.ends()
    for i, heads in enumerate(kv_heads):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm", weights.n_embd)
        if heads:
            weights.attention(block)
        else:
            weights.matrix(f"{block}.ssm_in", weights.n_embd, n_inner + n_mixed + n_heads)
            weights.tensors[f"{block}.ssm_conv1d.weight"] = weights.around(0.3, n_mixed, n_conv)
            weights.tensors[f"{block}.ssm_conv1d.bias"] = weights.around(0.0, n_mixed)
            weights.tensors[f"{block}.ssm_dt.bias"] = weights.around(-1.0, n_heads)
            weights.tensors[f"{block}.ssm_a"] = weights.around(-1.0, n_heads, 1)
            weights.tensors[f"{block}.ssm_d"] = weights.around(1.0, n_heads, 1)
            weights.tensors[f"{block}.ssm_norm.weight"] = weights.around(1.0, 1, n_inner)
            weights.matrix(f"{block}.ssm_out", n_inner, weights.n_embd, 2.0)
        weights.feed_forward(block)


def _qwen3moe(writer: Any, weights: _Weights) -> None:
    n_ff = weights.n_ff // 2
    writer.add_block_count(2)
    _add_heads(writer, weights)
    writer.add_expert_count(_EXPERTS)
    writer.add_expert_used_count(_EXPERTS_USED)
    writer.add_expert_feed_forward_length(n_ff)
    weights.ends()
    for block in ("blk.0", "blk.1"):
        weights.norm(f"{block}.attn_norm", weights.n_embd)
        weights.attention(block, head_norms=True)
        weights.norm(f"{block}.ffn_norm", weights.n_embd)
        weights.matrix(f"{block}.ffn_gate_inp", weights.n_embd, _EXPERTS)
        weights.experts(f"{block}.ffn_gate_exps", weights.n_embd, n_ff)
        weights.experts(f"{block}.ffn_up_exps", weights.n_embd, n_ff)
        weights.experts(f"{block}.ffn_down_exps", n_ff, weights.n_embd, 2.0)


def _add_state_space(writer: Any, n_inner: int, n_state: int, n_conv: int, n_step: int) -> None:
    writer.add_ssm_inner_size(n_inner)
    writer.add_ssm_state_size(n_state)
    writer.add_ssm_conv_kernel(n_conv)
    writer.add_ssm_time_step_rank(n_step)


_BUILDERS: dict[Architecture, Callable[[Any, _Weights], None]] = {
    "llama": _llama,
    "gemma3": _gemma3,
    "mamba": _mamba,
    "lfm2": _lfm2,
    "granitehybrid": _granitehybrid,
    "qwen3moe": _qwen3moe,
}
