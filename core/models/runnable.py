"""Whether a model can generate text here, by its header: one answer for all who run one.

What makes llama.cpp abort is found before it is asked, with the key, its value and what it may be;
the limits are those of the version that we build against. What is not found here ends in ggml's
abort callback, see lastwords.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from . import architectures
from .header import Header, TensorInfo, Value

_DECODER: Final = "specgen generates text with decoder-only models: give another file"
_AGAIN: Final = "fetch or convert the file again"

# Positions are 32-bit numbers with a sign, so a text has no more tokens.
_MOST_TOKENS: Final = (1 << 31) - 1
_MOST_LAYERS: Final = 512  # llama.cpp's LLAMA_MAX_LAYERS
_MOST_EXPERTS: Final = 1024  # llama.cpp's LLAMA_MAX_EXPERTS

_ROPE_SCALING: Final = ("none", "linear", "yarn", "longrope")
_ROTATED: Final = ("rope.dimension_count", "rope.dimension_count_swa")
_EPSILONS: Final = ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon")
# Llama.cpp uses these types for sums along the way, not for weights.
_NO_WEIGHTS: Final = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")
_TABLE: Final = "tid2eid"  # the one kind of tensor that has whole numbers has this in its name
_BIASED: Final = ("falcon-h1", "granitehybrid", "nemotron_h", "nemotron_h_moe")
_CONVOLUTION: Final = "ssm_conv1d.weight"
_NO_TOKENIZER: Final = ("no_vocab", "none")
# These were made smaller by leaving attention out of some layers.
_HEADLESS_LAYERS: Final = ("deci",)
_DENSE_WITH_ONE: Final = ("hunyuan-dense", "hunyuan_vl")  # with one expert these are dense models


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a model cannot be run, and what to do."""

    reason: str
    hint: str


def obstacle(headers: Sequence[Header]) -> Obstacle | None:
    """What keeps the model in one file, or in all its parts, from running; None if nothing does."""
    keys = _Keys(headers[0])
    if reason := architectures.refusal(keys.architecture):
        return Obstacle(reason, _DECODER)
    if keys.get("attention.causal") is False:
        return Obstacle("its attention is not causal: it makes embeddings, not text", _DECODER)
    if keys.count("pooling_type") > 0:
        key = keys.name("pooling_type")
        return Obstacle(f"it makes embeddings or ranks, not text: it has {key}", _DECODER)
    tensors = [tensor for header in headers for tensor in header.tensors]
    if not tensors:
        return Obstacle("the file has a vocabulary but no weights", _DECODER)
    faults = chain(_faults(keys), _wrong_types(tensors), _missing_biases(keys, tensors))
    return next((Obstacle(fault, _AGAIN) for fault in faults), None)


