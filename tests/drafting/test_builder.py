"""The builder: its trees against all trees, and against best-first search written naively."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, combinations
from typing import TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specgen.core.cost.gear import FREE
from specgen.core.drafting.acceptance import AcceptanceModel, Estimate
from specgen.core.protocols import Candidate, Drafter, Logits, Tokens
from specgen.core.tree import DraftTree, Evidence
from tests.support.drafting import TreeMaker

Path: TypeAlias = tuple[int, ...]  # tokens below the root
Guesses: TypeAlias = dict[Path, dict[int, float]]

ROOT = 50


def reachable(levels: list[dict[int, float]]) -> Guesses:
    """Guesses at the root and then, breadth first, below each guess, as far as `levels` go."""
    guesses: Guesses = {}
    paths: list[Path] = [()]
    for path, children in zip(paths, levels, strict=False):  # grows on the way
        guesses[path] = children
        paths += [(*path, token) for token in children]
    return guesses


# Few probabilities, so that there are many ties, and those of paths are exact.
CHILDREN = st.dictionaries(st.integers(0, 2), st.sampled_from([0.25, 0.5, 0.75, 1.0]), max_size=3)
GUESSES = st.lists(CHILDREN, max_size=8).map(reachable)
FEW_GUESSES = st.lists(CHILDREN, max_size=3).map(reachable)


class Table:
    """A drafter that looks its guesses up by the path, and knows nothing where there are none."""

    effort = None
    reads_logits = False

    def __init__(self, guesses: Guesses, name: str = "table") -> None:
        self.name = name
        self.asked: list[Path] = []
        self._guesses = guesses

    def begin(self, context: Tokens) -> None:
        """See Drafter."""

    def root(self) -> Path | None:
        """See Drafter."""
        return () if () in self._guesses else None

    def predict(self, state: Path) -> Sequence[Candidate]:
        """See Drafter."""
        self.asked.append(state)
        guesses = self._guesses[state].items()
        return [Candidate(token, (self.name, rank), p) for rank, (token, p) in enumerate(guesses)]

    def advance(self, state: Path, token: int) -> Path | None:
        """See Drafter."""
        below = (*state, token)
        return below if below in self._guesses else None

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        """See Drafter."""


def build(
    *guesses: Guesses, budget: int = 8, depth: int = 9, max_leaves: int = 16, branch: bool = True
) -> DraftTree:
    drafters = [Table(each, f"table {i}") for i, each in enumerate(guesses)]
    return TreeMaker(drafters, budget, max_leaves=max_leaves, branch=branch).build(ROOT, 99, depth)


def path_of(tree: DraftTree, node: int) -> Path:
    return () if node == 0 else (*path_of(tree, tree.parents[node]), tree.tokens[node])


def path_probs(tree: DraftTree) -> dict[Path, float]:
    """Path probability of every guess in `tree`."""
    probs: dict[Path, float] = {(): 1.0}
    for node in range(1, len(tree)):
        path = path_of(tree, node)
        probs[path] = probs[path[:-1]] * tree.probs[node]
    del probs[()]
    return probs


def merged(tables: Sequence[Guesses], path: Path) -> dict[int, float]:
    """Children of `path` on which a drafter that knows the way has a guess, each its best one."""
    children: dict[int, float] = {}
    for table in tables:
        if all(path[:n] in table for n in range(len(path) + 1)):
            for token, prob in table[path].items():
                children[token] = max(prob, children.get(token, 0.0))
    return children


def all_paths(tables: Sequence[Guesses], path: Path = (), prob: float = 1.0) -> dict[Path, float]:
    """Every node that could be in a tree, and its path probability."""
    found: dict[Path, float] = {}
    for token, p in merged(tables, path).items():
        below = (*path, token)
        found |= {below: prob * p} | all_paths(tables, below, prob * p)
    return found


def all_trees(paths: dict[Path, float], n: int) -> Iterator[float]:
    """Sum of path probabilities of every tree of n guesses."""
    for chosen in combinations(paths, n):
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
            yield sum(paths[path] for path in chosen)


def best_first(
    tables: Sequence[Guesses], budget: int, depth: int, max_leaves: int
) -> dict[Path, float]:
    """Take the likeliest child of a node taken, the first of equals, until nothing fits."""
    taken: dict[Path, float] = {(): 1.0}
    while len(taken) <= budget:
        inner = {path[:-1] for path in taken if path}
        full = len(taken) - len(inner) >= max_leaves and len(taken) > 1
        on_offer = {
            (*path, token): prob * p
            for path, prob in taken.items()
            for token, p in merged(tables, path).items()
            if len(path) < depth and (*path, token) not in taken and not (full and path in inner)
        }
        if not on_offer:
            break
        best = max(on_offer, key=on_offer.__getitem__)
        taken[best] = on_offer[best]
    del taken[()]
    return taken


@settings(max_examples=60)
@given(
    tables=st.lists(FEW_GUESSES, max_size=2),
    n=st.integers(1, 5),
)
def test_no_tree_of_as_many_nodes_is_better(tables: list[Guesses], n: int) -> None:
    """Of all trees with n guesses, the one built has the largest sum of path probabilities."""
    paths = dict(sorted(all_paths(tables).items(), key=lambda item: -item[1])[:14])
    tree = path_probs(build(*tables, budget=n))
    n = min(n, len(all_paths(tables)))
    assert len(tree) == n
    assert sum(tree.values()) == max(all_trees(paths, n))


@settings(max_examples=400)
@given(
    tables=st.lists(GUESSES, max_size=3),
    budget=st.integers(0, 12),
    depth=st.integers(0, 5),
    max_leaves=st.integers(1, 6),
    branch=st.booleans(),
)
def test_the_tree_is_that_of_naive_best_first_search(
    tables: list[Guesses], budget: int, depth: int, max_leaves: int, branch: bool
) -> None:
    """The nodes are those that a search without any shortcut takes, and no limit is exceeded."""
    tree = build(*tables, budget=budget, depth=depth, max_leaves=max_leaves, branch=branch)
    expected = best_first(tables, budget, depth, max_leaves if branch else 1)
    assert path_probs(tree) == expected
    assert len(tree) - 1 <= budget
    assert max(tree.depths) <= depth
    assert len(tree.leaves) <= (max_leaves if branch else 1)
    assert branch or tree.n_main == len(tree)


@given(tables=st.lists(GUESSES, max_size=2), budget=st.integers(0, 9), max_leaves=st.integers(1, 4))
def test_the_main_chain_comes_first_and_is_the_likeliest(
    tables: list[Guesses], budget: int, max_leaves: int
) -> None:
    """The tree is valid, and its main chain follows the likeliest child down to a leaf."""
    tree = build(*tables, budget=budget, max_leaves=max_leaves)
    tree.check()
    assert tree.n_main - 1 in tree.leaves
    assert (tree.tokens[0], tree.probs[0], tree.evidence[0]) == (ROOT, 1.0, ())
    probs = path_probs(tree)
    for node in range(1, len(tree)):
        sibling = tree.parents[node] + 1  # on the main chain, if the parent is
        if sibling < tree.n_main:
            assert probs[path_of(tree, node)] <= probs[path_of(tree, sibling)]


@given(tables=st.lists(GUESSES, max_size=3), budget=st.integers(0, 9))
def test_equal_guesses_give_equal_trees(tables: list[Guesses], budget: int) -> None:
    """The same drafters in the same states always give the same tree, down to the order."""
    assert build(*tables, budget=budget) == build(*tables, budget=budget)


@given(tables=st.lists(GUESSES, min_size=1, max_size=3))
def test_evidence_names_every_drafter_that_proposed_the_node(tables: list[Guesses]) -> None:
    """Each node is credited, in order, to the drafters that know its path and propose it."""
    tree = build(*tables)
    for node in range(1, len(tree)):
        *above, token = path_of(tree, node)
        proposing = [
            (f"table {i}", list(table[tuple(above)]).index(token))
            for i, table in enumerate(tables)
            if all(tuple(above[:n]) in table for n in range(len(above) + 1))
            and token in table[tuple(above)]
        ]
        assert tree.evidence[node] == tuple(proposing)


def test_agreeing_drafters_make_one_node_with_the_higher_estimate() -> None:
    """Two drafters' guess of one token is one node, with the larger probability and both names."""
    for low, high in ((0.25, 0.75), (0.75, 0.25)):
        tree = build({(): {1: low, 2: 0.5}}, {(): {1: high}})
        assert tree.tokens == (ROOT, 1, 2)
        assert tree.probs == (1.0, 0.75, 0.5)
        assert tree.evidence == ((), (("table 0", 0), ("table 1", 0)), (("table 0", 1),))


