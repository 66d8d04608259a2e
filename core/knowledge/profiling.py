"""Measuring a model on this machine: flash attention, times of calls, widths that round alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeAlias

from specgen.core.config import DEFAULT_CONTEXT, ContextConfig, EngineConfig
from specgen.core.cost.comparison import compare
from specgen.core.cost.measure import CONTEXTS, NOISY, Measurement, measure
from specgen.core.cost.model import MAX_ROWS
from specgen.core.cost.rounding import (
    WIDTHS,
    Branching,
    WidthClasses,
    exact_branches,
    exact_classes,
    least_exact_s,
)
from specgen.core.cost.timed import TimedBackend
from specgen.core.errors import BackendError
from specgen.core.host.limits import Waits, default_threads, thread_waits, usable_cpus
from specgen.core.llama.backend import LlamaBackend, LlamaModel
from specgen.core.memory.plan import needs_flash_attention
from specgen.core.stop import ShouldStop, never

from .profile import Profile

_log = logging.getLogger("specgen.profile")

Progress: TypeAlias = Callable[[str, float], None]  # told what is done, and the part of it, 0..1

DEADLINE_S: Final = 17.0
MARGIN: Final = 0.95  # flash attention goes off where that saves more: times are noisy
# All shares are of the deadline. What cannot be had in time may take longer, up to the last.
_COMPARE_SHARE: Final = 0.5
_CURVE_SHARE: Final = 0.2  # at least
_CLASS_SHARE: Final = 0.12  # per context
_BRANCH_SHARE: Final = 0.06  # likewise
_EXACT_SHARE: Final = 0.5  # left by what comes before
_LAST_SHARE: Final = 1.7
_CLASS_CONTEXTS: Final = (128, 1024)  # llama.cpp changes its attention kernel between them
_LONG: Final = 576  # and before this one, with 512 cells or more
_NOTHING_EXACT: Final[tuple[WidthClasses, Branching]] = ((), {})

# Any text will do that is neither one token over and over nor the same for all experts.
_TEXT: Final = """\
The lighthouse keeper wrote down the weather twice a day: wind from the north-west, force 4, a
swell of two metres, visibility good. In 1987 he began to add what he saw of birds, and by the
time the lamp was automated there were 14,231 entries in nineteen notebooks. A student later
typed them in, wrote `for entry in sorted(entries, key=lambda e: e.date):` and found that the
terns arrived six days earlier than in her grandmother's time. "That is not much," said her
teacher, "but it is in one direction." Why would a bird change its mind? First, the water was
warmer; second, the eels spawned earlier; third, and this surprised everyone, the new harbour
light kept the gulls awake, so that they fished at night and slept through the morning.
"""


def measure_profile(
    path: Path,
    config: EngineConfig,
    deadline_s: float = DEADLINE_S,
    on_progress: Progress = lambda stage, share: None,
    should_stop: ShouldStop = never,
) -> Profile:
    """Load the model and measure it, within about `deadline_s` seconds of loading.

    Raises ModelError or BackendError, and Interrupted if `should_stop`, asked again and again,
    says so.
    """
    with ExitStack() as stack:
        on_progress("loading the model", 0.0)
        model = LlamaModel(path, config.gpu_layers, should_stop)
        stack.callback(model.close)
        subjects = _subjects(stack, model, config, should_stop)
        return measure_subjects(subjects, deadline_s, on_progress)


def measure_subjects(
    subjects: Mapping[bool, TimedBackend], deadline_s: float, on_progress: Progress
) -> Profile:
    """Measure a model whose contexts, by flash attention, are open; llama.cpp's choice first.

    Without it a model is taken to be faster only where the times leave no doubt.
    """
    chosen, first = next(iter(subjects.items()))
    start = first.clock()
    comparison = None
    if len(subjects) > 1:
        on_progress("flash attention on and off", 0.0)
        comparison = compare(list(subjects.values()), _COMPARE_SHARE * deadline_s)
        if comparison.apart[1] and comparison.steps[1] < MARGIN:
            chosen = not chosen
    last = start + _LAST_SHARE * deadline_s
    timed = subjects[chosen]
    contexts = _exact_contexts(timed, deadline_s)
    exact = {context: _NOTHING_EXACT for context in contexts}

    def find_exact(contexts: Sequence[int]) -> None:
        on_progress("widths that round alike", 0.0)
        for i, context in enumerate(contexts):
            room_s = (last - timed.clock()) / (len(contexts) - i)
            exact[context] = _find_exact(timed, context, deadline_s, room_s)

    there = [c for c in contexts[1:] if c <= timed.backend.length]  # the comparison's text is
    find_exact(there)
    others = [c for c in contexts if c not in there]
    exact_s = len(others) * (_CLASS_SHARE + _BRANCH_SHARE) * deadline_s
    measured = _measure_calls(timed, start + deadline_s - exact_s, last, deadline_s, on_progress)
    find_exact(others)
    classes = {context: both[0] for context, both in exact.items()}
    branching = {context: both[1] for context, both in exact.items()}
    noise, samples = measured.noise, measured.samples
    return Profile(measured.curve, chosen, comparison, classes, branching, noise, samples)


def _measure_calls(
    timed: TimedBackend, end: float, last: float, deadline_s: float, on_progress: Progress
) -> Measurement:
    """The curve, until `end` or a little later; if the machine is busy, the quieter of two."""
    stage = "time of a call by rows and context"
    time_s = max(end - timed.clock(), _CURVE_SHARE * deadline_s)

    def once() -> Measurement:
        on_progress(stage, 0.0)
        left_s = last - _EXACT_SHARE * deadline_s - timed.clock()
        return measure(
            timed,
            min(time_s, left_s),
            on_progress=lambda share: on_progress(stage, share),
            latest_s=left_s,
        )

    start = timed.clock()
    first = once()
    end = 2 * timed.clock() - start
    again_fits = end <= last - _EXACT_SHARE * deadline_s and timed.backend.limits.can_rewind
    if first.noise <= NOISY or not again_fits:
        return first
    _log.warning("the machine is busy with something else: measuring once more")
    again = once()
    return again if again.noise < first.noise and again.samples >= first.samples else first


def _exact_contexts(timed: TimedBackend, deadline_s: float) -> tuple[int, ...]:
    """Contexts on both sides of where kernels change."""
    share_s = (_CLASS_SHARE + _BRANCH_SHARE) * deadline_s
    contexts = timed.contexts(_CLASS_CONTEXTS, max(WIDTHS), share_s)
    if len(contexts) == 1 and timed.backend.limits.n_ctx >= _LONG + max(WIDTHS):
        contexts = (*contexts, _LONG)  # exactness depends on it
    return contexts


def _find_exact(
    timed: TimedBackend, context: int, deadline_s: float, room_s: float
) -> tuple[WidthClasses, Branching]:
    """Exact widths at a context; none where the room is too small to compare two."""
    end = timed.clock() + room_s
    if timed.fill_s(context) + least_exact_s(timed) > room_s:
        return _NOTHING_EXACT
    timed.go_to(context)
    room_s = end - timed.clock()  # either may take three times its share
    return (
        exact_classes(timed, context, min(_CLASS_SHARE * deadline_s, room_s / 5)),
        exact_branches(timed, context, min(_BRANCH_SHARE * deadline_s, room_s / 10)),
    )


def _subjects(
    stack: ExitStack, model: LlamaModel, config: EngineConfig, should_stop: ShouldStop
) -> dict[bool, TimedBackend]:
    """A context for each setting of flash attention that is to be tried and that works."""
    tokens = model.vocab.tokenize(_TEXT, add_bos=True, special=False)
    # More threads than CPUs wait for each other, whatever else runs.
    crowded = (config.threads or default_threads()) > usable_cpus()
    waits: Callable[[], Waits] = dict if crowded else thread_waits
    subjects: dict[bool, TimedBackend] = {}
    error: BackendError | None = None
    for setting in settings_to_measure(config):
        try:
            backend = LlamaBackend(model, _context_config(model, config, setting), should_stop)
        except BackendError as failure:  # not every model has flash attention
            error = failure
            _log.info("flash attention %s: %s", "on" if setting else "off", failure.message)
            continue
        stack.callback(backend.close)
        subjects[setting] = TimedBackend(backend, tokens, waits=waits, should_stop=should_stop)
    if error and not subjects:
        raise error
    return subjects


def settings_to_measure(config: EngineConfig) -> tuple[bool, ...]:
    """Of flash attention: both, unless one was asked for or values need it."""
    if config.flash_attention is not None:
        return (config.flash_attention,)
    return (True,) if needs_flash_attention(config.cache_types[1]) else (True, False)


def measured_context(config: EngineConfig, n_ctx_train: int) -> int:
    """Tokens of the contexts that are measured: as the engine's, but no longer than need be."""
    most = n_ctx_train if config.n_ctx == 0 else config.n_ctx or DEFAULT_CONTEXT
    return min(most, n_ctx_train, CONTEXTS[-1] + MAX_ROWS)


def _context_config(model: LlamaModel, config: EngineConfig, setting: bool) -> ContextConfig:
    type_k, type_v = config.cache_types
    return ContextConfig(
        n_ctx=measured_context(config, model.n_ctx_train),
        threads=config.threads,
        flash_attention=setting,
        swa_full=config.swa_full,
        type_k=type_k,
        type_v=type_v,
    )
