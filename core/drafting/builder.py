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
from .gears import PREMIUM, Gears, believed
from .guarded import SafeDrafter
from .outlook import Trend

# Widths of calls: all small ones, then right edges of the stairs that measured curves have.
EDGES = (*range(1, 17), 20, 24, 32, 48, 64)

_PADDING: Evidence = ("padding",)


class Choice(NamedTuple):
    """What is drafted next.

    Attributes:
        tree: the draft tokens below the root.
        width: rows that the call is to have; what is missing is filled up.
        best_first: how the tree was made, to learn from; None where nothing was on offer.
        asked_slow: whether a drafter whose answers take time was asked.
    """

    tree: DraftTree
    width: int
    best_first: BestFirstTree | None = None
    asked_slow: bool = False


class TextState(NamedTuple):
    """What the choice depends on besides the candidates.

    Attributes:
        run: accepted first choices in a row, up to the root.
        trend: what drafts promised lately.
    """

    run: int
    trend: Trend


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
        self._costs_of: Sequence[float] = ()
        self._with_host: Sequence[float] = ()
        # Without prices there is nothing to choose by.
        widths = strict.widths if strict else [n for n in EDGES if n <= self._max_rows]
        self._gears = Gears(widths) if pricing else None

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
        return TreeRequest(root, budget, depth, n_pending, context, self._step_costs(context))

    def build(
        self, request: TreeRequest, drafters: Sequence[SafeDrafter], text: TextState
    ) -> Choice:
        """The tree of `drafters` that is worth most at a point of the text."""
        if request.budget <= 0 or request.depth <= 0:
            return Choice(DraftTree.root(request.root), self.least_width(request.n_pending))
        quick = [each for each in drafters if not each.is_slow]
        slow = [each for each in drafters if each.is_slow]
        # Without costs all are asked, and there is nothing to compare with.
        if request.costs is not None or not slow:
            grown = self._grown(request, quick, text.run)
            rate = PREMIUM * grown.rate
            slow = [each for each in slow if _is_worth_starting(each, request, rate)]
        if slow:
            grown = self._grown(request, (*quick, *slow), text.run)
        width = self._width(request, grown, text.trend)
        best_first, n_nodes = grown.best_first, width - request.n_pending
        if best_first is None:
            return Choice(DraftTree.root(request.root), width)
        if request.costs is not None:
            best_first.fill(n_nodes)
        return Choice(best_first.tree(n_nodes), width, best_first, asked_slow=bool(slow))

    def least_width(self, n_pending: int) -> int:
        """Rows of a call without draft tokens behind `n_pending` others."""
        return self._strict.padded(n_pending + 1) if self._strict else n_pending + 1

    def _width(self, request: TreeRequest, grown: _Grown, trend: Trend) -> int:
        """Rows of the next call."""
        n_rows = request.n_pending + len(grown.expected)
        if self._pricing is None or self._gears is None or request.costs is None:
            return self._strict.padded(n_rows) if self._strict else n_rows
        trend.promised(grown.expected)
        most = request.n_pending + 1 + request.budget
        width = self._gears.choose(
            grown.expected,
            trend.value,
            request.n_pending,
            request.costs,
            self._pricing.change,
            most,
        )
        # Behind many pending rows the least width may be more than there is room for.
        return width if self._strict else min(width, most)

    def _grown(self, request: TreeRequest, drafters: Sequence[SafeDrafter], run: int) -> _Grown:
        """The tree that `drafters` have candidates for, as far as it may pay."""
        costs = request.costs
        live = [(each, state) for each in drafters if (state := each.root()) is not None]
        if not live:
            return _Grown(None, [1.0], 1 / costs[request.n_pending] if costs else 0.0)
        best_first = BestFirstTree(
            request,
            self._max_leaves,
            acceptance=self.acceptance,
            run=run,
            eog=self._eog,
            live=live,
        )
        return self._extended(best_first, request)

    def _extended(self, best_first: BestFirstTree, request: TreeRequest) -> _Grown:
        """The tree with all nodes that may pay; all that are on offer where no price is known."""
        costs, expected = request.costs, [1.0]
        if costs is None:
            while best_first.best() is not None:
                if best_first.take():
                    expected.append(0.0)
            return _Grown(best_first, expected, 0.0)
        n, rate = request.n_pending, 1 / costs[request.n_pending]
        # The likeliest is taken in any case: what becomes of it is learnt.
        while (path := best_first.best()) is not None:
            if not best_first.take():
                continue
            expected.append(expected[-1] + path)
            promised = believed(expected[-1]) / costs[n + len(expected) - 1]
            if promised > rate:
                rate = promised
            elif not self._may_pay(n + len(expected), expected[-1], path, rate, costs):
                break
        return _Grown(best_first, expected, rate)

    def _may_pay(
        self, n: int, expected: float, path: float, rate: float, costs: Sequence[float]
    ) -> bool:
        """Whether more than `n` rows may bring more than `rate` tokens a second, or are there
        anyway; even if all others were as likely as the last one, `path`.
        """
        if self._gears is not None and n < self._gears.last.width:
            return True
        edges = EDGES[bisect_right(EDGES, n) :]
        return any(
            believed(expected + path * (edge - n)) > rate * costs[edge - 1] for edge in edges
        )

    def filled(self, tree: DraftTree, text: Sequence[int], n_pending: int, width: int) -> DraftTree:
        """The tree with what is missing to `width` rows behind `n_pending` others."""
        missing = width - n_pending - len(tree)
        return tree.extended(filler(text, missing), _PADDING) if missing > 0 else tree

    def explored(self, request: TreeRequest) -> int:
        """Rows that are worth trying, to see what such a call costs; 0 if none are."""
        if self._pricing is None:
            return 0
        most = request.n_pending + 1 + request.budget
        return self._pricing.explore(request.context, most) or 0

    def called(self, n_rows: int) -> None:
        """A call with `n_rows` rows was made."""
        if self._gears is not None:
            self._gears.called(n_rows)

    def observe(self, n_rows: int, context: int, seconds: float | None, *, explored: bool) -> None:
        """A call with `n_rows` rows at `context` committed tokens took `seconds`, see Prices.

        `explored` says that it would have had fewer, but to see what they cost.
        """
        if self._pricing is not None:
            self._pricing.observe(n_rows, context, seconds, explored=explored)

    def _step_costs(self, context: int) -> Sequence[float] | None:
        """The same with the host's time."""
        costs = self.costs(context)
        if costs is not None and costs is not self._costs_of:
            self._costs_of = costs
            self._with_host = [cost + self._host_s * n for n, cost in enumerate(costs)]
        return None if costs is None else self._with_host

    def costs(self, context: int) -> Sequence[float] | None:
        """Seconds of a call with 1, 2, … rows, where they are known."""
        return None if self._pricing is None else self._pricing.costs(context)


class _Grown(NamedTuple):
    """A tree, what 1, 2, … nodes of it promise, and the most tokens a second that they do."""

    best_first: BestFirstTree | None
    expected: list[float]
    rate: float


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
