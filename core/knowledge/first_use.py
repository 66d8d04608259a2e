"""The first use of a model on a machine: it is measured a little, behind the user's own prompt.

So drafts pay from the first answer on. What is found is kept for later runs as a provisional
profile: `specgen calibrate`, which measures more, replaces it, and strict decoding asks for that.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from time import perf_counter
from typing import Final

from specgen.core.cost.online import EXPLORED, CostTracker
from specgen.core.cost.quick import LEAST_TOKENS, QuickMeasurement, measure_quickly
from specgen.core.cost.timed import Clock, TimedBackend
from specgen.core.errors import BackendError
from specgen.core.protocols import Backend
from specgen.core.stop import ShouldStop, never

from .profile import Profile

_log = logging.getLogger("specgen.profile")

VARIABLE: Final = "SPECGEN_FIRST_USE"  # of the environment
OFF: Final = "off"  # what it says where nothing shall be measured

LIMIT_S: Final = 2.0  # measuring takes no longer, or than
SHARE: Final = 0.05  # of what loading the model and reading the prompt took, if that is more
_USUAL: Final = 256  # tokens of an answer, where nobody limits it
_TRIES: Final = 3  # texts behind which it is tried: a machine that was busy may be quiet again


def prices_of(profile: Profile | None) -> CostTracker:
    """What calls cost, beginning with what was measured."""
    tracker = CostTracker()
    if profile is not None and profile.prices is not None:
        begin_with(tracker, profile)
    return tracker


def begin_with(tracker: CostTracker, profile: Profile) -> None:
    """Let prices begin with a profile; sizes beyond a provisional one are tried now and then."""
    widest = profile.curve.sizes[-1]
    untried = [n for n in EXPLORED if n > widest] if profile.is_provisional else []
    tracker.restart(profile.prices, untried)


class FirstUse:
    """Prices that nothing was measured for, until something is.

    Args:
        backend: its cache stays as it is.
        prices: told what was found.
        should_stop: asked before each call.
        clock: seconds.
    """

    def __init__(
        self,
        backend: Backend,
        prices: CostTracker,
        should_stop: ShouldStop = never,
        clock: Clock = perf_counter,
    ) -> None:
        self._backend = backend
        self._prices = prices
        self._should_stop = should_stop
        self._clock = clock
        self._tries = 0

    def measure(self, text: Sequence[int], n_tokens: int | None, spent_s: float) -> Profile | None:
        """What calls cost behind a text whose prefix is in the cache.

        None where the answer will be too short, the machine is busy, or time does not suffice;
        after a few times it is not tried any more, and never where the environment says so.

        Args:
            text: tokens, more than are in the cache.
            n_tokens: to be generated at most; None is as many as there is room for.
            spent_s: what loading the model and reading the prompt took.

        Raises Interrupted.
        """
        limits = self._backend.limits
        n_tokens = min(_USUAL if n_tokens is None else n_tokens, limits.n_ctx - len(text))
        # Where the model cannot go back, a call could not be undone.
        if not limits.can_rewind or n_tokens < LEAST_TOKENS or self._tries == _TRIES:
            return None
        if os.environ.get(VARIABLE) == OFF:
            return None
        self._tries += 1
        profile = self._found(text, n_tokens, max(LIMIT_S, SHARE * spent_s))
        if profile is not None:
            begin_with(self._prices, profile)
        return profile

    def _found(self, text: Sequence[int], n_tokens: int, limit_s: float) -> Profile | None:
        timed = TimedBackend(self._backend, text, self._clock, should_stop=self._should_stop)
        try:
            found = measure_quickly(timed, limit_s, n_tokens)
        except BackendError as error:  # of a call that nobody asked for
            _log.info("what calls cost is not known: %s", error.message)
            return None
        if found is None:
            _log.info("what calls cost is not known: there was no time to measure it")
            return None
        profile = Profile.provisional(found.curve, found.noise)
        if profile.prices is None:
            _log.info("what calls cost is not known: %s", profile.doubt)
            return None
        _log.warning("%s", _told(found))
        return profile


def _told(found: QuickMeasurement) -> str:
    """What was found, in one line."""
    row, curve = found.curve.times[0], found.curve
    at = curve.sizes.index(4) if 4 in curve.sizes else -1
    return (
        f"measured this machine in {found.seconds:.2g} s: a call with {curve.sizes[at]} rows takes"
        f" {row[at] / row[0]:.1f} times one with 1"
    )
