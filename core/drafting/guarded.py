"""A drafter that fails or lies is switched off, and the text goes on without it.

Drafts change no text, so no drafter is worth giving one up. `SafeDrafter` looks at every answer
that the builder gets, once per node of every tree: the rules are few and cheap to check.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from numbers import Real
from traceback import format_exception_only
from typing import Any

from specgen.core.protocols import Candidate, DraftCost, Drafter, Logits, Tokens
from specgen.core.tree import DraftTree

MOST_CANDIDATES = 64  # an answer may have so many; more would waste the builder's time
_LONGEST_REASON = 300  # characters of what is told when a drafter is switched off
_HOPELESS = DraftCost(math.inf, 0.0, math.inf)

_log = logging.getLogger("specgen.drafters")


def find_fault(candidates: Sequence[Candidate], name: str, n_vocab: int) -> str | None:
    """What is wrong with an answer of `predict` of the drafter `name`, or None.

    May also raise whatever looking at a wrong answer raises.
    """
    if len(candidates) > MOST_CANDIDATES:
        return f"{len(candidates)} candidates in one state, more than {MOST_CANDIDATES}"
    seen = set()
    for token, evidence, prob in candidates:
        if type(token) is not int or not 0 <= token < n_vocab:
            return f"token {token!r} is not an int from 0 to {n_vocab - 1}"
        if not 0 < prob <= 1 or (type(prob) is not float and not isinstance(prob, Real)):
            return f"probability {prob!r} of token {token} is not a number above 0 and up to 1"
        if evidence.__class__ is not tuple or not evidence or evidence[0] != name:
            return f"evidence {evidence!r} is not a tuple that starts with {name!r}"
        hash(evidence)  # raises where it cannot be counted by
        seen.add(token)
    if len(seen) < len(candidates):
        return f"a token twice among {[candidate[0] for candidate in candidates]}"
    return None


class SafeDrafter:
    """A drafter that cannot harm: see protocols.Drafter.

    When it raises an Exception, or `predict` breaks a rule, that is logged, and from then on it
    knows nothing.
    """

    def __init__(self, drafter: Drafter, n_vocab: int) -> None:
        self.name = drafter.name
        self._drafter: Drafter = drafter
        self._n_vocab = n_vocab
        self.reads_logits = bool(getattr(drafter, "reads_logits", False))
        self.is_slow = self.effort is not None

    @property
    def effort(self) -> DraftCost | None:
        """See Drafter. One that fails to tell is not worth asking."""
        try:
            return self._drafter.effort
        except Exception as error:
            self._switch_off("effort", error)
            return _HOPELESS

    def begin(self, context: Tokens) -> None:
        """See Drafter."""
        self._call("begin", context)

    def root(self) -> Any:
        """See Drafter."""
        return self._call("root")

    def predict(self, state: Any) -> Sequence[Candidate]:
        """See Drafter."""
        try:
            candidates = self._drafter.predict(state)
            fault = find_fault(candidates, self.name, self._n_vocab)
        except Exception as error:
            self._switch_off("predict", error)
            return ()
        if fault is None:
            return candidates
        self._switch_off("predict", fault)
        return ()

    def advance(self, state: Any, token: int) -> Any:
        """See Drafter."""
        return self._call("advance", state, token)

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""
        self._call("observe", emitted, tree, logits)

    def _call(self, method: str, *arguments: object) -> Any:
        try:
            return getattr(self._drafter, method)(*arguments)
        except Exception as error:
            self._switch_off(method, error)
            return None

    def _switch_off(self, method: str, reason: str | Exception) -> None:
        self._drafter = _NullDrafter()
        if isinstance(reason, Exception):
            reason = "".join(format_exception_only(reason))
        line = " ".join(reason.split())[:_LONGEST_REASON]
        _log.warning("drafter %s is switched off: %s: %s", self.name, method, line)


class _NullDrafter:
    """What stands in for a drafter that is switched off; the builder may still hold its states."""

    name = "switched off"
    effort = _HOPELESS
    reads_logits = False

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
