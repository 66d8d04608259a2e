"""What options choose between, and values that are a number or a word."""

from __future__ import annotations

import math
from enum import StrEnum

import typer

from specgen.core.errors import UsageError


class OnOff(StrEnum):
    """A switch."""

    on = "on"
    off = "off"


class CacheType(StrEnum):
    """Types of keys and values, as llama.cpp has them."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"
    q4_0 = "q4_0"
    q4_1 = "q4_1"
    iq4_nl = "iq4_nl"
    q5_0 = "q5_0"
    q5_1 = "q5_1"


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    md = "md"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


class OnOffAuto(StrEnum):
    """A switch that may be left to specgen or llama.cpp."""

    on = "on"
    off = "off"
    auto = "auto"

    @property
    def choice(self) -> bool | None:
        """None is auto."""
        return None if self == OnOffAuto.auto else self == OnOffAuto.on


_ALL_LAYERS = 999  # more than any model has


def parse_layers(text: str) -> int | None:
    """How many layers --gpu-layers asks for; None is auto. Raises UsageError."""
    if text == "auto":
        return None
    if text in ("all", "-1"):
        return _ALL_LAYERS
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"--gpu-layers is '{text}'; it must be a number, 'auto', 'all' or -1")
    digits = text.lstrip("0") or "0"
    return min(int(digits), _ALL_LAYERS) if len(digits) < 9 else _ALL_LAYERS


def number(value: float) -> float:
    """A callback of options that take a number: "nan" is none, though no bound keeps it out.

    And nothing can be done with an infinite one.
    """
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value
