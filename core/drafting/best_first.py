"""A draft tree while it grows, the likeliest node first.

Drafters are asked, and candidates estimated, only as far as it has to be known which node comes
next: not below a tree's last node, and not beside a candidate that leaves its siblings no chance.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from specgen.core.tree import DraftTree, Evidence

from .acceptance import AcceptanceModel, Estimate
from .effort import worth_extending
from .guarded import SafeDrafter

# The drafters that know something here, each with its state.
_Live: TypeAlias = list[tuple[SafeDrafter, Any]]

# Path probability, minus the number of the offer (the earlier of equals is the better one),
# parent, token, probability, evidence, and the acceptance model's estimate.
_Offer: TypeAlias = tuple[float, int, int, int, float, tuple[Evidence, ...], "Estimate | None"]

# The token of an offer that stands for all further children of a node. At most one child is
# accepted, so they are worth no more than the first one leaves, and mostly need no estimate.
_SIBLINGS = -1

# A candidate without an estimate: how likely its drafters think it, the token, their evidence.
_Merged: TypeAlias = tuple[float, int, tuple[Evidence, ...]]
_CHANCE = itemgetter(0)

# A candidate must be about as likely as its row is expensive, as a share of a plain call. Estimates
# take time, so those that their drafters think far less likely get none.
_LEAST_SHARE = 0.2


class TreeRequest(NamedTuple):
    """What a tree is to be made for."""

    root: int  # the last token of the text
    budget: int  # most draft tokens
    depth: int  # most draft tokens on a path
    n_pending: int  # rows ahead of the tree
    context: int  # committed tokens
    costs: Sequence[float] | None  # seconds of a call with 1, 2, … rows, where they are known


class BestFirstTree:
    """The nodes taken so far, and the offers of further ones.

    Args:
        request: what the tree is for.
        max_leaves: most leaves.
        acceptance: estimates candidates; without one the drafters' own estimates count.
        run: accepted first choices in a row, up to the root.
        eog: tokens that nothing is drafted behind.
        live: drafters that know something at the root, each with its state.
    """

    def __init__(
        self,
        request: TreeRequest,
        max_leaves: int,
        *,
        acceptance: AcceptanceModel | None,
        run: int,
        eog: Container[int],
        live: _Live,
    ) -> None:
        self._eog = eog
        self._request = request
        self._acceptance = acceptance
        self._least = _least(request)
        self._run = run
        self._offers: list[_Offer] = []  # the best one last
        self._waiting: dict[int, list[_Merged]] = {}  # children by parent, with one offer for all
        self._max_leaves = max_leaves
        self._n_offers = 0
        self._n_leaves = 1
        self._nodes: list[_Offer] = [(1.0, 0, -1, request.root, 1.0, (), None)]
        self._live = [live]  # who knows something below each node, once that was asked
        self._depths = [0]
        self._first_child = [0]  # of each node, the likeliest; 0 where there is none
        self._is_asked = False  # what comes below the last node

    @property
    def n_nodes(self) -> int:
        """Nodes taken, the root included."""
        return len(self._nodes)

    def best(self) -> float | None:
        """The path probability of the best offer; None if there is none, or no room for it."""
        if self.n_nodes > self._request.budget:
            return None
        if not self._is_asked:
            self._is_asked = True
            self._ask(len(self._nodes) - 1)
        offers = self._offers
        while offers and offers[-1][3] == _SIBLINGS:
            self._offer_siblings()
        return offers[-1][0] if offers else None

    def _ask(self, node: int) -> None:
        """Put the children of `node` on offer."""
        path, _, parent, token, _, _, _ = self._nodes[node]
        if node:
            if self._depths[node] >= self._request.depth or token in self._eog:
                return
            self._live[node] = self._below(self._live[parent], path, token)
        candidates = self._merged(self._live[node])
        if self._acceptance is None:
            for candidate in candidates:
                self._estimate(node, candidate, 1.0)
        elif candidates:
            candidates.sort(key=_CHANCE, reverse=True)
            left = 1 - self._estimate(node, candidates[0], 1.0)
            if len(candidates) > 1:
                self._waiting[node] = candidates[1:]
                self._offer(node, _SIBLINGS, left, (), None)

    def _below(self, live: _Live, path: float, token: int) -> _Live:
        """Those of `live`, at its parent, who know something behind the last node, `token`."""
        below: _Live = []
        for drafter, state in live:
            if drafter.is_slow and not self._is_worth_extending(drafter, path):
                continue
            if (after := drafter.advance(state, token)) is not None:
                below.append((drafter, after))
        return below

    def _merged(self, live: _Live) -> list[_Merged]:
        """Their candidates, each token once."""
        merged: dict[int, _Merged] = {}
        for drafter, state in live:
            for token, evidence, prob in drafter.predict(state):
                if token in merged:
                    other, _, known = merged[token]
                    merged[token] = (max(prob, other), token, (*known, evidence))
                else:
                    merged[token] = (prob, token, (evidence,))
        return [candidate for candidate in merged.values() if candidate[0] >= self._least]

    def _offer_siblings(self) -> None:
        """Put in the place of the best offer those that it stands for."""
        _, _, parent, _, left, _, _ = self._offers.pop()
        for merged in self._waiting.pop(parent):
            left = max(0.0, left - self._estimate(parent, merged, left))

    def _estimate(self, parent: int, merged: _Merged, most: float) -> float:
        """Put a candidate on offer, and return its probability: at `most` what siblings leave."""
        prob, token, evidence = merged
        candidate = None
        if self._acceptance is not None:
            run = self._run + self._depths[parent]
            candidate = self._acceptance.estimate(evidence, prob, token, run)
            prob = min(candidate[0], most)
        self._offer(parent, token, prob, evidence, candidate)
        return prob

    def _offer(
        self,
        parent: int,
        token: int,
        prob: float,
        evidence: tuple[Evidence, ...],
        candidate: Estimate | None,
    ) -> None:
        self._n_offers += 1
        path = self._nodes[parent][0] * prob
        insort(self._offers, (path, -self._n_offers, parent, token, prob, evidence, candidate))

    def take(self) -> bool:
        """Move the best offer into the tree; False if it would have been one leaf too many."""
        best = self._offers.pop()
        parent = best[2]
        node = len(self._nodes)
        if not self._first_child[parent]:
            self._first_child[parent] = node
        elif self._n_leaves < self._max_leaves:
            self._n_leaves += 1
        else:
            return False
        self._nodes.append(best)
        self._depths.append(self._depths[parent] + 1)
        self._first_child.append(0)
        self._live.append([])
        self._is_asked = False
        return True

    def fill(self, n: int) -> None:
        """Take what is best until there are `n` nodes, or nothing is on offer."""
        while self.n_nodes < n and self.best() is not None:
            self.take()

    def _is_worth_extending(self, drafter: SafeDrafter, path: float) -> bool:
        """Whether to ask it below the last node."""
        request, effort = self._request, drafter.effort
        costs = request.costs
        if costs is None or effort is None:
            return True
        n_rows = request.n_pending + self.n_nodes
        most = request.n_pending + 1 + request.budget
        return worth_extending(effort, path, costs, n_rows, most)

    def learn(self, node: int, token: int) -> tuple[int | None, int]:
        """Let the acceptance model learn that `token` followed `node`.

        Returns the token that was the first choice, or None, and the child with `token`, or 0.
        """
        matching = 0
        first = self._first_child[node]
        for child in range(first, len(self._nodes) if first else 0):
            offer = self._nodes[child]
            if offer[2] == node:
                if offer[3] == token:
                    matching = child
                if self._acceptance is not None and offer[6] is not None:
                    self._acceptance.learn(offer[6], offer[3] == token)
        return (self._nodes[first][3] if first else None), matching

    def tree(self, n: int) -> DraftTree:
        """The first `n` nodes, main chain first: from each node on, its likeliest child."""
        nodes = self._nodes[:n]
        n = len(nodes)
        order = [0]
        while 0 < (child := self._first_child[order[-1]]) < n:
            order.append(child)
        if len(order) == n:  # a chain, taken from its beginning to its end
            _, _, parents, tokens, probs, evidence, _ = zip(*nodes, strict=True)
            return DraftTree(tokens, parents, probs, evidence)
        main = set(order)
        order += [node for node in range(n) if node not in main]
        place = [-1] * (n + 1)  # the last for -1, the parent of the root
        for i, node in enumerate(order):
            place[node] = i
        _, _, parents, tokens, probs, evidence, _ = zip(*[nodes[i] for i in order], strict=True)
        return DraftTree(tokens, tuple([place[parent] for parent in parents]), probs, evidence)


def _least(request: TreeRequest) -> float:
    """How likely a candidate must be at least to be worth its row."""
    costs, n = request.costs, request.n_pending
    return 0.0 if costs is None else _LEAST_SHARE * (costs[n + 1] - costs[n]) / costs[n]
