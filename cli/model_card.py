"""What `specgen info` says about a model, as rows of text or as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from specgen.core.host.paths import path_text
from specgen.core.memory.placement import Share
from specgen.core.models.header import ArrayInfo, Header, Value
from specgen.core.models.modelinfo import ModelInfo, PerLayer

from .terminal import clean

_PLANS = {
    "tree": "drafts trees, and verifies a tree in one call",
    "chain": "drafts chains: the states of its recurrent layers can be rolled back, not branched",
    "plain": "decodes plainly: the state of its recurrent layers cannot be rolled back",
}


def plan(info: ModelInfo) -> str:
    """What specgen will do with the model, in one sentence without a full stop."""
    if info.refusal:
        return f"cannot run it: {info.refusal}"
    if info.drafting == "tree" and info.sliding_window:
        return f"{_PLANS['tree']}; keeps the full cache beyond the window, so that trees work"
    return _PLANS[info.drafting]


def rows(info: ModelInfo, kernels: str) -> list[tuple[str, str]]:
    """Label and value of each line; `kernels` says what the weights run on, "" if on nothing."""
    file_size = size_text(info.file_bytes)
    parts = f" in {info.n_parts} parts" if info.n_parts > 1 else ""
    return [
        ("name", info.name),
        ("file", path_text(info.path)),
        ("architecture", info.architecture),
        ("quantization", info.quantization),
        ("size", f"{file_size} ({info.file_bytes:,} bytes){parts}"),
        ("weights", f"{size_text(info.weight_bytes)} ({info.weight_bytes:,} bytes)"),
        ("parameters", f"{_count_text(info.n_params)} ({info.n_params:,})"),
        ("layers", _number(info.n_layer)),
        ("embedding", _number(info.n_embd)),
        ("heads", _layers_text(info.heads)),
        ("KV heads", _layers_text(info.kv_heads)),
        ("vocabulary", _number(info.n_vocab)),
        ("training context", f"{_number(info.n_ctx_train)} tokens"),
        ("KV per token", f"{info.kv_bytes_per_token:,} bytes at f16"),
        ("attention", _attention(info)),
        ("chat template", "yes" if info.chat_template else "no"),
        ("licence", info.licence or "not stated"),
        *([("runs on", kernels)] if kernels else []),
        ("specgen", plan(info)),
    ]


def metadata_rows(header: Header) -> list[tuple[str, str]]:
    """Every key of the header and the start of its value."""
    return [(key, _shortened(value)) for key, value in header.metadata.items()]


def record(info: ModelInfo, header: Header, shares: Sequence[Share]) -> dict[str, Any]:
    """The card as JSON values; sizes in bytes. `shares` say what the weights run on."""
    card: dict[str, Any] = {
        name: getattr(info, name) for name in info.__dataclass_fields__ if name != "path"
    }
    return {
        "path": path_text(info.path),
        **card,
        "drafting": info.drafting,
        "plan": plan(info),
        "shares": [share.record() for share in shares],
        "metadata": {key: _json_value(value) for key, value in header.metadata.items()},
    }


def size_text(n_bytes: int) -> str:
    """Bytes in decimal units, as shops and file managers count."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} bytes"


def _count_text(n: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= scale:
            return f"{n / scale:.1f}{unit}"
    return str(n)


def _number(n: int) -> str:
    return f"{n:,}" if n else "not stated"


def _layers_text(value: PerLayer) -> str:
    if isinstance(value, tuple):
        return "by layer: " + ", ".join(str(n) for n in sorted(set(value)))
    return _number(value)


def _attention(info: ModelInfo) -> str:
    if info.is_recurrent:
        return "none: recurrent"
    layers = "hybrid of recurrent and attention layers" if info.is_hybrid else "full"
    if info.sliding_window:
        window = f"sliding window of {info.sliding_window:,} tokens"
        return f"{layers}, {window}" if info.is_hybrid else f"{window} in some or all layers"
    return layers


def _shortened(value: Value) -> str:
    if isinstance(value, ArrayInfo):
        return f"{value.length:,} x {value.item_type}"
    shown = clean(str(value).replace("\n", "\\n"))
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _json_value(value: Any) -> Any:
    """JSON has no infinities and no arrays that were skipped."""
    if isinstance(value, ArrayInfo):
        return {"type": value.item_type, "length": value.length}
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
