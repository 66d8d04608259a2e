"""`specgen calibrate`: measure a model on this machine. `specgen cache`: what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specgen.core.errors import SpecgenError
from specgen.core.host.paths import path_text

from .choices import number
from .files import check_place, save
from .grouping import grouped
from .model_choice import ModelChoice
from .options import MachineOptions, Verbosity
from .terminal import note, print_table, set_up_logging, show, shown_progress
from .words import Group

if TYPE_CHECKING:
    from specgen.core.knowledge.profile import Profile

_BREAK_EVEN = (4, 8, 16)

cache_app = typer.Typer(cls=Group, help="What specgen keeps between runs.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("calibrate")(calibrate)
    app.add_typer(cache_app, name="cache")
    cache_app.command("clear")(clear_cache)
    cache_app.command("path")(show_path)


@grouped
def calibrate(
    chosen: ModelChoice,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            min=1.0,
            callback=number,
            help="About how long to measure; at most twice that.",
        ),
    ] = 17.0,
    curve_out: Annotated[
        Path | None,
        typer.Option("--curve-out", metavar="FILE", help="Save the curve as a file of its own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbosity = 0,
    *,
    engine: MachineOptions,
) -> None:
    """Measure what drafts cost with a model on this machine, and keep it for later runs.

    A busy machine is measured twice. Where that does not help, or the time is too short, nothing is
    kept, and the exit code is 1.
    """
    from specgen.core.knowledge.profile import keep_profile
    from specgen.core.knowledge.profiling import measure_profile
    from specgen.opening import require_room_to_measure

    from .interrupt import Interrupts
    from .prepare import ensure_model, require_model

    set_up_logging(verbose)
    model = chosen.name
    require_model(model)
    if curve_out:
        check_place(curve_out)
    with Interrupts() as interrupts:
        path, config = ensure_model(model), engine.config()
        require_room_to_measure(path, config, None)
        with shown_progress() as progress:
            profile = measure_profile(path, config, seconds, progress, interrupts.came)
        kept = keep_profile(path, config, profile) if profile.prices else None
    if curve_out and profile.prices:
        save(curve_out, f"{json.dumps(profile.curve.record())}\n".encode())
    if as_json:
        record = {"model": path_text(path), "stored": kept and path_text(kept)} | _record(profile)
        show(json.dumps(record))
    else:
        _print(profile, kept)
    if profile.prices is None:
        raise SpecgenError(f"not kept: {profile.doubt}", _remedy(profile, seconds))


def _remedy(profile: Profile, seconds: float) -> str:
    if profile.is_noisy:
        return "run it again when it is quiet"
    return f"give it more time: --seconds {4 * seconds:.0f}"


@cache_app.callback()
def _cache() -> None:
    """What specgen keeps between runs: measurements, and what it has learnt."""


def clear_cache() -> None:
    """Remove what specgen has measured and learnt. Models stay."""
    from specgen.core.knowledge.store import cache_folder, clear

    folder = cache_folder()
    n_files = clear(folder)
    note(f"removed {n_files} file{'' if n_files == 1 else 's'} from {path_text(folder)}")


def show_path() -> None:
    """Print the folder that it is kept in."""
    from specgen.core.knowledge.store import cache_folder

    show(cache_folder())


def _record(profile: Profile) -> dict[str, Any]:
    """All figures as JSON."""
    comparison = profile.comparison
    return {
        "flash_attention": profile.flash_attention,
        "flash_attention_off": comparison
        and {
            "step_time": round(comparison.steps[1], 3),
            "prompt_time": round(comparison.prefill[1], 3),
            "contexts": list(comparison.contexts),
        },
        "noise": round(profile.noise, 2),
        "samples": profile.samples,
        "curve": profile.curve.record(),
        "break_even": [
            {"context": context}
            | {str(n): round(_relative(profile, n, context), 3) for n in _BREAK_EVEN}
            for context in profile.curve.contexts
        ],
        "exact_classes": [
            {"context": context, "classes": [list(widths) for widths in classes]}
            for context, classes in sorted(profile.classes.items())
        ],
    }


def _print(profile: Profile, kept: Path | None) -> None:
    """The figures as a table and a few lines."""
    heads, rows = _table(profile)
    print_table(heads, rows, right=range(len(heads)))
    show("")
    for line in _lines(profile, kept):
        show(line)


def _table(profile: Profile) -> tuple[list[str], list[list[str]]]:
    """T by rows and context: milliseconds, and relative to one row."""
    curve = profile.curve
    heads = ["rows", *(f"{context} tokens" for context in curve.contexts)]
    rows = [
        [str(n), *(f"{1e3 * row[i]:.1f} ms {row[i] / row[0]:6.2f}x" for row in curve.times)]
        for i, n in enumerate(curve.sizes)
    ]
    return heads, rows


def _lines(profile: Profile, kept: Path | None) -> Iterator[str]:
    yield _flash_attention(profile)
    for context in profile.curve.contexts:
        needed = ", ".join(f"{_relative(profile, n, context):.2f} with {n}" for n in _BREAK_EVEN)
        yield f"tokens per step to break even at {context} tokens: {needed} rows"
    yield f"another number of rows than in the call before takes {_change(profile)}"
    for context, classes in sorted(profile.classes.items()):
        groups = " | ".join(" ".join(map(str, widths)) for widths in classes) or "not compared"
        yield f"rows that give the same bits at {context} tokens: {groups}"
    if profile.prices:
        yield (
            f"kept in {path_text(kept)}" if kept else "not kept: the cache folder cannot be written"
        )


def _change(profile: Profile) -> str:
    from specgen.core.cost.gear import change_text

    return change_text(profile.curve.change)


def _relative(profile: Profile, n: int, context: int) -> float:
    """T(n) / T(1): what a step with `n` rows must emit to be no slower than plain decoding."""
    return profile.curve.seconds(n, context) / profile.curve.seconds(1, context)


def _flash_attention(profile: Profile) -> str:
    chosen = "on" if profile.flash_attention else "off"
    comparison = profile.comparison
    if comparison is None:
        return f"flash attention: {chosen}, as asked for or the only one that works"
    if not comparison.contexts:
        return f"flash attention: {chosen}; there was no time to compare it with off"
    contexts = " and ".join(map(str, comparison.contexts))
    certain = ", which may be chance" if False in comparison.apart[1:] else ""
    return (
        f"flash attention: {chosen}; without it steps take {comparison.steps[1]:.2f} times as long"
        f" at {contexts} tokens{certain}, prompts {comparison.prefill[1]:.2f} times"
    )
