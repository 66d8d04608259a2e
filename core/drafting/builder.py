"""The builder: turns any set of drafters into one tree.

The expected number of tokens of a tree is 1 + the sum of its nodes' path probabilities, so the
best tree of n nodes holds the n nodes of largest path probability (EAGLE-2's rerank, Li et al.,
arXiv 2406.16858; DySpec, Xiong et al., arXiv 2410.11744). A node is no likelier than its parent,
so taking the best node on offer again and again finds them: see growth.py. The best n is the one
with most tokens a second under the measured cost of a call (Sequoia, Chen et al., arXiv
2402.12374); 1, drafting nothing, is always a candidate.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from typing import NamedTuple, cast

from specgen.core.protocols import CostlyDrafter, Drafter, Pricing
from specgen.core.tree import DraftTree

from .acceptance import Calibrator
from .best_first import Growth, Place
from .effort import pays

# How many times as many tokens a second as plain decoding a draft must promise to be made: of many
# estimates the highest is likely to be too high.
_PREMIUM = 1.05

# Sizes looked ahead to: all small ones, then right edges of the stairs that measured curves have.
_EDGES = (*range(2, 17), 24, 32, 48, 64)


class Builder:
    """Merges the guesses of drafters into the tree that is worth most.

    Args:
        drafters: guess what comes next.
        max_drafts: most guesses in a tree.
        max_leaves: most leaves of a tree.
        branch: whether a tree may have side branches.
        calibrator: turns evidence into probabilities, and learns; without one the drafters'
            own estimates count.
        pricing: what a call costs; without it a tree takes all that is on offer.
        host_s: seconds of host time that each further row costs.
        eog: tokens that end a text: nothing is drafted behind them.

    Attributes:
        asked_costly: whether a drafter whose answers take time was asked for the last tree.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        max_drafts: int,
        *,
        max_leaves: int,
        branch: bool,
        calibrator: Calibrator | None = None,
        pricing: Pricing | None = None,
        host_s: float = 0.0,
        eog: Container[int] = (),
    ) -> None:
        self._eog = eog
        self._costly = [each for each in drafters if getattr(each, "effort", None) is not None]
        self._cheap = [each for each in drafters if each not in self._costly]
        self._max_drafts = max_drafts
        self._max_leaves = max_leaves if branch else 1
        self._calibrator = calibrator
        self._pricing = pricing
        self._host_s = host_s
        self._run = 0  # emitted tokens in a row that were the first choice
        self._growth: Growth | None = None
        self.asked_costly = False

    def begin(self) -> None:
        """Another text begins, or the text goes on with another turn."""
        self._run = 0
        self._growth = None
        if self._calibrator is not None:
            self._calibrator.begin()

    def build(
        self,
        root: int,
        room: int,
        depth: int,
        *,
        context: int = 0,
        n_lead: int = 0,
        resting: Container[Drafter] = (),
    ) -> DraftTree:
        """The best tree below `root` with at most `room` guesses, none deeper than `depth`.

        `context` tokens are committed, and `n_lead` rows go ahead of the tree. Drafters that are
        `resting` are not asked.
        """
        self._growth = None
        self.asked_costly = False
        place = Place(root, min(room, self._max_drafts), depth, n_lead, self._row(context))
        if place.room <= 0 or depth <= 0:
            return DraftTree.root(root)
        cheap = [each for each in self._cheap if each not in resting]
        # Without prices all are asked, and there is nothing to compare with.
        draft = None if place.row is None else self._drafted(place, cheap)
        costly = [each for each in self._costly if draft is None or _pays(each, place, draft.rate)]
        self.asked_costly = bool(costly)
        if draft is None or costly:
            draft = self._drafted(place, (*cheap, *costly))
        self._growth = draft.growth
        return draft.growth.tree(draft.n_nodes) if draft.growth else DraftTree.root(root)

    def _row(self, context: int) -> Sequence[float] | None:
        return None if self._pricing is None else self._pricing.row(context)

    def _drafted(self, place: Place, drafters: Sequence[Drafter]) -> _Draft:
        """What `drafters` make of it."""
        row = place.row
        plain = _PREMIUM / (row[place.n_lead] + self._host_s) if row else 0.0
        live = [(each, state) for each in drafters if (state := each.root()) is not None]
        if not live:
            return _Draft(None, 1, plain)
        growth = Growth(
            place,
            self._max_leaves,
            calibrator=self._calibrator,
            run=self._run,
            costly=self._costly,
            eog=self._eog,
            live=live,
        )
        if row is None:
            while growth.best() is not None:
                growth.take()
            return _Draft(growth, growth.n_nodes, plain)
        return self._grow(growth, row, place.n_lead, plain)

    def _grow(self, growth: Growth, row: Sequence[float], n_lead: int, plain: float) -> _Draft:
        """Let the tree grow while a larger one may still bring more tokens a second."""
        host = self._host_s
        expected = 1.0
        n_best, best = 1, plain
        while (path := growth.best()) is not None:
            if not growth.take():
                continue
            expected += path
            n = n_lead + growth.n_nodes
            rate = expected / (row[n - 1] + host * growth.n_nodes)
            if rate > best:
                n_best, best = growth.n_nodes, rate
                continue
            for edge in _EDGES[bisect_right(_EDGES, n) :]:
                more = edge - n  # even if they all were as likely as this one
                cost = row[edge - 1] + host * (growth.n_nodes + more)
                if (expected + path * more) / cost > best:
                    break
            else:
                break
        return _Draft(growth, n_best, best)

    def learn(self, emitted: Sequence[int]) -> None:
        """Tell the calibrator what became of the last tree's guesses, scored or not.

        Only children of nodes that were right are counted: of others nothing is known.
        """
        growth, calibrator = self._growth, self._calibrator
        if calibrator is None:
            return
        node = 0
        for token in emitted:
            first, matching = (None, 0) if growth is None else growth.judge(node, token)
            self._run = self._run + 1 if first == token else 0
            if growth is None or not matching:
                growth = None
                continue
            node = matching


class _Draft(NamedTuple):
    """A tree, the size to take of it, and how many tokens a second it promises."""

    growth: Growth | None
    n_nodes: int
    rate: float


def _pays(drafter: Drafter, place: Place, rate: float) -> bool:
    """Whether it can be asked and may bring more than the `rate` that there is without it."""
    effort, room = cast("CostlyDrafter", drafter).effort, min(place.room, place.depth)
    if place.row is not None and not pays(effort, place.row, place.n_lead, room, rate):
        return False
    return drafter.root() is not None
