"""The machine card of a benchmark: what decoding could reach here at best, and on what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any, Final

from specgen.core.models.header import Header, TensorInfo
from specgen.core.models.modelinfo import is_tied

# Tables where a token looks up one row. token_embd is one as long as it is not the output, too.
_TABLES: Final = frozenset(
    {"per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"}
)
# Each tensor holds all experts of a layer, its last dimension counts them.
_EXPERTS: Final = re.compile(r"blk\.\d+\.ffn_(gate|up|gate_up|down)_(ch)?exps\.")


@dataclass(frozen=True, slots=True)
class Card:
    """What figures depend on, and what bounds them.

    Attributes:
        date: when it was made, ISO 8601 with the day and time in UTC.
        model: name of the file.
        architecture, quantization: of the model.
        n_params: weights, counted.
        weight_bytes: weights, in bytes.
        read_bytes: of the weights, what decoding one token reads.
        kv_bytes_per_token: cache that each token of context takes, and that is read for each token.
        bandwidth: bytes per second that `threads` threads read from memory, as measured.
        threads: CPU threads.
        flash_attention: the setting in use.
        n_ctx: tokens of context.
        devices: what llama.cpp runs on.
        build: versions of specgen and llama.cpp, and what llama.cpp was built for.
    """

    date: str
    model: str
    architecture: str
    quantization: str
    n_params: int
    weight_bytes: int
    read_bytes: int
    kv_bytes_per_token: int
    bandwidth: float
    threads: int
    flash_attention: bool | None
    n_ctx: int
    devices: tuple[str, ...]
    build: str

    def ceiling(self, context: int) -> float:
        """Tokens per second of plain decoding if it did nothing but read from memory."""
        return self.bandwidth / (self.read_bytes + context * self.kv_bytes_per_token)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"devices": list(self.devices)}

    @classmethod
    def from_record(cls, record: Any) -> Card:
        """The card in `record`. Raises KeyError or TypeError if there is none in it."""
        values = {field.name: record[field.name] for field in fields(cls)}
        return cls(**values | {"devices": tuple(values["devices"])})


def read_bytes(headers: Sequence[Header]) -> int:
    """Bytes of the weights, in one file or all its parts, that decoding one token reads.

    That is one row of each table of embeddings, the experts in use of a mixture, and all else
    but the layers at the end that predict further tokens (NextN).
    """
    tensors = [tensor for header in headers for tensor in header.tensors]
    tables = _TABLES if is_tied(headers) else _TABLES | {"token_embd.weight"}
    n_used = _count(headers[0], "expert_used_count")
    idle = _idle_layers(headers[0])
    return sum(_read_of(tensor, tables, n_used) for tensor in tensors if _layer(tensor) not in idle)


def _read_of(tensor: TensorInfo, tables: frozenset[str], n_used: int) -> int:
    """Bytes of one tensor; `n_used` experts of a layer, 0 for all of them."""
    if tensor.name in tables:
        return tensor.n_bytes // prod(tensor.shape[1:])
    if n_used and _EXPERTS.match(tensor.name):
        n_experts = tensor.shape[-1]
        return tensor.n_bytes * min(n_used, n_experts) // n_experts
    return tensor.n_bytes


def _idle_layers(header: Header) -> range:
    n_layer = _count(header, "block_count")
    return range(max(0, n_layer - _count(header, "nextn_predict_layers")), n_layer)


def _layer(tensor: TensorInfo) -> int:
    """Number of its layer, -1 if it is in none."""
    found = re.match(r"blk\.(\d+)\.", tensor.name)
    return int(found[1]) if found else -1


def _count(header: Header, key: str) -> int:
    """A number under the architecture's own prefix; 0 where the file does not state it."""
    value = header.metadata.get(f"{header.metadata.get('general.architecture')}.{key}")
    return value if isinstance(value, int) else 0
