"""What options choose between."""

from __future__ import annotations

from enum import StrEnum


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
