"""The largest logits of rows, by the compiled library and by NumPy, against plain sorting."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from specgen.core import compiled, rows
from specgen.core.compiled import NotCompiled, open_library
from specgen.core.errors import BackendError
from specgen.core.rows import Compiled, Largest, likeliest
from specgen.core.sampling import Sampler, SamplingParams

# Around a part, a stretch, and where columns are many enough for a bound.
SIZES = (1, 2, 5, 63, 64, 65, 127, 300, 1024, 1100, 2047, 2048, 2049, 5000, 49_153)
KS = (1, 2, 8, 40)
ODD = (0.0, -0.0, 1e-41, -1e-41, 3e38, -3e38, -math.inf, 1.0, 1.0000001)

Row = NDArray[np.float32]


def _ways() -> Iterator[tuple[str, Compiled | None]]:
    yield "numpy", None
    try:
        library = open_library()
    except NotCompiled:
        return
    yield "plain", rows.functions(library, "")
    if rows.has_avx2(library):
        yield "avx2", rows.functions(library, "_avx2")


WAYS = dict(_ways())


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Compiled | None:
    """Who does the work in a test: NumPy, or the library with these instructions."""
    functions = WAYS[request.param]
    monkeypatch.setattr(rows, "compiled", lambda: functions)
    return functions


def by_all(compute: Callable[[], Any]) -> list[Any]:
    """What comes out in each way."""
    found = []
    for functions in WAYS.values():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "compiled", lambda functions=functions: functions)
            found.append(compute())
    return found


def best_first(row: Sequence[float]) -> list[int]:
    """Positions by plain sorting: NaN first, then the largest, then the lowest position."""
    return sorted(range(len(row)), key=lambda i: (0, 0, i) if row[i] != row[i] else (1, -row[i], i))


def peaks_of(row: Sequence[float], k: int) -> list[float]:
    """The logits that stand for all in the sum of `likeliest`, by definition."""
    n_columns = len(row) // 64
    if n_columns <= 2 * k:
        return list(row)
    n = 64 * n_columns
    return [max(row[i:n:n_columns]) for i in range(n_columns)] + list(row[n:])


def random_rows(kind: str, n_rows: int, n: int) -> Row:
    """Logits of that kind."""
    rng = np.random.default_rng([n, n_rows, *kind.encode()])
    some = (3 * rng.standard_normal((n_rows, n))).astype(np.float32)
    if kind == "ties":
        some = np.round(some)
    elif kind == "masked":
        some[rng.random(some.shape) < 0.9] = -np.inf
    elif kind == "equal":
        some[:] = 1.5
    elif kind == "zeros":
        some[:] = np.where(rng.random(some.shape) < 0.5, np.float32(-0.0), np.float32(0))
    elif kind == "denormal":
        some *= np.float32(1e-41)
    elif kind == "rising":
        some.sort(axis=1)
    elif kind == "falling":
        some = -np.sort(some, axis=1)
    elif kind == "huge":
        some = np.clip(some * np.float64(2e38), -3.4e38, 3.4e38).astype(np.float32)
    return some


KINDS = ("normal", "ties", "masked", "equal", "zeros", "denormal", "rising", "falling", "huge")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_top_k_and_argmax_are_those_of_sorting(way: Compiled | None, kind: str, n: int) -> None:
    """Best first, ties by lowest id, whatever stands in the row."""
    row = random_rows(kind, 1, n)[0]
    row[-1] = max(row[-1], -1.0)  # a masked row has a choice
    values = row.tolist()
    expected = best_first(values)
    assert Largest(n, 1).argmax(row) == expected[0]
    for k in KS:
        ids, logits = Largest(n, k).top_k(row)
        assert ids == expected[:k]
        assert np.array_equal(np.array(logits, np.float32), row[ids])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [1, 64, 2049, 49_153])
def test_what_is_not_finite(way: Compiled | None, bad: float, n: int) -> None:
    """The first NaN is found wherever it is, before an infinity; a row of -inf has its order."""
    rng = np.random.default_rng(n)
    for places in ([0], [n - 1], [n // 2], rng.integers(n, size=9), range(n)):
        row = random_rows("normal", 1, n)[0]
        row[list(places)] = bad
        if math.isnan(bad):
            row[0 if n // 2 in places else n // 3] = math.inf
            row[n // 2] = bad
        expected = best_first(row.tolist())
        assert Largest(n, 1).argmax(row) == expected[0]
        for k in (1, 8, 40):
            ids, logits = Largest(n, k).top_k(row)
            assert ids == expected[:k]
            assert np.array_equal(np.array(logits, np.float32), row[ids], equal_nan=True)


@pytest.mark.parametrize("kind", ["normal", "ties", "masked", "falling", "denormal", "huge"])
@pytest.mark.parametrize("n", SIZES)
def test_likeliest_is_what_it_says(way: Compiled | None, kind: str, n: int) -> None:
    """Tokens of each row by sorting; probabilities by their definition, to single precision."""
    some = random_rows(kind, 3, n)
    some[:, 0] = np.maximum(some[:, 0], -1)
    for k in (1, 4, 8):
        tokens, probs = likeliest(some, k)
        assert len(tokens) == len(probs) == 3 * min(k, n)
        for i, row in enumerate(some.tolist()):
            place = slice(i * min(k, n), (i + 1) * min(k, n))
            assert tokens[place].tolist() == best_first(row)[:k]
            top = max(row)
            total = sum(math.exp(peak - top) for peak in peaks_of(row, k))
            expected = [math.exp(row[token] - top) / total for token in tokens[place]]
            assert probs[place].tolist() == pytest.approx(expected, rel=3e-6, abs=1e-9)


@pytest.mark.parametrize("n", [5, 64, 1100, 49_153])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_a_usable_maximum_has_zeros(way: Compiled | None, bad: float, n: int) -> None:
    """One value is enough, in the columns or behind them; other rows are as they would be alone."""
    for place in (0, n // 2, n - 1):
        some = random_rows("normal", 3, n)
        alone = [likeliest(some[i : i + 1], 4) for i in (0, 2)]
        some[1, place] = bad
        tokens, probs = likeliest(some, 4)
        assert not any(tokens[4:8]) and not any(probs[4:8])
        assert (tokens[:4], probs[:4]) == alone[0] and (tokens[8:], probs[8:]) == alone[1]
    tokens, probs = likeliest(np.full((1, n), -np.inf, np.float32), 4)
    assert not any(tokens) and not any(probs)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.floats(width=32) | st.sampled_from(ODD), min_size=1, max_size=40),
    n=st.integers(1, 1500),
    k=st.integers(1, 50),
)
def test_all_ways_have_the_same_bits(values: list[float], n: int, k: int) -> None:
    """Whatever a row holds, NumPy and the library agree in every bit."""
    some = np.resize(np.array(values, np.float32), (2, n))
    some[1] = np.sort(some[0])[::-1]

    def all_of_them() -> tuple[Any, ...]:
        largest = Largest(n, k)
        ids, logits = largest.top_k(some[0])
        tokens, probs = likeliest(some, k)
        values = np.array(logits, np.float32).tobytes()
        return largest.argmax(some[0]), ids, values, tokens.tobytes(), probs.tobytes()

    first, *others = by_all(all_of_them)
    assert all(other == first for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_have_the_same_probabilities(kind: str) -> None:
    """The same of whole vocabularies."""
    some = random_rows(kind, 4, 49_152)
    first, *others = by_all(lambda: tuple(part.tobytes() for part in likeliest(some, 8)))
    assert all(other == first for other in others)


def test_any_array_is_served(way: Compiled | None) -> None:
    """Views with steps, other orders, alignments and types, and what can't be written."""
    wide = random_rows("normal", 6, 600)
    shifted = np.frombuffer(b"\0" + wide.tobytes(), np.uint8)[1:].view(np.float32).reshape(6, 600)
    locked = wide.copy()
    locked.flags.writeable = False
    others: tuple[NDArray[Any], ...] = (
        *(wide[:, ::2], wide[:, ::-1], wide[::2], wide[1:4, :300], np.asfortranarray(wide)),
        *(wide.T[:500], wide.astype(np.float64), wide.astype(">f4"), shifted, locked),
        *(np.broadcast_to(wide[0], (3, 600)), wide[::-1], wide[2:3]),
    )
    for some in others:
        plain = np.ascontiguousarray(some, np.float32)
        assert likeliest(some, 3) == likeliest(plain, 3)
        for row, expected in zip(some, plain.tolist(), strict=True):
            largest = Largest(some.shape[1], 3)
            assert largest.argmax(row) == best_first(expected)[0]
            assert largest.top_k(row)[0] == best_first(expected)[:3]


