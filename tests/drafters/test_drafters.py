"""Each drafter does what its paper says, by naive definitions."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

import numpy as np
import pytest

from specgen.core.errors import UsageError
from specgen.core.protocols import Drafter, Tokens
from specgen.core.testing.conformance import repeating_text
from specgen.drafters import most_drafts, names_of, together
from specgen.drafters.copyspec import CopySpec
from specgen.drafters.ensemble import ensemble, fewer
from specgen.drafters.evidence import chance_bucket, length_bucket
from specgen.drafters.ngrams import NgramIndex
from specgen.drafters.past import Past
from specgen.drafters.predicted import Predicted
from specgen.drafters.prompt_lookup import COPY_LENGTH, PromptLookup
from specgen.drafters.slots import Slots
from specgen.drafters.suffix import CAPACITY, OCCURRENCES, Suffix
from specgen.drafters.trigram import FADE, PAIRS, SUCCESSORS, Trigram
from tests.support.drafting import N_VOCAB, begun, best_chain, guesses_at_root, observe

# --- prompt lookup and CopySpec -----------------------------------------------------------------


def places(text: Sequence[int], order: int) -> list[int]:
    """What follows the earlier occurrences of the last `order` tokens starts at these."""
    gram = text[-order:]
    return [end for end in range(order, len(text)) if text[end - order : end] == gram]


@pytest.mark.parametrize("seed", range(20))
def test_prompt_lookup_copies_from_the_last_occurrence(seed: int) -> None:
    """The longest n-gram's last occurrence gives the copy, a few tokens alone, 64 otherwise."""
    text = repeating_text(150, N_VOCAB if seed % 2 else 4, seed)
    drafters = [begun(PromptLookup(standalone), text[:40]) for standalone in (True, False)]
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
    drafters = [begun(CopySpec(standalone), text[:40]) for standalone in (True, False)]
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
    assert len(best_chain(begun(Trigram(standalone=True), text))) == 4
    assert len(best_chain(begun(Trigram(), text))) == 100


def test_slots_give_up_the_oldest_key() -> None:
    """The newest keys keep their numbers, all different."""
    slots = Slots(3)
    for key in range(10):
        slots.take(key)
    assert len(slots) == 3
    assert sorted(slots.get(key) or 0 for key in (7, 8, 9)) == [0, 1, 2]
    assert slots.get(6) is None


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
    for standalone in (True, False):
        drafter = Predicted(text, standalone=standalone)
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
    for standalone in (True, False):
        missed = [i for i, hit in enumerate(hits(Predicted(text, standalone), answer)) if not hit]
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
    drafter = begun(Predicted(text, standalone=True), [])
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


@pytest.mark.parametrize("n_tokens", [2, 4, N_VOCAB])
@pytest.mark.parametrize("seed", range(6))
def test_suffix_guesses_what_followed_the_two_longest_endings(seed: int, n_tokens: int) -> None:
    """The latest follower first; a long ending that one token alone followed is enough."""
    text = repeating_text(300, n_tokens, seed)
    drafter = begun(Suffix(), text[:20])
    n_sure = 0
    for end in range(20, 300):
        known = text[:end]
        expected: dict[int, tuple[int, int]] = {}  # order and level by token, in order
        orders = [order for order in (16, 8, 5, 3, 2, 1) if places(known, order)]
        for level, order in enumerate(orders[:2]):
            for place in places(known, order)[: -OCCURRENCES - 1 : -1]:
                expected.setdefault(known[place], (order, level))
            if order >= 8 and len(expected) == 1:
                n_sure += len(orders) > 1
                break
        guesses = guesses_at_root(drafter)
        found = {guess.token: tuple(guess.evidence[1:3]) for guess in guesses}
        assert list(found.items()) == list(expected.items())
        observe(drafter, [text[end]])
    assert n_sure


@pytest.mark.parametrize("n", [0, 1, 2, 3, 15, 16, 17, 500, 1024, 1025, 65_536, 66_000])
def test_suffix_reads_a_text_at_once_as_token_by_token(n: int) -> None:
    """A prompt is indexed by other code than what is generated; the guesses are the same."""
    text = repeating_text(n, 12, n)
    at_once, one_by_one = begun(Suffix(), text), begun(Suffix(), [])
    observe(one_by_one, text)
    for _ in range(40):
        states = [drafter.root() for drafter in (at_once, one_by_one)]
        assert (states[0] is None) == (states[1] is None) == (not text)
        if text:
            assert list(at_once.predict(states[0])) == list(one_by_one.predict(states[1]))
        token = text[len(text) // 2] if text else 1
        for drafter in (at_once, one_by_one):
            observe(drafter, [token])
        text = [*text[1:], token]


def test_suffix_counts_an_occurrence_once() -> None:
    """One that has just left the rings is gone, and not mistaken for what took its place."""
    text = list(range(10, CAPACITY + 110))
    text[-2:] = [1, 1]
    text[-CAPACITY - 2 : -CAPACITY] = [1, 2]  # what follows the first 1 is a token too old
    drafter = begun(Suffix(), text[:1000])
    observe(drafter, text[1000:])
    (guess,) = guesses_at_root(drafter)
    n_occurrences = guess.evidence[4]
    assert (guess.token, n_occurrences) == (1, 1)


def test_names_of_drafters() -> None:
    """With little memory "auto" means two of them; what was named stays, and nobody drafts none."""
    assert fewer(" auto ") == "suffix,prompt-lookup"
    assert fewer("recycle,trigram,suffix") == "recycle,trigram,suffix"
    assert names_of("recycle, auto,recycle")[:3] == ("recycle", "suffix", "prompt-lookup")
    assert len(names_of("auto,suffix")) == 3
    assert most_drafts("none", 16) == 0
    assert most_drafts("suffix", 16) == most_drafts("auto", 16) == 16
    assert names_of(together(["none", "suffix", "recycle,suffix"])) == ("suffix", "recycle")
    assert together(["none", "none"]) == "none"


@pytest.mark.parametrize(
    "names", ["auto,none", "none,suffix", " recycle , none ", "none,auto,none"]
)
def test_none_goes_with_no_other(names: str) -> None:
    """To draft nothing and something is no request that can be met."""
    with pytest.raises(UsageError, match="'none' goes with no other"):
        names_of(names)


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
        return [drafter.name for drafter in ensemble(chosen, answers=known)]

    assert names("suffix,copyspec", answers) == ["suffix", "copyspec", "past"]
    assert names("suffix,copyspec", answers[:0]) == ["suffix", "copyspec"]
    assert names("recycle,copyspec", answers) == ["recycle", "copyspec"]
    assert names("suffix", answers) == ["suffix"]
    assert names("auto", answers)[-1] == "past"
