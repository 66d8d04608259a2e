"""The builder: turns any set of drafters into one tree.

The expected number of tokens of a tree is 1 + the sum of its nodes' path probabilities, so the
best tree of n nodes holds the n nodes of largest path probability (EAGLE-2's rerank, Li et al.,
arXiv 2406.16858; DySpec, Xiong et al., arXiv 2410.11744). A node is no likelier than its parent,
so taking the best node on offer again and again finds them. The best n is the one with most
tokens a second under the measured cost of a call (Sequoia, Chen et al., arXiv 2402.12374); 1,
drafting nothing, is always a candidate.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Sequence
from typing import Any, TypeAlias, cast

from .calibrate import Calibrator, Guess
from .dear import PREMIUM, pays, pays_on
from .protocols import DearDrafter, Drafter, Effort, Pricing
from .tree import DraftTree, Evidence

# The drafters that know something here, each with its state.
_Live: TypeAlias = list[tuple[Drafter, Any]]

# Path probability, minus the number of the offer (the earlier of equals is the better one),
# parent, token, probability, evidence, who knew something at the parent, and the judged guess.
_Offer: TypeAlias = tuple[float, int, int, int, float, tuple[Evidence, ...], _Live, "Guess | None"]

# A guess must be about as likely as its row is dear, next to a plain call. Judging takes time, so
# those that their drafters think far less likely are not judged.
_HOPELESS = 0.2

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
        asked_dear: whether a drafter whose answers take time was asked for the last tree.
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
        self._drafters = tuple(drafters)
        self._dear = [each for each in drafters if getattr(each, "effort", None) is not None]
        self._max_drafts = max_drafts
        self._max_leaves = max_leaves if branch else 1
        self._calibrator = calibrator
        self._pricing = pricing
        self._host_s = host_s
        self._run = 0  # emitted tokens in a row that were the first choice
        self._growth: _Growth | None = None
        self.asked_dear = False

    def begin(self) -> None:
        """Another text begins, or the text goes on with another turn."""
        self._run = 0
        self.asked_dear = False
        self._growth = None
        if self._calibrator is not None:
            self._calibrator.begin()

    def build(
        self, root: int, room: int, depth: int, *, context: int = 0, n_lead: int = 0
    ) -> DraftTree:
        """The best tree below `root` with at most `room` guesses, none deeper than `depth`.

        `context` tokens are committed, and `n_lead` rows go ahead of the tree.
        """
        self._growth = None
        self.asked_dear = False
        room = min(room, self._max_drafts)
        if room <= 0 or depth <= 0:
            return DraftTree.root(root)
        row = None if self._pricing is None else self._pricing.row(context)
        live: _Live = []
        for drafter in self._drafters:
            if row and (effort := _effort(drafter, self._dear)) and not pays(effort, row, n_lead):
                continue
            if (state := drafter.root()) is not None:
                live.append((drafter, state))
        self.asked_dear = bool(self._dear) and any(each in self._dear for each, _ in live)
        if not live:
            return DraftTree.root(root)
        least = 0.0 if row is None else _HOPELESS * (row[n_lead + 1] - row[n_lead]) / row[n_lead]
        growth = _Growth(
            root,
            room,
            depth,
            self._max_leaves,
            calibrator=self._calibrator,
            run=self._run,
            least=least,
            row=row,
            n_lead=n_lead,
            dear=self._dear,
            eog=self._eog,
        )
        growth.offer(0, live)
        self._growth = growth
        if row is None:
            while growth.offers and growth.room:
                growth.take()
            return growth.tree(growth.n_nodes)
        return growth.tree(self._grow(growth, row, n_lead))

    def _grow(self, growth: _Growth, row: Sequence[float], n_lead: int) -> int:
        """Let the tree grow while a larger one may still pay; the best size, root included."""
        host = self._host_s
        expected = 1.0
        n_best, best = 1, PREMIUM / (row[n_lead] + host)
        while growth.offers and growth.room:
            path = growth.offers[-1][0]
            if not growth.take():
                continue
            expected += path
            n = n_lead + growth.n_nodes
            rate = expected / (row[n - 1] + host * growth.n_nodes)
            if rate > best:
                n_best, best = growth.n_nodes, rate
                continue
            for edge in _EDGES:  # even if all further nodes were as likely as this one
                more = edge - n
                if more > 0 and edge <= len(row):
                    cost = row[edge - 1] + host * (growth.n_nodes + more)
                    if (expected + path * more) / cost > best:
                        break
            else:
                break
        return n_best

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


class _Growth:
    """A tree while it grows: the nodes taken so far, and the offers of further ones.

    Attributes:
        offers: the best one last.
        room: nodes that may still be taken.
    """

    def __init__(
        self,
        root: int,
        room: int,
        max_depth: int,
        max_leaves: int,
        *,
        calibrator: Calibrator | None,
        run: int,
        least: float,
        row: Sequence[float] | None,
        n_lead: int,
        dear: Sequence[Drafter],
        eog: Container[int],
    ) -> None:
        self._eog = eog
        self._dear = dear
        self._row = row
        self._n_lead = n_lead
        self._calibrator = calibrator
        self._least = least  # guesses that their drafters think less likely are not judged
        self._run = run
        self.offers: list[_Offer] = []
        self.room = room
        self._max_depth = max_depth
        self._max_leaves = max_leaves
        # With leaves enough every offer is good to be taken, so those that come after `room`
        # better ones never will be.
        self._forgets = max_leaves >= room
        self._n_offers = 0
        self._n_leaves = 1
        self._nodes: list[_Offer] = [(1.0, 0, -1, root, 1.0, (), [], None)]
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
        last, run = self._nodes[parent][3], self._run + self._depths[parent]
        guess = None
        for token, (prob, evidences) in merged.items():
            if prob < self._least:
                continue
            if self._calibrator is not None:
                guess = self._calibrator.guess(evidences, prob, token, last, run)
                prob = guess.prob
            path = parent_path * prob
            if self._forgets and len(offers) == self.room:
                if path <= offers[0][0]:
                    continue
                del offers[0]
            self._n_offers += 1
            insort(offers, (path, -self._n_offers, parent, token, prob, evidences, live, guess))

    @property
    def n_nodes(self) -> int:
        """Nodes taken, the root included."""
        return len(self._nodes)

    def take(self) -> bool:
        """Move the best offer into the tree and put its own children on offer.

        False if it would have been one leaf too many.
        """
        best = self.offers.pop()
        path, _, parent, token, _, _, live, _ = best
        node = len(self._nodes)
        if not self._first_child[parent]:
            self._first_child[parent] = node
        elif self._n_leaves < self._max_leaves:
            self._n_leaves += 1
        else:
            return False
        depth = self._depths[parent] + 1
        self._nodes.append(best)
        self._depths.append(depth)
        self._first_child.append(0)
        self.room -= 1
        if self.room and depth < self._max_depth and token not in self._eog:
            below: _Live = []
            for drafter, state in live:
                if self._dear and not self._pays_on(drafter, path):
                    continue
                if (after := drafter.advance(state, token)) is not None:
                    below.append((drafter, after))
            self.offer(node, below)
        return True

    def _pays_on(self, drafter: Drafter, path: float) -> bool:
        """Whether to ask a drafter below the last node."""
        effort = _effort(drafter, self._dear)
        n_rows = self._n_lead + self.n_nodes
        return effort is None or self._row is None or pays_on(effort, path, self._row, n_rows)

    def judge(self, node: int, token: int) -> tuple[int | None, int]:
        """Let the calibrator learn that `token` followed `node`.

        Returns the token that was the first choice, or None, and the child with `token`, or 0.
        """
        matching = 0
        first = self._first_child[node]
        for child in range(first, len(self._nodes) if first else 0):
            offer = self._nodes[child]
            if offer[2] == node:
                if offer[3] == token:
                    matching = child
                if self._calibrator is not None and offer[7] is not None:
                    self._calibrator.learn(offer[7], offer[3] == token)
        return (self._nodes[first][3] if first else None), matching

    def tree(self, n: int) -> DraftTree:
        """The first `n` nodes, main chain first: from each node on, its likeliest child."""
        nodes = self._nodes[:n]
        order = [0]
        while 0 < (child := self._first_child[order[-1]]) < n:
            order.append(child)
        if len(order) == n:  # a chain, taken from its beginning to its end
            _, _, parents, tokens, probs, evidence, _, _ = zip(*nodes, strict=True)
            return DraftTree(tokens, parents, probs, evidence)
        main = set(order)
        order += [node for node in range(n) if node not in main]
        place = [-1] * (n + 1)  # the last for -1, the parent of the root
        for i, node in enumerate(order):
            place[node] = i
        _, _, parents, tokens, probs, evidence, _, _ = zip(*[nodes[i] for i in order], strict=True)
        return DraftTree(tokens, tuple([place[parent] for parent in parents]), probs, evidence)


def _effort(drafter: Drafter, dear: Container[Drafter]) -> Effort | None:
    """What asking it takes; None where that is next to nothing."""
    return cast("DearDrafter", drafter).effort if drafter in dear else None
