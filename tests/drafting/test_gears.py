"""Gears: which width is chosen, against brute force; what they are worth on made-up texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.cost.gear import FREE, Gear
from specgen.core.cost.model import load_curve
from specgen.core.drafting.gears import Gears, believed
from specgen.core.drafting.outlook import Outlook, Trend, shipped_outlook
from specgen.core.protocols import Change

WIDTHS = (1, 2, 4, 8)
COSTS = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
NOTHING = [1.0]  # what a tree of the root alone promises
COPY = [float(n) for n in range(1, 9)]  # a copy that is certain

# Two states of a text, in which it stays for 100 tokens: it copies, or it does not.
TWO = Outlook(
    now=(2.0,),
    lately=(),
    sizes=(1, 8),
    tokens=np.array([[1.0, 1.0], [1.0, 8.0]]),
    moves=np.array([[0.99, 0.01], [0.01, 0.99]]),
)


def chosen(
    gears: Gears,
    expected: Sequence[float],
    change: Change = FREE,
    *,
    n_pending: int = 0,
    most: int = 8,
) -> int:
    """The width of the next call, which is made."""
    width = gears.choose(expected, 0.0, n_pending, COSTS, change, most)
    gears.called(width)
    return width


@given(
    gains=st.lists(st.floats(0, 1), min_size=0, max_size=7),
    steps=st.lists(st.floats(0.01, 2), min_size=7, max_size=7),
    n_pending=st.integers(0, 3),
    most=st.integers(1, 8),
)
@settings(deadline=None)
def test_where_changes_are_free_most_tokens_a_second_are_taken(
    gains: list[float], steps: list[float], n_pending: int, most: int
) -> None:
    """By trying each width; the least one that holds the root is always allowed."""
    expected, costs = [1.0], [1.0]
    for gain in gains:
        expected.append(expected[-1] + gain)
    for step in steps:
        costs.append(costs[-1] + step)
    width = Gears(WIDTHS).choose(expected, 0.0, n_pending, costs, FREE, most)
    fit = [w for w in WIDTHS if n_pending < w]
    fit = [w for w in fit if w <= most] or fit[:1]

    def rate(w: int) -> float:
        return believed(expected[min(w - n_pending, len(expected)) - 1]) / costs[w - 1]

    assert width in fit
    assert rate(width) == pytest.approx(max(map(rate, fit)))


def test_a_change_is_made_where_it_pays() -> None:
    """For a copy that is likely to go on, not for one that is as dear as all that it may bring."""
    gears = Gears(WIDTHS, TWO)
    assert [chosen(gears, NOTHING, Change(0.5)) for _ in range(3)] == [1, 1, 1]
    assert chosen(gears, COPY, Change(0.5)) == 8
    gears = Gears(WIDTHS, TWO)
    (width,) = {chosen(gears, NOTHING, Change(1000.0)) for _ in range(3)}
    assert chosen(gears, COPY, Change(1000.0)) == width < 8


def test_a_width_is_kept_where_leaving_it_costs_more() -> None:
    """One step that promises nothing is no reason to change there and back; a hundred are."""
    brief = Outlook((2.0,), (), (1, 8), TWO.tokens, np.array([[0.05, 0.95], [0.01, 0.99]]))
    gears = Gears(WIDTHS, brief)
    change = Change(2.0, 1.0)
    assert [chosen(gears, COPY, change) for _ in range(3)] == [8, 8, 8]
    assert chosen(gears, NOTHING, change) == 8
    assert chosen(Gears(WIDTHS, brief), NOTHING, FREE) == 1


def test_there_is_room_for_what_is_pending() -> None:
    """However dear the change."""
    gears = Gears(WIDTHS, TWO)
    chosen(gears, NOTHING, Change(100.0))
    assert chosen(gears, NOTHING, Change(100.0), n_pending=2) == 4
    assert chosen(gears, NOTHING, Change(100.0), n_pending=4, most=2) == 8


def least_losses(change: Change, n_steps: int) -> dict[tuple[int, int, bool], float]:
    """What is lost in so many steps, by state, width and whether that is new: plain recursion."""
    tokens = {0: dict.fromkeys(WIDTHS, 1), 1: {w: w for w in WIDTHS}}
    lost = {}
    for state in (0, 1):
        pace = max(tokens[state][w] / COSTS[w - 1] for w in WIDTHS)
        for w in WIDTHS:
            lost[state, w] = COSTS[w - 1] - tokens[state][w] / pace
    stays = {k: (1 + 0.98**k) / 2 for k in range(9)}  # in the same state, k tokens later
    values = dict.fromkeys(product((0, 1), WIDTHS, (False, True)), 0.0)
    for _ in range(n_steps):
        values = {
            (state, width, is_new): min(
                lost[state, w]
                + Gear(width, is_new).extra_s(w, change)
                + sum(
                    (stays[tokens[state][w]] if after == state else 1 - stays[tokens[state][w]])
                    * values[after, w, w != width]
                    for after in (0, 1)
                )
                for w in WIDTHS
            )
            for state, width, is_new in values
        }
    return values


@pytest.mark.parametrize("change", [Change(0.5), Change(3.0, 2.0), Change(0.1, 4.0)])
def test_what_will_be_lost_is_that_of_a_recursion(change: Change) -> None:
    """Up to a constant, which changes no choice."""
    expected = least_losses(change, 160)
    gears = Gears(WIDTHS, TWO)
    gears.choose(NOTHING, 0.0, 0, COSTS, change, 8)
    values = gears._values
    assert values is not None
    found = {
        (state, width, is_new): values[state, i, int(is_new)]
        for state, (i, width), is_new in product((0, 1), enumerate(WIDTHS), (False, True))
    }
    offset = np.mean(list(found.values())) - np.mean(list(expected.values()))
    for key, value in expected.items():
        assert found[key] == pytest.approx(value + offset, abs=1e-6), key


class Drawn(Outlook):
    """Texts that go on as an outlook says: it knows their state."""

    now_at = 0

    def state(self, expected: Sequence[float], trend: float) -> int:
        """See Outlook."""
        return self.now_at


def drawn_text(outlook: Outlook, n_tokens: int, seed: int) -> list[int]:
    """The state at each token of a text that goes on as the outlook says."""
    rng = np.random.default_rng(seed)
    states = [0]
    while len(states) < n_tokens:
        states.append(int(rng.choice(len(outlook.moves), p=outlook.moves[states[-1]])))
    return states


def seconds_of(text: Sequence[int], change: Change, *, fixed: int = 0, free: bool = False) -> float:
    """For a text: with gears, one width, or what is best in each step alone."""
    shipped = shipped_outlook()
    outlook = Drawn(shipped.now, shipped.lately, shipped.sizes, shipped.tokens, shipped.moves)
    gears, last, seconds, at = Gears(WIDTHS, outlook), Gear(), 0.0, 0.0
    while at < len(text):
        state = text[int(at)]
        expected = np.interp(range(1, 9), outlook.sizes, outlook.tokens[state]).tolist()
        object.__setattr__(outlook, "now_at", state)
        width = fixed or gears.choose(expected, 0.0, 0, COSTS, FREE if free else change, 8)
        gears.called(width)
        seconds += COSTS[width - 1] + last.extra_s(width, change)
        last = last.after(width)
        at += expected[width - 1]
    return seconds


@pytest.mark.parametrize("change", [Change(), Change(0.1), Change(0.5), Change(1.0, 1.5)])
def test_gears_are_as_good_as_any_width_and_as_widths_at_will(change: Change) -> None:
    """But for chance; much better than widths at will where changes are dear."""
    texts = [drawn_text(shipped_outlook(), 3000, seed) for seed in range(4)]
    geared = sum(seconds_of(text, change) for text in texts)
    at_will = sum(seconds_of(text, change, free=True) for text in texts)
    constant = min(sum(seconds_of(text, change, fixed=w) for text in texts) for w in WIDTHS)
    assert geared < 1.02 * min(at_will, constant)
    if change.second_s:
        assert geared < 0.8 * at_will


def test_prices_that_changed_are_seen() -> None:
    """After a while: looking takes time."""
    gears = Gears(WIDTHS, TWO)
    dear, cheap = Change(1000.0), Change(0.5)
    (width,) = {chosen(gears, NOTHING, dear) for _ in range(3)}
    assert chosen(gears, COPY, dear) == width < 8
    assert 8 in [chosen(gears, COPY, cheap) for _ in range(100)]


# ---- how texts go on


def test_the_trend_follows_what_was_promised() -> None:
    """Token by token, whatever steps they came in."""
    slow, quick = Trend(), Trend()
    for trend in (slow, quick):
        trend.promised(COPY)
    for _ in range(12):
        slow.passed(1)
    quick.passed(12)
    assert slow.value == pytest.approx(quick.value)
    assert Trend().value < slow.value < math.log(8)


def test_the_shipped_outlook_is_a_markov_chain() -> None:
    """Each row of chances sums up to 1; larger trees promise no less; there is a state for each
    class now and lately.
    """
    outlook = shipped_outlook()
    n = (len(outlook.now) + 1) * (len(outlook.lately) + 1)
    assert outlook.moves.shape == (n, n)
    assert np.allclose(outlook.moves.sum(axis=1), 1)
    assert (np.diff(outlook.tokens, axis=1) >= 0).all()
    states = {
        outlook.state([1.0, e, e, e], t) for e, t in product((1.0, 1.5, 2.5, 4.0), (0, 0.5, 1, 2))
    }
    assert states == set(range(n))
    again = Outlook.from_record(outlook.record())
    assert np.allclose(again.moves, outlook.moves, atol=1e-3)
    assert (again.now, again.lately, again.sizes) == (outlook.now, outlook.lately, outlook.sizes)


def test_a_step_of_several_tokens_moves_as_often() -> None:
    """The chances of a wide call are those of as many single tokens."""
    tokens, moves = TWO.at((1, 8))
    assert tokens.tolist() == [[1.0, 1.0], [1.0, 8.0]]
    assert np.allclose(moves[0], TWO.moves)
    assert np.allclose(moves[1][1], np.linalg.matrix_power(TWO.moves, 8)[1])


@pytest.mark.parametrize("name", ["h100-8b", "h100-135m"])
def test_curves_of_a_gpu_say_what_a_change_takes(name: str) -> None:
    """The second call of a width, too, for graphs are captured there."""
    change = load_curve(name).change
    assert 0 < change.first_s < change.second_s
