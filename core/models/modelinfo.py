"""What a GGUF file's header says about the model in it, in the terms that specgen needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from specgen.core.errors import ModelError
from specgen.core.host.paths import path_text

from . import architectures
from .bytesource import AGAIN
from .header import ArrayInfo, Header, TensorInfo, Value, read_header
from .runnable import obstacle

# fmt: off
_FILE_TYPES: Final = MappingProxyType({
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
})
# fmt: on

_GUESSED: Final = 1024  # this flag of general.file_type says that llama.cpp inferred the type
_MAX_LAYERS: Final = 4096
_MAX_NAME: Final = 64  # an architecture's name has at most so many characters
_OTHER_KINDS: Final = MappingProxyType(
    {"adapter": "a LoRA adapter", "mmproj": "a multimodal projector", "imatrix": "an imatrix"}
)

PerLayer: TypeAlias = int | tuple[int, ...]
Drafting: TypeAlias = Literal["tree", "chain", "plain", "none"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model by its header. Counts are 0 where the file does not state them.

    Attributes:
        path: the file, or the first of its parts.
        quantization: such as "Q4_K_M"; of a file that does not say, its commonest tensor type.
        n_params: numbers in all tensors.
        file_bytes, weight_bytes: of all parts.
        heads, kv_heads: one number, or one per layer.
        kv_bytes_per_token: keys and values of one token at f16, in all layers that keep them.
        chat_template: Jinja source.
        sliding_window: tokens, 0 for full attention everywhere.
        refusal: why it cannot be run, empty where it can.
        remedy: what to do then.
    """

    path: Path
    name: str
    architecture: str
    quantization: str
    licence: str
    n_parts: int
    n_params: int
    file_bytes: int
    weight_bytes: int
    n_layer: int
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    heads: PerLayer
    kv_heads: PerLayer
    kv_bytes_per_token: int
    chat_template: str | None
    sliding_window: int
    is_recurrent: bool
    is_hybrid: bool
    has_snapshots: bool
    has_encoder: bool
    refusal: str
    remedy: str

    def require_runnable(self) -> None:
        """Raise ModelError where it cannot be run."""
        if self.refusal:
            raise ModelError(f"cannot run {path_text(self.path)}: {self.refusal}", self.remedy)

    @property
    def drafting(self) -> Drafting:
        """What drafts this model can verify: trees, chains, none (plain), or it cannot run."""
        if self.refusal:
            return "none"
        if self.is_recurrent:
            return "plain"
        if self.is_hybrid:
            return "chain" if self.has_snapshots else "plain"
        return "tree"

    @classmethod
    def from_headers(cls, headers: Sequence[Header]) -> ModelInfo:
        """The model in one file, or in several parts with the first part first.

        Raises ModelError where the metadata lack what a model must have.
        """
        fields = Fields(headers[0])
        architecture = fields.architecture()
        tensors = [tensor for header in headers for tensor in header.tensors]
        causal = fields.get("attention.causal") is not False
        found = obstacle(headers)
        return cls(
            path=headers[0].path,
            name=fields.text("general.name") or path_text(headers[0].path.stem),
            architecture=architecture,
            quantization=_quantization(fields, tensors),
            licence=fields.text("general.license"),
            n_parts=len(headers),
            n_params=sum(tensor.n_values for tensor in tensors),
            file_bytes=sum(header.file_bytes for header in headers),
            weight_bytes=sum(tensor.n_bytes for tensor in tensors),
            n_layer=fields.n_layer,
            n_ctx_train=fields.number("context_length"),
            n_embd=fields.number("embedding_length"),
            n_vocab=fields.n_vocab(),
            heads=fields.per_layer("attention.head_count"),
            kv_heads=fields.kv_heads(),
            kv_bytes_per_token=_kv_bytes_per_token(fields),
            chat_template=fields.text("tokenizer.chat_template") or None,
            sliding_window=fields.window(),
            is_recurrent=architecture in architectures.RECURRENT,
            is_hybrid=architecture in architectures.HYBRID,
            has_snapshots=architecture in architectures.SNAPSHOTS,
            has_encoder=architecture in architectures.ENCODER or not causal,
            refusal=found.reason if found else "",
            remedy=found.hint if found else "",
        )


def read_model(path: str | Path) -> ModelInfo:
    """The model in the GGUF file at `path`, or in the split GGUF whose first part that is.

    Raises ModelError as `read_header` does, and for a later or a missing part.
    """
    return ModelInfo.from_headers(read_headers(path))


def is_tied(headers: Iterable[Header]) -> bool:
    """Whether the table of tokens is the output as well: rows of it are looked up, and it is
    multiplied.
    """
    return all(tensor.name != "output.weight" for header in headers for tensor in header.tensors)


def read_headers(path: str | Path) -> tuple[Header, ...]:
    """The header of the GGUF file at `path`, and of all its parts. Raises as `read_model` does."""
    header = read_header(path)
    return (header, *map(read_header, _other_parts(header)))


