"""The store: whole files or none, whoever else writes; nothing that goes wrong is fatal."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from specgen.core.errors import UsageError
from specgen.core.knowledge.store import MAX_FILES, Store, cache_folder, clear
from specgen.core.records import CACHE_BYTES
from tests.support.command import forget_home

KEY = {"model": "abc", "threads": 2}
OTHER = {"model": "abc", "threads": 4}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a folder that does not exist yet."""
    return Store("figures", 3, tmp_path / "cache")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the user is told."""
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_a_value_comes_back(store: Store) -> None:
    """What is written is read, under its own key only."""
    assert store.read(KEY) is None
    assert store.write(KEY, {"a": [1, 2.5, None]})
    assert store.read(KEY) == {"a": [1, 2.5, None]}
    assert store.read(OTHER) is None
    assert Store("others", 3, store.folder).read(KEY) is None


def test_the_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SPECGEN_CACHE names the folder; else it is the user's cache folder."""
    assert cache_folder().name == "specgen"
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == Store("figures", 1).folder == tmp_path / "mine"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe", b"[]", b'{"version": 3}', b"[" * 100_000, b'"text"'),
        *(b'{"version": 3, "key": 1, "value": %s}' % value for value in (b"NaN", b"9" * 5000)),
    ],
)
def test_a_damaged_file_is_set_aside(
    store: Store, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is renamed with one warning, and its place can be written again."""
    store.write(KEY, 1)
    path = store.path(KEY)
    path.write_bytes(content)
    assert store.read(KEY) is None
    assert store.read(KEY) is None
    assert len(warnings(caplog)) == 1
    assert Path(f"{path}.bad").read_bytes() == content
    assert store.write(KEY, 2)
    assert store.read(KEY) == 2


def test_a_file_of_another_version_is_set_aside(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Older and newer formats are not read."""
    for version in (2, 4):
        Store("figures", version, store.folder).write(KEY, "other")
        assert store.read(KEY) is None
        assert not store.path(KEY).exists()
    assert "another version" in warnings(caplog)[0]


def test_a_file_of_another_key_is_not_read(store: Store) -> None:
    """The key in the file counts, not its name."""
    store.write(OTHER, "other")
    os.replace(store.path(OTHER), store.path(KEY))
    assert store.read(KEY) is None


def test_a_folder_that_cannot_be_used_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and the caller goes on."""
    file = tmp_path / "file"
    file.write_text("in the way")
    store = Store("figures", 1, file)
    assert store.read(KEY) is None
    assert not store.write(KEY, 1)
    assert not store.write(KEY, 1)
    assert not store.update(KEY, lambda old: 1)
    assert len(warnings(caplog)) == 1
    assert store.read(KEY) is None


@pytest.mark.parametrize("chosen", ["", "~", "~/cache", "~nobody-of-this-name/cache"])
def test_no_home_is_no_error(
    chosen: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is read, one warning says that nothing is kept, and what to set."""
    forget_home(monkeypatch)
    monkeypatch.setenv("SPECGEN_CACHE", chosen)
    store = Store("figures", 1)
    assert store.read(KEY) is None
    assert not warnings(caplog)
    assert not store.write(KEY, 1)
    assert not store.update(KEY, lambda old: 1)
    (warning,) = warnings(caplog)
    assert "nothing is kept" in warning
    assert "set SPECGEN_CACHE to a folder" in warning
    with pytest.raises(UsageError, match=chosen or "there is no home folder"):
        cache_folder()


def test_a_folder_that_is_named_needs_no_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor does the XDG standard's."""
    forget_home(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "specgen"
    monkeypatch.setenv("SPECGEN_CACHE", str(tmp_path / "mine"))
    assert Store("figures", 1).write(KEY, 1)
    assert Store("figures", 1).read(KEY) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_set_aside(
    make: Callable[[Path], None], store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for who would write to a pipe."""
    store.folder.mkdir()
    make(store.path(KEY))
    assert store.read(KEY) is None
    assert "it is no file" in warnings(caplog)[0]
    assert store.write(KEY, 2)
    assert store.read(KEY) == 2


def test_a_file_that_is_too_large_is_set_aside(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not even read whole."""
    store.write(KEY, ["x" * CACHE_BYTES])
    assert store.read(KEY) is None
    assert "it has more than" in warnings(caplog)[0]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_folder_without_room_for_a_lock(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for a lock that nobody can have."""
    assert not Store("figures", 1, Path("/proc")).update(KEY, lambda old: 1)
    (warning,) = warnings(caplog)
    assert warning.startswith("cannot write to /proc: ")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, and nothing half written stays."""
    tmp_path.chmod(0o500)
    assert not Store("figures", 1, tmp_path).write(KEY, 1)
    tmp_path.chmod(0o700)
    assert len(warnings(caplog)) == 1
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_value(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs the new value only."""
    store.write(KEY, "old")

    def fail(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    assert not store.write(KEY, "new")
    assert store.read(KEY) == "old"
    assert [path.name for path in store.folder.iterdir()] == [store.path(KEY).name]


def test_the_number_of_files_is_bounded(store: Store) -> None:
    """The oldest go, and another kind's stay."""
    other = Store("others", 1, store.folder)
    other.write(KEY, "kept")
    os.utime(other.path(KEY), (0, 0))
    for i in range(MAX_FILES + 5):
        store.write({"i": i}, i)
        os.utime(store.path({"i": i}), (i + 1, i + 1))
    store.write({"i": "last"}, "last")
    assert len(list(store.folder.glob("specgen-figures-*"))) == MAX_FILES
    assert store.read({"i": 0}) is None
    assert store.read({"i": "last"}) == "last"
    assert other.read(KEY) == "kept"


def test_clear_removes_our_files_only(store: Store) -> None:
    """A folder of the user's own is safe, whatever SPECGEN_CACHE was set to."""
    store.write(KEY, 1)
    store.update(OTHER, lambda old: 2)
    store.path(KEY).write_text("{")
    assert store.read(KEY) is None  # set aside
    theirs = store.folder / "thesis.json"
    theirs.write_text("{}")
    assert clear(store.folder) == 2
    assert list(store.folder.iterdir()) == [theirs]
    theirs.unlink()
    assert clear(store.folder) == 0
    assert not store.folder.exists()
    assert clear(store.folder) == 0


def _write_often(folder: Path, number: int) -> None:
    store = Store("figures", 3, folder)
    for i in range(60):
        assert store.write(KEY, [number, i] * 2000)
        value = store.read(KEY)
        assert value is not None and value == value[:2] * 2000
        assert store.update(OTHER, lambda old: (old or 0) + 1)


def test_processes_can_share_a_folder(store: Store) -> None:
    """Readers see whole files, and no update is lost."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_often, args=(store.folder, i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert store.read(OTHER) == 180
    assert not list(store.folder.glob("*.new"))
    assert not list(store.folder.glob("*.bad"))
    assert json.loads(store.path(KEY).read_text())["version"] == 3
