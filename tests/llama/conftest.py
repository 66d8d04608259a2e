"""specgen's kernels with each set of instructions, for the tests of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from specgen.core.llama import kernels
from specgen.core.llama.library import library


@pytest.fixture(scope="module", params=kernels.INSTRUCTIONS)
def installed(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The compiled kernels, with one set of instructions after the other, switched off."""
    loaded = library()
    if loaded.kernels == kernels.NONE:
        pytest.skip("there are none for this processor, or no compiler was there")
    compiled = kernels._compiled()
    try:
        kernels._add(loaded.ggml, compiled, (request.param,))
    except kernels._Unusable:
        pytest.skip(f"this processor does not have {request.param}")
    compiled.specgen_enable(False, False)
    yield compiled
    assert kernels.install_kernels(loaded.ggml) == loaded.kernels  # as it was
