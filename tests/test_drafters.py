"""Every drafter keeps the contract, and each does what its paper says, by naive definitions.

Then the contract's own test is tested: drafters that break one promise each must be caught.
"""

from __future__ import annotations

import gc
import random
import sys
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest

from specgen.core.builder import Builder
from specgen.core.calibrate import Calibrator
from specgen.core.conformance import check_drafter, repeating_text
from specgen.core.cost import load_curve
from specgen.core.protocols import Candidate, Drafter, Logits, Tokens
from specgen.core.tree import DraftTree
from specgen.drafters import REGISTRY, create, with_past
from specgen.drafters.copyspec import CopySpec
from specgen.drafters.evidence import chance_bucket, length_bucket
from specgen.drafters.ngrams import NgramIndex
from specgen.drafters.past import Past
from specgen.drafters.predicted import Predicted
from specgen.drafters.prompt_lookup import COPY_LENGTH, PromptLookup
from specgen.drafters.recycle import Recycle, make_template, top_k_rows
from specgen.drafters.slots import Slots
from specgen.drafters.suffix import Suffix
from specgen.drafters.trigram import FADE, PAIRS, SUCCESSORS, Trigram

N_VOCAB = 50
PREDICTED = repeating_text(60, 12, 9)

MAKERS: dict[str, Callable[[], Drafter]] = {
    **{name: partial(spec.create, alone=False) for name, spec in REGISTRY.items()},
    **{f"{name} alone": partial(spec.create, alone=True) for name, spec in REGISTRY.items()},
    "predicted": lambda: Predicted(PREDICTED),
    "predicted alone": lambda: Predicted(PREDICTED, alone=True),
    "predicted nothing": lambda: Predicted([]),
    "past": lambda: Past(np.array(PREDICTED, np.int32)),
    "past without answers": lambda: Past(np.array([], np.int32)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_conformance(make: Callable[[], Drafter]) -> None:
    """The drafter keeps every promise of protocols.Drafter."""
    check_drafter(make)


def begun(drafter: Drafter, context: Sequence[int]) -> Drafter:
    """The drafter, at the end of a text."""
    drafter.begin(np.array(context, np.int32))
    return drafter


def observe(drafter: Drafter, tokens: Sequence[int]) -> None:
    """Let the text grow without logits."""
    drafter.observe(tokens, DraftTree.root(0), np.empty((0, N_VOCAB), np.float32))


def guesses_at_root(drafter: Drafter) -> Sequence[Candidate]:
    """What the drafter says may come next."""
    state = drafter.root()
    return () if state is None else drafter.predict(state)


def best_chain(drafter: Drafter, length: int = 100) -> list[int]:
    """The tokens that the drafter's first guesses make."""
    chain: list[int] = []
    state = drafter.root()
    while state is not None and len(chain) < length:
        guesses = drafter.predict(state)
        if not guesses:
            break
        chain.append(guesses[0].token)
        state = drafter.advance(state, chain[-1])
    return chain


# --- prompt lookup and CopySpec -----------------------------------------------------------------


def places(text: Sequence[int], order: int) -> list[int]:
    """What follows the earlier occurrences of the last `order` tokens starts at these."""
    gram = text[-order:]
    return [end for end in range(order, len(text)) if text[end - order : end] == gram]


@pytest.mark.parametrize("seed", range(20))
def test_prompt_lookup_copies_from_the_last_occurrence(seed: int) -> None:
    """The longest n-gram's last occurrence gives the copy, a few tokens alone, 64 otherwise."""
    text = repeating_text(150, N_VOCAB if seed % 2 else 4, seed)
    drafters = [begun(PromptLookup(alone), text[:40]) for alone in (True, False)]
    for end in range(40, 150):
        known = text[:end]
        found = [(order, found) for order in (3, 2, 1) if (found := places(known, order))]
        order, start = (found[0][0], found[0][1][-1]) if found else (0, 0)
        copy = (known[start:] * 64)[:64] if found else []
        assert best_chain(drafters[0]) == copy[: COPY_LENGTH.get(order)] if found else not copy
        assert best_chain(drafters[1]) == copy
        for drafter in drafters:
            observe(drafter, [text[end]])


@pytest.mark.parametrize("seed", range(20))
def test_copyspec_copies_from_the_first_occurrence(seed: int) -> None:
    """The first occurrence of the last three tokens gives the copy, 10 tokens of it alone."""
    text = repeating_text(150, N_VOCAB if seed % 2 else 4, seed)
    drafters = [begun(CopySpec(alone), text[:40]) for alone in (True, False)]
    for end in range(40, 150):
        known = text[:end]
        copy = known[found[0] :] if (found := places(known, 3)) else []
        assert best_chain(drafters[0]) == copy[:10]
        assert best_chain(drafters[1]) == copy[:64]
        for drafter in drafters:
            observe(drafter, [text[end]])


def test_a_copy_ends_where_the_text_leaves_it() -> None:
    """A token that would not have been copied ends the copy."""
    for make in (PromptLookup, CopySpec):
        drafter = begun(make(), [1, 2, 3, 4, 5, 6, 1, 2, 3])
        state = drafter.advance(drafter.root(), 4)
        assert [guess.token for guess in drafter.predict(state)] == [5]
        assert drafter.advance(state, 6) is None


def test_a_text_that_goes_on_is_not_indexed_again() -> None:
    """A context that begins with the known text leads to the same guesses as one from scratch."""
    text = repeating_text(300, 9, 3)
    for make in (PromptLookup, CopySpec):
        drafter = begun(make(), text[:100])
        observe(drafter, text[100:120])
        assert best_chain(begun(drafter, text)) == best_chain(begun(make(), text))


@pytest.mark.parametrize("first", [True, False])
def test_ngram_index_equals_a_dictionary(first: bool) -> None:
    """The flat table finds what a dictionary of tuples finds, through all its growth."""
    text = array("i", repeating_text(2000, 7, 1))
    index, truth = NgramIndex(text, 3, first=first), dict[tuple[int, ...], int]()
    for end in range(len(text) + 1):
        gram = tuple(text[max(end - 3, 0) : end])
        assert index.find(end) == truth.get(gram, 0)
        index.add(end)
        if end >= 3 and not (first and gram in truth):
            truth[gram] = end


# --- trigram ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_trigram_weights_fade_with_every_token(seed: int) -> None:
    """Shares follow from the ages of all occurrences, and the heaviest 12 remain."""
    text = repeating_text(400, 5, seed)
    drafter = begun(Trigram(), text[:300])
    observe(drafter, text[300:])
    weights: dict[int, float] = {}
    for end in places(text, 2):
        weights[text[end]] = weights.get(text[end], 0.0) + FADE ** -float(end)
    guesses = guesses_at_root(drafter)
    assert [guess.token for guess in guesses] == sorted(weights, key=lambda t: -weights[t])
    if guesses:
        shares = np.array([guess.prob for guess in guesses])
        truth = np.array([weights[guess.token] for guess in guesses])
        assert np.allclose(shares / shares.sum(), truth / truth.sum(), atol=1e-5)


def test_trigram_lets_new_habits_overtake_old_ones() -> None:
    """Of two successors seen equally often the newer is first; much older ones fall behind."""
    drafter = begun(Trigram(), [1, 2, 3] * 6 + [9] * 1500 + [1, 2, 4] * 3 + [1, 2])
    assert [guess.token for guess in guesses_at_root(drafter)] == [4, 3]


def test_trigram_stays_within_its_table() -> None:
    """No more successors and pairs are kept than stated, and the oldest pairs go."""
    drafter = Trigram()
    begun(drafter, [token for i in range(40) for token in (1, 2, 10 + i)] + [1, 2])
    assert len(guesses_at_root(drafter)) == SUCCESSORS
    observe(drafter, [3 + i * 7919 % 100_003 for i in range(PAIRS + 10)])
    assert len(drafter._slots) == PAIRS
    observe(drafter, [1, 2])
    assert not guesses_at_root(drafter)


def test_trigram_alone_is_four_levels_deep() -> None:
    """The paper's depth holds alone only."""
    text = [1, 2, 3] * 9
    assert len(best_chain(begun(Trigram(alone=True), text))) == 4
    assert len(best_chain(begun(Trigram(), text))) == 100


def test_slots_give_up_the_oldest_key() -> None:
    """The newest keys keep their numbers, all different."""
    slots = Slots(3)
    for key in range(10):
        slots.take(key)
    assert len(slots) == 3
    assert sorted(slots.get(key) or 0 for key in (7, 8, 9)) == [0, 1, 2]
    assert slots.get(6) is None


# --- token recycling ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_vocab", [1, 5, 8, 100, 1024, 1025, 1100, 5000, 49_152])
def test_top_k_rows_equals_sorting(n_vocab: int) -> None:
    """Tokens are the k likeliest of each row; probabilities are right, or little too large."""
    rng = np.random.default_rng(n_vocab)
    logits = (4 * rng.standard_normal((5, n_vocab))).astype(np.float32)
    entries = top_k_rows(logits, 8)
    truth = np.argsort(-logits, axis=1, kind="stable")[:, :8]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.array_equal(entries["token"], truth)
    ratio = entries["prob"] / np.take_along_axis(probs, truth, 1)
    assert (ratio > 0.999).all() and (ratio < 1.5).all()


def test_recycle_keeps_the_newest_row_of_every_node() -> None:
    """Rows are the naive top 8 by token and by pair; the accepted path wins over other nodes."""
    rng = np.random.default_rng(4)
    drafter = begun(Recycle(), [7, 3])
    tree = DraftTree.from_parents([3, 5, 6, 5, 6], [-1, 0, 1, 2, 0])
    logits = (3 * rng.standard_normal((5, N_VOCAB))).astype(np.float32)
    drafter.observe([5, 9], tree, logits)  # nodes 0 and 1 are accepted, then comes a 9
    ranked = np.argsort(-logits, axis=1)[:, :8]

    def row(before: int, token: int) -> list[int]:
        begun(drafter, [before, token])
        return [guess.token for guess in guesses_at_root(drafter)]

    def is_from(node: int, tokens: list[int]) -> bool:
        return tokens == ranked[node][: len(tokens)].tolist() and len(tokens) > 1

    assert is_from(0, row(7, 3)) and is_from(0, row(8, 3))
    assert is_from(1, row(3, 5)) and is_from(1, row(8, 5))  # node 1, though node 3 is later
    assert is_from(3, row(6, 5))
    assert is_from(2, row(5, 6)) and is_from(4, row(3, 6)) and is_from(4, row(8, 6))


def test_recycle_follows_the_text_where_it_has_no_logits() -> None:
    """Without rows, what followed in the text is guessed, the latest first, pairs before tokens."""
    drafter = begun(Recycle(), [1, 2, 3, 1, 2, 4, 8, 2, 5, 1, 2])
    assert [guess.token for guess in guesses_at_root(drafter)] == [4, 3]
    observe(drafter, [9, 2])
    assert [guess.token for guess in guesses_at_root(drafter)] == [9, 5, 4, 3]


def test_recycle_remembers_the_target_but_not_the_text() -> None:
    """A new text keeps rows made of logits and drops those made of text."""
    drafter = begun(Recycle(), [1, 2, 1])
    drafter.observe([4], DraftTree.root(1), np.eye(1, N_VOCAB, 6, np.float32) * 9)
    begun(drafter, [2])
    assert not guesses_at_root(drafter)
    begun(drafter, [1])
    assert guesses_at_root(drafter)[0].token == 6


def test_recycle_skips_rows_without_usable_logits() -> None:
    """NaN and infinities leave no row behind."""
    drafter = begun(Recycle(), [1])
    logits = np.zeros((3, N_VOCAB), np.float32)
    logits[0], logits[1], logits[2, 7] = np.nan, -np.inf, np.inf
    drafter.observe([2], DraftTree.from_parents([1, 2, 3], [-1, 0, 1]), logits)
    for token in (1, 2, 3):
        begun(drafter, [token])
        assert not guesses_at_root(drafter)


def test_recycle_alone_drafts_the_likeliest_tree_by_ranks() -> None:
    """60 nodes whose sums of ranks are the smallest, in a shape like the paper's."""
    template = make_template(60)
    costs, depths = {0: 0}, {0: 0}
    for node, children in enumerate(template):
        for rank, child in enumerate(children):
            costs[child], depths[child] = costs[node] + rank + 1, depths[node] + 1
    assert len(costs) == 61
    assert [sum(cost == n for cost in costs.values()) for n in range(7)] == [1, 1, 2, 4, 8, 16, 29]
    assert [sum(depth == n for depth in depths.values()) for n in range(6)] == [1, 6, 15, 20, 15, 4]


def test_recycle_alone_stays_in_its_template() -> None:
    """With a full row at every token the fixed tree is drafted, no more and no less."""
    drafter = begun(Recycle(alone=True), [0])
    tree = DraftTree.from_parents(range(8), range(-1, 7))
    drafter.observe([0], tree, np.tile(np.linspace(9, 0, N_VOCAB, dtype=np.float32), (8, 1)))
    states = [begun(drafter, [0]).root()]
    for state in states:
        states += [drafter.advance(state, guess.token) for guess in drafter.predict(state)]
    assert len(states) == 60 + 1
    assert drafter.advance(states[0], 40) is None


# --- predicted output ---------------------------------------------------------------------------


def hits(drafter: Drafter, text: Sequence[int]) -> list[bool]:
    """Of each token, whether it was among the guesses."""
    begun(drafter, [])
    found = []
    for token in text:
        guesses = guesses_at_root(drafter)
        found.append(token in [guess.token for guess in guesses])
        observe(drafter, [token])
    return found


def test_predicted_copies_an_answer_that_is_the_prediction() -> None:
    """Every token is guessed, and after the end nothing is."""
    text = repeating_text(200, N_VOCAB, 1)
    for alone in (True, False):
        drafter = Predicted(text, alone=alone)
        assert all(hits(drafter, text))
        assert not guesses_at_root(drafter)
        assert best_chain(begun(drafter, [5])) == text[:64]


def test_predicted_continues_at_once_after_small_edits() -> None:
    """A token replaced, dropped or put in costs itself, and at most one more."""
    text = list(range(100))
    edits = {
        "replaced": [*text[:40], 999, *text[41:]],
        "dropped": [*text[:40], *text[45:]],
        "put in": [*text[:40], 999, *text[40:]],
        "three replaced": [*text[:40], 997, 998, 999, *text[43:]],
        "three put in": [*text[:40], 997, 998, 999, *text[40:]],
        "preamble": [997, 998, *text],
    }
    costs = {name: hits(Predicted(text), answer).count(False) for name, answer in edits.items()}
    assert costs == {
        "replaced": 1, "dropped": 1, "put in": 1, "three replaced": 3, "three put in": 3,
        "preamble": 2,
    }  # fmt: skip


def test_predicted_finds_moved_passages() -> None:
    """Passages far away, before or behind the pointer, are found again after three tokens."""
    text = [random.Random(3).randrange(1000) for _ in range(600)]
    answer = [*text[:100], *text[400:500], *text[100:200]]
    for alone in (True, False):
        missed = [i for i, hit in enumerate(hits(Predicted(text, alone), answer)) if not hit]
        assert len(missed) <= 8
        assert all(i in (*range(100, 104), *range(200, 204)) for i in missed)


@pytest.mark.parametrize("seed", range(12))
def test_predicted_survives_edit_scripts(seed: int) -> None:
    """Each of many random edits costs its own new tokens and a few more."""
    rng = random.Random(seed)
    text = [rng.randrange(200) for _ in range(1500)]
    answer: list[int] = []
    at, n_edits, n_new = 0, 0, 0
    while at < len(text):
        stretch = rng.randrange(15, 60)
        answer += text[at : at + stretch]
        at += stretch
        n_edits += 1
        put_in = rng.choice((0, 1, 2, 5))
        at += rng.choice((0, 1, 2, 5, 20))
        n_new += put_in
        answer += [1000 + rng.randrange(50) for _ in range(put_in)]
    assert hits(Predicted(text), answer).count(False) <= n_new + 2.0 * n_edits


def test_predicted_prefers_the_nearest_of_equal_places() -> None:
    """Where the last tokens stand in several places, the copy goes on near the pointer."""
    block = [1, 2, 3, 4]
    text = [t for i in range(200) for t in (*block, 100 + i)]
    drafter = begun(Predicted(text), [])
    observe(drafter, text[:500])
    observe(drafter, [900] * 50)  # astray for longer than the window
    observe(drafter, block)
    assert guesses_at_root(drafter)[0].token == text[504]


def test_predicted_alone_needs_a_unique_place() -> None:
    """As in the paper, an ambiguous match is not followed."""
    text = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 8, 9]
    drafter = begun(Predicted(text, alone=True), [])
    observe(drafter, [50, 1, 2, 3])
    assert not guesses_at_root(drafter)
    observe(drafter, [8])
    assert best_chain(drafter) == [9]


# --- evidence -----------------------------------------------------------------------------------


def test_buckets_are_few_and_in_order() -> None:
    """Lengths fall into 7 buckets and chances into 11, both monotonously."""
    assert [length_bucket(n) for n in (0, 1, 2, 3, 4, 7, 8, 15, 16, 999)] == [
        0, 1, 2, 3, 4, 4, 5, 5, 6, 6
    ]  # fmt: skip
    chances = [chance_bucket(p / 1000) for p in range(1001)]
    assert chances == sorted(chances) and set(chances) == set(range(11))


def test_evidence_has_a_few_hundred_values_at_most() -> None:
    """Over long texts no drafter names more buckets than can be counted well."""
    for make in MAKERS.values():
        drafter = begun(make(), repeating_text(300, 12, 5))
        seen = set()
        for token in repeating_text(600, 12, 8):
            state = drafter.root()
            for _ in range(20):
                guesses = drafter.predict(state) if state is not None else ()
                seen |= {guess.evidence for guess in guesses}
                if not guesses:
                    break
                state = drafter.advance(state, guesses[0].token)
            observe(drafter, [token])
        assert len(seen) <= 300


# --- drafters that break the contract -----------------------------------------------------------


class Good:
    """Guesses the token after the last one; the broken ones below differ in one thing."""

    name = "good"
    last = 0

    def begin(self, context: Tokens) -> None:
        self.last = int(context[-1]) if len(context) else 0

    def root(self) -> Any:
        return self.last

    def predict(self, state: Any) -> Sequence[Candidate]:
        return [Candidate((state + 1) % 12, (self.name, 0), 0.5)]

    def advance(self, state: Any, token: int) -> Any:
        return token

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        self.last = emitted[-1]


def _guessing(*guesses: Candidate) -> type[Good]:
    class Bad(Good):
        def predict(self, state: Any) -> Sequence[Candidate]:
            return guesses

    return Bad


class _Counts(Good):
    calls = 0

    def predict(self, state: Any) -> Sequence[Candidate]:
        self.calls += 1
        return [Candidate(self.calls % 12, (self.name, 0), 0.5)]


class _KeepsTheContext(Good):
    context: Tokens = np.zeros(0, np.int32)

    def begin(self, context: Tokens) -> None:
        self.context = context

    def root(self) -> Any:
        return int(self.context[-1]) if len(self.context) else 0


class _KeepsTheLogits(Good):
    logits: Logits = np.zeros((1, 1), np.float32)

    def root(self) -> Any:
        return int(self.logits[0].argmax())

    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        self.logits = logits


class _ForgetsToForget(Good):
    length = 0

    def begin(self, context: Tokens) -> None:
        self.length += len(context)

    def root(self) -> Any:
        return self.length % 12


class _Random(Good):
    def root(self) -> Any:
        return random.randrange(12)


class _MutableState(Good):
    def root(self) -> Any:
        return [self.last]

    def predict(self, state: Any) -> Sequence[Candidate]:
        return [Candidate((state[-1] + 1) % 12, (self.name, 0), 0.5)]

    def advance(self, state: Any, token: int) -> Any:
        state.append(token)
        return state


class _FailsOnEmptyTexts(Good):
    def begin(self, context: Tokens) -> None:
        self.last = int(context[-1])


class _FailsLate(Good):
    def observe(self, emitted: Sequence[int], tree: DraftTree, logits: Logits) -> None:
        if len(emitted) > 1 and len(tree) > 3:
            raise IndexError("deep in a text")
        self.last = emitted[-1]


BROKEN: dict[str, Callable[[], Drafter]] = {
    "twice": _guessing(Candidate(1, ("good",), 0.5), Candidate(1, ("good", 1), 0.5)),
    "out of range": _guessing(Candidate(12, ("good",), 0.5)),
    "negative": _guessing(Candidate(-1, ("good",), 0.5)),
    "no chance": _guessing(Candidate(1, ("good",), 0.0)),
    "too sure": _guessing(Candidate(1, ("good",), 1.5)),
    "nameless": _guessing(Candidate(1, ("bad",), 0.5)),
    "a NumPy token": _guessing(Candidate(np.int32(1), ("good",), 0.5)),  # type: ignore[arg-type]
    "not hashable": _guessing(Candidate(1, ("good", []), 0.5)),  # type: ignore[arg-type]
    "too many": _guessing(*[Candidate(t % 12, ("good",), 0.5) for t in range(70)]),
    "not deterministic": _Random,
    "changes when asked": _Counts,
    "changes its states": _MutableState,
    "keeps the context": _KeepsTheContext,
    "keeps the logits": _KeepsTheLogits,
    "forgets to forget": _ForgetsToForget,
    "fails on empty texts": _FailsOnEmptyTexts,
    "fails late": _FailsLate,
}


def test_a_good_drafter_passes() -> None:
    """What the broken drafters are derived from keeps the contract."""
    check_drafter(Good, n_long=1000)


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_broken_promise_is_caught(make: Callable[[], Drafter]) -> None:
    """Each of these breaks one promise, and the check raises."""
    with pytest.raises((AssertionError, IndexError)):
        check_drafter(make, n_long=1000)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 15, 16, 17, 500, 66_000])
