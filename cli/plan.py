"""`specgen plan`: the memory that a model will take, term by term, before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specgen.core.config import DEFAULT_MAX_DRAFTS
from specgen.core.host.paths import path_text
from specgen.drafters import DEFAULT_DRAFTER, most_drafts

from .grouping import grouped
from .model_choice import ModelChoice
from .options import LearnAnswers, MachineOptions, MemoryBudget, ModelDraft, Verbosity
from .terminal import print_table, set_up_logging, show

if TYPE_CHECKING:
    from specgen.core.config import EngineConfig
    from specgen.core.memory.budget import FittedConfig
    from specgen.core.memory.plan import MemoryPlan

_TERMS = {
    "weights": "of the model file, mapped; the system may drop and read it again",
    "laid_out": "weights in the layout of specgen's kernels, in place of those in the file",
    "copies": "weights again, in the layout that llama.cpp's kernels want",
    "loading": "weights in the file while they are laid out, or go to a GPU",
    "kv": "keys and values of the context",
    "cells": "llama.cpp's notes about the cells of the context",
    "state": "states of recurrent layers",
    "compute": "llama.cpp's compute buffer",
    "work": "numbers that the CPU's kernels want in another type",
    "outputs": "rows of logits",
    "vocabulary": "tables of tokens",
    "drafters": "tables of the drafters",
    "draft": "the draft model: its weights, context and tables of tokens",
    "baseline": "Python, NumPy and libraries",
}

_NEEDS = {
    "as_asked": "as asked",
    "full_speed": "at full speed, with as little context as can be",
    "least": "at least",
}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("plan")(plan)


@grouped
def plan(
    chosen: ModelChoice,
    memory_budget: MemoryBudget = None,
    drafter: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="Drafters, for their tables.")
    ] = DEFAULT_DRAFTER,
    model_draft: ModelDraft = None,
    draft_max: Annotated[
        int, typer.Option(min=0, max=63, help="Most draft tokens of a call.")
    ] = DEFAULT_MAX_DRAFTS,
    learn: Annotated[
        bool, typer.Option("--learn/--no-learn", help="Whether what runs teach is used and kept.")
    ] = True,
    learn_answers: LearnAnswers = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="For strict decoding, which pads calls.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbosity = 0,
    *,
    engine: MachineOptions,
) -> None:
    """Show what memory `generate` takes, and what is given up to fit a budget. Loads nothing."""
    from specgen.core.knowledge.profile import find_profile, require_profile
    from specgen.core.memory.budget import full_speed, least, plan_for, shares_for
    from specgen.opening import Wanted, choose, plan_inputs

    from .prepare import ensure_model, require_model

    set_up_logging(verbose)
    max_drafts = most_drafts(drafter, draft_max, others=model_draft is not None)
    config = replace(engine.config(), max_drafts=max_drafts, strict=strict)
    require_model(chosen.name, model_draft)
    path = ensure_model(chosen.name)
    draft = None if model_draft is None else ensure_model(model_draft)
    config = replace(config, draft_model=draft)
    profile = find_profile(path, config)
    if strict:
        require_profile(profile)
    wanted = Wanted(path, config, drafter, memory_budget, learn=learn, answers=learn_answers)
    inputs = plan_inputs(wanted, profile)
    limit, found = choose(wanted, inputs)
    n_ctx = found.config.context(inputs.info.n_ctx_train)
    sizes = {
        "as_asked": plan_for(inputs, config).total,
        "full_speed": full_speed(inputs, config).total,
        "least": least(inputs, config).total,
    }
    if as_json:
        shares = [share.record() for share in shares_for(inputs, found.config)]
        show(json.dumps(_record(found, n_ctx, limit, sizes) | {"shares": shares}))
    else:
        _print(found, n_ctx, limit, sizes)


def _record(
    found: FittedConfig, n_ctx: int, limit: int | None, sizes: dict[str, int]
) -> dict[str, Any]:
    config = asdict(found.config) | {"n_ctx": n_ctx, "max_rows": found.config.max_rows}
    config["draft_model"] = found.config.draft_model and path_text(found.config.draft_model)
    return {
        "budget": limit,
        "plan": found.plan.record(),
        "settings": config,
        "concessions": list(found.concessions),
        "needs": sizes,
    }


def _print(found: FittedConfig, n_ctx: int, limit: int | None, sizes: dict[str, int]) -> None:
    from specgen.core.memory.plan import memory_text

    print_table(("memory", "MiB", ""), list(_rows(found.plan)), right=(1,))
    show("")
    lines = [("budget", "not known: the system does not say what is available")]
    if limit is not None:
        lines = [("budget", memory_text(limit))]
    lines += _settings(found.config, n_ctx)
    lines += [("given up", concession) for concession in found.concessions]
    lines += [("needs", f"{_mib(sizes[name])} MiB {meaning}") for name, meaning in _NEEDS.items()]
    named = ""
    for name, text in lines:
        show(f"{'' if name == named else name:8}  {text}")
        named = name


def _settings(config: EngineConfig, n_ctx: int) -> list[tuple[str, str]]:
    drafts = f"of at most {config.max_drafts} tokens" if config.max_drafts else "none"
    return [
        ("context", f"{n_ctx:,} tokens, cache of type {_types(config)}"),
        ("prompts", f"in calls of {config.chunk} tokens"),
        ("drafts", drafts),
    ]


def _types(config: EngineConfig) -> str:
    keys, values = config.cache_types
    return keys if keys == values else f"keys {keys}, values {values}"


def _rows(plan: MemoryPlan) -> Any:
    for name, meaning in _TERMS.items():
        if n_bytes := getattr(plan, name):
            yield name, _mib(n_bytes), meaning
    yield "total", _mib(plan.total), ""
    if plan.device:
        yield "on GPUs", _mib(plan.device), "weights, cache and compute buffer of what is offloaded"


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):,.1f}"
