"""The memory of all drafter state is bounded."""

from __future__ import annotations

import gc
import sys
from types import FunctionType, ModuleType

import numpy as np

from specgen.core.builder import Builder
from specgen.core.calibrate import Calibrator
from specgen.core.cost import load_curve
from specgen.core.tree import DraftTree
from specgen.drafters import create, with_past

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