def test_suffix_reads_a_text_at_once_as_token_by_token(n: int) -> None:
    """A prompt is indexed by other code than what is generated; the guesses are the same."""
    text = repeating_text(n, 12, n)
    at_once, one_by_one = begun(Suffix(), text), begun(Suffix(), [])
    observe(one_by_one, text)
    for _ in range(40):
        states = [drafter.root() for drafter in (at_once, one_by_one)]
        assert states[0] == states[1]
        if states[0] is not None:
            assert list(at_once.predict(states[0])) == list(one_by_one.predict(states[1]))
        token = text[len(text) // 2] if text else 1
        for drafter in (at_once, one_by_one):
            observe(drafter, [token])
        text = [*text[1:], token]


def test_past_counts_what_followed_in_other_answers() -> None:
    """The most frequent first, whatever came last; its own text is not searched."""
    past = begun(Past(np.array([1, 2, 1, 2, 1, 2, 1, 3], np.int32)), [9, 8, 1])
    state = past.root()
    assert [guess.token for guess in past.predict(state)] == [2, 3]
    observe(past, [8, 1])
    assert [guess.token for guess in past.predict(past.root())] == [2, 3]
    assert [guess.token for guess in past.predict(past.advance(state, 2))] == [1]


def test_past_stands_beside_suffix_alone() -> None:
    """Only among several drafters, one of which is suffix, and only if there are answers."""
    answers = np.array([1, 2, 3], np.int32)

    def names(chosen: str, known: Tokens) -> list[str]:
        return [drafter.name for drafter in with_past(create(chosen), known)]

    assert names("suffix,copyspec", answers) == ["suffix", "copyspec", "past"]
    assert names("suffix,copyspec", answers[:0]) == ["suffix", "copyspec"]
    assert names("recycle,copyspec", answers) == ["recycle", "copyspec"]
    assert names("suffix", answers) == ["suffix"]
    assert names("auto", answers)[-1] == "past"


MIB = 1 << 20
REAL_VOCAB = 49_152


def size_of(root: object) -> int:
    """Bytes of an object and all that it holds, code left out."""
    seen: set[int] = set()
    waiting, total = [root], 0
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type | ModuleType | FunctionType):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        waiting += gc.get_referents(item)
    return total


