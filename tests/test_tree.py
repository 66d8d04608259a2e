"""The draft tree: its invariants, and what it says of itself against naive definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.tree import DraftTree


@st.composite
def trees(draw: st.DrawFn) -> DraftTree:
    """Any tree of up to 12 nodes, of few tokens, so that they repeat but not among siblings."""
    parents, tokens = [-1], [draw(st.integers(0, 3))]
    for _ in range(draw(st.integers(0, 11))):
        parent, token = draw(st.integers(0, len(parents) - 1)), draw(st.integers(0, 3))
        if (parent, token) not in zip(parents, tokens, strict=True):
            parents.append(parent)
            tokens.append(token)
    return DraftTree.from_parents(tokens, parents)


GOOD = DraftTree.from_parents([5, 6, 7, 6], [-1, 0, 0, 1])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (DraftTree((), (), (), ()), "node 0 must be the root"),
        (replace(GOOD, parents=(0, 0, 0, 1)), "node 0 must be the root"),
        (replace(GOOD, parents=(-1, 0, 2, 1)), "node 2 has parent 2, not an earlier one"),
        (replace(GOOD, parents=(-1, 0, 3, 1)), "node 2 has parent 3, not an earlier one"),
        (replace(GOOD, parents=(-1, 0, 0, -1)), "node 3 has parent -1, not an earlier one"),
        (replace(GOOD, tokens=(5, 6, 6, 6)), "two siblings carry the same token"),
        (replace(GOOD, tokens=(5, 6, 7)), "differ in length"),
        (replace(GOOD, parents=(-1, 0, 0)), "differ in length"),
        (replace(GOOD, probs=(1.0,)), "differ in length"),
        (replace(GOOD, evidence=((),)), "differ in length"),
    ],
)
def test_check_refuses_a_broken_tree(broken: DraftTree, message: str) -> None:
    """Each invariant that does not hold raises ValueError and is named."""
    with pytest.raises(ValueError, match=message):
        broken.check()


def test_from_parents_checks() -> None:
    """A tree made for tests and tools is checked at once."""
    with pytest.raises(ValueError, match="two siblings"):
        DraftTree.from_parents([1, 2, 2], [-1, 0, 0])


@given(tree=trees(), tokens=st.lists(st.integers(0, 3), max_size=5))
def test_an_extended_tree_has_one_longer_branch(tree: DraftTree, tokens: list[int]) -> None:
    """Its nodes stay what they were, the new ones are a chain, and there are no more leaves."""
    longer = tree.extended(tokens, ("padding",))
    longer.check()
    n = len(tree)
    assert (longer.tokens[:n], longer.parents[:n]) == (tree.tokens, tree.parents)
    assert (longer.probs[:n], longer.evidence[:n]) == (tree.probs, tree.evidence)
    assert longer.tokens[n:] == tuple(tokens)
    assert longer.depths[n:] == tuple(tree.depths[-1] + i + 1 for i in range(len(tokens)))
    assert longer.evidence[n:] == ((("padding",),),) * len(tokens)
    assert len(longer.leaves) == len(tree.leaves)
    assert longer.n_main == tree.n_main + (len(tokens) if tree.n_main == n else 0)


@given(tree=trees())
def test_a_whole_tree_passes_check(tree: DraftTree) -> None:
    """Equal tokens are fine anywhere but among siblings."""
    tree.check()
    assert len(tree) == len(tree.tokens) == len(tree.probs) == len(tree.evidence)


def test_a_root_alone_is_a_tree() -> None:
    """A tree that drafts nothing has one node, which is root, main chain and leaf."""
    tree = DraftTree.root(9)
    tree.check()
    assert (len(tree), tree.n_main, tree.depths, tree.leaves) == (1, 1, (0,), (0,))


@given(tree=trees())
def test_depths_count_the_steps_to_the_root(tree: DraftTree) -> None:
    """A node's depth is the number of parents above it."""
    for node, depth in enumerate(tree.depths):
        steps = 0
        while node:
            node, steps = tree.parents[node], steps + 1
        assert depth == steps


@given(tree=trees())
def test_leaves_are_the_nodes_without_children(tree: DraftTree) -> None:
    """Leaves are nobody's parent, in order."""
    expected = [node for node in range(len(tree)) if node not in tree.parents]
    assert list(tree.leaves) == expected


@given(tree=trees())
def test_the_main_chain_is_the_longest_run_from_the_root(tree: DraftTree) -> None:
    """n_main is the longest beginning in which every node continues the one before."""
    runs = [n for n in range(1, len(tree) + 1) if tree.parents[:n] == tuple(range(-1, n - 1))]
    assert tree.n_main == max(runs)


@given(tree=trees(), token=st.integers(0, 4))
def test_child_finds_the_one_child_with_a_token(tree: DraftTree, token: int) -> None:
    """`child` finds a token among the node's own children, never among those of others."""
    for node in range(len(tree)):
        found = [
            other
            for other in range(len(tree))
            if tree.parents[other] == node and tree.tokens[other] == token
        ]
        assert tree.child(node, token) == (found[0] if found else None)
        assert len(found) <= 1
