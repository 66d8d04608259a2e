"""What runs on a model leave for later ones: how often drafts were accepted, and maybe the answers.

Both are kept in the cache folder, per model, and in files of their own: counts tell nothing of what
was asked, but answers are people's texts, in clear. So answers are kept only where that is asked
for. Processes that end at the same time both count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from specgen.core.drafting.acceptance import AcceptanceModel, shipped_priors
from specgen.core.protocols import Tokens
from specgen.core.records import items, member, whole

from .profile import fingerprint
from .store import Key, Store

_T = TypeVar("_T")

MOST_ANSWERS: Final = 1 << 15  # the latest tokens of answers are kept, so many; about 200 KB

_COUNTS_VERSION: Final = 1
_ANSWERS_VERSION: Final = 1
_MOST_AGE: Final = 1 << 40
_MOST_TOKEN: Final = (1 << 31) - 1


class Learned:
    """What is known at the start of a run, and what the run adds to it.

    Args:
        acceptance: goes on learning while it is used.
        answers: tokens of past answers, the latest last; None neither has nor remembers any.
        age: how often the counts were kept.

    Attributes:
        acceptance: see above.
        key: what it is stored under; None is not stored.
    """

    def __init__(
        self, acceptance: AcceptanceModel, answers: Sequence[int] | None = (), age: int = 0
    ) -> None:
        self.acceptance = acceptance
        self.key: Key | None = None
        self._answers = None if answers is None else list(answers)
        self._new: list[int] = []
        self._age = age

    @property
    def answers(self) -> Tokens:
        """(n,) tokens of past answers, the latest last."""
        return np.array(self._answers or (), np.int32)

    def add(self, answer: Sequence[int]) -> None:
        """Remember an answer; `answers` has it at once, later runs after `keep`.

        Does nothing where no answers are remembered.
        """
        if self._answers is not None:
            self._new += answer
            self._answers = [*self._answers, *answer][-MOST_ANSWERS:]

    def record(self) -> dict[str, Any]:
        """The counts as JSON; without answers."""
        return {"age": self._age, "acceptance": self.acceptance.record()}

    @classmethod
    def from_record(cls, record: Any) -> Learned:
        """The counts in `record`, without answers. Raises ValueError if it is no such thing."""
        try:
            age = _age(record)
            acceptance = AcceptanceModel.from_record(member(record, "acceptance"))
        except ValueError as error:
            raise ValueError(f"nothing learnt is in it: {error}") from error
        return cls(acceptance, None, age)

    def keep(self) -> None:
        """Store it for later runs on the same model; others may have done so meanwhile."""
        if self.key is None:
            return
        _counts().update(self.key, self._joined_counts)
        if self._new:
            _answers().update(self.key, self._joined_answers)
            self._new = []

    def _joined_counts(self, stored: Any | None) -> dict[str, Any]:
        """What to store in the place of `stored`."""
        with suppress(ValueError):  # nothing, or nothing of use
            if _age(stored) > self._age:  # another process kept something meanwhile
                other = Learned.from_record(stored)
                self.acceptance.merge(other.acceptance)
                self._age = other._age
        self._age = min(self._age + 1, _MOST_AGE)
        return self.record()

    def _joined_answers(self, stored: Any | None) -> list[int]:
        """The stored answers, which may have been forgotten meanwhile, and the new ones."""
        try:
            others = _tokens(stored)
        except ValueError:  # nothing, or nothing of use
            others = []
        self._answers = [*others, *self._new][-MOST_ANSWERS:]
        return self._answers


def load_learned(model: Path, *, answers: bool = False) -> Learned:
    """What earlier runs on the model file left, or what every new model begins with.

    `answers` is whether past answers are used, and those of this run kept in clear.

    Raises ModelError if the file cannot be read.
    """
    key = {"model": fingerprint(model)}
    learned = _read(_counts(), key, Learned.from_record) or Learned(shipped_priors(), None)
    if answers:
        past = _read(_answers(), key, _tokens) or []
        learned = Learned(learned.acceptance, past, learned._age)
    learned.key = key
    return learned


def _read(store: Store, key: Key, parse: Callable[[Any], _T]) -> _T | None:
    """What is stored; None where nothing is, or what is damaged and so set aside."""
    record = store.read(key)
    if record is None:
        return None
    try:
        return parse(record)
    except ValueError as error:
        store.set_aside(key, str(error))
        return None


def _tokens(record: Any) -> list[int]:
    """The answers in `record`. Raises ValueError if it is no such thing."""
    tokens = items(record, "answers")
    if len(tokens) > MOST_ANSWERS:
        raise ValueError(f"more than {MOST_ANSWERS} tokens of answers")
    return [whole(token, "a token", most=_MOST_TOKEN) for token in tokens]


def _age(record: Any) -> int:
    """How often the counts in `record` were kept. Raises ValueError where it does not say."""
    return whole(member(record, "age"), "age", most=_MOST_AGE)


def _counts() -> Store:
    return Store("counts", _COUNTS_VERSION)


def _answers() -> Store:
    return Store("answers", _ANSWERS_VERSION)
