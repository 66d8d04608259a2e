"""Drafters, one algorithm a file, and the names they are chosen by.

Other packages add theirs by an entry point of the group `specgen.drafters`; see docs/drafters.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from specgen.core.errors import UsageError

if TYPE_CHECKING:
    from specgen.core.protocols import Drafter

GROUP: Final = "specgen.drafters"  # the group of entry points that other packages use


@dataclass(frozen=True, slots=True)
class Spec:
    """A drafter by its module and the class in it, so that it is imported when chosen."""

    module: str
    name: str

    def load(self) -> Any:
        """The class: called with `standalone`, it gives a Drafter. Raises UsageError."""
        try:
            return getattr(import_module(self.module, __name__), self.name)
        except Exception as error:  # a module of others may do anything
            raise self._fault(error) from error

    def create(self, standalone: bool) -> Drafter:
        """A new drafter that knows no text yet; `standalone` as its paper describes it."""
        make = self.load()
        try:
            drafter: Drafter = make(standalone)
        except Exception as error:
            raise self._fault(error) from error
        return drafter

    def table_bytes(self, n_vocab: int, n_ctx: int) -> int:
        """Bytes of its tables once a context of `n_ctx` tokens is full; 0 where it says nothing."""
        tell = getattr(self.load(), "table_bytes", None)
        try:
            return 0 if tell is None else int(tell(n_vocab, n_ctx))
        except Exception as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> UsageError:
        what = f"{type(error).__name__}: {error}"
        return UsageError(
            f"the drafter {self.module}:{self.name} cannot be used: {what}",
            "choose another drafter",
        )


NONE: Final = "none"

REGISTRY: dict[str, Spec] = {
    NONE: Spec(".none", "NoDrafter"),
    "prompt-lookup": Spec(".prompt_lookup", "PromptLookup"),
    "copyspec": Spec(".copyspec", "CopySpec"),
    "suffix": Spec(".suffix", "Suffix"),
    "trigram": Spec(".trigram", "Trigram"),
    "recycle": Spec(".recycle", "Recycle"),
}

# Several at once, weighed by how often their drafts were accepted and what checking them costs.
# Where several name the same token, the first of them has it.
AUTO: Final = "auto"
AUTO_DRAFTERS: Final = ("suffix", "prompt-lookup", "recycle")

DEFAULT_DRAFTER: Final = AUTO


def find(name: str) -> Spec:
    """The drafter of a name: one of ours, or of another package. Raises UsageError."""
    spec = REGISTRY.get(name) or _installed().get(name)
    if spec is None:
        known = ", ".join([AUTO, *REGISTRY, *_installed()])
        raise UsageError(f"there is no drafter named '{name}'", f"choose from: {known}")
    return spec


def _installed() -> dict[str, Spec]:
    """Drafters of other packages, by the names of their entry points."""
    from importlib.metadata import entry_points

    return {point.name: Spec(point.module, point.attr) for point in entry_points(group=GROUP)}


def names_of(names: str) -> tuple[str, ...]:
    """The drafters that a comma-separated list means, each once; "auto" in it means several.

    Raises UsageError for a name that nobody has, and for "none" beside others.
    """
    chosen: list[str] = []
    for name in map(str.strip, names.split(",")):
        if name != AUTO:
            find(name)
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


def most_drafts(names: str, asked: int, *, others: bool = False) -> int:
    """Most draft tokens of a tree by the drafters of `names`, where `asked` are allowed.

    `others` is whether somebody else drafts, too. Raises UsageError for an unknown name.
    """
    return 0 if names_of(names) == (NONE,) and not others else asked