def test_nothing_is_asked_for(way: Compiled | None) -> None:
    """No logits, no rows, no tokens."""
    row = random_rows("normal", 1, 100)
    assert Largest(100, 0).top_k(row[0]) == Largest(100, -1).top_k(row[0]) == ([], [])
    assert not likeliest(row, 0)[0] and not likeliest(row[:0], 8)[0]
    assert not likeliest(row[:, :0], 8)[0]


def test_a_row_of_another_shape_is_an_error(way: Compiled | None) -> None:
    """Nothing beside the row is read, and nothing is left out of it."""
    for shape in ((99,), (101,), (1, 100), (100, 1), (50, 2), ()):
        row = np.zeros(shape, np.float32)
        for ask in (Largest(100, 3).argmax, Largest(100, 3).top_k):
            with pytest.raises(ValueError, match="shape"):
                ask(row)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=3),
        SamplingParams(seed=3, temperature=0),
        SamplingParams(seed=3, top_k=5, min_p=0),
        SamplingParams(seed=3, repeat_penalty=1.3),
        SamplingParams(seed=3, top_k=0),
        SamplingParams(seed=3, typical_p=0.7),
    ],
)
def test_a_seed_gives_one_text_in_all_ways(params: SamplingParams) -> None:
    """The sampler's tokens do not depend on who finds the candidates."""

    def text() -> list[int]:
        sampler = Sampler(params, 3000)
        sampler.begin([1, 2, 3])
        return [sampler.next(row) for row in random_rows("normal", 40, 3000)]

    first, *others = by_all(text)
    assert len(set(first)) > 20
    assert all(other == first for other in others)


