"""Opening a model: settings that fit the memory, then the engine, then who drafts.

The Python API, `generate` and `chat` open models here; `plan`, `bench` and `verify`, which have
drafters of their own, take their settings from here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from specgen.core.config import EngineConfig
from specgen.core.cost.model import MAX_ROWS
from specgen.core.engine import Engine
from specgen.core.errors import MemoryBudgetError
from specgen.core.host.limits import available_memory_bytes
from specgen.core.host.paths import path_text
from specgen.core.knowledge.learned import load_learned
from specgen.core.knowledge.profile import Profile
from specgen.core.llama.draft_model import require_undo
from specgen.core.llama.kernels import NONE as NO_KERNELS
from specgen.core.llama.kernels import laid_out_bytes
from specgen.core.llama.library import free_device_memory, library, system_info
from specgen.core.memory.budget import (
    SHARE,
    FittedConfig,
    PlanInputs,
    fit,
    parse_budget,
    plan_for,
    shares_for,
)
from specgen.core.memory.placement import shares_text
from specgen.core.memory.plan import memory_text
from specgen.core.memory.repacked import AMX, cpu_features
from specgen.core.models.header import Header
from specgen.core.models.modelinfo import ModelInfo, read_headers
from specgen.core.stop import ShouldStop, never
from specgen.drafters import NONE
from specgen.drafters.ensemble import ensemble, table_bytes

_log = logging.getLogger("specgen.memory")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be run, as far as its memory goes.

    Attributes:
        path: of the model.
        drafters: their names.
        budget: as it was given, or None.
        learn: whether what earlier runs left is used and kept.
        answers: whether that includes past answers.
        is_predicted: whether there is a text that the answer is expected to resemble.
        interface: bytes that the command takes beyond what `generate` does.
    """

    path: Path
    config: EngineConfig
    drafters: str
    budget: str | None
    learn: bool = True
    answers: bool = False
    is_predicted: bool = False
    interface: int = 0


def plan_inputs(wanted: Wanted, profile: Profile | None) -> PlanInputs:
    """What a plan needs to know of the model, this machine and the drafters. Raises ModelError."""
    headers = read_headers(wanted.path)
    info = ModelInfo.from_headers(headers)
    draft = wanted.config.draft
    features = cpu_features(system_info())
    has_kernels = library().kernels != NO_KERNELS
    if has_kernels:  # they leave AMX out
        features -= {AMX}
    return PlanInputs(
        headers=headers,
        info=info,
        features=features,
        tables=lambda n_ctx, few: table_bytes(
            wanted.drafters,
            info.n_vocab,
            n_ctx,
            learn=wanted.learn,
            answers=wanted.answers,
            others=wanted.is_predicted + (draft is not None),
            few=few,
        ),
        strict=profile.strict if profile and wanted.config.strict else None,
        flash_attention=profile.flash_attention if profile else None,
        interface=wanted.interface + library().driver_bytes,
        device=free_device_memory(),
        draft=() if draft is None else _draft_headers(draft),
        laid_out=laid_out_bytes if has_kernels else None,
    )


def runs_on(inputs: PlanInputs, config: EngineConfig) -> str:
    """Which share of the weights runs on whose kernels, in one line."""
    return shares_text(shares_for(inputs, config), library().kernels)


def _draft_headers(path: Path) -> Sequence[Header]:
    """Of a draft model. Raises ModelError, and UsageError for one that cannot draft."""
    headers = read_headers(path)
    info = ModelInfo.from_headers(headers)
    require_undo(path, is_stateful=info.is_recurrent or info.is_hybrid)
    return headers


def budget_bytes(text: str | None) -> int | None:
    """The budget asked for, or a part of what is available; None where that is not known.

    Raises MemoryBudgetError.
    """
    available = available_memory_bytes()
    if text is not None:
        return parse_budget(text, available)
    return None if available is None else int(SHARE * available)


def choose(wanted: Wanted, inputs: PlanInputs) -> tuple[int | None, FittedConfig]:
    """The bytes that are allowed, or None, and the configuration that fits them.

    Raises MemoryBudgetError, ModelError or UsageError.
    """
    limit = budget_bytes(wanted.budget)
    found = fit(inputs, wanted.config, limit, may_drop=wanted.budget is None)
    _log.info("weights: %s", runs_on(inputs, found.config))
    return limit, found


def fitted(wanted: Wanted, profile: Profile | None) -> FittedConfig:
    """The configuration, changed where it must be to fit; each change is told as a warning.

    Raises MemoryBudgetError, ModelError or UsageError.
    """
    limit, found = choose(wanted, plan_inputs(wanted, profile))
    if found.concessions:
        reason = "to fit the memory" if limit is None else f"to stay within {memory_text(limit)}"
        _log.warning("%s: %s", reason, ", ".join(found.concessions))
    return found


def require_room_to_measure(path: Path, config: EngineConfig, budget: str | None) -> None:
    """Raise MemoryBudgetError if measuring the model would take more than the budget.

    It opens a context with flash attention and one without, of a length that it chooses itself.
    """
    from specgen.core.knowledge.profiling import measured_context, settings_to_measure

    config = replace(config, draft_model=None)  # which is not opened
    inputs = plan_inputs(Wanted(path, config, NONE, budget), None)
    n_ctx = measured_context(config, inputs.info.n_ctx_train)
    largest = replace(config, n_ctx=n_ctx, max_drafts=MAX_ROWS)
    plans = [
        plan_for(inputs, replace(largest, flash_attention=setting))
        for setting in settings_to_measure(config)
    ]
    total = plans[0].total + sum(plan.context for plan in plans[1:])
    limit = budget_bytes(budget)
    if limit is not None and total > limit:
        raise MemoryBudgetError(
            f"{path_text(path.name)} must be measured once, which takes {memory_text(total)}, and"
            f" the memory budget is {memory_text(limit)}",
            f"run `specgen calibrate {path_text(path)}` with the same options where there is more,"
            " or use a smaller -c",
        )


def open_engine(
    wanted: Wanted,
    profile: Profile | None,
    *,
    predicted: str | None = None,
    should_stop: ShouldStop = never,
) -> Engine:
    """The model with settings that fit the memory, and with its drafters.

    Args:
        wanted: what is to be run.
        profile: what was measured of the model, or None.
        predicted: a text that the answer is expected to resemble.
        should_stop: asked while the model is opened and while prompts are processed.

    Raises MemoryBudgetError, ModelError, BackendError, UsageError or Interrupted.
    """
    found = fitted(wanted, profile)
    engine = Engine(wanted.path, (), found.config, profile=profile, should_stop=should_stop)
    engine.planned = found.plan
    try:
        if found.config.max_drafts:  # else tables would be of no use
            _let_draft(engine, wanted, predicted)
    except BaseException:
        engine.close()
        raise
    return engine


def _let_draft(engine: Engine, wanted: Wanted, predicted: str | None) -> None:
    """Give the engine its drafters, and what earlier runs left for them."""
    config = engine.config
    tokens = None
    if predicted is not None:
        tokens = engine.vocab.tokenize(predicted, add_bos=False, special=False)
    make = partial(
        ensemble,
        wanted.drafters,
        predicted=tokens,
        draft=engine.draft,
        draft_name=config.draft.name if config.draft else "",
        few=config.few_drafters,
    )
    drafters = make()
    # A single one drafts as its paper says, and learns nothing that could be kept.
    if not wanted.learn or config.few_drafters or len(drafters) < 2:
        engine.renew(drafters)
        return
    learned = load_learned(engine.path, answers=wanted.answers)
    engine.renew(make(answers=learned.answers), learned)
