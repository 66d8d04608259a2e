"""A fake model whose calls move a clock, by a curve and by what changes of width take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from specgen.core.cost.gear import Gear
from specgen.core.cost.model import CostModel
from specgen.core.protocols import Limits, Logits, Tokens
from specgen.core.testing.fakes import FakeBackend, HashModel, fake_limits
from specgen.core.tree import DraftTree


class CurvedBackend(FakeBackend):
    """Calls take what a curve says, and more behind another width or a prompt.

    Args:
        curve: see above.
        limits: as of FakeBackend.
        load: how many times longer a call takes, by its number.
        token_s: seconds of a token of a prompt.

    Attributes:
        now: the time.
        widths: rows of each call.
    """

    def __init__(
        self,
        curve: CostModel,
        limits: Limits | None = None,
        *,
        load: Callable[[int], float] = lambda call: 1.0,
        token_s: float = 1e-3,
    ) -> None:
        limits = limits or fake_limits(16, n_ctx=512)
        super().__init__(HashModel(limits.n_vocab), limits)
        self.curve, self.now = curve, 0.0
        self.widths: list[int] = []
        self._load, self._token_s, self._gear = load, token_s, Gear()

    def clock(self) -> float:
        """The time."""
        return self.now

    def filled(self, n: int) -> CurvedBackend:
        """This one, with `n` more tokens in its cache."""
        tokens = np.arange(n, dtype=np.int32) % self.limits.n_vocab
        for start in range(0, n, self.limits.chunk):
            self.prefill(tokens[start : start + self.limits.chunk])
        return self

    def prefill(self, tokens: Tokens) -> None:
        """See Backend."""
        super().prefill(tokens)
        self._gear = Gear()
        self.now += self._token_s * len(tokens)

    def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
        """See Backend."""
        n = len(pending) + len(tree)
        seconds = self.curve.seconds(n, self.length) + self._gear.extra_s(n, self.curve.change)
        self._gear = self._gear.after(n)
        self.now += seconds * self._load(len(self.widths))
        self.widths.append(n)
        return super().score(tree, pending)
