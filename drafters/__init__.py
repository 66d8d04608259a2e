"""Drafters, one algorithm a file, and the names they are chosen by."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from specgen.core.errors import UsageError

if TYPE_CHECKING:
    from specgen.core.protocols import Drafter


@dataclass(frozen=True, slots=True)
class Spec:
    """A drafter by the module here and the class in it, so that it is imported when chosen."""

    module: str
    name: str
    summary: str

    def create(self) -> Drafter:
        """A new drafter that knows no text yet."""
        drafter: Drafter = getattr(import_module(f".{self.module}", __name__), self.name)()
        return drafter


REGISTRY: dict[str, Spec] = {
    "none": Spec("none", "NoDrafter", "plain decoding, drafts nothing"),
    "prompt-lookup": Spec(
        "prompt_lookup", "PromptLookup", "copies what followed the last tokens earlier in the text"
    ),
}

DEFAULT_DRAFTER = "prompt-lookup"


def create(names: str) -> list[Drafter]:
    """New drafters for a comma-separated list of names.

    Raises UsageError for a name that is not in the registry.
    """
    drafters = []
    for name in names.split(","):
        spec = REGISTRY.get(name.strip())
        if spec is None:
            known = ", ".join(REGISTRY)
            raise UsageError(f"there is no drafter named '{name.strip()}'", f"choose from: {known}")
        drafters.append(spec.create())
    return drafters
