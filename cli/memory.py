"""Settings that fit the memory: what `--memory-budget` and its default do where a model runs."""

from __future__ import annotations

import logging
from pathlib import Path

from specgen.core.budget import SHARE, Fit, Subject, fit, parse_budget
from specgen.core.config import EngineConfig
from specgen.core.host import available_memory_bytes
from specgen.core.library import system_info
from specgen.core.modelinfo import ModelInfo, read_headers
from specgen.core.profile import Profile
from specgen.core.repack import cpu_features
from specgen.drafters import fewer, table_bytes

from .model_card import size_text

_log = logging.getLogger("specgen.memory")


def subject_of(
    path: Path,
    drafters: str,
    profile: Profile | None,
    *,
    strict: bool = False,
    past: bool = True,
    interface: int = 0,
) -> Subject:
    """The model at `path` on this machine, and the names of who drafts for it.

    `past` is whether they search answers of earlier runs. Raises ModelError.
    """
    headers = read_headers(path)
    info = ModelInfo.from_headers(headers)
    return Subject(
        headers=headers,
        info=info,
        features=cpu_features(system_info()),
        tables=lambda n_ctx, few: table_bytes(
            fewer(drafters) if few else drafters, info.n_vocab, n_ctx, past=past and not few
        ),
        padding=profile.strict.slack if profile and strict else 0,
        interface=interface,
    )


def budget_bytes(text: str | None) -> int | None:
    """The budget asked for, or a part of what is available; None where that is not known.

    Raises MemoryBudgetError.
    """
    available = available_memory_bytes()
    if text is not None:
        return parse_budget(text, available)
    return None if available is None else int(SHARE * available)


def fitted(
    path: Path,
    config: EngineConfig,
    drafters: str,
    budget: str | None,
    profile: Profile | None,
    *,
    past: bool = True,
    interface: int = 0,
) -> Fit:
    """`config`, changed where it must be to fit the budget; each change is told as a warning.

    Raises MemoryBudgetError, ModelError or UsageError.
    """
    if profile:
        config = profile.settled(config)
    subject = subject_of(
        path, drafters, profile, strict=config.strict, past=past, interface=interface
    )
    limit = budget_bytes(budget)
    found = fit(subject, config, 1 << 62 if limit is None else limit)
    if found.concessions and limit is not None:
        given_up = ", ".join(found.concessions)
        _log.warning("to stay within %s of memory: %s", size_text(limit), given_up)
    return found
