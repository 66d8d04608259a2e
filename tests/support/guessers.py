"""Drafters for tests: right, wrong, random and broken ones; a vocabulary, and a price list."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from specgen.core.cost.model import CostModel, Costs
from specgen.core.drafting.schedule import BackOff
from specgen.core.protocols import Candidate, Change, DraftCost, Logits, Tokens
from specgen.core.tree import DraftTree


class Letters:
    """A vocabulary whose token i is the i-th letter; every third one is a pair of letters."""

    def __init__(self, n_vocab: int, eog: frozenset[int] = frozenset()) -> None:
        self.n_vocab = n_vocab
        self.eog = eog

    def tokenize(self, text: str, *, add_bos: bool, special: bool, cut: str = "") -> list[int]:
        """One token per letter."""
        return [ord(letter) - ord("a") for letter in text]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The letters of `token`."""
        if token in self.eog:
            return b""
        letter = chr(ord("a") + token)
        return (letter * 2 if token % 3 == 2 else letter).encode()


@dataclass(frozen=True)
class _Place:
    """A state: tokens after the end of the text, and the length of that text."""

    length: int
    path: tuple[int, ...]


class _Guesser:
    """What the test drafters share: states are places in the text."""

    name = "guesser"
    effort = None
    reads_logits = False

    def __init__(self) -> None:
        self.length = 0

    def begin(self, context: Tokens) -> None:
        self.length = len(context)

    def root(self) -> _Place | None:
        return _Place(self.length, ())

    def advance(self, state: _Place, token: int) -> _Place | None:
        return _Place(state.length, (*state.path, token))

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        self.length += len(emitted)


class RandomTree(_Guesser):
    """Guesses up to `width` random tokens anywhere, the same ones for the same place."""

    name = "random"
    effort = None
    reads_logits = False

    def __init__(self, seed: int, n_vocab: int, width: int) -> None:
        super().__init__()
        self._seed, self._n_vocab, self._width = seed, n_vocab, width

    def predict(self, state: _Place) -> Sequence[Candidate]:
        rng = random.Random(f"{self._seed} {state}")
        count = rng.randint(0, min(self._width, self._n_vocab))
        tokens = rng.sample(range(self._n_vocab), count)
        return [Candidate(token, (self.name, i), rng.random()) for i, token in enumerate(tokens)]


class Oracle(_Guesser):
    """Knows the whole text; hides the truth among `decoys` that it calls likelier.

    With decoys the truth lies on side branches, without them on the main chain.
    """

    name = "oracle"
    effort = None
    reads_logits = False

    def __init__(self, truth: Sequence[int], n_vocab: int, decoys: int, lie: bool = False) -> None:
        super().__init__()
        self._truth, self._n_vocab, self._decoys, self._lie = tuple(truth), n_vocab, decoys, lie

    def predict(self, state: _Place) -> Sequence[Candidate]:
        at = state.length + len(state.path)
        if at >= len(self._truth) or self._truth[state.length : at] != state.path:
            return ()
        true = self._truth[at]
        decoys = [(true + 1 + i) % self._n_vocab for i in range(self._decoys)]
        guesses = [Candidate(t, (self.name, 1), 0.95) for t in decoys if t != true]
        return guesses if self._lie else [*guesses, Candidate(true, (self.name, 0), 0.9)]


class Stutterer(_Guesser):
    """Breaks the contract: offers the same token several times."""

    name = "stutterer"
    effort = None
    reads_logits = False

    def __init__(self, n_vocab: int) -> None:
        super().__init__()
        self._n_vocab = n_vocab

    def predict(self, state: _Place) -> Sequence[Candidate]:
        tokens = [0, 0, self._n_vocab - 1, 0]
        return [Candidate(token, (self.name, i), 0.5) for i, token in enumerate(tokens)]


class Faulty(RandomTree):
    """Fails for good from some call of one of its methods on; in `predict` it may lie instead."""

    name = "faulty"
    effort = None
    reads_logits = False

    def __init__(self, seed: int, n_vocab: int) -> None:
        super().__init__(seed, n_vocab, 3)
        rng = random.Random(seed)
        self.fails_in = rng.choice(("begin", "root", "predict", "advance", "observe"))
        self.calls_left = 0 if self.fails_in == "begin" else rng.randrange(30)
        self.lie = rng.choice((None, *lies(self.name, n_vocab)))

    def begin(self, context: Tokens) -> None:
        self._count("begin")
        super().begin(context)

    def root(self) -> _Place | None:
        self._count("root")
        return super().root()

    def predict(self, state: _Place) -> Sequence[Candidate]:
        if self.lie is not None and self.fails_in == "predict" and self.calls_left == 0:
            return self.lie  # type: ignore[no-any-return]
        self._count("predict")
        return super().predict(state)

    def advance(self, state: _Place, token: int) -> _Place | None:
        self._count("advance")
        return super().advance(state, token)

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        self._count("observe")
        super().observe(emitted, tree, logits)

    def _count(self, call: str) -> None:
        if call == self.fails_in:
            if self.calls_left == 0:
                raise IndexError("faulty on purpose")
            self.calls_left -= 1


def lies(name: str, n_vocab: int) -> list[Any]:
    """Answers that `predict` of the drafter `name` may not give."""
    fine = (0, (name, 1), 0.5)
    tokens: list[Any] = [n_vocab, -1, 10**30, 0.0, True, "0", None, np.int32(0)]
    evidences: list[Any] = [(), ("other",), [name], name, None, (name, [])]
    probs: list[Any] = [
        0, 0.0, -0.5, 1.5, float("nan"), float("inf"), "1", None, 1j, Decimal("0.5"), np.ones(1)
    ]  # fmt: skip
    return [
        *[[(token, (name,), 0.5)] for token in tokens],
        *[[fine, (1, evidence, 0.5)] for evidence in evidences],
        *[[(1, (name,), prob)] for prob in probs],
        [fine, fine],
        [fine[:2]],
        [None],
        None,
        5,
        iter([fine]),
        [(token, (name,), 0.5) for token in range(65)],
    ]


class TriesSizes:
    """A price list that wants many calls, in every size, to be tried."""

    def __init__(self, curve: CostModel, seed: int) -> None:
        self._curve = curve
        self._random = random.Random(seed)

    @property
    def change(self) -> Change:
        """See Pricing."""
        return self._curve.change

    def costs(self, context: int) -> Costs:
        """See Pricing."""
        return self._curve.costs(context)

    def observe(
        self, n: int, context: int, seconds: float | None, *, explored: bool = False
    ) -> None:
        """See Prices."""

    def explore(self, context: int, max_rows: int) -> int | None:
        """See Prices."""
        size = self._random.randint(0, max_rows)
        return size or None


class AsksAtRandom(BackOff):
    """Asks the drafters in some steps and not in others."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def should_draft(self) -> bool:
        """See Pace."""
        return self._random.random() < 0.5


class Witness:
    """A drafter that guesses nothing, and notes the text, its askings and its looks at logits."""

    effort: DraftCost | None = None
    reads_logits = True

    def __init__(self, name: str = "witness") -> None:
        self.name = name
        self.text: list[int] = []
        self.looks: list[bool] = []
        self.n_asked = 0

    def begin(self, context: Tokens) -> None:
        self.text = context.tolist()

    def root(self) -> int:
        self.n_asked += 1
        return 0

    def predict(self, state: int) -> Sequence[Candidate]:
        return ()

    def advance(self, state: int, token: int) -> None:
        return None

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        assert logits.shape[0] == len(tree)
        assert tree.tokens[0] == self.text[-1]
        self.text += emitted
        self.looks.append(logits.size > 0)
