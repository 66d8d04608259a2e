"""Drafters, one algorithm a file, and the names they are chosen by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specgen.core.errors import UsageError
from specgen.core.protocols import Drafter

from .none import NoDrafter
from .prompt_lookup import PromptLookup


@dataclass(frozen=True, slots=True)
class Spec:
    """How to make a drafter, and one line about it."""

    create: Callable[[], Drafter]
    summary: str


REGISTRY: dict[str, Spec] = {
    "none": Spec(NoDrafter, "plain decoding, drafts nothing"),
    "prompt-lookup": Spec(PromptLookup, "copies what followed the last tokens earlier in the text"),
}

DEFAULT_DRAFTER = "prompt-lookup"


def create(names: str) -> list[Drafter]:
    """New drafters for a comma-separated list of names.

    Raises UsageError for a name that is not in the registry.
    """
    drafters: list[Drafter] = []
    for name in names.split(","):
        spec = REGISTRY.get(name.strip())
        if spec is None:
            raise UsageError(
                f"there is no drafter named '{name.strip()}'", f"choose from: {', '.join(REGISTRY)}"
            )
        drafters.append(spec.create())
    return drafters
