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

from specgen.core.protocols import Drafter, ModelDrafter, Pricing
from specgen.core.tree import DraftTree

from .acceptance import AcceptanceModel
from .best_first import BestFirstTree, TreeRequest
from .effort import worth_starting

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
        acceptance model: turns evidence into probabilities, and learns; without one the drafters'
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
        acceptance: AcceptanceModel | None = None,
        pricing: Pricing | None = None,
        host_s: float = 0.0,
        eog: Container[int] = (),
    ) -> None:
        self._eog = eog
        self._costly = [each for each in drafters if getattr(each, "effort", None) is not None]
        self._cheap = [each for each in drafters if each not in self._costly]
        self._max_drafts = max_drafts
        self._max_leaves = max_leaves if branch else 1
        self._acceptance = acceptance
        self._pricing = pricing
        self._host_s = host_s
        self._run = 0  # emitted tokens in a row that were the first choice
        self._best_first: BestFirstTree | None = None
        self.asked_costly = False

    def begin(self) -> None:
        """Another text begins, or the text goes on with another turn."""
        self._run = 0
        self._best_first = None
        if self._acceptance is not None:
            self._acceptance.begin()

    def build(
        self,
        root: int,
        budget: int,
        depth: int,
        *,
        context: int = 0,
        n_pending: int = 0,
        paused: Container[Drafter] = (),
    ) -> DraftTree:
        """The best tree below `root` with at most `budget` guesses, none deeper than `depth`.

        `context` tokens are committed, and `n_pending` rows go ahead of the tree. Drafters that are
        `paused` are not asked.
        """
        self._best_first = None
        self.asked_costly = False
        request = TreeRequest(
            root, min(budget, self._max_drafts), depth, n_pending, self._row(context)
        )
        if request.budget <= 0 or depth <= 0:
            return DraftTree.root(root)
        cheap = [each for each in self._cheap if each not in paused]
        # Without prices all are asked, and there is nothing to compare with.
        draft = None if request.row is None else self._drafted(request, cheap)
        costly = [
            each
            for each in self._costly
            if draft is None or _is_worth_starting(each, request, draft.rate)
        ]
        self.asked_costly = bool(costly)
        if draft is None or costly:
            draft = self._drafted(request, (*cheap, *costly))
        self._best_first = draft.best_first
        return draft.best_first.tree(draft.n_nodes) if draft.best_first else DraftTree.root(root)

    def _row(self, context: int) -> Sequence[float] | None:
        return None if self._pricing is None else self._pricing.row(context)

    def _drafted(self, request: TreeRequest, drafters: Sequence[Drafter]) -> _Draft:
        """What `drafters` make of it."""
        row = request.row
        plain = _PREMIUM / (row[request.n_pending] + self._host_s) if row else 0.0
        live = [(each, state) for each in drafters if (state := each.root()) is not None]
        if not live:
            return _Draft(None, 1, plain)
        best_first = BestFirstTree(
            request,
            self._max_leaves,
            acceptance=self._acceptance,
            run=self._run,
            costly=self._costly,
            eog=self._eog,
            live=live,
        )
        if row is None:
            while best_first.best() is not None:
                best_first.take()
            return _Draft(best_first, best_first.n_nodes, plain)
        return self._grow(best_first, row, request.n_pending, plain)

    def _grow(
        self, best_first: BestFirstTree, row: Sequence[float], n_pending: int, plain: float
    ) -> _Draft:
        """Let the tree grow while a larger one may still bring more tokens a second."""
        host = self._host_s
        expected = 1.0
        n_best, best = 1, plain
        while (path := best_first.best()) is not None:
            if not best_first.take():
                continue
            expected += path
            n = n_pending + best_first.n_nodes
            rate = expected / (row[n - 1] + host * best_first.n_nodes)
            if rate > best:
                n_best, best = best_first.n_nodes, rate
                continue
            for edge in _EDGES[bisect_right(_EDGES, n) :]:
                more = edge - n  # even if they all were as likely as this one
                cost = row[edge - 1] + host * (best_first.n_nodes + more)
                if (expected + path * more) / cost > best:
                    break
            else:
                break
        return _Draft(best_first, n_best, best)

    def learn(self, emitted: Sequence[int]) -> None:
        """Tell the acceptance model what became of the last tree's guesses, scored or not.

        Only children of nodes that were right are counted: of others nothing is known.
        """
        best_first, acceptance = self._best_first, self._acceptance
        if acceptance is None:
            return
        node = 0
        for token in emitted:
            first, matching = (None, 0) if best_first is None else best_first.judge(node, token)
            self._run = self._run + 1 if first == token else 0
            if best_first is None or not matching:
                best_first = None
                continue
            node = matching


class _Draft(NamedTuple):
    """A tree, the size to take of it, and how many tokens a second it promises."""

    best_first: BestFirstTree | None
    n_nodes: int
    rate: float


def _is_worth_starting(drafter: Drafter, request: TreeRequest, rate: float) -> bool:
    """Whether it can be asked and may bring more than the `rate` that there is without it."""
    effort, budget = cast("ModelDrafter", drafter).effort, min(request.budget, request.depth)
    if request.row is not None and not worth_starting(
        effort, request.row, request.n_pending, budget, rate
    ):
        return False
    return drafter.root() is not None
