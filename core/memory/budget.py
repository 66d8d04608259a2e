"""Fitting a generation into a memory budget: what is given up, and in which order.

What is given up first is missed least: context that nobody asked for, speed of prompts, then
drafts. What would change the text, a cache of fewer bits, comes last. Strict decoding keeps all
that rounding depends on.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from specgen.core.config import EngineConfig, context_of
from specgen.core.cost.strict import WidthClass
from specgen.core.errors import MemoryBudgetError, UsageError
from specgen.core.host.paths import path_text
from specgen.core.models.header import Header
from specgen.core.models.modelinfo import ModelInfo

from .placement import LaidOut, Share, shares
from .plan import MIB, MemoryPlan, cannot_store, memory_text, plan_memory

SHARE: Final = 0.85  # unless a budget is given, this part of the available memory is taken

_LEAST_CONTEXT: Final = 512

_Step: TypeAlias = tuple[str, dict[str, Any]]  # in words, and as fields of an EngineConfig


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What a plan is made for.

    Attributes:
        headers: of the model file, or of all its parts.
        info: what they say.
        features: of the CPU, see repacked.cpu_features.
        tables: bytes of the drafters' tables while there are drafts, by the tokens of context and
            by whether only a few drafters are left (see EngineConfig).
        strict: what calls are padded to; None where they are not.
        flash_attention: what is taken where nobody asks; None leaves it to llama.cpp.
        interface: bytes that the command takes beyond what `generate` does, and GPUs' drivers.
        device: bytes that are free on GPUs; None where there is none.
        draft: headers of the draft model, if there is one.
        laid_out: of specgen's kernels; None without them.
    """

    headers: Sequence[Header]
    info: ModelInfo
    features: frozenset[str]
    tables: Callable[[int, bool], int]
    strict: WidthClass | None = None
    flash_attention: bool | None = None
    interface: int = 0
    device: int | None = None
    draft: Sequence[Header] = ()
    laid_out: LaidOut | None = None


@dataclass(frozen=True, slots=True)
class FittedConfig:
    """Settings that fit.

    Attributes:
        config: as wanted, but for the concessions.
        plan: the memory that it takes.
        concessions: what was given up, in words.
    """

    config: EngineConfig
    plan: MemoryPlan
    concessions: tuple[str, ...]


def plan_for(inputs: PlanInputs, config: EngineConfig) -> MemoryPlan:
    """The memory that `config` takes. Raises ModelError or UsageError."""
    asked = replace(config, flash_attention=_flash_attention(inputs, config))
    strict = inputs.strict and inputs.strict.within(config.max_rows)
    context = context_of(asked, inputs.info, strict)
    n_ctx, gpu_layers = config.context(inputs.info.n_ctx_train), _gpu_layers(inputs, config)
    plan = plan_memory(
        inputs.headers,
        context,
        inputs.features,
        laid_out=inputs.laid_out,
        drafters=inputs.tables(n_ctx, config.few_drafters) if config.max_drafts else 0,
        interface=inputs.interface,
        gpu_layers=gpu_layers,
    )
    if config.draft is None:
        return plan
    n_ctx_train = ModelInfo.from_headers(inputs.draft).n_ctx_train
    draft = context.for_draft_model(n_ctx_train)
    features, laid_out = inputs.features, inputs.laid_out
    own = plan_memory(inputs.draft, draft, features, laid_out=laid_out, gpu_layers=gpu_layers)
    return plan.beside(own)


def shares_for(inputs: PlanInputs, config: EngineConfig) -> tuple[Share, ...]:
    """Which weights run on what with `config`; those of a draft model are not among them."""
    return shares(
        inputs.headers,
        inputs.features,
        inputs.laid_out,
        n_layer=inputs.info.n_layer,
        gpu_layers=_gpu_layers(inputs, config),
    )


def _flash_attention(inputs: PlanInputs, config: EngineConfig) -> bool:
    wanted = config.flash_attention
    return (inputs.flash_attention if wanted is None else wanted) is not False


def _gpu_layers(inputs: PlanInputs, config: EngineConfig) -> int | None:
    """How many are offloaded: all of them, unless told otherwise; None where there is no GPU."""
    if inputs.device is None:
        return None
    return inputs.info.n_layer + 1 if config.gpu_layers is None else config.gpu_layers


