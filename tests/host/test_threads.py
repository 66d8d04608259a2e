"""The number of threads follows what calls take, on machines that are made up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from specgen.core.host.threads import ThreadChoice, ThreadSettings

Cost = Callable[[int, int, int], float]  # seconds, by threads, rows and call
Rows = Callable[[random.Random], int]


@dataclass
class Account:
    """What calls took, and which number of threads was settled on after each."""

    total_s: float = 0.0
    wasted_s: float = 0.0  # of calls that were given up
    owed_s: float = 0.0  # what trials had cost beyond their share, when that was most
    settled: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def best_s(self, most: int, cost: Cost) -> float:
        """With the best number in each call, known beforehand, and without noise."""
        numbers = range(1, most + 1)
        return sum(min(cost(n, k, i) for n in numbers) for i, k in enumerate(self.rows))

    @property
    def changes(self) -> int:
        return sum(a != b for a, b in zip(self.settled, self.settled[1:], strict=False))


def play(
    most: int,
    cost: Cost,
    calls: int,
    *,
    noise: float = 0.05,
    rows: Rows = lambda draw: 1,
    seed: int = 0,
    choice: ThreadChoice | None = None,
) -> Account:
    """Calls on a machine where they take what `cost` says, and log-normal noise of that size."""
    choice, draw, account = choice or ThreadChoice(most), random.Random(seed), Account()
    for i in range(calls):
        n_rows = rows(draw)
        finished = False
        while not finished:
            threads, limit_s = choice.use(n_rows)
            seconds = cost(threads, n_rows, i) * draw.lognormvariate(0, noise)
            finished = limit_s is None or seconds <= limit_s
            if not finished:
                seconds = limit_s or 0.0
                account.wasted_s += seconds
            account.total_s += seconds
            choice.observe(n_rows, i, seconds, finished=finished)
        account.owed_s = max(account.owed_s, choice.lost_s - 0.01 * choice.total_s)
        account.settled.append(choice.settled)
        account.rows.append(n_rows)
    return account


def alone(threads: int, rows: int) -> float:
    """On a quiet machine: a part of the work is shared."""
    return 0.01 * math.sqrt(rows) * (0.3 + 0.7 / threads)


def busy(start: int, end: int, times: float) -> Cost:
    """Calls of several threads take so many times as long between two calls."""
    return lambda n, rows, i: alone(n, rows) * (times if n > 1 and start <= i < end else 1)


def mixed(draw: random.Random) -> int:
    """Rows of calls with drafts."""
    return draw.choice((1, 1, 1, 1, 3, 5, 9, 17))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("times", [3, 10, 300])
@pytest.mark.parametrize("rows", [lambda draw: 1, mixed])
def test_a_machine_that_is_busy_for_a_while(rows: Rows, times: float, seed: int) -> None:
    """Fewer threads after a few slow calls, all again when it is quiet, and trials cost 1 %."""
    choice = ThreadChoice(2)
    cost = busy(1000, 2000, times)
    found = play(2, cost, 4000, rows=rows, seed=seed, choice=choice)
    assert found.settled[999] == 2
    assert found.settled[1012] == 1
    assert set(found.settled[1012:2000]) == {1}
    assert found.settled[-1] == 2
    assert found.settled.index(2, 2000) < 2600
    assert found.changes <= 4
    assert choice.lost_s <= 0.01 * choice.total_s + 0.05
    assert found.total_s < 1.06 * found.best_s(2, cost)


def test_two_calls_of_ten_times_their_time_are_enough() -> None:
    """Neither is seen to its end."""
    choice = ThreadChoice(2)
    play(2, busy(0, 0, 1), 50, noise=0.0, choice=choice)
    lates = 0
    while choice.settled == 2:
        threads, limit_s = choice.use(1)
        assert threads == 2
        assert limit_s == pytest.approx(3 * alone(2, 1))
        choice.observe(1, 50, limit_s or 0.0, finished=False)
        lates += 1
    assert (lates, choice.threads) == (2, 1)


def test_busy_from_the_beginning() -> None:
    """The first call has one thread and the next one all, as long as it takes no longer."""
    choice = ThreadChoice(8)
    assert choice.use(2) == (1, None)
    choice.observe(2, 0, 0.02)
    assert choice.use(2).threads == 8
    assert choice.use(2).limit_s == pytest.approx(0.03)
    assert choice.use(20).limit_s == pytest.approx(0.3)  # no more a row than with fewer rows
    choice.observe(2, 0, 0.03, finished=False)
    assert choice.settled == choice.threads == 7


@pytest.mark.parametrize("seed", range(3))
def test_slow_now_and_then_from_the_beginning(seed: int) -> None:
    """No call has a usual time that could be missed, but they differ more than they should."""
    draw = random.Random(seed)

    def cost(threads: int, rows: int, call: int) -> float:
        return alone(threads, rows) * (2.9 if threads > 1 and draw.random() < 0.7 else 1)

    found = play(2, cost, 300, seed=seed)
    assert found.settled.index(1) < 40
    assert found.settled[-1] == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [2, 8])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_no_oscillation_where_the_number_does_not_matter(
    noise: float, most: int, seed: int
) -> None:
    """Nothing is changed for good unless it is clearly faster."""
    found = play(most, lambda n, rows, i: 0.01, 5000, noise=noise, seed=seed)
    assert found.changes <= (0 if noise < 0.1 else 6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [lambda draw: 1, mixed])
def test_trials_cost_a_hundredth(rows: Rows, seed: int) -> None:
    """Of the time, by the machine's account, on one where all threads are best."""
    for most in (2, 8, 64):
        cost: Cost = lambda n, k, i: alone(n, k)  # noqa: E731
        choice = ThreadChoice(most)
        found = play(most, cost, 3000, rows=rows, seed=seed, noise=0.0, choice=choice)
        assert found.settled[-1] == most
        lost_s = found.total_s - found.best_s(most, cost)
        assert lost_s <= 0.01 * found.total_s + 3 * alone(1, 17)
        assert choice.lost_s > 0


