"""The memory that this process has: now, at its peak, and by what is behind it.

Linux tells all of it in /proc; elsewhere there is the peak at best.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
_MAPS: Final = Path("/proc/self/maps")
# Linux tells here what is resident of each mapping, which takes longer than the total.
_MAPPINGS: Final = Path("/proc/self/smaps")
_HEAD: Final = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<rights>\S+) \S+ \S+ (?P<inode>\d+) *(?P<file>.*)"
)

_PIECE: Final = 32 << 10  # a fault may bring back so many bytes of code
# A process may have 65,530 mappings; a GPU's libraries are large, so not all are split.
_MOST_PIECES: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class Mapping:
    """A range of addresses and what is resident of it, in bytes.

    Attributes:
        rights: such as "r-xp".
        file: what is mapped, empty for memory without a file.
        resident: bytes in memory.
        own: bytes of it that are in no file, and so could not be read again.
    """

    start: int
    end: int
    rights: str
    file: str
    resident: int
    own: int

    @property
    def size(self) -> int:
        """Bytes of addresses."""
        return self.end - self.start

    def follows(self, other: Mapping) -> bool:
        """Whether it goes on where `other` ends, with the same of the same file."""
        same = (self.file, self.rights) == (other.file, other.rights)
        return same and self.start == other.end


def resident_bytes() -> int | None:
    """What is resident now, or None where the system does not tell."""
    return bytes_in(_STATUS, "VmRSS")


def anonymous_bytes() -> int | None:
    """What is resident now and in no file, or None where the system does not tell."""
    return bytes_in(_STATUS, "RssAnon")


def peak_bytes() -> int:
    """Most resident memory of this process since `reset_peak`; 0 where it is not known.

    Without a reset, or where there is none (not Linux), since the process began. Mapped files
    count as far as they are resident, and so do weights.
    """
    # First, because getrusage knows no reset, and starts with the peak of the parent process.
    peak = bytes_in(_STATUS, "VmHWM")
    return _peak_by_getrusage() if peak is None else peak


def reset_peak() -> None:
    """Let `peak_bytes` begin anew at what is resident now, where the system can do so."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def drop_code() -> int:
    """Drop the pages of programs and libraries, and return how many bytes that was.

    Most were needed only to start. What is needed again, the system reads again from the file,
    most often without a disk: around it up to 64 kB, or with Linux 6.18 megabytes, where the file
    is in memory in pieces that large. It never goes beyond a mapping, though, so mappings are
    split. Does nothing but on Linux.
    """
    dropped = 0
    with suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        code = list(_code())
        piece = max(_PIECE, sum(mapping.size for mapping in code) // _MOST_PIECES)
        piece = max(mmap.PAGESIZE, piece - piece % mmap.PAGESIZE)
        for mapping in code:
            # Neighbours are one mapping unless they differ: every other one is not in core dumps.
            for start in range(mapping.start, mapping.end - piece, 2 * piece):
                madvise(start, piece, mmap.MADV_DONTDUMP)
            if madvise(mapping.start, mapping.size, mmap.MADV_DONTNEED) == 0:
                dropped += mapping.resident
    return dropped


def _code() -> Iterator[Mapping]:
    """Ranges of programs in which all is as it is in the file, pieces joined. Raises OSError."""
    with _MAPS.open(errors="replace") as lines:
        heads = [head for line in lines if (head := _HEAD.match(line))]
    programs = {head["file"] for head in heads if "x" in head["rights"] and head["inode"] != "0"}
    joined: Mapping | None = None
    for mapping in mappings():
        # Nobody has written to a page of it, and nobody will.
        if mapping.file not in programs or mapping.own or "w" in mapping.rights:
            continue
        if joined and mapping.follows(joined):
            resident = joined.resident + mapping.resident
            joined = replace(joined, end=mapping.end, resident=resident)
            continue
        if joined:
            yield joined
        joined = mapping
    if joined:
        yield joined


def trim_heap() -> None:
    """Let the system have what was freed, as far as the C library can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def mappings() -> Iterator[Mapping]:
    """All ranges of addresses of this process. Raises OSError where nobody tells."""
    head, resident = None, 0
    with _MAPPINGS.open(errors="replace") as lines:
        for line in lines:
            if found := _HEAD.match(line):
                head = found
            elif line.startswith("Rss:"):
                resident = _size(line)
            elif line.startswith("Anonymous:") and head:  # comes after Rss
                start, end = int(head["start"], 16), int(head["end"], 16)
                file = head["file"] if head["inode"] != "0" else ""
                yield Mapping(start, end, head["rights"], file, resident, _size(line))


def bytes_in(path: Path, key: str) -> int | None:
    """The value of a line such as "VmHWM:  1696 kB", in bytes; None without file or line."""
    with suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return _size(line)
    return None


def _size(line: str) -> int:
    return 1024 * int(line.split()[1])


def _peak_by_getrusage() -> int:
    if sys.platform == "win32":
        return 0
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
