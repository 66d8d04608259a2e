"""A package index in a folder, with a tiny model in hand-made wheels, for the tests of pull."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from specgen.core.models.catalogue import CatalogueEntry, Piece

CONTENT = bytes(range(256)) * 64
FILE_NAME = "tiny.gguf"


def write_wheel(folder: Path, package: str, member: str, content: bytes) -> int:
    """A wheel that pip accepts, with one file in it; returns the wheel's size."""
    name = package.replace("-", "_")
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path.stat().st_size


def make_entry(
    folder: Path, *, n_pieces: int = 1, sha256: str | None = None, terms: str = ""
) -> CatalogueEntry:
    """An entry called "tiny" whose wheels lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    step = len(CONTENT) // n_pieces
    pieces = []
    for i in range(n_pieces):
        content = CONTENT[i * step : (i + 1) * step if i < n_pieces - 1 else None]
        package, member = f"tiny-model-part{i}", f"tiny_model/{FILE_NAME}.{i}"
        size = write_wheel(folder, package, member, content)
        pieces.append(Piece(package, "1.0", member, len(content), size))
    return CatalogueEntry(
        name="tiny",
        title="Tiny",
        quantization="F32",
        licence="MIT",
        file_name=FILE_NAME,
        n_bytes=len(CONTENT),
        sha256=sha256 or hashlib.sha256(CONTENT).hexdigest(),
        pieces=tuple(pieces),
        terms=terms,
    )


def use_index(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let pip see nothing but the wheels in `folder`."""
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def visible(folder: Path) -> list[str]:
    """What a pull left in `folder`, its lock file apart."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))
