"""Cost curves: what lies between the points, files of them, and learning from the steps."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.cost.gear import FREE, Gear, change_text
from specgen.core.cost.model import BUCKET, MAX_ROWS, UNKNOWN, CostModel, load_curve
from specgen.core.cost.online import EXPLORED, SHARE, CostTracker
from specgen.core.errors import UsageError
from specgen.core.protocols import Change

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


@pytest.mark.parametrize("change", [FREE, Change(0.5e-3, 4e-3), Change(0.25e-3)])
def test_a_curve_survives_its_file(tmp_path: Path, change: Change) -> None:
    """What `record` gives, `load_curve` reads; files that say nothing of changes are read, too."""
    file, curve = tmp_path / "curve.json", replace(MODEL, change=change)
    file.write_text(json.dumps(curve.record()))
    assert load_curve(str(file)) == curve
    assert ("change_ms" in curve.record()) == (change != FREE)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (FREE, "nothing that shows"),
        (Change(0.4461e-3), "0.45 ms at the first call"),
        (Change(0.9e-3, 4.2e-3), "0.9 ms at the first call, 4.2 ms at the second"),
    ],
)
def test_a_change_in_words(change: Change, text: str) -> None:
    """What does not show is not told."""
    assert change_text(change) == text


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


class Machine:
    """Calls take what `truth` says, times `load`, and more where the width changes."""

    def __init__(self, truth: CostModel, seed: int = 1, jitter: float = 0.05) -> None:
        self.truth, self.load = truth, 1.0
        self._gear, self._rng, self._jitter = Gear(), random.Random(seed), jitter

    def call(self, n: int, context: int = 200) -> float:
        """Seconds of the next call."""
        extra_s = self._gear.extra_s(n, self.truth.change)
        self._gear = self._gear.after(n)
        noise = 1 + self._jitter * self._rng.random()
        return self.load * noise * (self.truth.seconds(n, context) + extra_s)

    def run(self, tracker: CostTracker, sizes: Iterable[int], context: int = 200) -> None:
        """Let the tracker see calls of these sizes."""
        for n in sizes:
            tracker.observe(n, context, self.call(n, context))

    def check(self, tracker: CostTracker, sizes: Iterable[int], context: int = 200) -> None:
        """The tracker knows what these sizes take now, and a change, as times vary."""
        row, extra_s = tracker.costs(context), sum(self.truth.change)
        middle = context // BUCKET * BUCKET + BUCKET // 2
        for n in sizes:
            truth = self.truth.seconds(n, middle)
            within = 2 * self._jitter * self.load * (truth + extra_s)
            assert row[n - 1] == pytest.approx(self.load * truth, abs=within), n
            for found, true in zip(tracker.change, self.truth.change, strict=True):
                assert found == pytest.approx(self.load * true, abs=within)


GPU = CostModel((1, 2, 4, 8), (0,), ((3e-3, 3.2e-3, 4.1e-3, 5.8e-3),), Change(0.9e-3, 4.2e-3))


def phases(rng: random.Random, sizes: Sequence[int], n_phases: int) -> list[int]:
    """Runs of 1 to 12 calls of one width, half of them of one row."""
    found: list[int] = []
    for _ in range(n_phases):
        found += [rng.choice((1, *sizes))] * rng.randint(1, 12)
    return found


@given(seed=st.integers(0, 10_000), change=st.tuples(st.floats(0, 8e-3), st.floats(0, 8e-3)))
def test_a_change_is_not_held_against_a_size(seed: int, change: tuple[float, float]) -> None:
    """What first and second calls take more is known apart, whatever the table says of it."""
    rng = random.Random(seed)
    truth = replace(GPU, change=Change(*change))
    for model in (GPU, replace(GPU, change=FREE), None):
        machine, tracker = Machine(truth, seed), CostTracker(model)
        machine.run(tracker, [1] * 5 + phases(rng, (4, 8), 40) + [4] * 4 + [8] * 4 + [1] * 9)
        machine.check(tracker, (1, 4, 8))


def test_a_size_is_known_from_first_calls_alone() -> None:
    """Where a width is never kept, its T is what its calls take less what a change does."""
    machine, tracker = Machine(GPU), CostTracker(replace(GPU, change=FREE))
    machine.run(tracker, [*[1] * 4, 4, *[1] * 5, 8] * 20)
    machine.check(tracker, (1, 4, 8))


@pytest.mark.parametrize("change", [FREE, Change(0.9e-3, 4.2e-3), Change(5e-3, 0.0)])
@pytest.mark.parametrize("sizes", [(1,), (4,), (1, 4), (1, 1, 1, 1, 4, 4, 4, 4, 4)])
def test_a_machine_that_gets_slower(sizes: tuple[int, ...], change: Change) -> None:
    """Twice as slow and back: it is followed within a hundred steps, and then stays put."""
    machine, tracker = Machine(replace(GPU, change=change), jitter=0.02), CostTracker(GPU)
    machine.run(tracker, ([1] * 6 + [4] * 6) * 5 + [*sizes] * 60)
    before = tracker.costs(200)[3] / tracker.costs(200)[0]
    for load in (2.0, 1.0, 1.5, 1.0):
        machine.load = load
        machine.run(tracker, ([*sizes] * 100)[:100])
        for n in ([*sizes] * 10)[:60]:
            machine.run(tracker, [n])
            row = tracker.costs(200)
            total = row[n - 1] + Gear(0, False).extra_s(n, tracker.change)
            truth = load * (machine.truth.seconds(n, 200) + machine.truth.change.first_s)
            assert total == pytest.approx(truth, rel=0.1)
            assert row[3] / row[0] == pytest.approx(before, rel=0.1)


def test_a_load_that_begins_with_a_run() -> None:
    """A size known from single calls only is no dearer for a load that its first run meets."""
    machine, tracker = Machine(GPU, jitter=1e-6), CostTracker(GPU)
    machine.run(tracker, ([1] * 4 + [8]) * 10)
    machine.load = 3.0
    machine.run(tracker, [8] * 60)
    machine.check(tracker, (1, 8))


def test_the_way_back_is_explored_too() -> None:
    """What sizes that are tried take is in the share with the changes to them and back."""
    truth = load_curve("h100-8b")
    machine, tracker = Machine(truth, jitter=0.0), CostTracker(truth, EXPLORED)
    extra_s = total_s = 0.0
    tried = 0
    machine.run(tracker, [1])
    for _ in range(20_000):
        n = tracker.explore(200, 64)
        seconds = machine.call(n or 1)
        tracker.observe(n or 1, 200, seconds, explored=n is not None)
        total_s += seconds
        tried += n is not None
        if tried:
            extra_s += seconds - truth.seconds(1, 200)
        assert extra_s <= SHARE * total_s + 1e-9
    assert tried == 2 * len(EXPLORED)


def test_the_curve_of_another_machine() -> None:
    """Sizes that are used become right, in whatever order they come, and the scale with them."""
    for seed in range(20):
        rng = random.Random(seed)
        machine, tracker = Machine(load_curve("h100-8b"), seed), CostTracker(load_curve("cpu2"))
        machine.run(tracker, phases(rng, (4, 8, 16), 50) + [1] * 9)
        machine.check(tracker, (1, 4, 8, 16))


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
        CostTracker(MODEL, EXPLORED),
        CostTracker(MODEL),
        CostTracker(explored=()),
    ):
        learn(tracker, MODEL, [1] * 5000)
        asked.append(tracker.explore(200, 64))
    assert asked == [EXPLORED[0], None, None]
    assert MODEL.explore(200, 64) is None
