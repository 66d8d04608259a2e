"""Small JSON files in the cache folder: what specgen has learnt, kept between runs.

A file is written whole, so a reader sees all of it or none, whoever else writes. A file that cannot
be used is set aside. Nothing here is needed: where the folder cannot be used, that is said once
and the program goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from specgen.core.errors import UsageError
from specgen.core.host.files import write_whole
from specgen.core.host.folders import user_folder
from specgen.core.records import CACHE_BYTES, read_record

_log = logging.getLogger("specgen.store")

Key: TypeAlias = Mapping[str, Any]  # what a value depends on; JSON

MAX_FILES: Final = 64  # of one kind; the oldest go first
_LOCK_TIMEOUT_S: Final = 5.0
# Files of these kinds are removed when something is written: earlier versions kept answers in them,
# in clear, without being asked to.
_RETIRED: Final = {"learned"}
_OURS: Final = re.compile(
    r"specgen-(?P<kind>[a-z]+)(-[0-9a-f]{20}\.json(\.bad|\.\w+\.new)?|\.lock)"
)


def cache_folder() -> Path:
    """Where the files are: $SPECGEN_CACHE, or the user's cache folder.

    Raises UsageError where that is not known.
    """
    return user_folder("cache", "SPECGEN_CACHE")


def clear(folder: Path) -> int:
    """Remove all files of ours from `folder`, nothing else, and return how many there were.

    Raises OSError.
    """
    files = [path for path in _files(folder) if _OURS.fullmatch(path.name)]
    for path in files:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it, or it is not there
        folder.rmdir()
    return sum(path.suffix != ".lock" for path in files)


class Store:
    """Values of one kind by key, one file each.

    Args:
        kind: lower-case letters; the files are named after it.
        version: of the values' format; a file of another version is set aside.
        folder: None is `cache_folder()`.
    """

    def __init__(self, kind: str, version: int, folder: Path | None = None) -> None:
        self._folder = folder
        self._kind = kind
        self._version = version

    @property
    def folder(self) -> Path:
        """Where the files are. Raises UsageError where that is not known."""
        return self._folder or cache_folder()

    def path(self, key: Key) -> Path:
        """The file of `key`, which may not exist. Raises UsageError as `folder` does."""
        text = json.dumps(key, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / f"specgen-{self._kind}-{digest[:20]}.json"

    def read(self, key: Key) -> Any | None:
        """The value of `key`, or None."""
        try:
            path = self.path(key)
        except UsageError:  # whoever writes is told
            return None
        try:
            if path.exists() and not path.is_file():  # reading a pipe would wait for its writer
                raise ValueError("it is no file")
            record = read_record(path, CACHE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            if _is_open(self.folder):  # else whoever writes is told
                _warn(f"cannot read {path}: {error.strerror or error}")
            return None
        except ValueError as error:
            self.set_aside(key, f"it is damaged: {error}")
            return None
        if not isinstance(record, dict) or not {"version", "key", "value"} <= record.keys():
            self.set_aside(key, "it is damaged")
        elif record["version"] != self._version:
            self.set_aside(key, "another version of specgen wrote it")
        elif record["key"] == key:
            return record["value"]
        return None

    def write(self, key: Key, value: Any) -> bool:
        """Keep `value`, and say whether that was possible. The last writer wins."""
        record = {"version": self._version, "key": key, "value": value}
        with self._telling():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.path(key), json.dumps(record).encode(), is_private=True)
            self._drop_oldest()
            return True
        return False

    def update(self, key: Key, change: Callable[[Any | None], Any]) -> bool:
        """Keep `change(value)`, value as in `read`; no update of another process gets lost."""
        from filelock import FileLock, Timeout

        with self._telling():
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"specgen-{self._kind}.lock"
            path.touch()  # where that is not possible, FileLock may wait instead
            lock = FileLock(path, timeout=_LOCK_TIMEOUT_S)
            try:
                lock.acquire()
            except Timeout:
                _warn(f"another process holds the lock in {self.folder}; nothing is kept")
                return False
            with lock:
                return self.write(key, change(self.read(key)))
        return False

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Within, what keeps a value from being written is said and goes no further."""
        try:
            yield
        except UsageError as error:
            _warn(f"{error.message}; nothing is kept ({error.hint})")
        except OSError as error:
            _warn(f"cannot write to {self.folder}: {error.strerror or error}; nothing is kept")

    def set_aside(self, key: Key, reason: str) -> None:
        """Rename the file of `key`, so that it is not read again, and say so."""
        path = self.path(key)
        with contextlib.suppress(OSError):  # another process was faster, or we may not
            os.replace(path, f"{path}.bad")
        _warn(f"{path.name} in {self.folder} is set aside: {reason}")

    def _drop_oldest(self) -> None:
        """Keep MAX_FILES files of this kind, what is set aside or half written included.

        None of a retired kind is kept.
        """
        mine = []
        for path in _files(self.folder):
            ours = _OURS.fullmatch(path.name)
            if ours and ours["kind"] in _RETIRED:
                path.unlink(missing_ok=True)
            elif ours and ours["kind"] == self._kind and path.suffix != ".lock":
                mine.append((_age(path), path))
        for _, path in sorted(mine)[:-MAX_FILES]:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from [folder / entry.name for entry in entries if entry.is_file()]


def _is_open(folder: Path) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.W_OK | os.X_OK)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process dropped it
        return 0.0


@cache
def _warn(message: str) -> None:
    """Once per message: a run reads and writes the same files many times."""
    _log.warning("%s", message)
