"""Records in files: whatever is in them, they are used or refused, and nothing else happens."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specgen.cli.bench.report import show, show_comparison
from specgen.cli.calibrate import _lines, _record, _table
from specgen.cli.choices import Format
from specgen.core.config import EngineConfig
from specgen.core.cost.comparison import Comparison
from specgen.core.cost.model import MAX_ROWS, CostModel, load_curve
from specgen.core.drafting.acceptance import shipped_priors
from specgen.core.errors import UsageError
from specgen.core.evaluation.results import load_results
from specgen.core.evaluation.tasks import load_prompts
from specgen.core.knowledge import profile as profiles
from specgen.core.knowledge.learned import Learned, load_learned
from specgen.core.knowledge.profile import Profile, find_profile
from specgen.core.knowledge.store import Store, cache_folder
from specgen.core.records import (
    counted,
    items,
    member,
    members,
    number,
    parse_record,
    read_record,
    switch,
    text,
    whole,
)
from tests.support.damage import damaged
from tests.support.made_up import CURVE, benchmark

N = 1000  # damaged files of each of the five kinds


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[1,]", "nothing", '{"age": Infinity}', "[-Infinity]", "NaN", "[" * 100_000),
        "9" * 5000,
    ],
)
def test_what_is_no_json(content: str, tmp_path: Path) -> None:
    """It is refused as a ValueError of one short line, from a text and from a file."""
    path = tmp_path / "x.json"
    path.write_text(content)
    said = []
    with pytest.raises(ValueError) as caught:
        parse_record(content)
    said.append(str(caught.value))
    with pytest.raises(ValueError) as caught:
        read_record(path, 1 << 20)
    said.append(str(caught.value))
    assert said[0] == said[1]
    assert 0 < len(said[0]) < 100
    assert "\n" not in said[0]


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    """It is not read whole, and what is just as large as allowed is."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps("x" * 98))
    assert read_record(path, 100) == "x" * 98
    with pytest.raises(ValueError, match="more than 99 bytes"):
        read_record(path, 99)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (whole, (0, 7, 1 << 53), (True, 1.0, -1, (1 << 53) + 1, 10**400, "1", None, [1])),
        (number, (0, 1.5, 1e300), (True, -1, math.inf, math.nan, 10**400, -(10**4999), "1", None)),
        (switch, (True, False), (0, 1, None, "true")),
        (text, ("", "ü\n"), (None, 1, b"x", "\ud800")),
        (items, ([], [1]), (None, (), {}, "ab")),
        (members, ({}, {"a": 1}), (None, [], "ab")),
        (counted, ("0", "12"), ("", "-1", "1.0", " 1", "²", "9" * 5000, "1e3")),
    ],
)
def test_fields(check: Callable[[Any, str], Any], right: Any, wrong: Any) -> None:
    """A value of the right kind comes back, any other is a ValueError that names the field."""
    for value in right:
        assert check(value, "it") == (int(value) if check is counted else value)
    for value in wrong:
        with pytest.raises(ValueError, match=r"it is .*, which is not") as caught:
            check(value, "it")
        assert len(str(caught.value)) < 200


def test_a_member_that_is_not_there() -> None:
    """Nor in what is no object at all."""
    assert member({"a": None}, "a") is None
    others: tuple[Any, ...] = ({"b": 1}, [], None, "a", 10**400)
    for record in others:
        with pytest.raises(ValueError, match="there is no 'a'"):
            member(record, "a")


def learned_record() -> dict[str, Any]:
    """What some runs have left."""
    learned = Learned(shipped_priors(), age=3)
    for n in range(200):
        evidence = [("suffix", n % 7, 1), ("trigram", n % 3)][: 1 + n % 2]
        learned.acceptance.learn(learned.acceptance.estimate(evidence, 0.4, n, n % 5), n % 3 > 0)
    record = learned.record()
    record["acceptance"]["buckets"] = record["acceptance"]["buckets"][:60]
    return record


def use_counts(path: Path, model: Path) -> bool:
    """Begin a run with what is kept, learn from it, and keep that."""
    learned = load_learned(model)
    if not path.exists():  # what every model begins with
        return False
    acceptance = learned.acceptance
    for n in range(12):
        guess = acceptance.estimate([("suffix", n % 7, 1), ("trigram", n % 3)], 0.3, n, n)
        assert 0 <= guess[0] <= 1
        acceptance.learn(guess, n % 2 == 0)
    learned.keep()
    assert load_learned(model).record() == learned.record()
    return True


def use_answers(path: Path, model: Path) -> bool:
    """Begin a run with past answers, and keep another one."""
    learned = load_learned(model, answers=True)
    if not path.exists():
        return False
    learned.add([1, 2, 3])
    learned.keep()
    assert load_learned(model, answers=True).answers[-3:].tolist() == [1, 2, 3]
    return True


def a_profile() -> Profile:
    """Of a model that was measured with flash attention and without."""
    comparison = Comparison((1.0, 1.2), (1.0, 0.9), (128, 1024))
    classes = {128: ((1, 2, 3, 4, 8), (16, 32)), 1024: ((1,), (2, 3, 4, 8), (16,))}
    return Profile(CURVE, True, comparison, classes, {128: {4: True, 8: False}}, 1.07)


