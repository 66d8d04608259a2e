"""What runs on a model leave for later ones: what guesses were worth, and the answers themselves.

Kept in the cache folder, per model. Processes that end at the same time both count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from specgen.core.drafting.acceptance import AcceptanceModel, shipped_priors
from specgen.core.protocols import Tokens
from specgen.core.records import items, member, whole

from .profile import fingerprint
from .store import Key, Store

MOST_ANSWERS: Final = 1 << 15  # tokens of answers that are kept, the latest; about 200 KB

_VERSION: Final = 3
_MOST_AGE: Final = 1 << 40
_MOST_TOKEN: Final = (1 << 31) - 1


class Learned:
    """What is known at the start of a run, and what the run adds to it.

    Attributes:
        acceptance model: goes on learning while it is used.
        key: what it is stored under; None is not stored.
    """

    def __init__(
        self, acceptance: AcceptanceModel, answers: Sequence[int] = (), age: int = 0
    ) -> None:
        self.acceptance = acceptance
        self.key: Key | None = None
        self._answers = list(answers)
        self._new: list[int] = []
        self._age = age  # how often it was kept

    @property
    def answers(self) -> Tokens:
        """(n,) tokens of past answers, the latest last."""
        return np.array(self._answers, np.int32)

    def add(self, answer: Sequence[int]) -> None:
        """Remember an answer; `answers` has it at once, later runs after `keep`."""
        self._new += answer
        self._answers = [*self._answers, *answer][-MOST_ANSWERS:]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "age": self._age,
            "acceptance": self.acceptance.record(),
            "answers": self._answers,
        }

    @classmethod
    def from_record(cls, record: Any) -> Learned:
        """What is in `record`. Raises ValueError if it is no such thing."""
        try:
            age = whole(member(record, "age"), "age", most=_MOST_AGE)
            answers = items(member(record, "answers"), "answers")
            if len(answers) > MOST_ANSWERS:
                raise ValueError(f"more than {MOST_ANSWERS} tokens of answers")
            for token in answers:
                whole(token, "a token", most=_MOST_TOKEN)
            return cls(AcceptanceModel.from_record(member(record, "acceptance")), answers, age)
        except ValueError as error:
            raise ValueError(f"nothing learnt is in it: {error}") from error

    def keep(self) -> None:
        """Store it for later runs on the same model; others may have done so meanwhile."""
        if self.key is not None:
            _store().update(self.key, self._join)
            self._new = []

    def _join(self, stored: Any | None) -> dict[str, Any]:
        """What to store in the place of `stored`."""
        try:
            other = Learned.from_record(stored)
        except ValueError:  # nothing, or nothing of use
            other = Learned(self.acceptance)
        if other._age > self._age:  # another process kept something meanwhile
            self.acceptance.merge(other.acceptance)
            self._answers = [*other._answers, *self._new][-MOST_ANSWERS:]
            self._age = other._age
        self._age = min(self._age + 1, _MOST_AGE)
        return self.record()


def load_learned(model: Path) -> Learned:
    """What earlier runs on the model file left, or what every new model begins with.

    Raises ModelError if the file cannot be read.
    """
    store, key = _store(), {"model": fingerprint(model)}
    learned = None
    record = store.read(key)
    if record is not None:
        try:
            learned = Learned.from_record(record)
        except ValueError as error:
            store.set_aside(key, str(error))
    learned = learned or Learned(shipped_priors())
    learned.key = key
    return learned


def _store() -> Store:
    return Store("learned", _VERSION)
