"""Where the CPU backend puts each of a model's weights, and whose kernels multiply it.

specgen's kernels come first: what they take lies in their own layout, and the pages of the file
that it came from are let go. llama.cpp copies some of the rest (repacked.py), and reads all else
as the file has it. Beside a GPU nothing is laid out or copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from specgen.core.models.header import Header, TensorInfo
from specgen.core.models.modelinfo import is_tied
from specgen.core.models.types import BLOCKS

from .offload import split
from .repacked import TABLES, is_copied

# Bytes of a matrix in the layout of specgen's kernels, by its ggml_type, columns and rows; 0 where
# they are not written for it.
LaidOut: TypeAlias = Callable[[int, int, int], int]

Kernels: TypeAlias = Literal["specgen", "repacked", "plain", "gpu"]

_NUMBERS: Final = MappingProxyType({block.name: number for number, block in BLOCKS.items()})
_PAGE: Final = 4096  # of the processors that specgen has kernels for
_PIECE: Final = 3 << 20  # more than is laid out before the pages that it came from are let go


@dataclass(frozen=True, slots=True)
class Placement:
    """Bytes of weights, as the CPU's kernels have them.

    Attributes:
        laid_out: in the layout of specgen's kernels.
        let_go: of the file, that are no longer mapped when all is laid out.
        headers: of the file, before its weights, which llama.cpp lets go of in the end; 0 where
            nothing is laid out.
        copies: that llama.cpp makes.
        largest: of the matrices that are laid out.
        others: whether llama.cpp multiplies matrices that it converts numbers for.
    """

    laid_out: int
    let_go: int
    headers: int
    copies: int
    largest: int
    others: bool

    @property
    def while_loading(self) -> int:
        """What there is at most beside the whole file, which llama.cpp maps at once."""
        return max(0, self.laid_out - self.let_go) + min(self.largest, _PIECE)


@dataclass(frozen=True, slots=True)
class Share:
    """The weights of one type that the same kernels compute with.

    Attributes:
        kernels: specgen's, llama.cpp's with weights that it copied or as they are, or a GPU's.
        type: ggml type such as "Q4_K".
        n_bytes: in the file.
    """

    kernels: Kernels
    type: str
    n_bytes: int

    def record(self) -> dict[str, str | int]:
        """As JSON."""
        return {"kernels": self.kernels, "type": self.type, "bytes": self.n_bytes}


def place(
    headers: Sequence[Header], features: frozenset[str], laid_out: LaidOut | None, *, has_gpu: bool
) -> Placement:
    """Where the weights in one file, or in all its parts, are put."""
    sizes = {"specgen": 0, "repacked": 0, "plain": 0}
    let_go, largest, others = 0, 0, False
    tables = _tables(headers)
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in tables:
                continue
            kernels = _kernels(tensor, features, laid_out, has_gpu=has_gpu)
            n_bytes = tensor.n_bytes
            if kernels == "specgen":
                n_bytes = _laid_out(tensor, laid_out)
                largest = max(largest, n_bytes)
                let_go += _whole_pages(header.data_start + tensor.offset, tensor.n_bytes)
            elif len(tensor.shape) > 1 and tensor.type != "F32":
                others = True
            sizes[kernels] += n_bytes
    start = sum(header.data_start // _PAGE * _PAGE for header in headers)
    return Placement(
        laid_out=sizes["specgen"],
        let_go=let_go,
        headers=start if largest else 0,
        copies=sizes["repacked"],
        largest=largest,
        others=others,
    )


def shares(
    headers: Sequence[Header],
    features: frozenset[str],
    laid_out: LaidOut | None,
    *,
    n_layer: int = 0,
    gpu_layers: int | None = None,
) -> tuple[Share, ...]:
    """Which weights run on what: specgen's kernels first, and of each the largest share first.

    Tables that are only looked up are not among them: a token reads a row of them and no more.

    Args:
        headers: of the model file, or of all its parts.
        features: of the CPU, as from `repacked.cpu_features`.
        laid_out: of specgen's kernels; None without them.
        n_layer: layers of the model.
        gpu_layers: layers on a GPU, the output counted as one; None where there is no GPU.
    """
    has_gpu = gpu_layers is not None
    tables = _tables(headers)
    tensors = [tensor for header in headers for tensor in header.tensors]
    away = {tensor.name for tensor in split(tensors, n_layer, gpu_layers or 0).device}
    found: dict[tuple[Kernels, str], int] = {}
    for tensor in tensors:
        if tensor.name in tables:
            continue
        kernels = _kernels(tensor, features, laid_out, has_gpu=has_gpu)
        key = ("gpu" if tensor.name in away else kernels, tensor.type)
        found[key] = found.get(key, 0) + tensor.n_bytes
    order: tuple[Kernels, ...] = ("specgen", "repacked", "plain", "gpu")
    every = (Share(*key, n_bytes) for key, n_bytes in found.items())
    return tuple(sorted(every, key=lambda share: (order.index(share.kernels), -share.n_bytes)))


def are_all_laid_out(headers: Sequence[Header], laid_out: LaidOut | None) -> bool:
    """Whether specgen's kernels compute all products with weights in these files, without a GPU."""
    tables = _tables(headers)
    tensors = (tensor for header in headers for tensor in header.tensors)
    matrices = (t for t in tensors if len(t.shape) > 1 and t.name not in tables)
    return all(_laid_out(tensor, laid_out) for tensor in matrices)


def shares_text(found: Sequence[Share], instructions: str) -> str:
    """In words: "71 % Q4_K on specgen's kernels (avx512), 29 % F16 on llama.cpp's".

    What is less than half a percent is left out.
    """
    total = sum(share.n_bytes for share in found)
    names = {
        "specgen": f"specgen's kernels ({instructions})",
        "repacked": "llama.cpp's (repacked)",
        "plain": "llama.cpp's",
        "gpu": "the GPU",
    }
    told = []
    for kernels, name in names.items():
        some = [share for share in found if share.kernels == kernels]
        types = [
            f"{percent} % {share.type}"
            for share in some
            if (percent := round(100 * share.n_bytes / total))
        ]
        if types:
            told.append(f"{_listed(types)} on {name}")
    return ", ".join(told) or "none"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _tables(headers: Iterable[Header]) -> frozenset[str]:
    """Names of the tensors that nothing is multiplied with: rows of them are looked up.

    Embeddings are multiplied where they are the output, too.
    """
    return TABLES - {"token_embd.weight"} if is_tied(headers) else TABLES


def _kernels(
    tensor: TensorInfo, features: frozenset[str], laid_out: LaidOut | None, *, has_gpu: bool
) -> Kernels:
    if has_gpu:  # llama.cpp keeps the layout that can be copied there
        return "plain"
    if _laid_out(tensor, laid_out):
        return "specgen"
    return "repacked" if is_copied(tensor, features) else "plain"


def _laid_out(tensor: TensorInfo, laid_out: LaidOut | None) -> int:
    """Bytes that it takes in the layout of specgen's kernels; 0 where they do not take it."""
    number = _NUMBERS.get(tensor.type)
    if laid_out is None or number is None:
        return 0
    if len(tensor.shape) != (3 if "_exps." in tensor.name else 2):
        return 0
    columns, rows = tensor.shape[:2]
    return laid_out(number, columns, rows) * int(prod(tensor.shape[2:]))


def _whole_pages(start: int, n_bytes: int) -> int:
    """Bytes of the pages that hold nothing else: those at the edges stay."""
    first, last = -(-start // _PAGE), (start + n_bytes) // _PAGE
    return max(0, last - first) * _PAGE