def test_full_leaves_leave_room_to_what_continues_them() -> None:
    """Where no leaf may be added, less likely guesses that continue a leaf take the room."""
    guesses: Guesses = {(): {0: 1.0, 1: 0.75, 2: 0.75}, (1,): {0: 0.25}}
    tree = build(guesses, budget=3, max_leaves=2)
    assert set(path_probs(tree)) == {(0,), (1,), (1, 0)}


@pytest.mark.parametrize(
    ("drafters", "budget", "depth"),
    [
        ([], 5, 5),
        ([Table({})], 5, 5),
        ([Table({(): {}})], 5, 5),
        ([Table({(): {1: 0.5}})], 0, 5),
        ([Table({(): {1: 0.5}})], -1, 5),
        ([Table({(): {1: 0.5}})], 5, 0),
    ],
)
def test_nothing_to_guess_or_no_room_drafts_nothing(
    drafters: list[Drafter], budget: int, depth: int
) -> None:
    """Without guesses, room or depth the tree is its root: plain decoding."""
    tree = TreeMaker(drafters, 8, max_leaves=4, branch=True).build(ROOT, budget, depth)
    assert tree == DraftTree.root(ROOT)


def test_the_smaller_of_room_and_max_drafts_counts() -> None:
    """A tree holds at most `budget` and at most `max_drafts` guesses."""
    guesses: Guesses = {(): {0: 0.5, 1: 0.5}, (0,): {0: 0.5, 1: 0.5}, (1,): {0: 0.5, 1: 0.5}}
    for max_drafts, budget, n in ((3, 9, 3), (9, 3, 3), (9, 9, 6)):
        builder = TreeMaker([Table(guesses)], max_drafts, max_leaves=16, branch=True)
        assert len(builder.build(ROOT, budget, 9)) == 1 + n


