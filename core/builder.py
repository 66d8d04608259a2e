"""The builder: turns any set of drafters into one tree.

The expected number of tokens of a tree is 1 + the sum of its nodes' path probabilities, so the
best tree of n nodes holds the n nodes of largest path probability (EAGLE-2's rerank, Li et al.,
arXiv 2406.16858; DySpec, Xiong et al., arXiv 2410.11744). A node is no likelier than its parent,
so taking the best node on offer again and again finds them.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import Any, TypeAlias

from .protocols import Drafter
from .tree import DraftTree, Evidence

# The drafters that know something here, each with its state.
_Live: TypeAlias = list[tuple[Drafter, Any]]

# Path probability, minus the number of the offer (the earlier of equals is the better one),
# parent, token, probability, evidence, and who knew something at the parent.
_Offer: TypeAlias = tuple[float, int, int, int, float, tuple[Evidence, ...], _Live]


class Builder:
    """Merges the guesses of `drafters` and keeps the likeliest `max_drafts` of them."""

    def __init__(
        self, drafters: Sequence[Drafter], max_drafts: int, *, max_leaves: int, branch: bool
    ) -> None:
        self._drafters = tuple(drafters)
        self._max_drafts = max_drafts
        self._max_leaves = max_leaves if branch else 1

    def build(self, root: int, room: int, depth: int) -> DraftTree:
        """The best tree below `root` with at most `room` guesses, none deeper than `depth`."""
        room = min(room, self._max_drafts)
        if room <= 0 or depth <= 0:
            return DraftTree.root(root)
        live: _Live = []
        for drafter in self._drafters:
            if (state := drafter.root()) is not None:
                live.append((drafter, state))
        if not live:
            return DraftTree.root(root)
        growth = _Growth(root, room, depth, self._max_leaves)
        growth.offer(0, live)
        while growth.offers and growth.room:
            growth.take()
        return growth.tree()


class _Growth:
    """A tree while it grows: the nodes taken so far, and the offers of further ones.

    Attributes:
        offers: the best one last.
        room: nodes that may still be taken.
    """

    def __init__(self, root: int, room: int, max_depth: int, max_leaves: int) -> None:
        self.offers: list[_Offer] = []
        self.room = room
        self._max_depth = max_depth
        self._max_leaves = max_leaves
        # With leaves enough every offer is good to be taken, so those that come after `room`
        # better ones never will be.
        self._forgets = max_leaves >= room
        self._n_offers = 0
        self._n_leaves = 1
        self._nodes: list[_Offer] = [(1.0, 0, -1, root, 1.0, (), [])]
        self._depths = [0]
        self._first_child = [0]  # of each node, the likeliest; 0 where there is none

    def offer(self, parent: int, live: _Live) -> None:
        """Put the children of `parent` on offer, those of several drafters merged."""
        merged: dict[int, tuple[float, tuple[Evidence, ...]]] = {}
        for drafter, state in live:
            for token, evidence, prob in drafter.predict(state):
                if token in merged:
                    other, known = merged[token]
                    merged[token] = (max(prob, other), (*known, evidence))
                else:
                    merged[token] = (prob, (evidence,))
        offers, parent_path = self.offers, self._nodes[parent][0]
        for token, (prob, evidences) in merged.items():
            path = parent_path * prob
            if self._forgets and len(offers) == self.room:
                if path <= offers[0][0]:
                    continue
                del offers[0]
            self._n_offers += 1
            insort(offers, (path, -self._n_offers, parent, token, prob, evidences, live))

    def take(self) -> None:
        """Move the best offer into the tree and put its own children on offer."""
        best = self.offers.pop()
        _, _, parent, token, _, _, live = best
        node = len(self._nodes)
        if not self._first_child[parent]:
            self._first_child[parent] = node
        elif self._n_leaves < self._max_leaves:
            self._n_leaves += 1
        else:
            return
        depth = self._depths[parent] + 1
        self._nodes.append(best)
        self._depths.append(depth)
        self._first_child.append(0)
        self.room -= 1
        if self.room and depth < self._max_depth:
            below: _Live = []
            for drafter, state in live:
                if (after := drafter.advance(state, token)) is not None:
                    below.append((drafter, after))
            self.offer(node, below)

    def tree(self) -> DraftTree:
        """The nodes taken, main chain first: from each node on, its likeliest child."""
        nodes = self._nodes
        n = len(nodes)
        order = [0]
        while child := self._first_child[order[-1]]:
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
