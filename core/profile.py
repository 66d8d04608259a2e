"""What is known of a model on this machine: measured once, kept in the cache folder.

A profile belongs to everything that its figures depend on: the weights, the devices, the threads
and settings, the build of llama.cpp. Where one of them differs, it is another profile.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

from .comparison import Comparison, compare
from .config import DEFAULT_CONTEXT, EngineConfig
from .cost import MAX_ROWS, UNKNOWN, CostModel, load_curve
from .errors import BackendError, ModelError, UsageError
from .exact import WIDTHS, Branching, Classes, exact_branches, exact_classes, least_exact_s
from .gguf import open_regular
from .host import Waits, default_threads, thread_waits, usable_cpus
from .library import device_names, library_version
from .llama import ContextConfig, LlamaBackend, LlamaModel
from .measure import (
    CONTEXTS,
    LEAST_SAMPLES,
    NOISY,
    Measurement,
    Subject,
    measure,
)
from .memory import needs_flash_attention
from .paths import path_text
from .records import counted, items, member, members, number, switch, whole
from .stop import ShouldStop, never
from .store import Key, Store
from .strict import Strict, strict_widths

_log = logging.getLogger("specgen.profile")

Progress: TypeAlias = Callable[[str, float], None]  # told what is done, and the part of it, 0..1

DEADLINE_S: Final = 17.0
MARGIN: Final = 0.95  # flash attention goes off where that saves more: times are noisy

_VERSION: Final = 3
_MOST_FACTOR: Final = 1e6  # that one time is of another, in a record
# All shares are of the deadline. What cannot be had in time may take longer, up to the last.
_COMPARE_SHARE: Final = 0.5
_CURVE_SHARE: Final = 0.2  # at least
_CLASS_SHARE: Final = 0.12  # per context
_BRANCH_SHARE: Final = 0.06  # likewise
_EXACT_SHARE: Final = 0.5  # left by what comes before
_LAST_SHARE: Final = 1.7
_CLASS_CONTEXTS: Final = (128, 1024)  # llama.cpp changes its attention kernel between them
_LONG: Final = 576  # and before this one, with 512 cells or more
_NOTHING_EXACT: Final[tuple[Classes, Branching]] = ((), {})
_HEAD_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = 1 << 16
_BLOCKS: Final = 8

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


@dataclass(frozen=True, slots=True)
class Profile:
    """A model's speed and exactness, as measured.

    Attributes:
        curve: seconds of a call by rows and context.
        flash_attention: the setting that it holds for; the faster one, where both were tried.
        comparison: what made it so, with flash attention first; None if it was not ours to say.
        classes: by context: widths that give bit-identical rows.
        branching: by context and width: whether rows of side branches do, too.
        noise: by what factor times are uncertain; 1.0 is a quiet machine.
        samples: of the sizes that matter, the fewest of any.
    """

    curve: CostModel
    flash_attention: bool
    comparison: Comparison | None
    classes: Mapping[int, Classes]
    branching: Mapping[int, Branching]
    noise: float
    samples: int = LEAST_SAMPLES  # what is kept has them

    @property
    def is_noisy(self) -> bool:
        """Whether something else used the machine, so that times may be far off."""
        return self.noise > NOISY

    @property
    def doubt(self) -> str:
        """Why it is not known well what calls cost; "" if it is."""
        if self.is_noisy:
            return f"the machine was busy: times may be off by a factor of {self.noise:.1f}"
        if self.samples < LEAST_SAMPLES:
            times = "once" if self.samples == 1 else f"{self.samples} times"
            return f"calls could be timed {times} only, and it takes {LEAST_SAMPLES} times"
        return ""

    @property
    def prices(self) -> CostModel | None:
        """What calls cost, or None where that is not known well: the curve may be far off then.

        Which widths round alike is known all the same: load does not change it.
        """
        return None if self.doubt else self.curve

    def settled(self, config: EngineConfig) -> EngineConfig:
        """`config` with flash attention as was found best, where it says nothing of it."""
        if config.flash_attention is not None:
            return config
        return replace(config, flash_attention=self.flash_attention)

    @property
    def strict(self) -> Strict:
        """What strict decoding pads its calls to."""
        return strict_widths(self.classes, self.branching, self.prices or load_curve(UNKNOWN))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        c = self.comparison
        return {
            "curve": self.curve.record(),
            "flash_attention": self.flash_attention,
            "comparison": c and [list(c.steps), list(c.prefill), list(c.contexts)],
            "classes": {str(k): [list(widths) for widths in v] for k, v in self.classes.items()},
            "branching": {str(k): _by_text(known) for k, known in self.branching.items()},
            "noise": round(self.noise, 3),
        }

    @classmethod
    def from_record(cls, record: Any) -> Profile:
        """The profile in `record`. Raises ValueError if there is none in it."""
        try:
            comparison = member(record, "comparison")
            classes = members(member(record, "classes"), "classes").items()
            branching = members(member(record, "branching"), "branching").items()
            return cls(
                CostModel.from_record(member(record, "curve")),
                switch(member(record, "flash_attention"), "flash_attention"),
                None if comparison is None else _comparison(comparison),
                {counted(k, "a context"): _classes(groups) for k, groups in classes},
                {counted(k, "a context"): _branching(known) for k, known in branching},
                number(member(record, "noise"), "noise", 0.0, _MOST_FACTOR),
            )
        except ValueError as error:
            raise ValueError(f"not a profile: {error}") from error


def _comparison(record: Any) -> Comparison:
    steps, prefill, contexts = items(record, "comparison")
    return Comparison(
        _factors(steps),
        _factors(prefill),
        tuple([whole(n, "a context") for n in items(contexts, "contexts")]),
    )


def _factors(record: Any) -> tuple[float, ...]:
    first, *others = items(record, "a comparison")
    if not others:
        raise ValueError("a comparison of one")
    return tuple([number(n, "a factor", 0.0, _MOST_FACTOR) for n in (first, *others)])


def _classes(record: Any) -> Classes:
    return tuple([_widths(group) for group in items(record, "classes")])


def _widths(record: Any) -> tuple[int, ...]:
    """A class: strict decoding takes them all, so they must be widths of calls, and rise."""
    widths = [whole(n, "a width", 1, MAX_ROWS) for n in items(record, "a class")]
    if not widths or any(a >= b for a, b in pairwise(widths)):
        raise ValueError("widths of a class must rise")
    return tuple(widths)


def _branching(record: Any) -> Branching:
    known = members(record, "branching").items()
    return {counted(width, "a width", MAX_ROWS): switch(same, "branching") for width, same in known}


def _by_text(known: Branching) -> dict[str, bool]:
    return {str(width): same for width, same in known.items()}  # JSON has no other keys


def find_profile(path: Path, config: EngineConfig) -> Profile | None:
    """What was measured for this model, machine and configuration, or None."""
    store, key = _store(), profile_key(path, config)
    record = store.read(key)
    if record is None:
        return None
    try:
        return Profile.from_record(record)
    except ValueError as error:
        store.set_aside(key, str(error))
        return None


def require_profile(profile: Profile | None) -> Profile:
    """What strict decoding needs. Raises UsageError where the model was not measured."""
    if profile is None:
        raise UsageError(
            "which widths of calls round alike was not measured for this model and machine",
            "run `specgen calibrate` on it once",
        )
    return profile


def keep_profile(path: Path, config: EngineConfig, profile: Profile) -> Path | None:
    """Store `profile` for later runs, and return where; None where that is not possible."""
    store, key = _store(), profile_key(path, config)
    kept = store.write(key, profile.record())
    if config.flash_attention is None:  # it holds for those who ask for the faster one by name
        chosen = replace(config, flash_attention=profile.flash_attention)
        store.write(profile_key(path, chosen), replace(profile, comparison=None).record())
    return store.path(key) if kept else None


def profile_key(path: Path, config: EngineConfig) -> Key:
    """Everything that a profile depends on, but for the load of the machine."""
    return {
        "model": fingerprint(path),
        "llama_cpp": library_version(),
        "devices": list(device_names()),
        "threads": config.threads or default_threads(),
        "gpu_layers": config.gpu_layers,
        "flash_attention": config.flash_attention,
        "swa_full": config.swa_full,
        "kv_types": list(config.cache_types),
    }


def _store() -> Store:
    return Store("profile", _VERSION)


def fingerprint(path: Path) -> str:
    """Tells model files apart without reading them whole: size, head and a few blocks.

    Raises ModelError.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            digest = hashlib.sha256(str(size).encode())
            file.seek(0)
            digest.update(file.read(_HEAD_BYTES))
            for i in range(1, _BLOCKS + 1):
                file.seek(max(0, size * i // _BLOCKS - _BLOCK_BYTES))
                digest.update(file.read(_BLOCK_BYTES))
    except OSError as error:
        raise ModelError(f"cannot read {path_text(path)}: {error.strerror or error}") from None
    return digest.hexdigest()


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
    subjects: Mapping[bool, Subject], deadline_s: float, on_progress: Progress
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
    subject = subjects[chosen]
    contexts = _exact_contexts(subject, deadline_s)
    exact = {context: _NOTHING_EXACT for context in contexts}

    def find_exact(contexts: Sequence[int]) -> None:
        on_progress("widths that round alike", 0.0)
        for i, context in enumerate(contexts):
            room_s = (last - subject.clock()) / (len(contexts) - i)
            exact[context] = _find_exact(subject, context, deadline_s, room_s)

    there = [c for c in contexts[1:] if c <= subject.backend.length]  # the comparison's text is
    find_exact(there)
    others = [c for c in contexts if c not in there]
    exact_s = len(others) * (_CLASS_SHARE + _BRANCH_SHARE) * deadline_s
    measured = _measure_calls(subject, start + deadline_s - exact_s, last, deadline_s, on_progress)
    find_exact(others)
    classes = {context: both[0] for context, both in exact.items()}
    branching = {context: both[1] for context, both in exact.items()}
    noise, samples = measured.noise, measured.samples
    return Profile(measured.curve, chosen, comparison, classes, branching, noise, samples)


def _measure_calls(
    subject: Subject, end: float, last: float, deadline_s: float, on_progress: Progress
) -> Measurement:
    """The curve, until `end` or a little later; if the machine is busy, the quieter of two."""
    stage = "time of a call by rows and context"
    time_s = max(end - subject.clock(), _CURVE_SHARE * deadline_s)

    def once() -> Measurement:
        on_progress(stage, 0.0)
        left_s = last - _EXACT_SHARE * deadline_s - subject.clock()
        return measure(
            subject,
            min(time_s, left_s),
            on_progress=lambda share: on_progress(stage, share),
            latest_s=left_s,
        )

    start = subject.clock()
    first = once()
    end = 2 * subject.clock() - start
    again_fits = end <= last - _EXACT_SHARE * deadline_s and subject.backend.limits.can_rewind
    if first.noise <= NOISY or not again_fits:
        return first
    _log.warning("the machine is busy with something else: measuring once more")
    again = once()
    return again if again.noise < first.noise and again.samples >= first.samples else first


def _exact_contexts(subject: Subject, deadline_s: float) -> tuple[int, ...]:
    """Contexts on both sides of where kernels change."""
    share_s = (_CLASS_SHARE + _BRANCH_SHARE) * deadline_s
    contexts = subject.contexts(_CLASS_CONTEXTS, max(WIDTHS), share_s)
    if len(contexts) == 1 and subject.backend.limits.n_ctx >= _LONG + max(WIDTHS):
        contexts = (*contexts, _LONG)  # exactness depends on it
    return contexts


def _find_exact(
    subject: Subject, context: int, deadline_s: float, room_s: float
) -> tuple[Classes, Branching]:
    """Exact widths at a context; none where the room is too small to compare two."""
    end = subject.clock() + room_s
    if subject.fill_s(context) + least_exact_s(subject) > room_s:
        return _NOTHING_EXACT
    subject.go_to(context)
    room_s = end - subject.clock()  # either may take three times its share
    return (
        exact_classes(subject, context, min(_CLASS_SHARE * deadline_s, room_s / 5)),
        exact_branches(subject, context, min(_BRANCH_SHARE * deadline_s, room_s / 10)),
    )


def _subjects(
    stack: ExitStack, model: LlamaModel, config: EngineConfig, should_stop: ShouldStop
) -> dict[bool, Subject]:
    """A context for each setting of flash attention that is to be tried and that works."""
    tokens = model.vocab.tokenize(_TEXT, add_bos=True, special=False)
    # More threads than CPUs wait for each other, whatever else runs.
    crowded = (config.threads or default_threads()) > usable_cpus()
    waits: Callable[[], Waits] = dict if crowded else thread_waits
    subjects: dict[bool, Subject] = {}
    error: BackendError | None = None
    for setting in settings_to_measure(config):
        try:
            backend = LlamaBackend(model, _context_config(model, config, setting), should_stop)
        except BackendError as failure:  # not every model has flash attention
            error = failure
            _log.info("flash attention %s: %s", "on" if setting else "off", failure.message)
            continue
        stack.callback(backend.close)
        subjects[setting] = Subject(backend, tokens, waits=waits, should_stop=should_stop)
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
    return ContextConfig(
        n_ctx=measured_context(config, model.n_ctx_train),
        threads=config.threads or default_threads(),
        flash_attention=setting,
        swa_full=config.swa_full,
        cache_types=config.cache_types,
    )