class _Keys:
    """Values by the names that they have below the architecture's own prefix."""

    def __init__(self, header: Header) -> None:
        self.metadata = header.metadata
        self.architecture = str(header.metadata.get("general.architecture"))

    def name(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def get(self, key: str) -> Value | None:
        return self.metadata.get(self.name(key))

    def count(self, key: str) -> int:
        """A number, or the largest of those by layer; 0 where there is none."""
        value = self.get(key)
        numbers = value if isinstance(value, tuple) else (value,)
        return max((n for n in numbers if isinstance(n, int)), default=0)


def _faults(keys: _Keys) -> Iterator[str]:
    """What llama.cpp would stumble over."""
    yield from _out_of(keys, "context_length", 1, _MOST_TOKENS)
    yield from _out_of(keys, "embedding_length", 1, _MOST_TOKENS)
    yield from _out_of(keys, "block_count", 1, _MOST_LAYERS)
    yield from _wrong_layers(keys)
    yield from _wrong_heads(keys)
    yield from _wrong_experts(keys)
    yield from _wrong_numbers(keys)
    yield from _wrong_tokenizer(keys)


def _out_of(keys: _Keys, key: str, least: int, most: int) -> Iterator[str]:
    value = keys.get(key)
    if value is None:
        yield f"the key {keys.name(key)} is missing"
    elif isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limits = f"a whole number from {least} to {most:,}"
        yield f"{keys.name(key)} is {_shown(value)}, and it must be {limits}"


def _wrong_layers(keys: _Keys) -> Iterator[str]:
    n_next, n_layer = keys.count("nextn_predict_layers"), keys.count("block_count")
    if n_next >= n_layer:
        yield (
            f"{keys.name('nextn_predict_layers')} is {n_next:,}, and it must be less than"
            f" {keys.name('block_count')}, which is {n_layer:,}"
        )


def _wrong_heads(keys: _Keys) -> Iterator[str]:
    """llama.cpp divides by those of the first layer, unless a model may have none there."""
    if keys.architecture in architectures.RECURRENT:
        return
    key = "attention.head_count"
    value = keys.get(key)
    if keys.architecture in (*architectures.HYBRID, *_HEADLESS_LAYERS):
        value = keys.count(key)
    elif isinstance(value, tuple):
        value = value[0] if value else 0
    if value is None:
        yield f"the key {keys.name(key)} is missing"
    elif value == 0:
        yield f"{keys.name(key)} is 0, and it must be at least 1"


def _wrong_experts(keys: _Keys) -> Iterator[str]:
    n, used = keys.count("expert_count"), keys.count("expert_used_count")
    groups, used_groups = keys.count("expert_group_count"), keys.count("expert_group_used_count")
    if n <= 1 and keys.architecture in _DENSE_WITH_ONE:
        return
    count = f"{keys.name('expert_count')}, which is {n:,}"
    if n > _MOST_EXPERTS:
        yield f"{keys.name('expert_count')} is {n:,}, and it must be at most {_MOST_EXPERTS:,}"
    if not min(n, 1) <= used <= n:
        least = "from 1 to" if n else "at most"
        yield f"{keys.name('expert_used_count')} is {used:,}, and it must be {least} {count}"
    if groups and groups >= n:
        yield f"{keys.name('expert_group_count')} is {groups:,}, and it must be less than {count}"
    if groups > 1:
        if n % groups:
            yield f"{keys.name('expert_group_count')} is {groups:,}, and it must divide {count}"
        if not 1 <= used_groups < groups:
            key = keys.name("expert_group_used_count")
            limit = f"{keys.name('expert_group_count')}, which is {groups:,}"
            yield f"{key} is {used_groups:,}, and it must be at least 1 and less than {limit}"


def _wrong_numbers(keys: _Keys) -> Iterator[str]:
    for key in _ROTATED:
        value = keys.get(key)
        if isinstance(value, int) and (value < 1 or value % 2):  # at 0 llama.cpp never ends
            yield f"{keys.name(key)} is {_shown(value)}, and it must be an even number from 2 on"
    scaling = keys.get("rope.scaling.type")
    if isinstance(scaling, str) and scaling not in _ROPE_SCALING:
        allowed = ", ".join(_ROPE_SCALING)
        key = keys.name("rope.scaling.type")
        yield f"{key} is {_shown(scaling)}, and it must be one of {allowed}"
    for name in _EPSILONS:
        value = keys.get(f"attention.{name}")
        if isinstance(value, float) and not 0 <= value < math.inf:
            key = keys.name(f"attention.{name}")
            yield f"{key} is {value}, and it must be a number of 0 or more"
    for name, value in keys.metadata.items():
        if name.startswith(keys.name("")) and isinstance(value, float) and math.isnan(value):
            yield f"{name if name.isprintable() else _shown(name)} is {value}, which is no number"


def _wrong_tokenizer(keys: _Keys) -> Iterator[str]:
    key = "tokenizer.ggml.model"
    model = keys.metadata.get(key)
    if model is None:
        yield f"the key {key} is missing: there is no vocabulary to write with"
    elif model in _NO_TOKENIZER:
        yield f"{key} is {_shown(model)}: there is no vocabulary to write with"
    elif model == "bert":
        yield f"{key} is 'bert', which only encoders have: every text would end with [SEP]"


def _wrong_types(tensors: Sequence[TensorInfo]) -> Iterator[str]:
    """The CPU's kernels have no products with such weights, and do not look."""
    for tensor in tensors:
        if tensor.type in _NO_WEIGHTS and _TABLE not in tensor.name:
            yield f"tensor {_shown(tensor.name)} is of type {tensor.type}, and weights never are"


def _missing_biases(keys: _Keys, tensors: Sequence[TensorInfo]) -> Iterator[str]:
    """llama.cpp loads these models without, and reads them all the same."""
    if keys.architecture not in _BIASED:
        return
    names = {tensor.name for tensor in tensors}
    for name in sorted(names):
        bias = f"{name.removesuffix('weight')}bias"
        if name.endswith(_CONVOLUTION) and bias not in names:
            yield f"tensor {_shown(bias)} is missing, which belongs to {_shown(name)}"


def _shown(value: Value) -> str:
    """A value in a message of one line."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