def _offloaded(inputs: PlanInputs, config: EngineConfig) -> EngineConfig:
    """`config` with as many layers on GPUs as there is room for.

    Raises MemoryBudgetError if more were asked for.
    """
    wanted = _gpu_layers(inputs, config)
    if inputs.device is None or wanted is None:
        return config
    room = int(SHARE * inputs.device)

    def needed(n: int) -> int:
        return plan_for(inputs, replace(config, gpu_layers=n)).device

    if needed(wanted) <= room:
        return config
    fitting = max(0, bisect_right(range(wanted), room, key=needed) - 1)
    if config.gpu_layers is None:
        return replace(config, gpu_layers=fitting)
    raise MemoryBudgetError(
        f"{wanted} layers need {memory_text(needed(wanted))} of GPU memory, and there are"
        f" {memory_text(room)}",
        f"use --gpu-layers {fitting} or fewer, or auto",
    )


def fit(
    inputs: PlanInputs, config: EngineConfig, budget: int | None, *, may_drop: bool = False
) -> FittedConfig:
    """`config`, with as few concessions as bring it below `budget` bytes; None is no limit.

    With `may_drop` what the system can drop at no cost does not count, see MemoryPlan.used.

    Raises MemoryBudgetError if none do, saying what would fit.
    """
    offloaded = _offloaded(inputs, config)

    def fits(plan: MemoryPlan) -> bool:
        return budget is None or (plan.used if may_drop else plan.total) <= budget

    steps = _given_up(inputs, offloaded, fits)
    chosen = _apply(offloaded, steps)
    plan = plan_for(inputs, chosen)
    if budget is not None and not fits(plan):
        raise _refusal(inputs, plan, budget, may_drop=may_drop)
    told = list(_told(steps))
    if offloaded != config:
        told.insert(0, f"only {offloaded.gpu_layers} layers on the GPU, which has no room for more")
    return FittedConfig(chosen, plan, tuple(told))


def _given_up(
    inputs: PlanInputs, config: EngineConfig, fits: Callable[[MemoryPlan], bool]
) -> list[_Step]:
    """The steps after which the plan fits, or all of them."""
    made: list[_Step] = []
    for step in _steps(inputs, config):
        if fits(plan_for(inputs, _apply(config, made))):
            break
        made.append(step)
    for step in made[-2::-1]:  # some may not be needed after the last; most missed first
        others = [other for other in made if other is not step]
        if fits(plan_for(inputs, _apply(config, others))):
            made = others
    return made


