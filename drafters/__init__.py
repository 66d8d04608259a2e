"""Drafters, one algorithm a file, and the names they are chosen by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    def create(self, standalone: bool) -> Drafter:
        """A new drafter that knows no text yet; `standalone` as its paper describes it."""
        drafter: Drafter = getattr(import_module(f".{self.module}", __name__), self.name)(
            standalone
        )
        return drafter


NONE = "none"

REGISTRY: dict[str, Spec] = {
    NONE: Spec("none", "NoDrafter", "plain decoding, drafts nothing"),
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

# Several at once, judged by how often their draft tokens were accepted and by what checking them
# costs. In the order in which a step's time is spent on them.
AUTO = "auto"
AUTO_DRAFTERS = ("suffix", "prompt-lookup", "recycle", "copyspec", "trigram")

DEFAULT_DRAFTER = AUTO


def create(names: str) -> list[Drafter]:
    """New drafters for a comma-separated list of names, or those of AUTO_DRAFTERS for "auto".

    A single one works as its paper describes it; several feed the builder.

    Raises UsageError for a name that is not in the registry.
    """
    chosen = names_of(names)
    return [REGISTRY[name].create(standalone=len(chosen) == 1) for name in chosen]


def names_of(names: str) -> tuple[str, ...]:
    """The drafters that a comma-separated list means, each once; "auto" in it means several.

    Raises UsageError for a name that is not in the registry, and for "none" beside others.
    """
    chosen: list[str] = []
    for name in map(str.strip, names.split(",")):
        if name != AUTO and name not in REGISTRY:
            known = ", ".join([AUTO, *REGISTRY])
            raise UsageError(f"there is no drafter named '{name}'", f"choose from: {known}")
        chosen += AUTO_DRAFTERS if name == AUTO else (name,)
    if NONE in chosen and set(chosen) != {NONE}:
        raise UsageError(
            f"the drafters are '{names}', and 'none' goes with no other", "leave it out"
        )
    return tuple(dict.fromkeys(chosen))


def together(lists: Iterable[str]) -> str:
    """One list of all drafters in `lists`, to plan memory for whichever of these is run."""
    chosen = dict.fromkeys(name for names in lists for name in names_of(names))
    return ",".join(name for name in chosen if name != NONE) or NONE


def fewer(names: str) -> str:
    """The drafters of "auto" that gain most for their memory; other names stay as they are."""
    return ",".join(AUTO_DRAFTERS[:2]) if names.strip() == AUTO else names


def with_past(drafters: Sequence[Drafter], answers: Tokens) -> tuple[Drafter, ...]:
    """`drafters`, and where several have `suffix` among them, one that searches past `answers`."""
    names = [drafter.name for drafter in drafters]
    if len(names) < 2 or "suffix" not in names or not len(answers):
        return tuple(drafters)
    from .past import Past

    return (*drafters, Past(answers))


def most_drafts(names: str, asked: int, *, others: bool = False) -> int:
    """The most draft tokens of a tree by the drafters of `names`, where `asked` are allowed.

    `others` is whether somebody else drafts, too. Raises UsageError for an unknown name.
    """
    return 0 if names_of(names) == (NONE,) and not others else asked