def test_drafters_are_asked_only_below_nodes_that_may_have_children() -> None:
    """Neither the last node of a full tree nor a node at the greatest depth costs a guess."""
    guesses: Guesses = {(0,) * n: {0: 0.5} for n in range(9)}
    for budget, depth in ((3, 9), (9, 3)):
        table = Table(guesses)
        assert (
            len(TreeMaker([table], budget, max_leaves=1, branch=False).build(ROOT, 99, depth)) == 4
        )
        assert table.asked == [(), (0,), (0, 0)]


class Believer(AcceptanceModel):
    """Takes every drafter's word, and notes the tokens that it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.judged: list[int] = []

    def estimate(
        self, evidence: Sequence[Evidence], prior: float, token: int, run: int
    ) -> Estimate:
        """See AcceptanceModel."""
        self.judged.append(token)
        return (prior, *super().estimate(evidence, prior, token, run)[1:])


def exclusive_paths(tables: Sequence[Guesses], path: Path = (), prob: float = 1.0) -> list[float]:
    """Path probabilities of all nodes, where the children of one share what there is."""
    found, left = [], 1.0
    for token, p in sorted(merged(tables, path).items(), key=lambda child: -child[1]):
        share = min(p, left)
        left -= share
        found += [prob * share, *exclusive_paths(tables, (*path, token), prob * share)]
    return found


@settings(max_examples=300)
@given(tables=st.lists(GUESSES, max_size=3), budget=st.integers(0, 12))
@example(tables=[{(): {0: 0.5, 1: 0.5}, (0,): {0: 0.75}}], budget=2)  # the second child is due
def test_judged_siblings_share_what_there_is(tables: list[Guesses], budget: int) -> None:
    """One of them at most comes true: the likeliest first, the others are left the rest."""
    drafters = [Table(table, f"table {i}") for i, table in enumerate(tables)]
    builder = TreeMaker(drafters, budget, max_leaves=99, branch=True, acceptance=Believer())
    probs = path_probs(builder.build(ROOT, 99, 99)).values()
    assert sorted(probs, reverse=True) == sorted(exclusive_paths(tables), reverse=True)[:budget]


@pytest.mark.parametrize(("chance", "n_judged"), [(0.9, 4), (0.2, 6)])
def test_only_guesses_with_a_chance_are_judged(chance: float, n_judged: int) -> None:
    """In a sure copy no time is spent on what else might follow."""
    guesses: Guesses = {(0,) * n: {1: 0.1, 0: chance, 2: 0.1} for n in range(9)}
    judge = Believer()
    TreeMaker([Table(guesses)], 4, max_leaves=9, branch=True, acceptance=judge).build(ROOT, 99, 99)
    assert len(judge.judged) == n_judged


def test_nobody_is_asked_below_the_last_node() -> None:
    """A guess that does not pay ends the tree, whatever may follow it."""
    table = Table({(0,) * n: {0: 0.3} for n in range(9)})
    price = Priced([1.0, 1.0])
    builder = TreeMaker([table], 9, max_leaves=9, branch=True, pricing=price)
    assert len(builder.build(ROOT, 99, 99)) == 1
    assert table.asked == [()]


def test_nothing_is_drafted_behind_the_end() -> None:
    """An end token may be guessed; nothing follows it, on the main chain or beside it."""
    guesses: Guesses = {(): {1: 0.9, 2: 0.5}, (1,): {3: 1.0}, (2,): {1: 0.9}, (2, 1): {3: 1.0}}
    builder = TreeMaker([Table(guesses)], 9, max_leaves=9, branch=True, eog={1})
    tree = builder.build(ROOT, 9, 9)
    ends = [node for node in range(len(tree)) if tree.tokens[node] == 1]
    assert len(ends) == 2
    assert not set(ends) & set(tree.parents)
    other = TreeMaker([Table(guesses)], 9, max_leaves=9, branch=True)
    assert len(other.build(ROOT, 9, 9)) == len(tree) + 2


class Priced:
    """Costs of calls, by the number of rows, as listed; further rows cost as the last one did."""

    change = FREE

    def __init__(self, costs: Sequence[float]) -> None:
        self._row = tuple(accumulate([*costs, *[costs[-1]] * (80 - len(costs))]))

    def costs(self, context: int) -> Sequence[float]:
        """See Pricing."""
        return self._row


PREMIUM = 1.05  # drafts are believed so much less
COSTS = st.lists(st.sampled_from([0.05, 0.3, 0.6, 1.0]), min_size=1, max_size=6)


@given(tables=st.lists(GUESSES, min_size=1, max_size=2), costs=COSTS, n_pending=st.integers(0, 2))
@settings(max_examples=300, deadline=None)
def test_the_size_is_the_one_with_most_tokens_a_second(
    tables: list[Guesses], costs: list[float], n_pending: int
) -> None:
    """Of all sizes of the unpriced tree, by trying each; smaller ones where equal."""
    drafters = [Table(table, f"table {i}") for i, table in enumerate(tables)]
    price = Priced([1.0, *costs])
    whole = TreeMaker(drafters, 16, max_leaves=99, branch=True)
    paid = TreeMaker(drafters, 16, max_leaves=99, branch=True, pricing=price)
    rates = {}
    for budget in range(16 - n_pending):  # wider calls come in few widths
        tree = whole.build(ROOT, budget, 99)
        paths = path_probabilities(tree)
        if len(tree) == budget + 1:
            rates[budget] = (1 + sum(paths[1:]) / PREMIUM) / price.costs(0)[n_pending + budget]
    tree = paid.build(ROOT, 16, 99, n_pending=n_pending)
    assert rates[len(tree) - 1] == pytest.approx(max(rates.values()))


def path_probabilities(tree: DraftTree) -> list[float]:
    """Of each node: the product of the chances on the way there."""
    paths = [1.0]
    for node in range(1, len(tree)):
        paths.append(paths[tree.parents[node]] * tree.probs[node])
    return paths
