"""The builder: turns candidates of any drafters into one tree.

The expected number of tokens of a tree is 1 + the sum of its nodes' path probabilities, so the
best tree of n nodes holds the n nodes of largest path probability (EAGLE-2's rerank, Li et al.,
arXiv 2406.16858; DySpec, Xiong et al., arXiv 2410.11744). A node is no likelier than its parent,
so taking the best node on offer again and again finds them: see best_first.py. The best n is the
one with most tokens a second under the measured cost of a call (Sequoia, Chen et al., arXiv
2402.12374); 1, drafting nothing, is always a candidate.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from typing import NamedTuple

from specgen.core.cost.strict import StrictPrices, WidthClass
from specgen.core.protocols import Limits, Prices
from specgen.core.tree import DraftTree, Evidence

from .acceptance import AcceptanceModel
from .best_first import BestFirstTree, TreeRequest
from .effort import worth_starting
from .guarded import SafeDrafter

# A draft must promise so many times the tokens a second of plain decoding to be made: the highest
# of many estimates is likely to be too high.
_PREMIUM = 1.05

# Sizes looked ahead to: all small ones, then right edges of the stairs that measured curves have.
_EDGES = (*range(2, 17), 24, 32, 48, 64)

_PADDING: Evidence = ("padding",)


class Choice(NamedTuple):
    """What is drafted next.

    Attributes:
        tree: the draft tokens below the root.
        best_first: how the tree was made, to learn from; None where nothing was on offer.
        asked_slow: whether a drafter whose answers take time was asked.
    """

    tree: DraftTree
    best_first: BestFirstTree | None = None
    asked_slow: bool = False


class Builder:
    """What texts on one backend share: how likely candidates are, what calls cost, how many rows
    a call may have, and which candidates are worth a row.

    Args:
        limits: what the backend can hold and do.
        max_drafts: most draft tokens in a tree.
        branch: whether a tree may have side branches, where the backend can have them.
        acceptance: turns evidence into probabilities, and learns; without one the drafters'
            own estimates count.
        pricing: what a call costs, told what calls took; without it a tree takes all that is on
            offer.
        host_s: seconds of host time that each further row costs.
        eog: tokens that end a text: nothing is drafted behind them.
        strict: widths that calls are padded to; None leaves them as they are.
    """

    def __init__(
        self,
        limits: Limits,
        max_drafts: int,
        *,
        branch: bool = True,
        acceptance: AcceptanceModel | None = None,
        pricing: Prices | None = None,
        host_s: float = 0.0,
        eog: Container[int] = (),
        strict: WidthClass | None = None,
    ) -> None:
        can_branch = branch and limits.can_branch and (strict is None or strict.branch)
        self.n_vocab = limits.n_vocab
        self.acceptance = acceptance
        self._max_drafts = max_drafts
        self._max_rows = min(limits.max_rows, strict.largest) if strict else limits.max_rows
        self._max_leaves = limits.max_leaves if can_branch else 1
        self._pricing = StrictPrices(pricing, strict) if pricing and strict else pricing
        self._host_s = host_s
        self._eog = eog
        self._strict = strict

    def request(
        self, root: int, n_pending: int, context: int, *, depth: int, free: int
    ) -> TreeRequest:
        """What the next tree is to be made for.

        Args:
            root: the last token of the text.
            n_pending: rows that go ahead of the tree.
            context: committed tokens.
            depth: most draft tokens on a path.
            free: cells that are left for draft tokens.
        """
        budget = min(self._max_rows - n_pending - 1, free, self._max_drafts)
        return TreeRequest(root, budget, depth, n_pending, context, self.costs(context))

    def build(self, request: TreeRequest, drafters: Sequence[SafeDrafter], run: int) -> Choice:
        """The tree of `drafters` that is worth most.

        `run` counts the accepted first choices in a row, up to the root.
        """
        if request.budget <= 0 or request.depth <= 0:
            return Choice(DraftTree.root(request.root))
        quick = [each for each in drafters if not each.is_slow]
        slow = [each for each in drafters if each.is_slow]
        # Without costs all are asked, and there is nothing to compare with.
        if request.costs is not None or not slow:
            draft = self._grown(request, quick, run)
            slow = [each for each in slow if _is_worth_starting(each, request, draft.rate)]
        if slow:
            draft = self._grown(request, (*quick, *slow), run)
        best_first = draft.best_first
        tree = best_first.tree(draft.n_nodes) if best_first else DraftTree.root(request.root)
        return Choice(tree, best_first, asked_slow=bool(slow))

    def _grown(self, request: TreeRequest, drafters: Sequence[SafeDrafter], run: int) -> _Grown:
        """The best tree that `drafters` have candidates for."""
        costs = request.costs
        plain = _PREMIUM / (costs[request.n_pending] + self._host_s) if costs else 0.0
        live = [(each, state) for each in drafters if (state := each.root()) is not None]
        if not live:
            return _Grown(None, 1, plain)
        best_first = BestFirstTree(
            request,
            self._max_leaves,
            acceptance=self.acceptance,
            run=run,
            eog=self._eog,
            live=live,
        )
        if costs is not None:
            return self._sized(best_first, costs, request.n_pending, plain)
        while best_first.best() is not None:
            best_first.take()
        return _Grown(best_first, best_first.n_nodes, plain)

    def _sized(
        self, best_first: BestFirstTree, costs: Sequence[float], n_pending: int, plain: float
    ) -> _Grown:
        """Let the tree grow while a larger one may still bring more tokens a second."""
        host = self._host_s
        expected = 1.0
        n_best, best = 1, plain
        while (path := best_first.best()) is not None:
            if not best_first.take():
                continue
            expected += path
            n = n_pending + best_first.n_nodes
            rate = expected / (costs[n - 1] + host * best_first.n_nodes)
            if rate > best:
                n_best, best = best_first.n_nodes, rate
                continue
            for edge in _EDGES[bisect_right(_EDGES, n) :]:
                more = edge - n  # even if they all were as likely as this one
                cost = costs[edge - 1] + host * (best_first.n_nodes + more)
                if (expected + path * more) / cost > best:
                    break
            else:
                break
        return _Grown(best_first, n_best, best)

    def padded(self, tree: DraftTree, text: Sequence[int], n_pending: int) -> DraftTree:
        """The tree with as many rows as the width class wants, behind `n_pending` others."""
        if self._strict is None:
            return tree
        return _extended(tree, text, self._strict.padded(n_pending + len(tree)) - n_pending)

    def probed(self, tree: DraftTree, text: Sequence[int], request: TreeRequest) -> DraftTree:
        """The tree with as many rows as are worth trying, to see what such a call costs."""
        if self._pricing is None:
            return tree
        largest = request.n_pending + 1 + request.budget
        size = self._pricing.explore(request.context, largest)
        return tree if size is None else _extended(tree, text, size - request.n_pending)

    def observe(self, request: TreeRequest, n_wanted: int, n_scored: int, seconds: float) -> None:
        """A call took `seconds`: `n_wanted` nodes were drafted, and padded to `n_scored`."""
        if self._pricing is not None:
            is_probe = self._strict is None and n_scored > n_wanted
            n_rows = request.n_pending + n_scored
            self._pricing.observe(n_rows, request.context, seconds, explored=is_probe)

    def costs(self, context: int) -> Sequence[float] | None:
        """Seconds of a call with 1, 2, … rows, where they are known."""
        return None if self._pricing is None else self._pricing.costs(context)


class _Grown(NamedTuple):
    """A tree, the size to take of it, and how many tokens a second it promises."""

    best_first: BestFirstTree | None
    n_nodes: int
    rate: float


def _extended(tree: DraftTree, text: Sequence[int], size: int) -> DraftTree:
    """The tree with at least `size` nodes."""
    missing = size - len(tree)
    return tree.extended(filler(text, missing), _PADDING) if missing > 0 else tree


def filler(text: Sequence[int], n: int) -> Sequence[int]:
    """`n` tokens to pad a call with: the end of the text, which is repeated where it is shorter.

    One token over and over would use the same experts of a mixture again and again.
    """
    return (list(text[-n:]) * n)[:n]


def _is_worth_starting(drafter: SafeDrafter, request: TreeRequest, rate: float) -> bool:
    """Whether it can be asked and may bring more than the `rate` that there is without it."""
    effort, costs = drafter.effort, request.costs
    budget = min(request.budget, request.depth)
    if effort and costs and not worth_starting(effort, costs, request.n_pending, budget, rate):
        return False
    return drafter.root() is not None
