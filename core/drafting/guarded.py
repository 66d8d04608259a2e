"""A drafter that fails or lies is switched off, and the text goes on without it.

Drafts change no text, so no drafter is worth giving one up. `SafeDrafter` looks at every answer
that the builder gets, once per node of every tree: the rules are few and cheap to check.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from numbers import Real
from time import perf_counter
from traceback import format_exception_only
from typing import Any

from specgen.core.protocols import Candidate, DraftCost, Drafter, Logits, Tokens
from specgen.core.tree import DraftTree

MOST_CANDIDATES = 64  # of one state; more are a waste of the builder's time
_LONGEST_REASON = 300  # characters
_HOPELESS = DraftCost(math.inf, 0.0, math.inf)

_log = logging.getLogger("specgen.drafters")


def find_fault(candidates: Sequence[Candidate], name: str, n_vocab: int) -> str | None:
    """What is wrong with an answer of `predict` of the drafter `name`, or None.

    May also raise whatever looking at a wrong answer raises.
    """
    n = len(candidates)
    if n > MOST_CANDIDATES:
        return f"{n} candidates in one state, more than {MOST_CANDIDATES}"
    for token, evidence, prob in candidates:
        if type(token) is not int or not 0 <= token < n_vocab:
            return f"token {token!r} is not an int from 0 to {n_vocab - 1}"
        if not 0 < prob <= 1 or (type(prob) is not float and not isinstance(prob, Real)):
            return f"probability {prob!r} of token {token} is not a number above 0 and up to 1"
        if not isinstance(evidence, tuple) or not evidence or evidence[0] != name:
            return f"evidence {evidence!r} is not a tuple that starts with {name!r}"
        hash(evidence)  # raises where it cannot be counted by
    if n > 1 and len({candidate[0] for candidate in candidates}) < n:
        return f"a token twice among {[candidate[0] for candidate in candidates]}"
    return None


class SafeDrafter:
    """A drafter that cannot harm: see protocols.Drafter.

    When it raises an Exception, or `predict` breaks a rule, that is logged, and from then on it
    knows nothing.

    Attributes:
        seconds: that finding its states, guessing and observing took, added up; whoever wants to
            know sets it to 0 before.
    """

    def __init__(self, drafter: Drafter, n_vocab: int) -> None:
        self.name = drafter.name
        self.seconds = 0.0
        self._drafter = drafter
        self._n_vocab = n_vocab

    @property
    def effort(self) -> DraftCost | None:
        """See ModelDrafter; None for another one. Nothing is worth it that fails to tell."""
        if not hasattr(type(self._drafter), "effort"):
            return None
        try:
            effort: DraftCost = self._drafter.effort  # type: ignore[attr-defined]
        except Exception as error:
            self._switch_off("effort", _reason(error))
            return _HOPELESS
        return effort

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        try:
            self._drafter.begin(context)
        except Exception as error:
            self._switch_off("begin", _reason(error))

    def root(self) -> Any:
        """See Drafter."""
        before = perf_counter()
        try:
            return self._drafter.root()
        except Exception as error:
            self._switch_off("root", _reason(error))
            return None
        finally:
            self.seconds += perf_counter() - before

    def predict(self, state: Any) -> Sequence[Candidate]:
        """See Drafter."""
        before = perf_counter()
        try:
            candidates = self._drafter.predict(state)
            fault = find_fault(candidates, self.name, self._n_vocab)
        except Exception as error:
            fault = _reason(error)
        self.seconds += perf_counter() - before
        if fault is None:
            return candidates
        self._switch_off("predict", fault)
        return ()

    def advance(self, state: Any, token: int) -> Any:
        """See Drafter."""
        try:
            return self._drafter.advance(state, token)
        except Exception as error:
            self._switch_off("advance", _reason(error))
            return None

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        before = perf_counter()
        try:
            self._drafter.observe(emitted, tree, logits)
        except Exception as error:
            self._switch_off("observe", _reason(error))
        self.seconds += perf_counter() - before

    def _switch_off(self, call: str, reason: str) -> None:
        self._drafter = _NullDrafter()
        line = " ".join(reason.split())[:_LONGEST_REASON]
        _log.warning("drafter %s is switched off: %s: %s", self.name, call, line)


class _NullDrafter:
    """What stands in for a drafter that is switched off; the builder may still hold its states."""

    name = "switched off"
    effort = _HOPELESS

    def begin(self, context: Tokens) -> None:
        pass

    def root(self) -> Any:
        return None

    def predict(self, state: Any) -> Sequence[Candidate]:
        return ()

    def advance(self, state: Any, token: int) -> Any:
        return None

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        pass


def _reason(error: Exception) -> str:
    return "".join(format_exception_only(error))
