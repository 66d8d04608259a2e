"""The builder: turns any set of drafters into one tree.

The expected number of tokens of a tree is 1 + the sum of its nodes' path probabilities, so the
best tree of n nodes holds the n nodes of largest path probability (EAGLE-2's rerank, Li et al.,
arXiv 2406.16858; DySpec, Xiong et al., arXiv 2410.11744). A node is no likelier than its parent,
so taking the best node on offer again and again finds them. The best n is the one with most
tokens a second under the measured cost of a call (Sequoia, Chen et al., arXiv 2402.12374); 1,
drafting nothing, is always a candidate.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Container, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from .calibrate import Calibrator, Guess
from .costly import pays, pays_on
from .protocols import CostlyDrafter, Drafter, Pricing
from .tree import DraftTree, Evidence

# The drafters that know something here, each with its state.
_Live: TypeAlias = list[tuple[Drafter, Any]]

# Path probability, minus the number of the offer (the earlier of equals is the better one),
# parent, token, probability, evidence, who knew something at the parent, and the judged guess.
_Offer: TypeAlias = tuple[float, int, int, int, float, tuple[Evidence, ...], _Live, "Guess | None"]

# A guess must be about as likely as its row is dear, next to a plain call. Judging takes time, so
# those that their drafters think far less likely are not judged.
_HOPELESS = 0.2

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
        self._growth: _Growth | None = None
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
        place = _Place(root, min(room, self._max_drafts), depth, n_lead, self._row(context))
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

    def _drafted(self, place: _Place, drafters: Sequence[Drafter]) -> _Draft:
        """What `drafters` make of it."""
        row = place.row
        plain = _PREMIUM / (row[place.n_lead] + self._host_s) if row else 0.0
        live = [(each, state) for each in drafters if (state := each.root()) is not None]
        if not live:
            return _Draft(None, 1, plain)
        growth = _Growth(
            place,
            self._max_leaves,
            calibrator=self._calibrator,
            run=self._run,
            costly=self._costly,
            eog=self._eog,
        )
        growth.offer(0, live)
        if row is None:
            while growth.offers and growth.room:
                growth.take()
            return _Draft(growth, growth.n_nodes, plain)
        return self._grow(growth, row, place.n_lead, plain)

    def _grow(self, growth: _Growth, row: Sequence[float], n_lead: int, plain: float) -> _Draft:
        """Let the tree grow while a larger one may still bring more tokens a second."""
        host = self._host_s
        expected = 1.0
        n_best, best = 1, plain
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


class _Place(NamedTuple):
    """What a tree is to be made for."""

    root: int
    room: int  # guesses
    depth: int
    n_lead: int  # rows ahead of it
    row: Sequence[float] | None  # seconds of a call with 1, 2, … rows, where they are known


class _Draft(NamedTuple):
    """A tree, the size to take of it, and how many tokens a second it promises."""

    growth: _Growth | None
    n_nodes: int
    rate: float


class _Growth:
    """A tree while it grows: the nodes taken so far, and the offers of further ones.

    Attributes:
        offers: the best one last.
        room: nodes that may still be taken.
    """

    def __init__(
        self,
        place: _Place,
        max_leaves: int,
        *,
        calibrator: Calibrator | None,
        run: int,
        costly: Sequence[Drafter],
        eog: Container[int],
    ) -> None:
        self._eog = eog
        self._costly = costly
        self._place = place
        self._calibrator = calibrator
        self._least = _least(place)  # guesses that their drafters think less likely are not judged
        self._run = run
        self.offers: list[_Offer] = []
        self.room = place.room
        self._max_leaves = max_leaves
        # With leaves enough every offer is good to be taken, so those that come after `room`
        # better ones never will be.
        self._forgets = max_leaves >= place.room
        self._n_offers = 0
        self._n_leaves = 1
        self._nodes: list[_Offer] = [(1.0, 0, -1, place.root, 1.0, (), [], None)]
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
                prob = guess[0]
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
        if self.room and depth < self._place.depth and token not in self._eog:
            below: _Live = []
            for drafter, state in live:
                if drafter in self._costly and not self._pays_on(drafter, path):
                    continue
                if (after := drafter.advance(state, token)) is not None:
                    below.append((drafter, after))
            self.offer(node, below)
        return True

    def _pays_on(self, drafter: Drafter, path: float) -> bool:
        """Whether to ask it below the last node."""
        row = self._place.row
        effort = cast("CostlyDrafter", drafter).effort
        return row is None or pays_on(effort, path, row, self._place.n_lead + self.n_nodes)

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


def _pays(drafter: Drafter, place: _Place, rate: float) -> bool:
    """Whether it can be asked and may bring more than the `rate` that there is without it."""
    effort, room = cast("CostlyDrafter", drafter).effort, min(place.room, place.depth)
    if place.row is not None and not pays(effort, place.row, place.n_lead, room, rate):
        return False
    return drafter.root() is not None


def _least(place: _Place) -> float:
    """The least chance of a guess that may be worth its row."""
    row, n = place.row, place.n_lead
    return 0.0 if row is None else _HOPELESS * (row[n + 1] - row[n]) / row[n]