def test_memory_is_bounded_and_constant() -> None:
    """All drafters and the calibrator, over 30,000 tokens: under 64 MiB, and no more at the end.

    The text copies itself now and then, as texts do, and has all tokens of a real vocabulary.
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, REAL_VOCAB)).astype(np.float32)
    text = rng.zipf(1.3, 30_000) % REAL_VOCAB
    for start in range(1000, 30_000, 700):
        text[start : start + 300] = text[start - 900 : start - 600]
    tokens = text.tolist()
    drafters = with_past(create("auto"), np.array(tokens[::-1], np.int32))
    calibrator = Calibrator()
    builder = Builder(
        drafters,
        16,
        max_leaves=16,
        branch=True,
        calibrator=calibrator,
        pricing=load_curve("flat"),
    )
    for drafter in drafters:
        drafter.begin(np.array(tokens[:1], np.int32))
    used = {}
    for n in range(1, len(tokens)):
        tree, seen = DraftTree.root(tokens[n - 1]), logits[:1, :0]
        if n % 16 == 0:  # often enough to fill all that can be filled
            drafted = builder.build(tokens[n - 1], 16, 16)
            tree = DraftTree.from_parents(drafted.tokens[:4], drafted.parents[:4])
            seen = logits[: len(tree)]
        for drafter in drafters:
            drafter.observe(tokens[n : n + 1], tree, seen)
        if n % 16 == 0:
            builder.learn(tokens[n : n + 1])
        if n in (20_000, 29_999):
            used[n] = size_of([drafters, calibrator]) / MIB
    assert used[29_999] < 64
    assert used[29_999] < used[20_000] + 4  # what is kept by key is not full yet
