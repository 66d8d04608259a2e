"""Figures of benchmarks: ratios against simulated noise, the others against sums by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache
from statistics import fmean
from typing import Any

import pytest

from specgen.core.cost.model import CostModel
from specgen.core.evaluation.results import PLAIN, Results, Run
from specgen.core.evaluation.summary import (
    ALL,
    LEAST_PAIRS,
    Change,
    Ratio,
    Row,
    compare,
    geometric_mean,
    summarize,
    without_ratio,
)
from tests.support.made_up import CARD, TASKS, results, run, timed

SIMULATED = 60  # benchmarks of a kind
NEARLY_ALL = 0.98


def least_right(n: int) -> float:
    """95 % shall be right, and 92.5 % is allowed in loud kinds: chance leaves more than this."""
    return 0.925 * n - 2.9 * math.sqrt(n * 0.925 * 0.075)


def row(of: Results, drafter: str = "x", task: str = ALL) -> Row:
    """The row of a task and drafter."""
    (found,) = (r for r in summarize(of) if (r.task, r.drafter) == (task, drafter))
    return found


def ratio(of: Results, drafter: str = "x", task: str = ALL) -> Ratio:
    """The ratio in a row that has one."""
    found = row(of, drafter, task).ratio
    assert found is not None
    return found


def pairs(
    seconds: dict[int, tuple[float, float]], task: str = "code", repetitions: int = 2
) -> list[Run]:
    """Runs of plain decoding and "x" that take so long, by prompt."""
    return [
        run(task, prompt, repetition, drafter, took)
        for repetition in range(repetitions)
        for prompt, both in seconds.items()
        for drafter, took in zip((PLAIN, "x"), both, strict=True)
    ]


# ---- what the noise promises

NOISES: list[dict[str, Any]] = [
    {"noise": 0.02},
    {"noise": 0.15},
    {"noise": 0.02, "bursts": 0.05},
    {"noise": 0.05, "bursts": 0.05},
    {"noise": 0.03, "drift": 0.1},
    {"noise": 0.04, "bursts": 0.05, "drift": 0.1},
    {"noise": 0.15, "bursts": 0.05, "drift": 0.1},
]


def _label(noise: dict[str, Any]) -> str:
    return "-".join(f"{name}{value:g}" for name, value in noise.items())


@cache
def of_itself(kind: int, prompts: int) -> tuple[int, list[bool]]:
    """How often plain decoding against itself is 1.00 within the noise, of all tasks and of each.

    `kind` is the place in NOISES.
    """
    rng = random.Random(100 * kind + prompts)
    right, of_tasks = 0, []
    for _ in range(SIMULATED):
        of_all, *others = [
            r.ratio
            for r in summarize(timed(rng, prompts=prompts, **NOISES[kind])[0])
            if r.drafter == "x" and r.ratio
        ]
        right += abs(of_all.value - 1) <= of_all.noise
        of_tasks += [abs(one.value - 1) <= one.noise for one in others]
    return right, of_tasks


@pytest.mark.parametrize("prompts", [33, 11])
@pytest.mark.parametrize("kind", range(len(NOISES)), ids=lambda kind: _label(NOISES[kind]))
def test_nothing_is_found_where_nothing_is(kind: int, prompts: int) -> None:
    """Plain decoding against itself is 1.00 within the noise that is stated, of all and of each."""
    right, of_tasks = of_itself(kind, prompts)
    assert right >= least_right(SIMULATED)
    assert len(of_tasks) == len(TASKS) * SIMULATED
    # Tasks of one benchmark share their estimate of the noise: they are worth half as many.
    assert sum(of_tasks) >= 2 * least_right(len(of_tasks) // 2)


def test_nothing_is_found_in_all_of_them_together() -> None:
    """So many benchmarks leave less to chance, and show a noise that is stated too large, too."""
    found = [of_itself(kind, prompts) for kind in range(len(NOISES)) for prompts in (33, 11)]
    n = SIMULATED * len(found)
    assert 0.93 <= sum(right for right, _ in found) / n <= 0.97
    assert 0.93 <= sum(sum(of_tasks) for _, of_tasks in found) / (n * len(TASKS)) <= 0.97


def test_the_noise_is_no_larger_than_it_must_be() -> None:
    """With normal noise and without bursts it is that of a mean: nothing better can be had."""
    noise, prompts = 0.03, 33
    rng = random.Random(1)
    stated = [ratio(timed(rng, noise=noise)[0]).noise for _ in range(40)]
    # Prompts take 2 to 8 seconds, so the larger count for more.
    weights = (2**2 + 2 * 8 + 8**2) / 3 / ((2 + 8) / 2) ** 2
    least = 1.96 * noise * math.sqrt(2 / (3 * prompts) * weights)
    assert sum(stated) / len(stated) == pytest.approx(least, rel=0.05)


def test_bursts_hardly_make_it_larger() -> None:
    """They are left out, so a benchmark is worth nearly as much as on a quiet machine."""
    quiet = [ratio(timed(random.Random(seed), noise=0.03)[0]) for seed in range(30)]
    loud = [ratio(timed(random.Random(seed), noise=0.03, bursts=0.05)[0]) for seed in range(30)]
    assert sum(r.noise for r in loud) < 1.4 * sum(r.noise for r in quiet)
    assert min(r.pairs for r in quiet) >= 95
    assert 80 < sum(r.pairs for r in loud) / 30 < 95


@pytest.mark.parametrize(
    "others", [{}, {"bursts": 0.05}, {"drift": 0.1}, {"bursts": 0.05, "drift": 0.1}]
)
def test_a_small_slowdown_is_found(others: dict[str, Any]) -> None:
    """5 % slower is told from nothing in nearly all benchmarks with 3 % of noise."""
    rng = random.Random(f"slow {others}")
    found = 0
    for _ in range(SIMULATED):
        of_all = ratio(timed(rng, speedup=lambda prompt: 0.95, **others)[0])
        found += of_all.value + of_all.noise < 1
    assert found >= NEARLY_ALL * SIMULATED


@pytest.mark.parametrize("others", [{"bursts": 0.05}, {"bursts": 0.05, "drift": 0.1}])
def test_prompts_that_gain_differently(others: dict[str, Any]) -> None:
    """The ratio of total times is met as well."""
    rng = random.Random(f"different {others}")
    right = 0
    for _ in range(SIMULATED):
        made, truth = timed(rng, speedup=lambda i: (0.8, 1.0, 1.2, 1.9, 2.6)[i % 5], **others)
        of_all = ratio(made)
        right += abs(of_all.value - truth) <= of_all.noise
    assert right >= least_right(SIMULATED)


def test_few_repetitions_make_a_careful_noise() -> None:
    """One prompt, three times: what repetitions differ by is hardly known, and that is counted."""
    rng = random.Random(3)
    found = [row(timed(rng, prompts=1, noise=0.05)[0]).ratio for _ in range(300)]
    known = [one for one in found if one]
    assert len(known) >= NEARLY_ALL * len(found)
    assert sum(abs(one.value - 1) <= one.noise for one in known) >= least_right(len(known))


# ---- the ratio


def test_the_ratio_is_that_of_total_times() -> None:
    """Long prompts count for more; by hand: 40 s against 35 s, then 4 s against 1 s."""
    made = results(*pairs({0: (30.0, 30.0), 1: (10.0, 5.0)}), *pairs({2: (4.0, 1.0)}, "edit", 3))
    assert ratio(made).value == pytest.approx(44 / 36)
    assert ratio(made, task="code").value == pytest.approx(40 / 35)
    assert ratio(made, task="edit").value == pytest.approx(4)
    assert [ratio(made, task=task).pairs for task in (ALL, "code", "edit")] == [7, 4, 3]
    assert ratio(made).noise == pytest.approx(0, abs=1e-9)


def test_a_geometric_mean_weighs_prompts_alike() -> None:
    """By hand: 4 times and once as fast, whatever they took; too few have none."""
    one, other = ("code", 0, 1), ("edit", 1, 1)
    found = geometric_mean([(one, 4.0, 1.0), (other, 0.1, 0.1)] * 2)
    assert found is not None
    assert found.value == pytest.approx(2)
    assert found.noise == pytest.approx(0, abs=1e-9)
    assert found.pairs == 4
    assert geometric_mean([(one, 4.0, 1.0)] * 2) is None
    assert geometric_mean([(one, 4.0, 1.0), (other, 4.0, 1.0), (("x", 2, 1), 4.0, 1.0)]) is None


@pytest.mark.parametrize("noise", NOISES, ids=_label)
def test_a_geometric_mean_states_its_noise(noise: dict[str, Any]) -> None:
    """The truth is within it, where prompts gain differently."""
    rng = random.Random(f"geometric {noise}")
    speedups = (0.8, 1.0, 1.2, 1.9, 2.6)
    truth = math.exp(fmean(math.log(speedups[prompt % 5]) for prompt in range(33)))
    right = 0
    for _ in range(SIMULATED):
        made, _ = timed(rng, speedup=lambda prompt: speedups[prompt % 5], **noise)
        plain, x = made.runs[::2], made.runs[1::2]
        found = geometric_mean(
            [
                ((p.task, p.prompt, p.turn), p.seconds, d.seconds)
                for p, d in zip(plain, x, strict=True)
            ]
        )
        assert found is not None
        right += abs(found.value - truth) <= found.noise
    assert right >= least_right(SIMULATED)


def test_a_drafter_that_wrote_more_is_not_slower_for_it() -> None:
    """Times are for as many tokens."""
    runs = pairs({0: (3.0, 3.0), 1: (5.0, 5.0)})
    longer = [replace(r, tokens=200) if r.drafter == "x" and r.prompt else r for r in runs]
    assert ratio(results(*longer)).value == pytest.approx(8 / 5.5)


def test_a_burst_of_load_is_left_out() -> None:
    """Whichever side it hits; the pairs that are left are counted."""
    runs = pairs({prompt: (3.0, 2.0) for prompt in range(4)}, repetitions=3)
    runs[0] = replace(runs[0], seconds=6.0)
    runs[-1] = replace(runs[-1], seconds=4.0)
    found = ratio(results(*runs))
    assert found.pairs == 10
    assert found.value == pytest.approx(1.5)
    assert found.noise == pytest.approx(0, abs=1e-9)


def test_what_slows_both_is_not_left_out() -> None:
    """A machine that gets slower and slower: no pair is lost, the ratio stays."""
    runs = pairs({prompt: (3.0, 2.0) for prompt in range(11)}, repetitions=3)
    slower = [replace(r, seconds=r.seconds * 1.01**i) for i, r in enumerate(runs)]
    found = ratio(results(*slower))
    assert found.pairs == 33
    assert found.value == pytest.approx(1.5, rel=0.01)


def test_the_same_number_in_two_tasks_is_not_the_same_prompt() -> None:
    """Nor are the turns of a conversation."""
    runs = [*pairs({0: (1.0, 1.0)}, "code"), *pairs({0: (9.0, 3.0)}, "edit")]
    runs += [replace(r, turn=2, seconds=2 * r.seconds) for r in runs]
    found = ratio(results(*runs))
    assert found.value == pytest.approx(30 / 12)
    assert found.pairs == 8
    assert found.noise == pytest.approx(0, abs=1e-9)


# ---- too few, or incomplete


@pytest.mark.parametrize(
    "runs",
    [
        pairs({0: (3.0, 2.0)}),  # 2 pairs
        pairs({prompt: (3.0, 2.0) for prompt in range(30)}, repetitions=1),
        [r for r in pairs({0: (3.0, 2.0), 1: (3.0, 2.0)}) if r.drafter != PLAIN],
        [r for r in pairs({0: (3.0, 2.0), 1: (3.0, 2.0)}) if r.drafter == PLAIN or not r.prompt],
        [replace(r, repetition=r.repetition + (r.drafter == "x")) for r in pairs({0: (3.0, 2.0)})],
    ],
    ids=["few", "not repeated", "no plain", "one prompt incomplete", "other repetitions"],
)
def test_no_ratio_from_too_little(runs: list[Run]) -> None:
    """Less than LEAST_PAIRS pairs, or none that were repeated; the other figures are there."""
    assert len(pairs({0: (3.0, 2.0)})) // 2 < LEAST_PAIRS
    found = row(results(*runs))
    assert found.ratio is None
    assert found.tokens_per_s > 0


def test_a_task_with_too_few_pairs_has_none() -> None:
    """All together may be enough."""
    made = results(*pairs({0: (3.0, 2.0), 1: (3.0, 2.0)}, "code"), *pairs({2: (3.0, 2.0)}, "edit"))
    assert ratio(made).pairs == 6
    assert ratio(made, task="code").pairs == 4
    assert row(made, task="edit").ratio is None


def test_a_single_pair_beside_repeated_ones_does_not_count() -> None:
    """It would weigh in with nobody knowing how far it is off."""
    runs = [*pairs({0: (3.0, 2.0), 1: (3.0, 2.0)}), *pairs({2: (9.0, 1.0)}, repetitions=1)]
    found = ratio(results(*runs))
    assert found.pairs == 4
    assert found.value == pytest.approx(1.5)


def test_an_interrupted_benchmark() -> None:
    """A drafter lacks its last prompts: its ratio is of the pairs that are complete."""
    runs = pairs({0: (3.0, 2.0), 1: (4.0, 4.0), 2: (90.0, 10.0)})
    whole, cut = results(*runs), results(*runs[:-1])
    assert ratio(whole).value == pytest.approx(97 / 16)
    assert ratio(cut).value == pytest.approx(7 / 6)
    assert ratio(cut).pairs == 4
    assert (row(whole).runs, row(cut).runs, row(cut, PLAIN).runs) == (6, 5, 6)


def test_runs_that_wrote_nothing_are_left_out() -> None:
    """Their prompts, too, if no other repetition is left."""
    runs = pairs({0: (3.0, 2.0), 1: (3.0, 2.0), 2: (8.0, 2.0)})
    empty = [
        replace(r, tokens=0, seconds=0.0, steps=0) if r.prompt == 2 and r.drafter == "x" else r
        for r in runs
    ]
    found = row(results(*empty))
    assert (found.runs, found.tokens) == (4, 400)
    assert found.ratio
    assert found.ratio.pairs == 4
    assert found.ratio.value == pytest.approx(1.5)
    silent = [replace(r, tokens=0) for r in runs if r.drafter == "x"]
    assert [r.drafter for r in summarize(results(*silent, runs[0]))] == [PLAIN, PLAIN]


def test_nothing_makes_no_rows() -> None:
    """Interrupted before the first answer."""
    assert summarize(results()) == []


# ---- the other figures


def test_rows_come_in_order() -> None:
    """All tasks first, then as they were run; plain decoding first, then as they were run."""
    runs = [run(task, 0, 0, name) for task in ("maths", "code") for name in ("b", PLAIN, "a")]
    order = [(r.task, r.drafter) for r in summarize(results(*runs))]
    assert order == [(task, name) for task in (ALL, "maths", "code") for name in (PLAIN, "b", "a")]


def test_plain_decoding_has_no_ratio() -> None:
    """It would be 1."""
    assert row(results(*pairs({0: (3.0, 2.0), 1: (3.0, 2.0)})), PLAIN).ratio is None


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ([10, 20, 30, 40, 50], (20, 30, 40)),
        ([40, 10, 20, 30], (17.5, 25, 32.5)),
        ([10, 20], (12.5, 15, 17.5)),
        ([7], (7, 7, 7)),
    ],
)
def test_quartiles(speeds: list[float], expected: tuple[float, ...]) -> None:
    """Of the tokens per second of the runs, on lines between them."""
    found = row(results(*(run(seconds=100 / speed) for speed in speeds)), PLAIN)
    assert (found.low, found.tokens_per_s, found.high) == pytest.approx(expected)


def test_sums_by_hand() -> None:
    """Of two runs: what is of steps is divided by steps, what is of tokens by tokens."""
    one = run(drafter="x", tokens=60, steps=20, nodes=100, drafted=80, accepted=40, host_s=0.02)
    other = run(drafter="x", tokens=40, steps=30, nodes=50, drafted=20, accepted=10, host_s=0.04)
    runs = [
        replace(one, accepted_by={"suffix": 30, "trigram": 20}, first_token_s=0.1, peak_bytes=7),
        replace(other, accepted_by={"trigram": 10}, first_token_s=0.4, peak_bytes=5),
    ]
    found = row(results(*runs))
    assert (found.runs, found.tokens) == (2, 100)
    assert found.tokens_per_step == pytest.approx(100 / 50)
    assert found.nodes_per_step == pytest.approx(150 / 50)
    assert found.acceptance == pytest.approx(50 / 100)
    assert found.host_s_per_step == pytest.approx(0.06 / 50)
    assert dict(found.share_by) == {"suffix": 0.3, "trigram": 0.3}
    assert found.first_token_s == pytest.approx(0.25)
    assert found.peak_bytes == 7


def test_what_was_not_drafted_was_not_accepted() -> None:
    """No guesses, no share of them."""
    found = row(results(run()), PLAIN)
    assert found.acceptance is None
    assert found.share_by == {}


def test_of_best() -> None:
    """By hand: at best 4 rows in 2 s, so 100 tokens in 50 s, and 8 in 5 s at a longer context."""
    curve = CostModel((1, 4, 8, 64), (32, 96), ((1.0, 2.0, 6.0, 99.0), (2.0, 4.0, 5.0, 99.0)))
    short, long = run(seconds=200.0, context=40), run(seconds=125.0, context=100)
    assert row(results(short, curve=curve), PLAIN).of_best == pytest.approx(50 / 200)
    assert row(results(long, curve=curve), PLAIN).of_best == pytest.approx(62.5 / 125)
    assert row(results(short, long, curve=curve), PLAIN).of_best == pytest.approx(112.5 / 325)
    assert row(results(short, long), PLAIN).of_best is None


# ---- two benchmarks


def change(before: Results, after: Results, drafter: str = PLAIN, task: str = ALL) -> Change:
    """The change of a task and drafter."""
    (found,) = (c for c in compare(before, after) if (c.task, c.drafter) == (task, drafter))
    return found


def test_two_benchmarks_of_the_same_machine() -> None:
    """Their ratio is 1.00 within the noise, of plain decoding and of a drafter, bursts or not."""
    rng = random.Random(4)
    right, of_tasks = 0, []
    for _ in range(SIMULATED):
        # The same prompts take as long in both.
        seed = rng.random()
        one, other = (_noisy(seed, rng) for _ in range(2))
        of_all, *others = [c.ratio for c in compare(one, other) if c.ratio]
        right += abs(of_all.value - 1) <= of_all.noise
        of_tasks += [abs(c.value - 1) <= c.noise for c in others]
    assert right >= least_right(SIMULATED)
    assert len(of_tasks) == (2 * len(TASKS) + 1) * SIMULATED
    assert 0.925 <= sum(of_tasks) / len(of_tasks) <= 0.97


def _noisy(seed: float, rng: random.Random) -> Results:
    made, _ = timed(random.Random(seed), noise=0.0)
    runs = []
    for r in made.runs:
        slower = rng.uniform(1.5, 2) if rng.random() < 0.05 else 1.0
        runs.append(replace(r, seconds=r.seconds * slower * math.exp(rng.gauss(0, 0.04))))
    return results(*runs)


def test_a_change_by_hand() -> None:
    """Of prompts that both have, for as many tokens: 3 s and 5 s against 2 s and 2 s."""
    old = results(*pairs({0: (3.0, 1.0), 1: (5.0, 1.0), 2: (99.0, 1.0)}))
    new_runs = pairs({0: (2.0, 1.0), 1: (4.0, 1.0), 3: (99.0, 1.0)})
    new = results(*(replace(r, tokens=200) if r.prompt == 1 else r for r in new_runs))
    found = change(old, new)
    # 100 tokens of the first prompt, 200 of the second: 3 s and 10 s against 2 s and 4 s.
    assert found.ratio
    assert found.ratio.value == pytest.approx(13 / 6)
    assert found.ratio.pairs == 4
    assert found.ratio.noise == pytest.approx(0, abs=1e-9)
    assert found.before == pytest.approx((100 / 3 + 100 / 5) / 2)
    assert found.after == pytest.approx((100 / 2 + 200 / 4) / 2)


def test_only_what_both_have_is_compared() -> None:
    """Tasks and drafters of one alone are left out, in the order of the second."""
    old = results(run("code"), run("edit"), run("code", drafter="x"), run("code", drafter="y"))
    new = results(run("edit"), run("code"), run("maths"), run("code", drafter="y"), card=CARD)
    found = [(c.task, c.drafter) for c in compare(old, new)]
    assert found == [(ALL, PLAIN), (ALL, "y"), ("edit", PLAIN), ("code", PLAIN), ("code", "y")]
    assert all(c.ratio is None for c in compare(old, new))  # nothing was repeated


def test_nothing_in_common() -> None:
    """Other prompts, other tasks, other drafters, or empty answers."""
    old = results(run("code", 1), run("edit", 1))
    for other in (run("code", 2), run("maths", 1), run("code", 1, drafter="x")):
        assert compare(old, results(other)) == []
    assert compare(old, results(run("code", 1, tokens=0))) == []


def test_another_drafters_prompts_do_not_count() -> None:
    """A prompt must have been answered by the same drafter in both."""
    old = results(*pairs({0: (3.0, 2.0), 1: (3.0, 2.0)}))
    new = results(*(r for r in old.runs if r.drafter == PLAIN or r.prompt == 0))
    assert change(old, new).ratio is not None
    assert change(old, new, "x").ratio is None  # two runs of one prompt
    assert change(old, new, "x").before == pytest.approx(50)


@pytest.mark.parametrize("repetitions", [1, 2, 3])
@pytest.mark.parametrize("prompts", [{"a": 1}, {"a": 2}, {"a": 1, "b": 1}, {"a": 1, "b": 2}])
def test_what_has_no_ratio_is_known_before(prompts: dict[str, int], repetitions: int) -> None:
    """By the numbers of prompts and repetitions alone, it is what the summary leaves out."""
    runs = [
        run(task, number, repetition, drafter, 5 + repetition / 100)
        for repetition in range(repetitions)
        for task, n in prompts.items()
        for number in range(n)
        for drafter in (PLAIN, "x")
    ]
    rows = [row for row in summarize(results(*runs)) if row.drafter == "x"]
    answers = {task: n * repetitions for task, n in prompts.items()}
    missing = without_ratio(answers, repetitions)
    assert missing == [row.task for row in rows if row.ratio is None]
