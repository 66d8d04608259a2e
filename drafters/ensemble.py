"""Who drafts for a text, and the memory that their tables take: decided here, for all commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from . import AUTO, AUTO_DRAFTERS, find, names_of

if TYPE_CHECKING:
    from specgen.core.protocols import Backend, Drafter, Tokens

_ACCEPTANCE: Final = 1_800_000  # the counts of the acceptance model take so many bytes
_PAST: Final = 3_700_000  # an index of past answers takes so many bytes
# Reading, merging and writing the counts of earlier runs takes so many bytes.
_COUNTS: Final = 6_200_000
_ANSWERS: Final = 2_000_000  # doing the same with past answers takes so many bytes


def ensemble(
    names: str,
    *,
    predicted: Sequence[int] | None = None,
    draft: Backend | None = None,
    draft_name: str = "",
    answers: Tokens | None = None,
    few: bool = False,
) -> tuple[Drafter, ...]:
    """New drafters for one text.

    A single one works as its paper describes it; several feed the builder, and then one of them
    may search past answers.

    Args:
        names: comma-separated, each a drafter; "auto" means several.
        predicted: tokens that the answer is expected to have.
        draft: a context of a model that drafts.
        draft_name: what that model is called in statistics.
        answers: (n,) tokens of past answers.
        few: leave out what gains least for its memory.

    Raises UsageError for an unknown name.
    """
    chosen = names_of(fewer(names) if few else names)
    standalone = len(chosen) == 1 and predicted is None and draft is None
    drafters = [find(name).create(standalone) for name in chosen]
    if predicted is not None:
        from .predicted import Predicted

        drafters.insert(0, Predicted(predicted))
    if draft is not None:
        from .draft_model import DraftModel

        drafters.append(DraftModel(draft, label=draft_name))
    searched = len(drafters) > 1 and any(each.name == "suffix" for each in drafters)
    if searched and not few and answers is not None and len(answers):
        from .past import Past

        drafters.append(Past(answers))
    return tuple(drafters)


def fewer(names: str) -> str:
    """Of "auto", the drafters that gain most for their memory; others are kept as asked for."""
    return ",".join(AUTO_DRAFTERS[:2]) if names.strip() == AUTO else names


def table_bytes(
    names: str,
    n_vocab: int,
    n_ctx: int,
    *,
    learn: bool,
    answers: bool = False,
    others: int = 0,
    few: bool = False,
) -> int:
    """Bytes of the tables of drafters, once a context of `n_ctx` tokens is full.

    `names` and `few` are as for `ensemble`; `learn` is whether what earlier runs left is used and
    kept, `answers` whether that includes past answers. With `few` neither is. `others` draft beside
    those that are named: a model, a predicted text. Raises UsageError for an unknown name.
    """
    chosen = names_of(fewer(names) if few else names)
    total = sum(find(name).table_bytes(n_vocab, n_ctx) for name in chosen)
    if len(chosen) + others > 1:
        total += _ACCEPTANCE
        if learn and not few:
            total += _COUNTS
            if answers:
                total += _ANSWERS + (_PAST if "suffix" in chosen else 0)
    return total
