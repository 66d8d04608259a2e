"""Records in files: JSON that may have been damaged, or that anybody may have written.

What is read from a file is looked at field by field before it is used, with the checks that are
here. All of them raise ValueError, and nothing else.
"""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any, Final, NoReturn

CACHE_BYTES: Final = 4 << 20  # most of a file of our own; the largest have a tenth of it
SAVED_BYTES: Final = 64 << 20  # most of a file that a user keeps: 90,000 runs of a benchmark
MOST_WHOLE: Final = 1 << 53  # beyond, not every whole number is a float

_WRONG: Final = "it is not JSON"


def read_record(path: Path, most_bytes: int) -> Any:
    """The JSON value in a file. Raises OSError, and ValueError if there is none or it is larger."""
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it has more than {most_bytes:,} bytes")
    return parse_record(data)


def parse_record(text: str | bytes) -> Any:
    """The JSON value in a text; NaN and infinities, which Python's reader takes, are none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise ValueError("it needs more memory than there is") from None
    except _NoNumber:
        raise
    except ValueError:  # no JSON, no UTF-8, or a number of thousands of digits
        raise ValueError(_WRONG) from None


class _NoNumber(ValueError):
    pass


def _refuse(name: str) -> NoReturn:
    raise _NoNumber(f"{_WRONG}: {name} is no number there")


def whole(value: Any, name: str, least: int = 0, most: int = MOST_WHOLE) -> int:
    """`value` if it is a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise _wrong(name, value, f"a whole number from {least} to {most}")
    return value


def number(value: Any, name: str, least: float = 0.0, most: float = math.inf) -> float:
    """`value` as a float if it is a number from `least` to `most`, and not endless."""
    if type(value) not in (int, float) or not least <= value <= most or not _is_finite(value):
        raise _wrong(name, value, f"a number from {least:g} to {most:g}")
    return float(value)


def switch(value: Any, name: str) -> bool:
    """`value` if it is true or false."""
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def text(value: Any, name: str) -> str:
    """`value` if it is a text that can be written: JSON can spell half a surrogate pair."""
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _wrong(name, value, "Unicode") from None
    return value


def items(value: Any, name: str) -> list[Any]:
    """`value` if it is a list."""
    if not isinstance(value, list):
        raise _wrong(name, value, "a list")
    return value


def members(value: Any, name: str) -> dict[str, Any]:
    """`value` if it is a JSON object."""
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object")
    return value


def member(record: Any, name: str) -> Any:
    """A member of a JSON object that must be there."""
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"there is no {name!r}")
    return record[name]


def counted(key: str | int, name: str, most: int = MOST_WHOLE) -> int:
    """A key that stands for a whole number from 0, which keys of JSON cannot be."""
    key = str(key)
    if not (key.isascii() and key.isdecimal()) or len(key) > len(str(most)):
        raise _wrong(name, key, "a whole number")
    return whole(int(key), name, 0, most)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _wrong(name: str, value: Any, wanted: str) -> ValueError:
    try:
        shown = reprlib.repr(value)
    except ValueError:  # more digits than Python prints
        shown = "too long"
    return ValueError(f"{name} is {shown}, which is not {wanted}")
