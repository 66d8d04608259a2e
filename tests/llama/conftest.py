"""specgen's kernels with each set of instructions, for the tests of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from specgen.core.llama import kernels
from specgen.core.llama.library import library


@pytest.fixture(scope="module", params=kernels.INSTRUCTIONS)
def installed(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The compiled kernels, with one set of instructions after the other, switched off.

    Also where the checks of `install_kernels` have found them to be wrong: a test shall fail then.
    """
    loaded = library()
    try:
        compiled = kernels._compiled()
        kernels._check_classes(loaded.ggml)
        kernels._add(loaded.ggml, compiled, (request.param,))
    except kernels._Unusable as reason:
        pytest.skip(str(reason))
    compiled.specgen_enable(False, False)
    yield compiled
    assert kernels.install_kernels(loaded.ggml) == loaded.kernels  # as it was
