"""The builder: turns any set of drafters into one tree.

The expected number of tokens of a tree is 1 + the sum of its nodes' path probabilities, so the
best tree of n nodes holds the n nodes of largest path probability (EAGLE-2's rerank, Li et al.,
arXiv 2406.16858; DySpec, Xiong et al., arXiv 2410.11744). A heap yields them one by one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from .protocols import Drafter
from .tree import DraftTree, Evidence


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
        states = tuple(drafter.root() for drafter in self._drafters)
        if not any(state is not None for state in states):
            return DraftTree.root(root)
        growth = _Growth(self._drafters, root, depth)
        growth.offer(0, states)
        while growth.heap and len(growth.tokens) <= room:
            growth.take(self._max_leaves)
        return growth.tree()


class _Growth:
    """A tree while it grows: the nodes taken so far and a heap of those on offer."""

    def __init__(self, drafters: Sequence[Drafter], root: int, max_depth: int) -> None:
        self._drafters = drafters
        self._max_depth = max_depth
        self.tokens = [root]
        self.parents = [-1]
        self.probs = [1.0]
        self.evidence: list[tuple[Evidence, ...]] = [()]
        self._paths = [1.0]  # path probability of each node
        self._depths = [0]
        self._n_children = [0]
        self._n_leaves = 1
        # (-path probability, order of offer, parent, token, probability, evidence, states)
        self.heap: list[tuple[Any, ...]] = []
        self._n_offers = 0

    def offer(self, parent: int, states: Sequence[Any]) -> None:
        """Put the children of `parent` on offer, those of several drafters merged."""
        if self._depths[parent] >= self._max_depth:
            return
        merged: dict[int, tuple[float, tuple[Evidence, ...]]] = {}
        for drafter, state in zip(self._drafters, states, strict=True):
            if state is None:
                continue
            for token, evidence, prob in drafter.predict(state):
                known = merged.get(token)
                merged[token] = (
                    (prob, (evidence,))
                    if known is None
                    else (max(prob, known[0]), (*known[1], evidence))
                )
        for token, (prob, evidences) in merged.items():
            self._n_offers += 1
            path = -self._paths[parent] * prob
            heapq.heappush(
                self.heap, (path, self._n_offers, parent, token, prob, evidences, states)
            )

    def take(self, max_leaves: int) -> None:
        """Move the best offer into the tree and put its own children on offer."""
        path, _, parent, token, prob, evidences, states = heapq.heappop(self.heap)
        splits = self._n_children[parent] > 0
        if splits and self._n_leaves == max_leaves:
            return
        self._n_leaves += splits
        self._n_children[parent] += 1
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.probs.append(prob)
        self.evidence.append(evidences)
        self._paths.append(-path)
        self._depths.append(self._depths[parent] + 1)
        self._n_children.append(0)
        self.offer(
            node,
            [
                None if state is None else drafter.advance(state, token)
                for drafter, state in zip(self._drafters, states, strict=True)
            ],
        )

    def tree(self) -> DraftTree:
        """The nodes taken, main chain first: from each node on, its likeliest child."""
        order = self._main_chain()
        on_main = set(order)
        order += [node for node in range(len(self.tokens)) if node not in on_main]
        place = {node: i for i, node in enumerate(order)}
        return DraftTree(
            tuple(self.tokens[node] for node in order),
            (-1, *(place[self.parents[node]] for node in order[1:])),
            tuple(self.probs[node] for node in order),
            tuple(self.evidence[node] for node in order),
        )

    def _main_chain(self) -> list[int]:
        # Nodes were taken best first, so the first child of a node is its likeliest.
        first_child: dict[int, int] = {}
        for node in range(1, len(self.tokens)):
            first_child.setdefault(self.parents[node], node)
        chain = [0]
        while chain[-1] in first_child:
            chain.append(first_child[chain[-1]])
        return chain
