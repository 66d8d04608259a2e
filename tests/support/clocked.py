"""Fake models whose calls move a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from specgen.core.cost.gear import FREE, Gear
from specgen.core.cost.model import CostModel
from specgen.core.cost.timed import TimedBackend
from specgen.core.protocols import Change, Limits, Tokens
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree

TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]


class ClockedBackend(FakeBackend):
    """Calls take what the test says, and more behind another width or a prompt.

    Args:
        cost: seconds of a call, by its rows and the committed tokens.
        limits: as of FakeBackend.
        change: what calls of a new width take more.
        load: how many times longer a call takes, by its number.
        token_s: seconds of a token of a prompt.
        shared: the time that several go by.

    Attributes:
        widths: rows of each call.
    """

    def __init__(
        self,
        cost: Callable[[int, int], float],
        limits: Limits,
        *,
        change: Change = FREE,
        load: Callable[[int], float] = lambda call: 1.0,
        token_s: float = 1e-3,
        shared: list[float] | None = None,
    ) -> None:
        super().__init__(HashModel(limits.n_vocab), limits)
        self.cost, self.change = cost, change
        self.widths: list[int] = []
        self._load, self._token_s, self._gear = load, token_s, Gear()
        self._time = [0.0] if shared is None else shared

    def clock(self) -> float:
        """The time."""
        return self._time[0]

    def timed(self) -> TimedBackend:
        """This backend, a text and its clock."""
        return TimedBackend(self, TEXT, self.clock)

    def prefill(self, tokens: Tokens) -> None:
        """See Backend."""
        super().prefill(tokens)
        self._gear = Gear()
        self._time[0] += self._token_s * len(tokens)

    def submit(self, tree: DraftTree, pending: Sequence[int]) -> None:
        """See Backend."""
        n = len(pending) + len(tree)
        seconds = self.cost(n, self.length) + self._gear.extra_s(n, self.change)
        self._gear = self._gear.after(n)
        self._time[0] += seconds * self._load(self.calls)
        self.widths.append(n)
        super().submit(tree, pending)


class CurvedBackend(ClockedBackend):
    """Calls take what a curve says."""

    def __init__(self, curve: CostModel, limits: Limits | None = None, **options: Any) -> None:
        limits = limits or fake_limits(16, n_ctx=512)
        super().__init__(curve.seconds, limits, change=curve.change, **options)
        self.curve = curve

    def filled(self, n: int) -> CurvedBackend:
        """This one, with `n` more tokens in its cache."""
        tokens = np.arange(n, dtype=np.int32) % self.limits.n_vocab
        for start in range(0, n, self.limits.chunk):
            self.prefill(tokens[start : start + self.limits.chunk])
        return self


def stair(n: int, context: int) -> float:
    """What a call takes: a stair at four rows, rising with the context."""
    return 1e-3 * (1.0 + -(-n // 4)) * (1 + context / 100)


class StairBackend(ClockedBackend):
    """Calls take what `stair` says, and everything `factor` times as long."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        factor: float = 1.0,
        token_s: float = 1e-4,
        **options: Any,
    ) -> None:
        super().__init__(
            lambda n, context: factor * stair(n, context),
            limits or fake_limits(16, n_ctx=128),
            token_s=factor * token_s,
            **options,
        )