def test_a_row_without_a_choice_is_an_error(way: Compiled | None) -> None:
    """A sampler refuses it in every way."""
    row = np.full(3000, -np.inf, np.float32)
    for params in (SamplingParams(), SamplingParams(temperature=0)):
        with pytest.raises(BackendError, match="usable maximum"):
            Sampler(params, 3000).next(row)


def test_who_does_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library, unless it is switched off or missing, or arrays lie otherwise in memory."""
    choose = rows.compiled.__wrapped__
    monkeypatch.delenv("SPECGEN_KERNELS", raising=False)
    assert (choose() is None) == (len(WAYS) == 1)
    with monkeypatch.context() as patch:
        patch.setenv("SPECGEN_KERNELS", "none")
        assert choose() is None
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "LIBRARY", tmp_path / "_kernels.so")
        assert choose() is None
    with monkeypatch.context() as patch:
        patch.setattr(rows, "_FLOAT32", np.dtype(np.float64))
        assert choose() is None
    with monkeypatch.context() as patch:
        patch.setattr(rows, "_OBJECT_BYTES", 32)
        assert choose() is None


def test_the_library_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain rows of float32, those of llama.cpp's buffer too, are not left to NumPy."""
    if len(WAYS) == 1:
        pytest.skip("the library was not compiled")
    functions = list(WAYS.values())[-1]
    monkeypatch.setattr(rows, "compiled", lambda: functions)
    for name in ("_peaks", "_likeliest"):
        monkeypatch.setattr(rows, name, None)
    monkeypatch.setattr(Largest, "_checked", None)
    some = random_rows("normal", 4, 500)
    for part in (some, some[1:3], some[3:]):
        likeliest(part, 8)
    assert len(Largest(500, 8).top_k(some[2])[0]) == 8
    assert Largest(500, 8).argmax(some[2]) == some[2].argmax()


def test_outputs_of_llama_cpp_are_known_to_the_library() -> None:
    """Their type is NumPy's own object, by which the library tells float32."""
    from specgen.core.llama.buffers import Outputs

    values = (ctypes.c_float * 12)(*range(12))
    finder = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(
        lambda context: ctypes.addressof(values)
    )

    class Api:
        llama_get_logits = finder

    logits = Outputs(Api, None, 3, 4).rows(1, 3)
    assert logits.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert logits.dtype is np.dtype(np.float32) and logits[0].dtype is np.dtype(np.float32)
