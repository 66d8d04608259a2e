"""Samplers: each filter against its definition, the chain against llama.cpp's own samplers."""

from __future__ import annotations

import ctypes
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from specgen.core.errors import BackendError, UsageError
from specgen.core.sampling import (
    Sampler,
    SamplingParams,
    min_p_ids,
    penalized,
    top_k_ids,
    top_p_ids,
    typical_ids,
)

Row = NDArray[np.float32]
OFF = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)

# Quarters and few of them, so that ties and -inf are common.
LOGITS = st.lists(
    st.one_of(st.integers(-20, 20).map(lambda n: n / 4), st.just(-math.inf)),
    min_size=1,
    max_size=17,
).filter(lambda values: max(values) > -math.inf)


def row_of(values: Sequence[float]) -> Row:
    return np.array(values, np.float32)


def random_row(n_vocab: int, seed: int) -> Row:
    return (np.random.default_rng(seed).standard_normal(n_vocab) * 3).astype(np.float32)


def naive_softmax(values: Sequence[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def best_first(values: Sequence[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


class FixedNumbers:
    """Stands in for the random generator and hands out one number for ever."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


# ---- filters against their definitions


@given(values=LOGITS, k=st.integers(0, 20))
def test_top_k_matches_a_full_sort(values: list[float], k: int) -> None:
    """Top-k gives the k largest, best first, the lowest position first among equals."""
    assert top_k_ids(row_of(values), k).tolist() == best_first(values)[:k]


@pytest.mark.parametrize("n_vocab", [127, 128, 129, 5_000, 49_152, 49_153])
@pytest.mark.parametrize("k", [1, 2, 40, 1_000])
def test_top_k_of_a_long_row_matches_a_full_sort(n_vocab: int, k: int) -> None:
    """Skipping most blocks of a long row loses none of the k largest, with many ties or none."""
    smooth = random_row(n_vocab, k)
    for row in (smooth, np.round(smooth), np.zeros(n_vocab, np.float32), np.sort(smooth)):
        expected = np.argsort(-row, kind="stable")[:k]
        assert np.array_equal(top_k_ids(row, k), expected)
        assert top_k_ids(row, k).dtype == np.int32


def test_top_k_of_a_masked_row_takes_masked_tokens_last() -> None:
    """Where fewer than k logits are finite, the lowest ids of the -inf ones make up the rest."""
    row = np.full(10_000, -np.inf, np.float32)
    row[[9_999, 5_000]] = [1.0, 2.0]
    assert top_k_ids(row, 4).tolist() == [5_000, 9_999, 0, 1]


@given(values=LOGITS, p=st.floats(0.0, 0.999))
def test_top_p_matches_its_definition(values: list[float], p: float) -> None:
    """Top-p keeps the likeliest candidates up to the one with which the sum reaches p."""
    probs = naive_softmax(values)
    kept: list[int] = []
    for i in best_first(values):
        if math.fsum(probs[j] for j in kept) >= p - 1e-12 and kept:
            break
        kept.append(i)
    near = any(abs(math.fsum(probs[j] for j in kept[:n]) - p) < 1e-9 for n in range(len(kept) + 1))
    if not near:
        assert top_p_ids(row_of(values), p).tolist() == sorted(kept)


@given(values=LOGITS, p=st.floats(0.001, 1.0))
def test_min_p_matches_its_definition(values: list[float], p: float) -> None:
    """Min-p keeps what is at least p times as likely as the likeliest candidate."""
    floor = np.float32(max(values)) + np.float32(math.log(p))
    expected = [i for i, value in enumerate(values) if np.float32(value) >= floor]
    assert min_p_ids(row_of(values), p).tolist() == expected


@given(values=LOGITS, p=st.floats(0.0, 0.999))
def test_typical_matches_its_definition(values: list[float], p: float) -> None:
    """Typical keeps the candidates nearest to the entropy up to where the sum exceeds p."""
    probs = naive_softmax(values)
    surprise = [-math.log(x) if x > 0 else math.inf for x in probs]
    entropy = math.fsum(x * s for x, s in zip(probs, surprise, strict=True) if x > 0)
    distance = [abs(s - entropy) for s in surprise]
    kept = typical_ids(row_of(values), p).tolist()
    mass = math.fsum(probs[i] for i in kept)
    farthest = max(distance[i] for i in kept)
    assert kept == sorted(set(kept))
    assert mass > p - 1e-9 or len(kept) == len(values)
    assert all(i in kept or distance[i] >= farthest - 1e-9 for i in range(len(values)))
    last = max(kept, key=lambda i: (distance[i], i))
    tied = [i for i in kept if distance[i] >= farthest - 1e-9]
    assert len(kept) == 1 or len(tied) > 1 or mass - probs[last] <= p + 1e-9


def test_penalties_match_llama_cpps_rule() -> None:
    """Positive logits are divided, others multiplied, then count x frequency + presence go."""
    params = SamplingParams(repeat_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    after = penalized(row_of([4.0, -4.0, 0.0, -math.inf]), row_of([1, 3, 2, 1]), params)
    assert after.tolist() == [2.0 - 0.75, -8.0 - 1.75, -1.25, -math.inf]


@given(
    history=st.lists(st.integers(0, 4), max_size=12),
    n_next=st.integers(0, 8),
    last_n=st.integers(-1, 6),
)
def test_penalty_window_holds_the_last_tokens(history: list[int], n_next: int, last_n: int) -> None:
    """After any tokens the penalties see exactly the last n of the text, its beginning included."""
    params = replace(OFF, frequency_penalty=1.0, presence_penalty=0.5, repeat_last_n=last_n)
    sampler = Sampler(params, 5)
    sampler.begin([4, 4, 0])  # forgotten at the next `begin`
    sampler.begin(history)
    flat = np.zeros(5, np.float32)
    text = [*history, *(sampler.next(flat) for _ in range(n_next))]
    counts = Counter(text if last_n < 0 else text[max(0, len(text) - last_n) :])
    _, probs = sampler.distribution(flat)
    logits = [-counts[token] - 0.5 * (counts[token] > 0) for token in range(5)]
    assert probs == pytest.approx(naive_softmax(logits))


# ---- the chain against llama.cpp


def llama_cpp_distribution(
    row: Row, history: Sequence[int], params: SamplingParams
) -> dict[int, float]:
    """Candidates and probabilities after llama.cpp's own sampler chain."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    n_last = len(history) if params.repeat_last_n < 0 else params.repeat_last_n
    for part in (
        llama_cpp.llama_sampler_init_penalties(
            len(row),
            n_last,
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        ),
        llama_cpp.llama_sampler_init_top_k(params.top_k),
        llama_cpp.llama_sampler_init_typical(params.typical_p, 0),
        llama_cpp.llama_sampler_init_top_p(params.top_p, 0),
        llama_cpp.llama_sampler_init_min_p(params.min_p, 0),
        llama_cpp.llama_sampler_init_temp(params.temperature),
    ):
        llama_cpp.llama_sampler_chain_add(chain, part)
    for token in history:
        llama_cpp.llama_sampler_accept(chain, token)
    data = (llama_cpp.llama_token_data * len(row))()
    for token, logit in enumerate(row.tolist()):
        data[token] = llama_cpp.llama_token_data(token, logit, 0.0)
    candidates = llama_cpp.llama_token_data_array(data, len(row), -1, False)
    llama_cpp.llama_sampler_apply(chain, ctypes.byref(candidates))
    llama_cpp.llama_sampler_free(chain)
    kept = [(data[i].id, data[i].logit) for i in range(candidates.size)]
    probs = naive_softmax([logit for _, logit in kept])
    return {token: prob for (token, _), prob in zip(kept, probs, strict=True)}


CHAINS = {
    "defaults": SamplingParams(),
    "no top-k": SamplingParams(top_k=0),
    "top-k only": SamplingParams(top_k=13, top_p=1.0, min_p=0.0),
    "top-p only": SamplingParams(top_k=0, top_p=0.7, min_p=0.0),
    "min-p only": SamplingParams(top_k=0, top_p=1.0, min_p=0.1),
    "typical only": SamplingParams(top_k=0, top_p=1.0, min_p=0.0, typical_p=0.6),
    "typical first": SamplingParams(typical_p=0.8, top_p=0.9, temperature=1.7),
    "repeat": SamplingParams(repeat_penalty=1.3, temperature=0.3),
    "all penalties": SamplingParams(
        repeat_penalty=1.1, presence_penalty=0.4, frequency_penalty=-0.2, repeat_last_n=8
    ),
    "whole text": SamplingParams(frequency_penalty=0.3, repeat_last_n=-1, top_k=0),
    "everything": SamplingParams(
        temperature=0.6, top_k=100, typical_p=0.95, top_p=0.9, min_p=0.02, repeat_penalty=1.2
    ),
    "nothing": SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
    "smallest": SamplingParams(top_p=0.0, min_p=1.0, typical_p=0.0),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("n_vocab", [2, 3, 17, 300, 2_000])
def test_chain_matches_llama_cpp(name: str, n_vocab: int) -> None:
    """The whole chain keeps llama.cpp's candidates with llama.cpp's probabilities."""
    params = CHAINS[name]
    for seed in range(4):
        row = random_row(n_vocab, seed)
        history = np.random.default_rng(seed).integers(0, n_vocab, 90).tolist()
        sampler = Sampler(params, n_vocab)
        sampler.begin(history)
        ids, probs = sampler.distribution(row)
        expected = llama_cpp_distribution(row, history, params)
        assert ids.tolist() == sorted(expected)
        assert probs.tolist() == pytest.approx([expected[i] for i in sorted(expected)], rel=1e-4)


@settings(max_examples=300)
@given(
    values=LOGITS,
    k=st.integers(0, 18),
    top_p=st.floats(0.0, 1.0),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
    temperature=st.floats(0.01, 3.0),
)
def test_chain_is_its_filters_one_after_another(
    values: list[float], k: int, top_p: float, min_p: float, temperature: float
) -> None:
    """Counting a prefix of the best keeps what the filters keep one by one, ties included."""
    row = row_of(values)
    ids = np.sort(top_k_ids(row, k or len(row)))
    if top_p < 1:
        ids = ids[top_p_ids(row[ids], top_p)]
    if min_p > 0:
        ids = ids[min_p_ids(row[ids], min_p)]
    params = SamplingParams(temperature=temperature, top_k=k, top_p=top_p, min_p=min_p)
    kept, probs = Sampler(params, len(row)).distribution(row)
    assert kept.tolist() == ids.tolist()
    assert probs == pytest.approx(naive_softmax([x / temperature for x in row[ids].tolist()]))


@pytest.mark.parametrize("n_vocab", [2, 17, 2_000])
def test_greedy_matches_llama_cpp(n_vocab: int) -> None:
    """At temperature 0 the token is the one that llama.cpp's penalties and temp 0 leave."""
    params = SamplingParams(temperature=0.0, repeat_penalty=1.5, presence_penalty=0.3)
    for seed in range(20):
        row = random_row(n_vocab, seed)
        history = np.argsort(-row)[:40].tolist()
        sampler = Sampler(params, n_vocab)
        sampler.begin(history)
        expected = llama_cpp_distribution(row, history, params)
        assert sampler.next(row) == max(expected, key=expected.__getitem__)


# ---- the draw


def test_each_token_takes_exactly_one_random_number() -> None:
    """Between flat rows, whose token shows the number drawn, every other row takes one number."""
    n_vocab = 10_000
    sampler = Sampler(OFF, n_vocab)
    source = random.Random(1)
    numbers = [source.random() for _ in range(40)]
    flat, peaked = np.zeros(n_vocab, np.float32), np.full(n_vocab, -np.inf, np.float32)
    peaked[7] = 0.0
    for at in range(0, 40, 2):
        assert sampler.next(flat) == int(numbers[at] * n_vocab)
        assert sampler.next(peaked) == 7


@pytest.mark.parametrize("params", [SamplingParams(seed=1), SamplingParams(seed=1, top_k=0)])
def test_a_token_without_rivals_takes_its_random_number_too(params: SamplingParams) -> None:
    """Where the filters leave one token, the numbers of the tokens after it are the same."""
    row = random_row(500, 3)
    row[7] = row.max() + 9
    sampler = Sampler(params, 500)
    assert sampler.distribution(row)[0].tolist() == [7]
    assert [sampler.next(row) for _ in range(3)] == [7, 7, 7]
    source = random.Random(1)
    assert sampler._rng.random() == [source.random() for _ in range(4)][3]


def test_greedy_takes_no_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """At temperature 0 the lowest id of the likeliest tokens is taken without any draw."""
    sampler = Sampler(SamplingParams(temperature=0.0), 4)
    monkeypatch.setattr(sampler, "_rng", None)
    assert sampler.next(row_of([0.0, 3.0, 3.0, 1.0])) == 1


@pytest.mark.parametrize("params", [OFF, SamplingParams(), CHAINS["typical first"]])
def test_tokens_follow_the_distribution(params: SamplingParams) -> None:
    """20,000 draws fit the distribution, by a chi-square test that a right sampler fails with
    probability 1e-6 if its seed were drawn afresh."""
    n_draws, row = 20_000, random_row(30, 5)
    sampler = Sampler(replace(params, seed=11), 30)
    ids, probs = sampler.distribution(row)
    counts = Counter(sampler.next(row) for _ in range(n_draws))
    assert set(counts) <= set(ids.tolist())
    expected = {int(i): p * n_draws for i, p in zip(ids, probs, strict=True) if p * n_draws >= 5}
    chi2 = sum((counts[i] - mean) ** 2 / mean for i, mean in expected.items())
    # Cells too rare for the test are left out, so the free cells are at most len(expected).
    assert chi2 < chi_square_limit(len(expected), z=4.75)  # z: normal quantile of 1 - 1e-6


def chi_square_limit(degrees: int, z: float) -> float:
    """Wilson and Hilferty's approximation of the chi-square quantile."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + z * math.sqrt(spread)) ** 3)


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (1 - 2**-53, 3)])
def test_extreme_numbers_never_choose_an_impossible_token(
    number: float, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least and the greatest number choose the first and last tokens that are possible."""
    sampler = Sampler(OFF, 6)
    monkeypatch.setattr(sampler, "_rng", FixedNumbers(number))
    assert sampler.next(row_of([-math.inf, 0.0, -math.inf, 0.3, -math.inf, -math.inf])) == token


def test_swapping_a_near_tie_changes_no_token() -> None:
    """Two candidates whose order flips by rounding give the same text at the same seed."""
    row = random_row(500, 2)
    first, second = top_k_ids(row, 2)
    row[second] = np.nextafter(row[first], np.float32(-np.inf))
    swapped = row.copy()
    swapped[first], swapped[second] = row[second], row[first]
    params = SamplingParams(seed=4, temperature=1.5)
    one, other = Sampler(params, 500), Sampler(params, 500)
    assert [one.next(row) for _ in range(300)] == [other.next(swapped) for _ in range(300)]


# ---- seeds, limits and bad input


@given(
    n_vocab=st.integers(2, 17),
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(sorted(CHAINS)),
)
@settings(max_examples=60)
def test_a_seed_gives_one_text_on_any_vocabulary(n_vocab: int, seed: int, name: str) -> None:
    """Equal seeds choose equal tokens, all in range, on tiny vocabularies and with any chain."""
    params = replace(CHAINS[name], seed=seed)
    texts = []
    for _ in range(2):
        sampler = Sampler(params, n_vocab)
        sampler.begin([])
        texts.append([sampler.next(random_row(n_vocab, seed + i)) for i in range(8)])
    assert texts[0] == texts[1]
    assert all(0 <= token < n_vocab for token in texts[0])


def test_random_seed_is_reported_and_repeats() -> None:
    """Without a seed one of 32 bits is drawn, and giving it again repeats the text."""
    row = np.zeros(1_000, np.float32)
    first = Sampler(SamplingParams(top_k=0), 1_000)
    again = Sampler(SamplingParams(top_k=0, seed=first.seed), 1_000)
    assert 0 <= first.seed < 2**32
    assert first.seed != Sampler(SamplingParams(), 1_000).seed
    assert [first.next(row) for _ in range(9)] == [again.next(row) for _ in range(9)]


def test_callers_logits_stay_as_they_are() -> None:
    """The row is llama.cpp's memory, so no sampler writes to it."""
    for params in (*CHAINS.values(), SamplingParams(temperature=0.0, repeat_penalty=2.0)):
        row = random_row(300, 1)
        row.flags.writeable = False
        sampler = Sampler(params, 300)
        sampler.begin(list(range(100)))
        sampler.next(row)


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 1e-6, 1e6])
@pytest.mark.parametrize("params", [SamplingParams(seed=1), OFF])
def test_extreme_temperatures_are_no_trouble(params: SamplingParams, temperature: float) -> None:
    """A tiny temperature takes the likeliest token, and none overflows."""
    sampler = Sampler(replace(params, temperature=temperature), 50)
    row = random_row(50, 3)
    token = sampler.next(row)
    assert temperature > 1 or token == int(row.argmax())


def test_the_likeliest_that_typical_leaves_is_taken_at_a_tiny_temperature() -> None:
    """Where typical drops the likeliest token, the others' weights do not vanish beside it."""
    row = row_of([2.0, *[0.5] * 9, 0.25])  # surprise of the first is far from the entropy
    params = replace(OFF, typical_p=0.3, temperature=1e-6)
    ids, probs = Sampler(params, len(row)).distribution(row)
    assert 0 not in ids
    assert probs == pytest.approx([1 / len(ids)] * len(ids))


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(),
        SamplingParams(top_k=0),
        SamplingParams(top_k=2),
        SamplingParams(typical_p=0.5),
    ],
)
def test_unusable_logits_are_an_error(bad: float | None, params: SamplingParams) -> None:
    """NaN, +inf or a row of nothing but -inf raises BackendError instead of choosing a token."""
    row = np.full(200, -np.inf, np.float32)
    if bad is not None:
        row = random_row(200, 1)
        row[150] = bad
    with pytest.raises(BackendError, match="without a usable maximum"):
        Sampler(params, 200).next(row)


@pytest.mark.parametrize("n_vocab", [3, 127, 5_000, 49_153])
@pytest.mark.parametrize("n_bad", [1, 3, 60])
def test_nan_is_found_wherever_it_is(n_vocab: int, n_bad: int) -> None:
    """NaN raises BackendError at any place of a row, be it the last or among the others."""
    sampler = Sampler(SamplingParams(), n_vocab)
    for seed in range(6):
        row = random_row(n_vocab, seed)
        at = np.random.default_rng(seed).choice(n_vocab, min(n_bad, n_vocab), replace=False)
        at[0] = n_vocab - 1 if seed % 2 else at[0]
        row[at] = np.nan
        with pytest.raises(BackendError, match="without a usable maximum"):
            sampler.next(row)


def test_a_row_of_another_vocabulary_is_an_error() -> None:
    """A row that is not n_vocab long is a bug of the caller, and says so."""
    with pytest.raises(ValueError, match=r"\(3,\), not \(4,\)"):
        Sampler(OFF, 4).next(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [
        ("temperature", -0.1, "0 or more"),
        ("temperature", math.nan, "0 or more"),
        ("temperature", math.inf, "0 or more"),
        ("top_k", -1, "0 or more"),
        ("top_p", 1.01, "between 0 and 1"),
        ("top_p", -0.01, "between 0 and 1"),
        ("min_p", 2.0, "between 0 and 1"),
        ("typical_p", math.nan, "between 0 and 1"),
        ("repeat_penalty", 0.0, "between 0.001 and 1000"),
        ("repeat_last_n", -2, "-1 or more"),
        ("presence_penalty", math.inf, "between -1000 and 1000"),
        ("frequency_penalty", math.nan, "between -1000 and 1000"),
        ("seed", -1, "between 0"),
        ("seed", 10**400, "between 0"),
    ],
)
def test_values_out_of_range_name_the_interval(name: str, value: Any, interval: str) -> None:
    """A value out of range raises UsageError with the name, the value and what is allowed."""
    with pytest.raises(UsageError) as caught:
        SamplingParams(**{name: value})
    assert name in caught.value.message
    assert str(value) in caught.value.message
    assert interval in caught.value.message