def _other_parts(header: Header) -> list[Path]:
    """The files that llama.cpp loads along with this one, by their numbered names."""
    n_parts, part = header.metadata.get("split.count", 1), header.metadata.get("split.no", 0)
    if not isinstance(n_parts, int) or not isinstance(part, int) or n_parts <= 1:
        return []
    path = path_text(header.path)
    if n_parts > 0xFFFF or not 0 <= part < n_parts:
        raise ModelError(f"{path} claims to be part {part:,} (from 0) of {n_parts:,}")
    name = re.fullmatch(r"(.*)-\d{5}-of-\d{5}\.gguf", header.path.name)
    first = f"{name[1]}-00001-of-{n_parts:05}.gguf" if name else "the file of part 1"
    if part:
        message = f"{path} is part {part + 1} of {n_parts} of a split GGUF"
        raise ModelError(
            message, f"give the first part instead, {path_text(first)}: it leads to the others"
        )
    if not name or header.path.name != first:
        message = f"{path} is the first of {n_parts} parts but is not named so"
        raise ModelError(message, f"name the parts NAME-00001-of-{n_parts:05}.gguf and so on")
    names = (f"{name[1]}-{i:05}-of-{n_parts:05}.gguf" for i in range(2, n_parts + 1))
    return [header.path.with_name(part_name) for part_name in names]


class Fields:
    """A header's metadata by key, with the type that is asked for or nothing."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._prefix = self.text("general.architecture")
        self.n_layer = self.number("block_count")

    def architecture(self) -> str:
        """Its name; ModelError where the file is no language model at all."""
        path = path_text(self._header.path)
        kind = _OTHER_KINDS.get(self.text("general.type"))
        if kind:
            message = f"{path} is {kind}, not a model"
            raise ModelError(message, "give the GGUF of the model that it belongs to")
        if not self._prefix:
            message = f"{path} does not say which architecture it has"
            raise ModelError(message, "convert the model again with a current llama.cpp")
        if len(self._prefix) > _MAX_NAME or not self._prefix.isprintable():
            message = f"{path} has the architecture {self._prefix[:_MAX_NAME]!r}, which is no name"
            raise ModelError(message, AGAIN)
        if self.n_layer > _MAX_LAYERS:
            message = f"{path} claims {self.n_layer:,} layers, above {_MAX_LAYERS:,}"
            raise ModelError(message, AGAIN)
        return self._prefix

    def get(self, key: str) -> Value | None:
        """A value under the architecture's own prefix."""
        return self._header.metadata.get(f"{self._prefix}.{key}")

    def text(self, key: str) -> str:
        """A string under its full name, or ""."""
        value = self._header.metadata.get(key)
        return value if isinstance(value, str) else ""

    def plain(self, key: str) -> int | None:
        """An integer under its full name."""
        return _integer(self._header.metadata.get(key))

    def number(self, key: str, default: int = 0) -> int:
        """A count under the architecture's own prefix."""
        value = _integer(self.get(key))
        return default if value is None else value

    def per_layer(self, key: str, default: PerLayer = 0) -> PerLayer:
        """One integer, or one per layer; an array of equal ones is one."""
        value = self.get(key)
        if not isinstance(value, tuple):
            return self.number(key) if _integer(value) is not None else default
        layers = tuple(n for n in map(_integer, value) if n is not None)
        if not layers:
            return default
        return layers[0] if len(set(layers)) == 1 else layers

    def kv_heads(self) -> PerLayer:
        """Heads of keys and values; as many as of queries unless the file says so."""
        return self.per_layer("attention.head_count_kv", self.per_layer("attention.head_count"))

    def window(self) -> int:
        """Tokens of the sliding window that llama.cpp will use, 0 for none.

        Phi-3 states one, which llama.cpp ignores.
        """
        if self._prefix not in architectures.SLIDING:
            return 0
        usual = dict(architectures.WINDOW).get(self._prefix, 0)
        stated = self.number("attention.sliding_window", usual)
        return usual if usual and stated and self._prefix != "gemma2" else stated

    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        tokens = self._header.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, ArrayInfo):
            return tokens.length
        return len(tokens) if isinstance(tokens, tuple) else self.number("vocab_size")


def _integer(value: Value | None) -> int | None:
    """`value` where it is a count; bool is no number here."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None


def _quantization(fields: Fields, tensors: Sequence[TensorInfo]) -> str:
    file_type = fields.plain("general.file_type")
    if file_type is not None and file_type & ~_GUESSED in _FILE_TYPES:
        return _FILE_TYPES[file_type & ~_GUESSED]
    n_bytes: dict[str, int] = {}
    for tensor in tensors:
        n_bytes[tensor.type] = n_bytes.get(tensor.type, 0) + tensor.n_bytes
    return max(n_bytes, key=lambda name: n_bytes[name], default="unknown")


def _kv_bytes_per_token(fields: Fields) -> int:
    """f16 bytes of one token's keys and values, over the layers that keep a cache."""
    heads = fields.per_layer("attention.head_count")
    most = max(heads, default=0) if isinstance(heads, tuple) else heads
    usual = fields.number("embedding_length") // most if most else 0
    width = fields.number("attention.key_length", usual)
    # With latent attention the values are a part of the keys.
    if fields.get("attention.key_length_mla") is None:
        width += fields.number("attention.value_length", usual)
    return 2 * width * _cached_heads(fields)


def _cached_heads(fields: Fields) -> int:
    """KV heads summed over the layers that keep keys and values of their own."""
    architecture = fields.text("general.architecture")
    if architecture in architectures.RECURRENT:
        return 0
    kv_heads = fields.kv_heads()
    n_own = max(0, fields.n_layer - fields.number("attention.shared_kv_layers"))
    if isinstance(kv_heads, tuple):
        return sum(kv_heads[:n_own])
    if architecture in architectures.INTERVAL:
        return kv_heads * (n_own // max(1, fields.number("full_attention_interval", 4)))
    return kv_heads * n_own