def _refusal(
    inputs: PlanInputs, plan: MemoryPlan, budget: int, *, may_drop: bool
) -> MemoryBudgetError:
    needed = -(-(plan.used if may_drop else plan.total) // MIB)
    name = path_text(inputs.headers[0].path.name)
    if may_drop:
        return MemoryBudgetError(
            f"{name} needs {needed:,} MiB at least, and {SHARE:.0%} of what is available is"
            f" {memory_text(budget)}",
            "free some memory, or use a smaller model",
        )
    return MemoryBudgetError(
        f"{name} needs {needed:,} MiB at least, and the memory budget is {memory_text(budget)}",
        f"use --memory-budget {needed}M or more, or a smaller model",
    )


def least(inputs: PlanInputs, config: EngineConfig) -> MemoryPlan:
    """The memory that is needed after all concessions."""
    config = _offloaded(inputs, config)
    return plan_for(inputs, _apply(config, list(_steps(inputs, config))))


def full_speed(inputs: PlanInputs, config: EngineConfig) -> MemoryPlan:
    """The least memory in which neither prompts nor drafts are slower; only context is less."""
    config = _offloaded(inputs, config)
    return plan_for(inputs, _apply(config, list(_contexts(inputs, config))))


def _steps(inputs: PlanInputs, config: EngineConfig) -> Iterator[_Step]:
    """What can be given up, least missed first. A later step of a kind includes the earlier."""
    contexts = list(_contexts(inputs, config))
    is_off = config.flash_attention is None and not _flash_attention(inputs, config)
    if is_off and not config.strict:
        yield "flash attention on, though it is slower here", {"flash_attention": True}
    yield from contexts[:-1]
    if inputs.tables(0, True) < inputs.tables(0, False):
        yield "smaller tables of drafters", {"few_drafters": True}
    if config.draft is not None:
        yield "draft model left out", {"draft_model": None}
    if not config.strict:
        yield from _chunks(config)
    yield from contexts[-1:]
    yield from _drafts(config, (8, 4, 0))
    if not config.strict and config.flash_attention is not False:
        yield from _cache_types(inputs, config)


def _cache_types(inputs: PlanInputs, config: EngineConfig) -> Iterator[_Step]:
    """Types of keys and values where nobody asked for one, and heads are whole blocks of it."""
    open_types = [name for name in ("type_k", "type_v") if getattr(config, name) is None]
    for kind in ("q8_0", "q4_0"):
        if open_types and not cannot_store(inputs.headers, kind):
            changes = dict.fromkeys(open_types, kind) | {"flash_attention": True}
            yield f"cache of type {kind}, which rounds", changes


def _chunks(config: EngineConfig) -> Iterator[_Step]:
    for chunk in (256, 128, 64, 32):
        if chunk < config.chunk:
            yield f"prompts in calls of {chunk} tokens", {"chunk": chunk}


def _contexts(inputs: PlanInputs, config: EngineConfig) -> Iterator[_Step]:
    """Half of it, and half of that; what was asked for is a promise."""
    if config.n_ctx is not None:
        return
    n_ctx = config.context(inputs.info.n_ctx_train)
    while n_ctx // 2 >= _LEAST_CONTEXT:
        n_ctx //= 2
        yield f"context of {n_ctx:,} tokens", {"n_ctx": n_ctx}


def _drafts(config: EngineConfig, sizes: Sequence[int]) -> Iterator[_Step]:
    for size in sizes:
        if size < config.max_drafts:
            name = f"drafts of at most {size} tokens" if size else "no drafts: plain decoding"
            yield name, {"max_drafts": size}


def _apply(config: EngineConfig, steps: Sequence[_Step]) -> EngineConfig:
    for _, changes in steps:
        config = replace(config, **changes)
    return config


def _told(steps: Sequence[_Step]) -> Iterator[str]:
    """The last of each kind: 64 tokens a call says that it is not 128 either."""
    last = {name.split()[0]: name for name, _ in steps}
    if "no" in last:
        last["drafts"] = last.pop("no")
    yield from last.values()


def parse_budget(text: str, available: int | None) -> int:
    """Bytes of a budget such as "400M", "1.5G", "300MB" or "60%" of what is available.

    Raises UsageError for what is no size, and MemoryBudgetError for nothing, for more than is
    available, and for a part of what is not known.
    """
    number, unit = parse_size(text)
    if unit == "%":
        if available is None:
            raise MemoryBudgetError(
                "the system does not tell how much memory is available", "give a size such as 2G"
            )
        n_bytes = available * number / 100
    else:
        n_bytes = number * _UNITS[unit]
    if available is not None and n_bytes > available:
        raise MemoryBudgetError(
            f"the memory budget of {memory_text(int(n_bytes))} is more than the"
            f" {memory_text(available)} that are available",
            "use less, or free some",
        )
    if n_bytes < 1:
        raise MemoryBudgetError(f"the memory budget is '{text}'", "it must be more than nothing")
    return int(n_bytes)


def parse_size(text: str) -> tuple[float, str]:
    """The number and the unit of a budget, "%" or a key of _UNITS.

    As memory is counted by containers, services and GNU's tools: M and MiB are 1,024 x 1,024
    bytes, MB is a million. Raises UsageError for what is no size.
    """
    found = _BUDGET.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"the memory budget is '{text}', which is no size", "give one such as 400M, 2G or 60%"
        )
    number, unit = float(found[1]), found[2].lower()
    return number, unit


_BUDGET: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(%|[kmgt]i?b?|b?)", re.IGNORECASE)
_UNITS: Final = MappingProxyType(
    {"": 1, "b": 1}
    | {f"{unit}{end}": 1024**i for i, unit in enumerate("kmgt", 1) for end in ("", "i", "ib")}
    | {f"{unit}b": 1000**i for i, unit in enumerate("kmgt", 1)}
)
