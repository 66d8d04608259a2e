"""The memory of all drafter state is bounded."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType

import numpy as np
import pytest

from specgen.core.cost.model import load_curve
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.drafting.builder import Builder
from specgen.core.drafting.speculator import Call, Speculator
from specgen.core.errors import UsageError
from specgen.core.knowledge.learned import MOST_ANSWERS
from specgen.core.testing.fakes import fake_limits
from specgen.core.verify import Verdict
from specgen.drafters.ensemble import ensemble, table_bytes
from specgen.drafters.suffix import Suffix
from tests.support.drafting import begun, observe

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


def written(names: str, n_tokens: int, *, past: bool) -> Iterator[tuple[int, int]]:
    """Let drafters watch a text, and give its length and all their bytes after each quarter.

    The text copies itself now and then, as texts do, and has all tokens of a real vocabulary.
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, REAL_VOCAB)).astype(np.float32)
    text = rng.zipf(1.3, n_tokens) % REAL_VOCAB
    for start in range(1000, n_tokens - 300, 700):
        text[start : start + 300] = text[start - 900 : start - 600]
    tokens = text.tolist()
    answers = (rng.zipf(1.3, MOST_ANSWERS) % REAL_VOCAB).astype(np.int32)
    drafters = ensemble(names, answers=answers if past else answers[:0])
    acceptance = AcceptanceModel()
    limits = fake_limits(REAL_VOCAB, n_ctx=n_tokens + 64)
    builder = Builder(limits, 16, acceptance=acceptance, pricing=load_curve("flat"))
    speculator = Speculator(builder, drafters)
    speculator.begin(tokens[:1])
    for n in range(1, len(tokens)):
        if n % 16 == 0:  # often enough to fill all that can be filled
            draft = speculator.propose(tokens[:n], 0, depth=16, free=3)
            verdict = Verdict((tokens[n],), (), False)
            call = Call(len(draft.tree), n - 1, 1e-3)
            speculator.learn(draft, verdict, logits[: len(draft.tree)], call)
        if (n + 1) % (n_tokens // 4) == 0:
            yield n + 1, size_of([drafters, acceptance])


@pytest.mark.long
def test_memory_is_bounded_and_constant() -> None:
    """All drafters and the acceptance model over 30,000 tokens: under 64 MiB, to the end."""
    used = {n: n_bytes / MIB for n, n_bytes in written("auto", 30_000, past=True)}
    assert used[30_000] < 64
    assert used[30_000] < used[22_500] + 4  # what is kept by key is not full yet


@pytest.mark.parametrize("names", ["auto", "suffix,prompt-lookup", "recycle,trigram"])
@pytest.mark.parametrize("n_ctx", [1024, 8192])
def test_planned_tables_are_those_of_a_full_context(names: str, n_ctx: int) -> None:
    """What is planned for is enough, and not far from what there is."""
    *_, (_, used) = written(names, n_ctx, past=False)
    planned = table_bytes(names, REAL_VOCAB, n_ctx, learn=False, answers=False)
    assert 0.8 * used - 2 * MIB < planned < 1.6 * used + 2 * MIB


def test_single_drafters_have_no_judge() -> None:
    """Nor past answers; none has nothing, and an unknown one is refused."""
    assert table_bytes("none", REAL_VOCAB, 8192, learn=True, answers=True) == 0
    both = table_bytes("suffix,copyspec", REAL_VOCAB, 8192, learn=False, answers=False)
    apart = [
        table_bytes(name, REAL_VOCAB, 8192, learn=True, answers=True)
        for name in ("suffix", "copyspec")
    ]
    assert both > sum(apart)
    with pytest.raises(UsageError, match="no drafter"):
        table_bytes("x", 1, 1, learn=False, answers=False)


@pytest.mark.parametrize(
    ("n", "room"), [(0, 1024), (1024, 1024), (4096, 4096), (4097, 8192), (66_000, 65_536)]
)
def test_rings_are_no_larger_than_they_must_be(n: int, room: int) -> None:
    """Of suffix: six tables of places and 52 bytes a token, whether a text is read or written."""
    text = (np.arange(n) * 7919 % REAL_VOCAB).tolist()
    written = begun(Suffix(), text[: n - n // 64])
    observe(written, text[n - n // 64 :])
    expected = 6 * 4 * 65_536 + 52 * room
    slack = 10_000 + 0.07 * 52 * room  # arrays that grow take a sixteenth more
    assert size_of(begun(Suffix(), text)) == pytest.approx(expected, abs=slack)
    assert size_of(written) == pytest.approx(expected, abs=slack)


@pytest.mark.parametrize("name", ["prompt-lookup", "copyspec", "suffix"])
@pytest.mark.parametrize("n", [1024, 8192, 65_536])
def test_single_tables_take_what_is_planned(name: str, n: int) -> None:
    """In a text that hardly ever repeats itself."""
    text = np.random.default_rng(0).zipf(1.3, n) % REAL_VOCAB
    (drafter,) = ensemble(name)
    drafter.begin(text.astype(np.int32))
    planned, taken = table_bytes(name, REAL_VOCAB, n, learn=True, answers=True), size_of(drafter)
    assert 0.7 * taken - 1000 < planned < 1.3 * taken + 100_000
