"""Making the card of this machine, a model and the settings in use."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from specgen import __version__
from specgen.core.host.bandwidth import measure_bandwidth
from specgen.core.host.paths import path_text
from specgen.core.llama.library import device_names, library_version
from specgen.core.models.modelinfo import ModelInfo, read_headers

from .card import Card, read_bytes


def card_of(
    path: Path,
    *,
    threads: int,
    flash_attention: bool | None,
    n_ctx: int,
    now: datetime,
    bandwidth: float | None = None,
) -> Card:
    """The card of the model at `path`, run as the other arguments say. Raises ModelError.

    Args:
        path: a GGUF file, or the first of its parts.
        now: with a time zone, or in local time.
        bandwidth: bytes per second; None measures it, which takes more than a second.
    """
    headers = read_headers(path)
    info = ModelInfo.from_headers(headers)
    bindings = version("llama_cpp_python")
    return Card(
        date=now.astimezone(UTC).isoformat(timespec="seconds"),
        model=path_text(path.name),
        architecture=info.architecture,
        quantization=info.quantization,
        n_params=info.n_params,
        weight_bytes=info.weight_bytes,
        read_bytes=read_bytes(headers),
        kv_bytes_per_token=info.kv_bytes_per_token,
        bandwidth=measure_bandwidth(threads) if bandwidth is None else bandwidth,
        threads=threads,
        flash_attention=flash_attention,
        n_ctx=n_ctx,
        devices=device_names(),
        build=f"specgen {__version__}, llama-cpp-python {bindings}, {library_version()}",
    )
