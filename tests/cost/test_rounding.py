"""Which widths of calls round alike: on fake models, and on llama.cpp itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from specgen.core.config import ContextConfig
from specgen.core.cost.rounding import exact_branches, exact_classes
from specgen.core.cost.timed import TimedBackend
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.protocols import Logits
from specgen.core.testing.fakes import fake_limits
from specgen.core.tree import DraftTree
from tests.conftest import TinyModel
from tests.support import own_kernels
from tests.support.clocked import TEXT, StairBackend
from tests.support.tiny import Quantization


class RoundingBackend(StairBackend):
    """Rows in full groups of four round otherwise, as do all beyond a context of 40."""

    def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
        logits = super().score(tree, pending).copy()
        logits[: len(tree) // 4 * 4] += np.float32(1e-3)
        if self.length >= 40 and len(tree) == 1:
            logits += np.float32(2e-3)
        return logits


def test_exact_classes() -> None:
    """Widths are in a class if a text decoded in either has the same logits all along."""
    timed = RoundingBackend().timed()
    widths = (1, 8, 4, 2, 16, 3, 6, 5, 24)
    # 8 leaves a half group at the end of no text: the second call of 24 is cut off after 8 rows.
    assert exact_classes(timed, 8, 1e6, widths) == ((1, 2, 3), (4, 8, 16, 24), (5,), (6,))
    assert exact_classes(timed, 64, 1e6, widths)[:2] == ((1,), (2, 3))
    assert timed.backend.length == 64


def test_exact_classes_in_time() -> None:
    """What was not compared is in no class."""
    assert exact_classes(StairBackend().timed(), 8, 1e-4, (4, 8, 1)) == ()
    # 8 calls with 4 rows take 18 ms, and no width may take longer than three deadlines
    assert exact_classes(StairBackend().timed(), 8, 7e-3, (4, 8, 1)) == ((4,),)


def test_exact_branches() -> None:
    """A width is exact if its side branches round as a chain does, wherever they are tried."""

    class Branching(StairBackend):
        """From 6 rows on side branches round otherwise, with 8 rows only at one place."""

        def score(self, tree: DraftTree, pending: Sequence[int]) -> Logits:
            logits = super().score(tree, pending).copy()
            if len(tree) >= 6 and (len(tree) != 8 or self.length == 16):
                logits[tree.n_main :] += np.float32(1e-3)
            return logits

    timed = Branching().timed()
    assert exact_branches(timed, 8, 1e6, (3, 4, 5, 6, 8, 12)) == {
        3: True, 4: True, 5: True, 6: False, 8: False, 12: False
    }  # fmt: skip
    assert timed.backend.length == 8
    assert exact_branches(Branching().timed(), 40, 1e6, (3, 8)) == {3: True, 8: True}
    assert exact_branches(Branching().timed(), 8, 0.0, (6, 4)) == {6: False}
    assert exact_branches(Branching().timed(), 8, 1e-4, (4, 6)) == {}
    chains = StairBackend(fake_limits(16, branch=False)).timed()
    assert exact_branches(chains, 8, 1e6) == {}


@pytest.mark.llama
@pytest.mark.parametrize(
    "quantization", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "IQ4_XS"]
)
def test_exact_classes_of_llama_cpp(tiny_model: TinyModel, quantization: Quantization) -> None:
    """Formats of our kernels round alike in every width, with flash attention and a short text."""
    if quantization not in ("Q4_0", "Q4_1", "Q8_0") and not own_kernels.multiplies():
        pytest.skip("llama.cpp's kernels for it depend on the width")
    model = LlamaModel(tiny_model(quantization=quantization))
    backend = LlamaBackend(model, ContextConfig(256, threads=1, flash_attention=True))
    try:
        widths = (1, 2, 5, 8, 17, 63)
        timed = TimedBackend(backend, TEXT)
        assert exact_classes(timed, 16, 60.0, widths) == (widths,)
        assert exact_branches(timed, 16, 60.0, (3, 8)) == {3: True, 8: True}
    finally:
        backend.close()
        model.close()
