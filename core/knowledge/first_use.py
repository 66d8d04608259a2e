"""The first use of a model on a machine: it is measured a little, behind the user's own prompt.

So drafts pay from the first answer on. What is found is kept for later runs as a provisional
profile: `specgen calibrate`, which measures more, replaces it, and strict decoding asks for that.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from specgen.core.cost.online import EXPLORED, CostTracker
from specgen.core.cost.quick import QuickMeasurement, measure_quickly
from specgen.core.cost.timed import Clock, TimedBackend
from specgen.core.errors import BackendError
from specgen.core.protocols import Backend
from specgen.core.stop import ShouldStop

from .profile import Profile

_log = logging.getLogger("specgen.profile")

LIMIT_S: Final = 2.0  # measuring takes no longer, or than
SHARE: Final = 0.05  # of what loading the model and reading the prompt took, if that is more
_USUAL: Final = 256  # tokens of an answer, where nobody limits it


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


def measure_first_use(
    backend: Backend,
    text: Sequence[int],
    n_tokens: int | None,
    spent_s: float,
    clock: Clock,
    should_stop: ShouldStop,
) -> Profile | None:
    """What calls cost behind a text whose prefix is in the cache; None if that cannot be known.

    Args:
        backend: its cache stays as it is.
        text: tokens, more than are in the cache.
        n_tokens: to be generated at most; None is as many as there is room for.
        spent_s: what loading the model and reading the prompt took.
        clock: seconds.
        should_stop: asked before each call.

    Raises Interrupted.
    """
    if not backend.limits.can_rewind:  # a call could not be taken back
        return None
    timed = TimedBackend(backend, text, clock, should_stop=should_stop)
    limit_s = max(LIMIT_S, SHARE * spent_s)
    n_tokens = min(_USUAL if n_tokens is None else n_tokens, backend.limits.n_ctx - len(text))
    try:
        found = measure_quickly(timed, limit_s, n_tokens)
    except BackendError as error:  # of a call that nobody asked for
        _log.info("this machine was not measured: %s", error.message)
        return None
    if found is None:
        return None
    profile = Profile.provisional(found.curve, found.noise)
    if profile.prices is None:
        _log.info("this machine was not measured: %s", profile.doubt)
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
