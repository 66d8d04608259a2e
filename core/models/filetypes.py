"""What a file is that was meant to be a GGUF and is not: its first bytes tell."""

from __future__ import annotations

from typing import Final

_CONVERT: Final = "convert the model with llama.cpp's convert_hf_to_gguf.py, or get a GGUF of it"
_AGAIN: Final = "download the file itself"

# First bytes, what the file is, what to do.
_SIGNATURES: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the model", "run `git lfs pull`"),
    (b"<!DOCTYPE", "it is a web page, perhaps of a failed download", _AGAIN),
    (b"<!doctype", "it is a web page, perhaps of a failed download", _AGAIN),
    (b"<html", "it is a web page, perhaps of a failed download", _AGAIN),
    (b"PK\x03\x04", "it is a zip archive, perhaps a PyTorch checkpoint", _CONVERT),
    (b"\x80\x02", "it is a Python pickle, perhaps a PyTorch checkpoint", _CONVERT),
    (b"lmgg", "it is in the old GGML format", _CONVERT),
    (b"fmgg", "it is in the old GGMF format", _CONVERT),
    (b"tjgg", "it is in the old GGJT format", _CONVERT),
    (b"algg", "it is an old GGML adapter", _CONVERT),
    (b"FUGG", "its bytes are in big-endian order", _CONVERT),
    (b"\x1f\x8b", "it is compressed with gzip", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd", "unpack it first"),
    (b"7z\xbc\xaf", "it is a 7z archive", "unpack it first"),
    (b"\x89HDF", "it is in the HDF5 format", _CONVERT),
)


def describe_file(head: bytes, size: int) -> tuple[str, str]:
    """What a file that begins with `head` and has `size` bytes is, and what to do about it."""
    for magic, what, hint in _SIGNATURES:
        if head.startswith(magic):
            return what, hint
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "it is in the safetensors format", _CONVERT
    if _is_text(head):
        return "it looks like a text file", "give the model first and a prompt file with -f"
    start = head[:4].hex(" ")
    return f"it begins with {start} instead of 47 47 55 46 (GGUF)", "give the path of a GGUF file"


def _is_text(head: bytes) -> bool:
    """UTF-8 without control characters, except for white space; the end may be cut."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text) and all(char.isprintable() or char in "\t\n\r\f" for char in text)
