"""What lies on a GPU when layers are offloaded, by the header alone.

llama.cpp offloads from the end: the output first, then the last layer, and so on. The embeddings'
table stays with the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from specgen.core.models.header import TensorInfo

_BLOCK = re.compile(r"blk\.([0-9]{1,6})\.")


@dataclass(frozen=True, slots=True)
class Split:
    """What goes to GPUs.

    Attributes:
        device: tensors that go; a table of embeddings that is the output, too, stays as well.
        gone: bytes that the host need not have.
        share: of the layers, those that go.
    """

    device: tuple[TensorInfo, ...]
    gone: int
    share: float


def split(tensors: Iterable[TensorInfo], n_layer: int, gpu_layers: int) -> Split:
    """What goes with the last `gpu_layers` of a model's layers, its output counted as one more."""
    tensors = tuple(tensors)
    n_offloaded = min(gpu_layers, n_layer + 1)
    first = n_layer + 1 - n_offloaded

    def goes(tensor: TensorInfo) -> bool:
        if found := _BLOCK.match(tensor.name):
            return int(found[1]) >= first
        return n_offloaded > 0 and tensor.name.startswith("output")

    device = [tensor for tensor in tensors if goes(tensor)]
    gone = sum(tensor.n_bytes for tensor in device)
    has_output = any(tensor.name == "output.weight" for tensor in tensors)
    if n_offloaded and not has_output:
        device += [tensor for tensor in tensors if tensor.name == "token_embd.weight"]
    share = max(0, n_offloaded - 1) / n_layer if n_layer else 0.0
    return Split(tuple(device), gone, share)
