"""What is known of a model on this machine: measured once, kept in the cache folder.

A profile belongs to everything that its figures depend on: the weights, the devices, the threads
and settings, the build of llama.cpp. Where one of them differs, it is another profile.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from specgen.core.config import EngineConfig
from specgen.core.cost.comparison import Comparison
from specgen.core.cost.measure import LEAST_SAMPLES, NOISY
from specgen.core.cost.model import MAX_ROWS, UNKNOWN, CostModel, load_curve
from specgen.core.cost.quick import extended
from specgen.core.cost.rounding import Branching, WidthClasses
from specgen.core.cost.strict import WidthClass, strict_widths
from specgen.core.errors import ModelError, UsageError
from specgen.core.host.limits import default_threads
from specgen.core.host.paths import path_text
from specgen.core.llama.library import device_names, library_version
from specgen.core.models.header import open_regular
from specgen.core.records import counted, items, member, members, number, switch, whole

from .store import Key, Store

_log = logging.getLogger("specgen.profile")

_VERSION: Final = 4
_MOST_FACTOR: Final = 1e6  # that one time is of another, in a record
_HEAD_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = 1 << 16
_BLOCKS: Final = 8


@dataclass(frozen=True, slots=True)
class Profile:
    """A model's speed and exactness, as measured.

    Attributes:
        curve: seconds of a call by rows and context.
        flash_attention: the setting that it holds for; the faster one, where both were tried; None
            where it was not looked at, and the curve holds for what the configuration says.
        comparison: what made it so, with flash attention first; None if it was not ours to say.
        classes: by context: widths that give bit-identical rows.
        branching: by context and width: whether rows of side branches do, too.
        noise: by what factor times are uncertain; 1.0 is a quiet machine.
        samples: of the sizes that matter, the fewest of any.
        is_provisional: whether it is of the first use: a few sizes, and nothing of what rounds
            alike. It does for prices, and nothing else.
    """

    curve: CostModel
    flash_attention: bool | None
    comparison: Comparison | None
    classes: Mapping[int, WidthClasses]
    branching: Mapping[int, Branching]
    noise: float
    samples: int = LEAST_SAMPLES
    is_provisional: bool = False

    @classmethod
    def provisional(cls, curve: CostModel, noise: float) -> Profile:
        """What the first use tells."""
        return cls(curve, None, None, {}, {}, noise, is_provisional=True)

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
        if self.doubt:
            return None
        return extended(self.curve) if self.is_provisional else self.curve

    def settled(self, config: EngineConfig) -> EngineConfig:
        """`config` with flash attention as was found best, where it says nothing of it."""
        if config.flash_attention is not None:
            return config
        return replace(config, flash_attention=self.flash_attention)

    @property
    def strict(self) -> WidthClass:
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
            "samples": self.samples,
            "provisional": self.is_provisional,
        }

    @classmethod
    def from_record(cls, record: Any) -> Profile:
        """The profile in `record`. Raises ValueError if there is none in it."""
        try:
            comparison = member(record, "comparison")
            flash_attention = member(record, "flash_attention")
            is_provisional = switch(member(record, "provisional"), "provisional")
            if flash_attention is not None or not is_provisional:
                flash_attention = switch(flash_attention, "flash_attention")
            classes = members(member(record, "classes"), "classes").items()
            branching = members(member(record, "branching"), "branching").items()
            return cls(
                CostModel.from_record(member(record, "curve")),
                flash_attention,
                None if comparison is None else _comparison(comparison),
                {counted(k, "a context"): _classes(groups) for k, groups in classes},
                {counted(k, "a context"): _branching(known) for k, known in branching},
                number(member(record, "noise"), "noise", 0.0, _MOST_FACTOR),
                whole(member(record, "samples"), "samples", 0),
                is_provisional,
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


def _classes(record: Any) -> WidthClasses:
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
    if profile is None or profile.is_provisional:
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


def keep_provisional(path: Path, config: EngineConfig, profile: Profile) -> None:
    """Store `profile`, unless something is stored already that may be better."""
    record = profile.record()
    _store().update(profile_key(path, config), lambda stored: stored or record)


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
