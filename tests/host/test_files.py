"""Writing files whole, and what hints say of the interpreter."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from specgen.core.host.files import write_whole
from specgen.core.host.interpreter import install_hint


def test_a_file_is_replaced(tmp_path: Path) -> None:
    """All of it, and nothing is left beside it."""
    path = tmp_path / "a.json"
    write_whole(path, b"longer than what follows")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [found for found in tmp_path.iterdir() if found.is_file()] == [path]


def test_a_private_file(tmp_path: Path) -> None:
    """Only the user may read it, whatever other new files have."""
    before = os.umask(0)
    try:
        for is_private in (True, False):
            write_whole(tmp_path / str(is_private), b"", is_private=is_private)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("True", "False")]
    assert modes == [0o600, 0o666]


def test_what_cannot_be_replaced_stays(tmp_path: Path) -> None:
    """The error is the system's, and what was half done is gone."""
    place = tmp_path / "folder"
    place.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(place, b"new")
    assert not list(tmp_path.glob("*.new"))


def test_a_hint_names_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a line that a shell takes, with spaces in its path as well."""
    monkeypatch.setattr(sys, "executable", "/my tools/python")
    assert install_hint("matplotlib") == "run `'/my tools/python' -m pip install matplotlib`"
