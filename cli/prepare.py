"""What opens a model: its file, what is known of it here, and settings that fit the memory."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specgen.core.config import EngineConfig
from specgen.core.cost.model import MAX_ROWS
from specgen.core.errors import MemoryBudgetError
from specgen.core.host.limits import available_memory_bytes
from specgen.core.host.paths import path_text
from specgen.core.host.process_memory import reset_peak, trim_heap
from specgen.core.knowledge.profile import Profile, find_profile, keep_profile
from specgen.core.knowledge.profiling import (
    measure_profile,
    measured_context,
    settings_to_measure,
)
from specgen.core.llama.door import require_runnable
from specgen.core.llama.draft_model import require_undo
from specgen.core.llama.library import free_device_memory, library, system_info
from specgen.core.memory.budget import SHARE, FittedConfig, PlanInputs, fit, parse_budget, plan_for
from specgen.core.memory.plan import memory_text
from specgen.core.memory.repacked import cpu_features
from specgen.core.models.catalogue import NAMES, CatalogueEntry, model_folder, resolve
from specgen.core.models.header import Header
from specgen.core.models.modelinfo import ModelInfo, read_headers
from specgen.core.models.pull import Progress, pull
from specgen.core.stop import ShouldStop, never
from specgen.drafters import NONE, fewer
from specgen.drafters.sizes import table_bytes

from .interrupt import Interrupts
from .model_card import size_text
from .terminal import clean, is_terminal, note, shown_progress

_log = logging.getLogger("specgen.memory")


def ensure_model(model: str | None) -> Path:
    """The file that MODEL means; a catalogue model is downloaded where it is missing.

    Raises ModelError for an unknown name, PullError where the download fails, and UsageError
    where the model's terms must be accepted first.
    """
    found = resolve(model)
    return found if isinstance(found, Path) else fetch_model(found)


def fetch_model(entry: CatalogueEntry, *, accept_license: bool = False) -> Path:
    """The file of a catalogue model, downloaded where it is missing.

    Raises PullError, and UsageError where the model's terms must be accepted first.
    """
    folder = model_folder()
    path = entry.installed(folder)
    if path:
        return path
    # Waiting and downloading are Python's own work; they clean up as they are left.
    with Interrupts(at_once=True), _shown(entry) as progress:
        return pull(entry, folder, progress=progress, accept_license=accept_license)


@contextlib.contextmanager
def _shown(entry: CatalogueEntry) -> Iterator[Progress]:
    """A progress callback: bars on a terminal, else a line at the start and one at the end."""
    if is_terminal(sys.stderr):
        with _bars(entry) as progress:
            yield progress
        return
    seen: set[str] = set()
    lines = {
        "wait": f"waiting for another pull of {entry.name}",
        "download": f"downloading {entry.name} ({size_text(entry.download_bytes)})",
    }

    def tell(stage: str, done_bytes: int, total_bytes: int) -> None:
        if stage not in seen and stage in lines:
            note(f"specgen: {lines[stage]}")
        seen.add(stage)

    yield tell
    if "unpack" in seen:
        size = size_text(entry.n_bytes)
        note(f"specgen: {entry.name} is installed and checked ({size})")


@contextlib.contextmanager
def _bars(entry: CatalogueEntry) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    texts = {
        "wait": f"waiting for another pull of {entry.name}",
        "download": f"downloading {entry.name}",
        "unpack": "unpacking and checking",
    }
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done_bytes: int, total_bytes: int) -> None:
            if stage not in tasks:
                said = clean(texts.get(stage, stage))
                tasks[stage] = bars.add_task(said, total=total_bytes)
            bars.update(tasks[stage], completed=done_bytes)

        yield tell


def require_model(model: str | None, draft: str | None = None, *, hint: str = NAMES) -> None:
    """Raise ModelError for what cannot be run: MODEL, and a draft model if there is one.

    Of a file its header is read; a name of the catalogue will do. Fetches no model and loads none.
    `hint` is for a MODEL that may be something else.
    """
    models = [resolve(model, hint), *(() if draft is None else (resolve(draft),))]
    for found in models:
        if isinstance(found, Path):
            require_runnable(found)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be run, as far as its memory goes.

    Attributes:
        path: of the model.
        drafters: their names.
        budget: as it was given, or None.
        past: whether what earlier runs left is used and kept.
        interface: bytes that the command takes beyond what `generate` does.
    """

    path: Path
    config: EngineConfig
    drafters: str
    budget: str | None
    past: bool = True
    interface: int = 0


def plan_inputs(wanted: Wanted, profile: Profile | None) -> PlanInputs:
    """What a plan needs to know of the model, this machine and the drafters. Raises ModelError."""
    headers = read_headers(wanted.path)
    info = ModelInfo.from_headers(headers)
    few, draft = fewer(wanted.drafters), wanted.config.draft
    return PlanInputs(
        headers=headers,
        info=info,
        features=cpu_features(system_info()),
        tables=lambda n_ctx, is_few: table_bytes(
            few if is_few else wanted.drafters,
            info.n_vocab,
            n_ctx,
            past=wanted.past and not is_few,
        ),
        strict=profile.strict if profile and wanted.config.strict else None,
        flash_attention=profile.flash_attention if profile else None,
        interface=wanted.interface + library().driver_bytes,
        device=free_device_memory(),
        draft=() if draft is None else _draft_headers(draft),
    )


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
    return limit, fit(inputs, wanted.config, limit, may_drop=wanted.budget is None)


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
    wanted = Wanted(path, config, NONE, budget)
    inputs = plan_inputs(wanted, None)
    n_ctx = measured_context(config, inputs.info.n_ctx_train)
    largest = replace(config, n_ctx=n_ctx, max_drafts=MAX_ROWS, draft_model=None)
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


def ensure_profile(
    path: Path,
    config: EngineConfig,
    budget: str | None = None,
    should_stop: ShouldStop = never,
) -> Profile:
    """What is known of the model on this machine; measured first if nothing is.

    It is kept if times are known well, else it serves this run, without them. For strict decoding
    it is kept all the same: load does not change which widths round alike.

    Raises ModelError, BackendError or Interrupted, and MemoryBudgetError if measuring would cross
    a budget.
    """
    profile = find_profile(path, config)
    if profile is None or not (profile.prices or config.strict):
        require_room_to_measure(path, config, budget)
        note(f"specgen: measuring {path.name} on this machine, once")
        with shown_progress() as progress:
            profile = measure_profile(path, config, on_progress=progress, should_stop=should_stop)
        if profile.prices or (config.strict and any(profile.classes.values())):
            keep_profile(path, config, profile)
        if profile.prices is None:
            note(f"specgen: what calls cost is not known: {profile.doubt}")
        trim_heap()
        reset_peak()  # what follows has a plan of its own
    return profile
