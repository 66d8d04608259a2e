"""Before a model is opened: its file, fetched where it is missing, and what was measured of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen.core.config import EngineConfig
from specgen.core.host.process_memory import reset_peak, trim_heap
from specgen.core.knowledge.profile import Profile, find_profile, keep_profile
from specgen.core.llama.door import require_runnable
from specgen.core.models.catalogue import NAMES, CatalogueEntry, model_folder, resolve
from specgen.core.stop import ShouldStop, never
from specgen.opening import require_room_to_measure

from .interrupt import Interrupts
from .terminal import clean, is_terminal, note, shown_progress

if TYPE_CHECKING:
    from specgen.core.models.pull import Progress


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
    from specgen.core.models.pull import pull

    # Waiting and downloading are Python's own work; they clean up as they are left.
    with Interrupts(at_once=True), _shown(entry) as progress:
        return pull(entry, folder, progress=progress, accept_license=accept_license)


@contextlib.contextmanager
def _shown(entry: CatalogueEntry) -> Iterator[Progress]:
    """A progress callback: bars on a terminal, else a line at the start and one at the end."""
    from .model_card import size_text

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


def ensure_profile(
    path: Path,
    config: EngineConfig,
    budget: str | None = None,
    should_stop: ShouldStop = never,
) -> Profile:
    """What is known of the model on this machine; measured first if nothing, or little, is.

    It is kept if times are known well, else it serves this run, without them. For strict decoding
    it is kept all the same: load does not change which widths round alike.

    Raises ModelError, BackendError or Interrupted, and MemoryBudgetError if measuring would cross
    a budget.
    """
    profile = find_profile(path, config)
    is_measured = profile is not None and not profile.is_provisional
    if profile is None or not is_measured or not (profile.prices or config.strict):
        from specgen.core.knowledge.profiling import measure_profile

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
