"""Cost curves: what lies between the points, files of them, and learning from the steps."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.cost.model import BUCKET, MAX_ROWS, UNKNOWN, CostModel, load_curve
from specgen.core.cost.online import EXPLORED, SHARE, CostTracker
from specgen.core.errors import UsageError

MODEL = CostModel((1, 2, 4, 8), (100, 500), ((1.0, 2.0, 5.0, 3.0), (2.0, 4.0, 5.0, 9.0)))


def test_the_points_are_what_was_measured() -> None:
    """Dips included: T need not rise with n."""
    for context, times in zip(MODEL.contexts, MODEL.times, strict=True):
        assert tuple(MODEL.seconds(n, context) for n in MODEL.sizes) == times


@pytest.mark.parametrize(
    ("n", "context", "seconds"),
    [
        (3, 100, 3.5),
        (6, 100, 4.0),
        (1, 300, 1.5),
        (3, 300, 4.0),  # 3.5 and 4.5
        (1, 0, 1.0),  # shorter than measured
        (1, 900, 3.0),  # longer: goes on
        (4, 900, 5.0),
        (8, 900, 15.0),
        (12, 500, 13.0),  # wider: goes on
        (16, 100, 3.0),  # but never falls
    ],
)
def test_between_and_beyond_the_points(n: int, context: int, seconds: float) -> None:
    """Straight lines between, the last of them goes on."""
    assert MODEL.seconds(n, context) == pytest.approx(seconds)


@given(context=st.integers(0, 5000), n=st.integers(1, MAX_ROWS))
def test_a_row_is_seconds_in_the_middle_of_its_bucket(context: int, n: int) -> None:
    """One row for BUCKET tokens of context."""
    middle = context // BUCKET * BUCKET + BUCKET // 2
    row = MODEL.costs(context)
    assert len(row) == MAX_ROWS
    assert row[n - 1] == pytest.approx(MODEL.seconds(n, middle))
    assert MODEL.costs(middle) is row


def test_longer_contexts_do_not_get_cheaper() -> None:
    """Noise between the last two points is not carried on below zero."""
    model = CostModel((1, 2), (10, 20), ((2.0, 3.0), (1.0, 4.0)))
    assert model.seconds(1, 15) == 1.5
    assert model.seconds(1, 1000) == model.costs(1000)[0] == 1.0
    assert model.seconds(2, 30) == 5.0


def test_one_point_is_a_curve() -> None:
    """Then no call is taken to be cheaper than its rows one by one."""
    assert CostModel((1,), (0,), ((0.5,),)).seconds(4, 100) == 2.0


def test_the_rows_kept_are_bounded() -> None:
    """A long session costs no more memory than a short one."""
    for context in range(0, 100_000, 32):
        MODEL.costs(context)
    assert len(MODEL._rows) <= 256


def test_named_curves() -> None:
    """They ship with specgen, in seconds."""
    assert load_curve("cpu2").seconds(7, 0) == pytest.approx(0.025)
    assert load_curve("cpu2").seconds(8, 5000) == pytest.approx(0.023)
    assert load_curve("mi50").seconds(6, 0) == pytest.approx(0.0791)
    assert load_curve("flat").seconds(64, 0) == pytest.approx(0.0014)
    assert load_curve("flat").seconds(128, 0) == pytest.approx(0.0018)


def test_the_unknown_machine_is_the_dearest() -> None:
    """Relative to one row, no measured curve lies above it."""
    unknown = load_curve(UNKNOWN).costs(256)
    for name in ("cpu2", "mi50", "flat"):
        row = load_curve(name).costs(256)
        assert all(row[n - 1] / row[0] <= unknown[n - 1] / unknown[0] for n in range(1, 65))
    assert all(a < b for a, b in pairwise(unknown))


def test_a_curve_survives_its_file(tmp_path: Path) -> None:
    """What `record` gives, `load_curve` reads."""
    file = tmp_path / "curve.json"
    file.write_text(json.dumps(MODEL.record()))
    assert load_curve(str(file)) == MODEL


GOOD = {"sizes": [1, 2], "contexts": [0], "ms": [[1, 2]]}


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        "{}",
        json.dumps(GOOD | {"sizes": [2, 3]}),
        json.dumps(GOOD | {"sizes": [1, 1]}),
        json.dumps(GOOD | {"sizes": [1, 2.5]}),
        json.dumps(GOOD | {"sizes": []}),
        json.dumps(GOOD | {"contexts": [-1]}),
        json.dumps(GOOD | {"contexts": [1, 2]}),
        json.dumps(GOOD | {"ms": [[1]]}),
        json.dumps(GOOD | {"ms": [[0, 1]]}),
        json.dumps(GOOD | {"ms": [["1", "2"]]}),
        json.dumps(GOOD | {"ms": [[1, float("inf")]]}),
        json.dumps(GOOD | {"ms": [[1, float("nan")]]}),
        json.dumps(GOOD | {"ms": 5}),
    ],
)
def test_files_that_are_no_curves(tmp_path: Path, content: str) -> None:
    """They are refused by name, with a hint."""
    file = tmp_path / "curve.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"curve\.json") as caught:
        load_curve(str(file))
    assert "--curve-out" in caught.value.hint


def test_a_name_that_there_is_not() -> None:
    """The hint says which there are."""
    with pytest.raises(UsageError, match="'cpu3'") as caught:
        load_curve("cpu3")
    assert all(name in caught.value.hint for name in ("cpu2", "mi50", "flat"))


def learn(tracker: CostTracker, truth: CostModel, sizes: list[int], load: float = 1.0) -> None:
    """Steps of these sizes that take what `truth` says."""
    for n in sizes:
        tracker.observe(n, 200, load * truth.seconds(n, 200))


def relative(tracker: CostTracker, n: int) -> float:
    """T(n) / T(1) as the tracker sees it."""
    row = tracker.costs(200)
    return row[n - 1] / row[0]


def test_without_steps_it_is_the_model() -> None:
    """A measured model is not touched, and nothing is explored."""
    tracker = CostTracker(MODEL)
    assert tracker.costs(200) == MODEL.costs(200)
    assert CostTracker().costs(200) == load_curve(UNKNOWN).costs(200)


def test_it_learns_the_sizes_that_are_used() -> None:
    """After a few steps each, those sizes are right and the others stay dear."""
    truth = load_curve("mi50")
    tracker = CostTracker()
    before = relative(tracker, 16)
    learn(tracker, truth, [1, 1, 1, 4, 8, 1, 4, 8, 1, 4, 8] + [1] * 8)
    row = tracker.costs(200)
    for n in (1, 4, 8):
        assert row[n - 1] == pytest.approx(truth.seconds(n, 200))
    assert row[5] < load_curve(UNKNOWN).costs(200)[5] / load_curve(UNKNOWN).costs(200)[0] * row[0]
    assert relative(tracker, 16) == pytest.approx(before)


def test_a_busy_minute_makes_all_sizes_slower_alike() -> None:
    """Load is no reason to think worse of the size in use."""
    truth = load_curve("cpu2")
    tracker = CostTracker(truth)
    learn(tracker, truth, [1, 8] * 20)
    before = [relative(tracker, n) for n in range(1, 65)]
    learn(tracker, truth, [8] * 60, load=3.0)
    assert tracker.scale == pytest.approx(3.0)
    assert [relative(tracker, n) for n in range(1, 65)] == pytest.approx(before)
    learn(tracker, truth, [8] * 60)
    assert tracker.scale == pytest.approx(1.0)
    assert [relative(tracker, n) for n in range(1, 65)] == pytest.approx(before)


def test_outliers_do_not_count() -> None:
    """One step in five is up to fifty times slower, and the first one always is."""
    rng = random.Random(1)
    truth = load_curve("mi50")
    tracker = CostTracker()
    tracker.observe(1, 200, 5.0)
    for i in range(400):
        n = (1, 4, 8)[i % 3]
        slow = rng.uniform(2, 50) if rng.random() < 0.2 else 1.0
        tracker.observe(n, 200, slow * truth.seconds(n, 200))
    learn(tracker, truth, [1] * 8)
    row = tracker.costs(200)
    for n in (1, 4, 8):
        assert row[n - 1] == pytest.approx(truth.seconds(n, 200))


def test_contexts_are_learnt_apart() -> None:
    """What is slow at a long context is known there, and a guess elsewhere only at first."""
    tracker = CostTracker(MODEL)
    for _ in range(30):
        for n, context, factor in ((1, 300, 1), (4, 300, 1), (1, 3000, 1), (4, 3000, 2)):
            tracker.observe(n, context, factor * MODEL.seconds(n, context))
    middle = 3000 // BUCKET * BUCKET + BUCKET // 2
    assert tracker.costs(300)[3] == pytest.approx(MODEL.costs(300)[3])
    assert tracker.costs(3000)[3] == pytest.approx(2 * MODEL.seconds(4, middle), rel=0.02)
    assert tracker.costs(30_000)[3] == pytest.approx(2 * MODEL.costs(30_000)[3], rel=0.02)


def test_one_row_behind_several_is_charged_to_those() -> None:
    """A size whose next call is slow is dear; one row is no dearer for it."""
    tracker = CostTracker(MODEL)
    plain, several = MODEL.seconds(1, 100), MODEL.seconds(4, 100)
    for _ in range(60):
        for n, seconds in ((1, plain), (1, plain), (4, several), (1, plain + 0.5 * several)):
            tracker.observe(n, 100, seconds)
    row, known = tracker.costs(100), MODEL.costs(100)
    assert row[0] == pytest.approx(known[0], rel=0.01)
    assert row[3] == pytest.approx(1.5 * known[3], rel=0.02)


def test_exploring_costs_no_more_than_its_share() -> None:
    """At any time, what unused sizes took beyond one row is within a hundredth of the total."""
    truth = load_curve("mi50")
    tracker = CostTracker()
    total = 0.0
    asked = []
    for _ in range(20_000):
        n = tracker.explore(200, 64)
        seconds = truth.seconds(n or 1, 200)
        tracker.observe(n or 1, 200, seconds, explored=n is not None)
        total += seconds
        assert tracker.explored_s <= SHARE * total
        asked += [n] if n else []
    assert asked == [n for n in EXPLORED for _ in range(2)]
    row = tracker.costs(200)
    for n in EXPLORED:
        assert row[n - 1] == pytest.approx(truth.seconds(n, 200))


def test_what_is_not_followed_is_not_charged() -> None:
    """It may be asked for again, and sizes that do not fit are passed over."""
    tracker = CostTracker()
    assert tracker.explore(200, 64) is None
    learn(tracker, load_curve(UNKNOWN), [1] * 500)
    assert tracker.explore(200, 64) == tracker.explore(200, 64) == EXPLORED[0]
    assert tracker.explored_s == 0
    assert tracker.explore(200, 3) == 2
    assert tracker.explore(200, 1) is None


def test_a_doubtful_model_can_be_explored() -> None:
    """A curve that was measured on a busy machine is a guess, too; others are not explored."""
    asked = []
    for tracker in (
        CostTracker(MODEL, explore=True),
        CostTracker(MODEL),
        CostTracker(explore=False),
    ):
        learn(tracker, MODEL, [1] * 5000)
        asked.append(tracker.explore(200, 64))
    assert asked == [EXPLORED[0], None, None]
    assert MODEL.explore(200, 64) is None
