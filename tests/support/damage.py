"""JSON that something has gone wrong with: bytes that flipped, values that nobody wrote."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_RAW = "raw JSON of "  # a text that begins so stands for what no JSON value is made of
_STRANGE: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        7,
        128,
        1 << 31,
        1 << 40,
        1 << 53,
        1 << 63,
        1 << 64,
        -(1 << 70),
    ),
    *(0.0, -0.5, 0.5, 1.5, 1e-300, 5e-324, 1e300, 1.7e308, -1e308),
    *("", "0", "-1", "1e9", "inf", "a\nb", "\x1b]0;x\x07", "\ud800", "9" * 500, "x" * 5000),
    *([], {}, [[]], [{}], {"": 0}, [None], [1, 2, 3], [3, 2, 1], {"1": 1}, {"-1": []}),
    [0] * 4000,
    [[0.5, 1]] * 2000,
    {str(n): n for n in range(500)},
    10**400,
    -(10**4000),
    *(_RAW + text for text in ("Infinity", "-Infinity", "NaN", "1e999", "-1e999", "9" * 5000)),
    _RAW + "[" * 900 + "]" * 900,
    _RAW + "[" * 50_000 + "]" * 50_000,
    _RAW + '{"a":' * 600 + "1" + "}" * 600,
)


def damaged(record: Any, rng: random.Random) -> bytes:
    """The record as JSON, with one to three things changed."""
    if rng.random() < 0.3:
        return _flipped(json.dumps(record).encode(), rng)
    changed = copy.deepcopy(record)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        changed = _changed(changed, rng)
    text = json.dumps(changed)
    for value in _STRANGE:
        if isinstance(value, str) and value.startswith(_RAW):
            text = text.replace(json.dumps(value), value.removeprefix(_RAW))
    return text.encode()


def _flipped(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, left out, or cut off behind."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(changed))
        how = rng.random()
        if how < 0.6:
            changed[at] = rng.choice(b'0123456789-+.eE[]{},:"\\ntfa\x00\xff')
        elif how < 0.8:
            del changed[at : at + rng.choice((1, 2, 20))]
        elif how < 0.95:
            changed[at:at] = rng.choice((b"9", b"-", b"e9", b"[", b"0" * 400, b"9" * 400))
        else:
            del changed[at:]
        if not changed:
            return b""
    return bytes(changed)


def _changed(record: Any, rng: random.Random) -> Any:
    """The record with one value, at any depth, replaced, left out or given twice."""
    if not isinstance(record, dict | list) or not record or rng.random() < 0.15:
        return copy.deepcopy(rng.choice(_STRANGE))
    key = rng.choice(list(record) if isinstance(record, dict) else range(len(record)))
    how = rng.random()
    if how < 0.1:
        del record[key]
    elif how < 0.15 and isinstance(record, list):
        record.insert(0, copy.deepcopy(record[key]))
    elif how < 0.2 and isinstance(record, dict):
        record[rng.choice(("", "-1", "0", "400", "x", "9" * 30))] = record.pop(key)
    else:
        record[key] = _changed(record[key], rng)
    return record
