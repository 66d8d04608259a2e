"""How many threads compute, by what the calls take that are made anyway.

llama.cpp's threads wait for each other at every operation. One that shares its core with another
program holds up all others each time: beside a busy loop a call of two threads took up to 300
times as long as one of a single thread. So the first call has one thread, and the next ones have
all, for as long as they take no longer. Later, other numbers are tried: fewer when calls become
slow, any when a trial is likely to cost next to nothing of the time. A trial is compared with what
calls of as many rows took before, and kept where it is clearly faster. Calls have limits, so that
none that goes wrong has to be seen to its end.

When calls are slow is found out by a cumulative sum (E. S. Page, Continuous inspection schemes,
Biometrika 41, 1954): slow calls add to it, others take from it, so that many that are a little
slow raise an alarm as a few very slow ones do, but no single one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import Final, NamedTuple

_WINDOW: Final = 12  # calls of the same number of rows that are remembered
_LEAST: Final = 3  # of them, before anything is expected
_JUMP: Final = 256  # a context that moves on by so many tokens, and a quarter, is another text
_LEAST_LOSS: Final = 0.1  # calls
_PAUSE: Final = 4  # calls from one look at other numbers to the next


@dataclass(frozen=True, slots=True)
class ThreadSettings:
    """What a choice may cost, and what it takes to change it.

    Attributes:
        share: of the time, that trials may cost, one call aside.
        gain: calls must take this part of their time or less with another number to keep it.
        certain: a part that is believed after few calls.
        calls: of a trial.
        few: calls that are enough where the part is `certain`.
        patience: a trial ends when it has cost so many calls.
        trial_limit: a call on trial is given up after so many times its expected time,
        limit: and any other one with several threads after so many.
        tolerance: a call may take so many times what quick ones take before it counts as slow.
        most: a call counts for no more than so many times its time.
        alarm: fewer threads are tried at once when calls were slower by so many in sum.
        first_wait: calls before a number is tried; doubled each time that it was tried in vain,
        last_wait: up to so many.
    """

    share: float = 0.01
    gain: float = 0.93
    certain: float = 0.6
    calls: int = 16
    few: int = 3
    patience: float = 0.25
    trial_limit: float = 1.5
    limit: float = 3.0
    tolerance: float = 1.35
    most: float = 4.0
    alarm: float = 4.0
    first_wait: int = 16
    last_wait: int = 2048

    def is_faster(self, calls: int, ratio: float, doubt: float) -> bool:
        """Whether so many calls on trial took clearly less than was expected of them."""
        if calls >= self.calls:
            return ratio <= min(self.gain, 1 - doubt)
        return calls >= self.few and ratio <= self.certain


class Use(NamedTuple):
    """What a call is made with.

    `limit_s`: seconds after which it is not worth its end, or None.
    """

    threads: int
    limit_s: float | None


@dataclass(slots=True)
class _Wait:
    """When a number may be tried again."""

    until: int  # call
    calls: int  # to wait the next time
    loss: float  # calls that the last trial has cost


class ThreadChoice:
    """The number of threads, 1 to `most`, that calls take the least time with.

    Attributes:
        threads: the number in use.
        total_s: of all calls so far.
        lost_s: what trials took of it that led to nothing, beyond what was expected.
    """

    def __init__(self, most: int, settings: ThreadSettings | None = None) -> None:
        self.threads = most
        self.total_s = 0.0
        self.lost_s = 0.0
        self._most = most
        self._settings = settings or ThreadSettings()
        self._usual = _Usual()
        self._trial: _Trial | None = None
        self._calls = 0
        self._context = 0
        self._fell_at = -self._settings.first_wait
        self._settled_at = 0  # call from which on times are of the same text
        self._slow: list[_Call] = []  # calls since the sum was 0
        self._sum = 0.0
        self._next: list[int] = []  # numbers to try at once
        self._waits: dict[int, _Wait] = {}
        self._alarms = _Wait(0, self._settings.first_wait, 0.0)

    @property
    def settled(self) -> int:
        """The number in use, or the one before it while that is on trial."""
        return self._trial.before if self._trial else self.threads

    def use(self, rows: int) -> Use:
        """What the next call, with `rows` rows, is to be made with."""
        if self._calls == 0:
            return Use(1, None)
        settings = self._settings
        if self._trial is None:
            times = settings.trial_limit if self._calls == 1 else settings.limit
            return _limited(self.threads, times, self._usual.bound(rows))
        expected = self._usual.expected(rows)
        if expected is None:  # it would tell nothing
            return _limited(self._trial.before, settings.limit, self._usual.bound(rows))
        return _limited(self.threads, settings.trial_limit, expected)

    def observe(
        self, rows: int, context: int, seconds: float, *, finished: bool = True
    ) -> int | None:
        """A call with `rows` rows behind `context` tokens, made as `use` said, took `seconds`.

        Not `finished` says that it was given up at its limit, and is to be made again.

        Returns how many threads are used from now on, or None where that stays as it is.
        """
        before = self.threads
        self.total_s += seconds
        self._calls += 1
        if self._calls == 1:
            self._usual.add(rows, seconds)  # a bound for the next one
        elif self._trial and self._usual.expected(rows) is not None:
            self._judge(self._trial, rows, seconds, finished=finished)
        elif not finished:
            self._note_late(rows, seconds)
        else:
            self._note_context(context)
            self._watch(rows, seconds)
        return None if self.threads == before else self.threads

    def _note_context(self, context: int) -> None:
        if abs(context - self._context) > _JUMP + self._context // 4:
            self._settled_at = self._calls + _WINDOW
            self._calm()
        self._context = context

    def _calm(self) -> None:
        self._slow.clear()
        self._sum = 0.0

    def _note_late(self, rows: int, seconds: float) -> None:
        """A call of the number in use was given up: once may be chance."""
        self._sum += self._settings.most - self._settings.tolerance
        self._slow.append(_Call(rows, seconds, self._usual.bound(rows) or seconds))
        if self._calls == 2 or self._sum >= self._settings.alarm:
            self._fall(self.settled)

    def _fall(self, slow: int) -> None:
        """Calls of the number in use go wrong: fewer at once, and this one later."""
        again = self._calls - self._fell_at < self._settings.first_wait
        self._fell_at = self._calls
        self._trial = None
        self.threads = _fewer(slow)[-1 if again else 0]
        self._waits.clear()
        self._leave(slow, loss=self._settings.trial_limit)
        self._usual.loosen(slow / self.threads)
        self._next = _fewer(self.threads)

    def _leave(self, before: int, loss: float) -> None:
        """Another number is used from now on; the one before it is to be tried again later."""
        first = self._settings.first_wait
        self._waits[before] = _Wait(self._calls + first, 2 * first, loss)
        self._calm()

    def _watch(self, rows: int, seconds: float) -> None:
        expected, quick = self._usual.expected(rows), self._usual.quick(rows)
        self._usual.add(rows, seconds)
        if self._trial or expected is None or quick is None or self._calls < self._settled_at:
            return
        settings = self._settings
        self._sum += min(seconds / quick, settings.most) - settings.tolerance
        self._slow.append(_Call(rows, seconds, expected))
        if self._sum <= 0:
            self._calm()
        elif self._sum >= settings.alarm:
            self._raise_alarm()
        self._try_next(self._usual.expected(rows) or expected)

    def _raise_alarm(self) -> None:
        slow = self._slow[1:]  # it began with a slow one: the others tell how slow they all are
        if self.threads > 1 and self._calls >= self._alarms.until:
            self._usual.scale(max(1.0, _ratio(slow)))
            self._next = _fewer(self.threads)
        self._calm()

    def _try_next(self, usual_s: float) -> None:
        """Begin a trial, if there is one to be made; a call takes `usual_s`."""
        if self._next:
            self._begin(self._next.pop(0), is_urgent=True)
            return
        if self._calls % _PAUSE:
            return
        room = (self._settings.share * self.total_s - self.lost_s) / usual_s + 1  # calls
        due = [n for n in self._others() if self._calls >= self._wait(n).until]
        best = min(due, key=lambda n: (self._wait(n).loss, -n), default=None)
        if best is not None and self._wait(best).loss <= room:
            self._begin(best, is_urgent=False)

    def _others(self) -> set[int]:
        n, most = self.threads, self._most
        near = {n - 1, 3 * n // 4, n // 2, n + 1, 3 * n // 2, 2 * n, most - 1, most}
        return {other for other in near if 1 <= other <= most and other != n}

    def _wait(self, threads: int) -> _Wait:
        if threads not in self._waits:
            # Fewer take at most so many times as long.
            loss = self.threads / threads - 1 if threads < self.threads else 1.0
            first = self._settings.first_wait
            self._waits[threads] = _Wait(self._calls + first, first, min(loss, 1.0))
        return self._waits[threads]

    def _begin(self, threads: int, *, is_urgent: bool) -> None:
        self._trial = _Trial(self.threads, is_urgent)
        self.threads = threads
        self._calm()

    def _judge(self, trial: _Trial, rows: int, seconds: float, *, finished: bool) -> None:
        settings, expected = self._settings, self._usual.expected(rows) or seconds
        # One that was given up has to be made again.
        trial.calls.append(_Call(rows, seconds if finished else seconds + expected, expected))
        ratio = _ratio(trial.calls)
        if not finished or trial.lost > settings.patience:
            self._give_up(trial)
        elif settings.is_faster(len(trial.calls), ratio, _doubt(trial.calls)):
            self._keep(trial, ratio)
        elif len(trial.calls) >= settings.calls:
            self._give_up(trial)

    def _give_up(self, trial: _Trial) -> None:
        tried = self._wait(self.threads)
        tried.loss = max(trial.lost, _LEAST_LOSS)
        self.lost_s += max(0.0, trial.lost_s)
        self._put_off(tried)
        if trial.is_urgent and not self._next:
            self._put_off(self._alarms)
        self.threads, self._trial = trial.before, None

    def _put_off(self, wait: _Wait) -> None:
        wait.until = self._calls + wait.calls
        wait.calls = min(2 * wait.calls, self._settings.last_wait)

    def _keep(self, trial: _Trial, ratio: float) -> None:
        if ratio <= self._settings.certain:  # what was known of others is of another time
            self._waits.clear()
        self._leave(trial.before, loss=min(max(1 / ratio - 1, _LEAST_LOSS), 1.5))
        self._usual.scale(ratio)
        for call in trial.calls:
            self._usual.add(call.rows, call.seconds)
        self._next = _fewer(self.threads) if trial.is_urgent else []
        self._alarms.calls = self._settings.first_wait
        self._trial = None


def _limited(threads: int, times: float, usual_s: float | None) -> Use:
    return Use(threads, None if usual_s is None or threads == 1 else times * usual_s)


def _fewer(threads: int) -> list[int]:
    """Numbers to try in place of one that is too large, in that order."""
    return sorted({n for n in (threads - 1, threads // 2) if n}, reverse=True)


class _Call(NamedTuple):
    rows: int
    seconds: float
    expected: float


def _ratio(calls: Sequence[_Call]) -> float:
    """What calls took of what was expected; of several, without the one that was slowest."""
    if len(calls) > _LEAST:
        worst = max(calls, key=lambda call: call.seconds / call.expected)
        calls = [call for call in calls if call is not worst]
    expected = sum(call.expected for call in calls)
    return sum(call.seconds for call in calls) / expected if expected else 1.0


def _doubt(calls: Sequence[_Call]) -> float:
    """How far off the ratio may be by chance: 2 standard errors, of usual times as well."""
    ratios = sorted(call.seconds / call.expected for call in calls)[:-1]
    return 2 * stdev(ratios) * (2 / len(ratios)) ** 0.5 if len(ratios) > 1 else 1.0


@dataclass(slots=True)
class _Trial:
    before: int  # threads
    is_urgent: bool
    calls: list[_Call] = field(default_factory=list)

    @property
    def lost_s(self) -> float:
        """What it has cost; less than 0 where it is worth it."""
        return sum(call.seconds - call.expected for call in self.calls)

    @property
    def lost(self) -> float:
        """In calls."""
        return self.lost_s * len(self.calls) / sum(call.expected for call in self.calls)


class _Usual:
    """What calls take, by their number of rows, from the last ones of each."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._sorted: dict[int, list[float]] = {}

    def add(self, rows: int, seconds: float) -> None:
        times = self._times.setdefault(rows, deque(maxlen=_WINDOW))
        times.append(seconds)
        self._sorted[rows] = sorted(times)

    def _replace(self, rows: int, times: Iterable[float]) -> None:
        self._times[rows] = deque(times, maxlen=_WINDOW)
        self._sorted[rows] = sorted(self._times[rows])

    def loosen(self, factor: float) -> None:
        """Keep so many times one time of each number of rows, as a bound: no more is known now."""
        for rows, times in self._sorted.items():
            self._replace(rows, [factor * times[len(times) // 2]])

    def scale(self, factor: float) -> None:
        """All calls take so many times what they took."""
        for rows, times in self._times.items():
            self._replace(rows, [factor * time for time in times])

    def expected(self, rows: int) -> float | None:
        """The mean, without the largest; None where too few are known."""
        times = self._sorted.get(rows, ())[:-1]
        return sum(times) / len(times) if len(times) >= _LEAST - 1 else None

    def quick(self, rows: int) -> float | None:
        """The lower quartile: what they take where nobody disturbs them."""
        times = self._sorted.get(rows, ())
        return times[(len(times) - 1) // 4] if times else None

    def bound(self, rows: int) -> float | None:
        """What they take at most: what is expected, or as much for each row as fewer rows take."""
        expected = self.expected(rows)
        if expected is not None or not self._times:
            return expected
        fewer = [n for n in self._times if n <= rows]
        n = max(fewer) if fewer else min(self._times)
        quick = self.quick(n) or 0.0
        return quick * max(1.0, rows / n)