def use_profile(path: Path, model: Path) -> bool:
    """Look for what was measured, show it, and decode strictly by it."""
    found = find_profile(model, EngineConfig())
    if found is None:
        return False
    strict = found.strict
    assert all(1 <= strict.padded(n) <= MAX_ROWS for n in range(1, strict.largest + 1))
    assert found.settled(EngineConfig()).flash_attention in (True, False)
    assert all(map(math.isfinite, found.curve.costs(5000)))
    assert all(str(cell).isprintable() for row in _table(found)[1] for cell in row)
    assert list(_lines(found, path))
    json.dumps(_record(found), allow_nan=False)
    assert Profile.from_record(json.loads(json.dumps(found.record()))).strict == strict
    return True


@pytest.mark.parametrize(
    "change",
    [
        *({"classes": {"128": [widths]}} for widths in ([], [0, 1], [2, 1], [1, MAX_ROWS + 1])),
        *[{"classes": {"128": [[1.0]]}}, {"classes": {"x": []}}, {"classes": []}],
        *({"branching": value} for value in ({"128": {"4": 1}}, {"128": {"400": True}}, None)),
        *({"noise": value} for value in (-1, 1e300, 10**400, "1", None, True)),
        *({"comparison": value} for value in ([], [[1], [1], [1]], [[1, 2], [1, 2]], 0, False)),
        *({"flash_attention": value} for value in (1, None, "on")),
        {"curve": {"sizes": [1], "contexts": [0], "ms": [[0]]}},
    ],
)
def test_fields_of_a_profile(change: dict[str, Any]) -> None:
    """Those that would only fail where they are used are refused when they are read."""
    record = json.loads(json.dumps(a_profile().record()))
    assert Profile.from_record(record).record() == record
    with pytest.raises(ValueError, match="not a profile"):
        Profile.from_record(record | change)


@pytest.mark.parametrize("ms", [[1e-300, 1], [1, 1e300], [1, 10**400], [1, "2"], [1], [1, None]])
def test_times_of_a_curve(ms: list[Any]) -> None:
    """No call takes so little or so long that ratios and sums of times are no numbers."""
    with pytest.raises(ValueError):
        CostModel.from_record({"sizes": [1, 2], "contexts": [0], "ms": [ms]})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file to be known by."""
    path = tmp_path / "some.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.mark.llama
@pytest.mark.long
@pytest.mark.parametrize("kind", ["counts", "answers", "profile"])
def test_damaged_files_of_the_cache(
    kind: str, model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is used or set aside with one warning, and the command goes on as without it."""
    key: Any
    value: Any
    if kind != "profile":
        value, use = (learned_record(), use_counts) if kind == "counts" else ([5] * 60, use_answers)
        store, key = Store(kind, 1), {"model": profiles.fingerprint(model)}
    else:
        store, value, use = Store(kind, 4), a_profile().record(), use_profile
        key = profiles.profile_key(model, EngineConfig())
        monkeypatch.setattr(profiles, "profile_key", lambda *_: key)  # it takes long to find out
    monkeypatch.setattr(
        "specgen.core.knowledge.store._warn", logging.getLogger("specgen.store").warning
    )
    assert store.write(key, value)
    path = store.path(key)
    record = json.loads(path.read_bytes())
    rng = random.Random(5)
    n_used = 0
    for _ in range(N):
        content = damaged(record, rng)
        path.write_bytes(content)
        caplog.clear()
        used = use(path, model)
        n_used += used
        warnings = [r.getMessage() for r in caplog.records]
        unused = json.loads(content) if used else None
        assert len(warnings) <= 1 and not (used and warnings), (warnings, unused)
        assert all("is set aside: " in line and len(line) < 600 for line in warnings)
        assert not warnings or Path(f"{path}.bad").read_bytes() == content
    assert 10 < n_used < N - 10
    assert sorted(p.name for p in cache_folder().glob(f"specgen-{kind}-*.json")) in (
        [path.name],
        [],
    )


def use_curve(path: Path) -> None:
    """What `bench --replay` does with it."""
    curve = load_curve(str(path))
    assert all(map(math.isfinite, (*curve.costs(0), *curve.costs(10**6), curve.seconds(77, 5000))))


def use_results(path: Path) -> None:
    """What `bench --load` and `--compare` do with them."""
    loaded = load_results(path)
    for format in Format:
        shown = show(loaded, format)
        if format == Format.json:
            parse_record(shown)
    show_comparison(benchmark(tasks=("chat", "code")), loaded, ("a", "b"), Format.table)


def use_prompts(path: Path) -> None:
    """What `bench --data` does with them."""
    assert all(turn for prompt in load_prompts(path) for turn in prompt.turns)


@pytest.mark.long
@pytest.mark.parametrize(
    ("use", "record"),
    [
        (use_curve, CURVE.record()),
        (use_results, benchmark(tasks=("chat", "code"), repetitions=2, prompts=1).record()),
        (use_prompts, {"turns": ["a", "b"], "category": "c", "question_id": 3}),
    ],
    ids=["curve", "results", "prompts"],
)
def test_damaged_files_of_a_user(use: Callable[[Path], None], record: Any, tmp_path: Path) -> None:
    """Each is used, or refused in one line; not all are refused."""
    rng = random.Random(6)
    path = tmp_path / "x.json"
    n_refused = 0
    for _ in range(N):
        path.write_bytes(damaged(record, rng))
        try:
            use(path)
        except UsageError as error:
            n_refused += 1
            assert "\n" not in error.message
            assert len(error.message) < 1000
    assert N / 10 < n_refused < N