@pytest.mark.parametrize("seed", range(3))
def test_trials_cost_a_hundredth_on_a_busy_machine(seed: int) -> None:
    """More threads are tried less and less often."""
    found = play(2, busy(0, 9000, 300), 9000, seed=seed)
    assert set(found.settled[2:]) == {1}
    assert 0 < found.wasted_s <= 0.01 * found.total_s + 3 * alone(1, 1)
    assert found.owed_s <= 3 * alone(1, 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [lambda draw: 1, mixed])
def test_four_of_eight_threads_are_best(rows: Rows, seed: int) -> None:
    """Where threads have to share what memory gives, say."""

    def cost(threads: int, rows: int, call: int) -> float:
        return 0.01 * math.sqrt(rows) * (1 / threads + threads / 16)

    found = play(8, cost, 2000, rows=rows, seed=seed)
    assert found.settled[-1] in {3, 4, 5}
    assert found.total_s < 1.08 * found.best_s(8, cost)


@pytest.mark.parametrize("seed", range(3))
def test_one_of_eight_cores_is_taken(seed: int) -> None:
    """The others are used."""
    cost: Cost = lambda n, rows, i: alone(n, rows) * (30 if n == 8 else 1)  # noqa: E731
    assert play(8, cost, 1000, seed=seed).settled[-1] == 7


@pytest.mark.parametrize("seed", range(3))
def test_all_of_eight_cores_are_taken(seed: int) -> None:
    """It takes a few calls to find out."""
    cost: Cost = lambda n, rows, i: alone(n, rows) * n**2  # noqa: E731
    found = play(8, cost, 1000, seed=seed)
    assert found.settled[-1] == 1
    assert found.settled.index(1) < 30


@pytest.mark.parametrize("seed", range(3))
def test_single_calls_that_take_long(seed: int) -> None:
    """Change nothing: one in 40, by chance."""
    again: set[int] = set()

    def cost(threads: int, rows: int, call: int) -> float:
        is_slow = call % 40 == 30 and call not in again
        again.add(call)
        return alone(threads, rows) * (20 if is_slow else 1)

    assert play(2, cost, 2000, seed=seed).changes == 0


def test_a_longer_text_is_no_busy_machine() -> None:
    """All calls are slower from one to the next, with any number of threads."""
    choice = ThreadChoice(2)
    for i in range(200):
        context = 100 if i < 100 else 8000
        threads, _ = choice.use(1)
        if i in range(101, 112):
            assert threads == 2
        choice.observe(1, context, alone(threads, 1) * (1 if i < 100 else 2))
        assert choice.settled == 2


def test_what_calls_take_is_carried_over() -> None:
    """From one number to the next, for as many rows as were not on trial, too."""
    choice = ThreadChoice(2)
    choice.observe(9, 0, 0.3)
    choice.observe(9, 0, 0.5, finished=False)  # busy from the beginning
    for _ in range(5):
        choice.observe(9, 0, 0.3)
    while choice.settled == 1:  # and then it is not
        choice.observe(1, 0, 0.1 / choice.use(1).threads)
    assert choice.use(9).limit_s == pytest.approx(3 * 0.3 / 2)


def test_with_one_thread_there_is_nothing_to_choose() -> None:
    """Nor anything that is given up."""
    choice = ThreadChoice(1, ThreadSettings())
    for i in range(100):
        assert choice.use(1) == (1, None)
        assert choice.observe(1, i, 5.0 if i % 10 else 0.1) is None
