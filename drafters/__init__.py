"""Drafters, one algorithm a file, and the names they are chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from specgen.core.errors import UsageError

if TYPE_CHECKING:
    from specgen.core.protocols import Drafter, Tokens


@dataclass(frozen=True, slots=True)
class Spec:
    """A drafter by the module here and the class in it, so that it is imported when chosen."""

    module: str
    name: str
    summary: str

    def create(self, alone: bool) -> Drafter:
        """A new drafter that knows no text yet; `alone` as its paper describes it."""
        drafter: Drafter = getattr(import_module(f".{self.module}", __name__), self.name)(alone)
        return drafter


REGISTRY: dict[str, Spec] = {
    "none": Spec("none", "NoDrafter", "plain decoding, drafts nothing"),
    "prompt-lookup": Spec(
        "prompt_lookup",
        "PromptLookup",
        "copies on from the last occurrence of the last tokens",
    ),
    "copyspec": Spec(
        "copyspec",
        "CopySpec",
        "copies on from the first occurrence of the last three tokens",
    ),
    "suffix": Spec("suffix", "Suffix", "what followed the longest endings of the text before"),
    "trigram": Spec("trigram", "Trigram", "what lately followed the last two tokens"),
    "recycle": Spec("recycle", "Recycle", "the target's own runners-up after the same tokens"),
}

# Several at once, judged by how often they were right and by what checking their guesses costs.
# In the order in which a step's time is spent on them.
AUTO = "auto"
AUTO_DRAFTERS = ("suffix", "prompt-lookup", "recycle", "copyspec", "trigram")

DEFAULT_DRAFTER = AUTO


def create(names: str) -> list[Drafter]:
    """New drafters for a comma-separated list of names, or those of AUTO_DRAFTERS for "auto".

    A single one works as its paper describes it; several feed the builder.

    Raises UsageError for a name that is not in the registry.
    """
    chosen = [name.strip() for name in names.split(",")]
    if chosen == [AUTO]:
        return [REGISTRY[name].create(alone=False) for name in AUTO_DRAFTERS]
    drafters = []
    for name in chosen:
        spec = REGISTRY.get(name)
        if spec is None:
            known = ", ".join([AUTO, *REGISTRY])
            raise UsageError(f"there is no drafter named '{name}'", f"choose from: {known}")
        drafters.append(spec.create(alone=len(chosen) == 1))
    return drafters


def table_bytes(drafters: Sequence[Drafter], n_vocab: int) -> int:
    """Bytes that the tables of drafters take after a long text, see tests/test_memory.py.

    Measured: what several drafters and their judge hold grows to 24 MB; recycle also has a row of
    64 bytes for each token of the vocabulary.
    """
    names = {drafter.name for drafter in drafters}
    if names <= {"none"}:
        return 0
    rows = _ROW_BYTES * n_vocab if "recycle" in names else 0
    return rows + (_SEVERAL_BYTES if len(names) > 1 else _ONE_BYTES)


_ROW_BYTES = 64
_SEVERAL_BYTES = 24_000_000
_ONE_BYTES = 8_000_000


def with_past(drafters: Sequence[Drafter], answers: Tokens) -> tuple[Drafter, ...]:
    """`drafters`, and where several have `suffix` among them, one that searches past `answers`."""
    names = [drafter.name for drafter in drafters]
    if len(names) < 2 or "suffix" not in names or not len(answers):
        return tuple(drafters)
    from .past import Past

    return (*drafters, Past(answers))
