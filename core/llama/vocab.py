"""The tokenizer that a GGUF file brings along, as llama.cpp runs it."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Container
from functools import cached_property, partial
from typing import Any, Final, NamedTuple

from specgen.core.errors import BackendError, ContextFull, UsageError

_SENTENCE_PIECE: Final = 1  # llama_vocab_type

_PIECE_BYTES = 512  # longer than nearly all pieces; a longer one is asked for again

# llama_token_attr: unknown, control, user-defined. llama.cpp looks for the texts of these tokens
# before it tokenizes what is between them.
_SPLIT_OFF: Final = 1 << 0 | 1 << 3 | 1 << 4

# Characters that no piece of a vocabulary holds together with others, none of them white space.
_CUTTERS: Final = tuple(map(chr, (*range(1, 9), *range(14, 28), 127)))

# Some vocabularies split text by regular expressions, which the C++ library matches with a
# function that calls itself for each character: 310 bytes of stack were seen to be taken.
_RUN: Final = re.compile(r"\S+|\s+")  # no expression of theirs goes far beyond one of these
_SHORT_RUN: Final = 4096  # characters, for which any stack will do
_LONGEST_RUN: Final = 250_000
_STACK_BYTES: Final = 1 << 10  # for each character


class _Cutter(NamedTuple):
    """A character that stands for a cut in a text, and its token."""

    char: str
    token: int
    behind_space: bool  # whether llama.cpp puts a space before a text, as SentencePiece does


class _Ends(Container[int]):
    """Tokens that end a text. llama.cpp is asked of a token when that is first looked for."""

    def __init__(self, ends: Callable[[int], bool]) -> None:
        self._ends = ends
        self._known: dict[int, bool] = {}

    def __contains__(self, token: Any) -> bool:
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._ends(token)
        return known


class LlamaVocab:
    """See protocols.Vocab.

    Args:
        api: the llama_cpp module.
        handle: a llama_vocab pointer; its model must outlive this.
    """

    def __init__(self, api: Any, handle: Any) -> None:
        self._api = api
        self._handle = handle
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self.n_vocab: int = self._api.llama_vocab_n_tokens(handle)
        self.add_bos: bool = self._api.llama_vocab_get_add_bos(handle)
        self.eog = _Ends(partial(self._api.llama_vocab_is_eog, handle))
        self._bos: int = self._api.llama_vocab_bos(handle)
        self.bos_text = self._text(self._bos)
        self.eos_text = self._text(self._api.llama_vocab_eos(handle))

    def _text(self, token: int) -> str:
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def marks(self) -> frozenset[str]:
        """Texts that are read as one token wherever they stand, such as `<|im_end|>`.

        Runs of white space are not among them: models have tokens for indentation, and nobody
        can end a turn with one.
        """
        attributes = self._api.llama_vocab_get_attr
        tokens = (t for t in range(self.n_vocab) if attributes(self._handle, t) & _SPLIT_OFF)
        texts = (self._raw(token).decode("utf-8", "replace") for token in tokens)
        return frozenset(text for text in texts if text.strip(" \t\r\n\u2581"))

    @cached_property
    def longest_piece(self) -> int:
        """Bytes of the longest token: a text of n bytes has no fewer than n / this tokens."""
        return max(len(self._raw(token)) for token in range(self.n_vocab)) or 1

    def require_room(self, n_ctx: int, n_bytes: int) -> None:
        """Raise ContextFull if a text of so many bytes has more than `n_ctx` tokens in any case."""
        if n_bytes <= n_ctx or (least := -(-n_bytes // self.longest_piece)) <= n_ctx:
            return
        raise ContextFull(
            f"the prompt of {n_bytes:,} bytes has at least {least:,} tokens, which exceeds the"
            f" available context size of {n_ctx}",
            "use a larger context (-c) or a shorter prompt",
        )

    def different_share(self, other: LlamaVocab) -> float:
        """Of the tokens that this or `other` has, the part that is not the same in both."""
        shared = range(min(self.n_vocab, other.n_vocab))
        same = sum(self._raw(token) == other._raw(token) for token in shared)
        return 1 - same / max(self.n_vocab, other.n_vocab)

    def _raw(self, token: int) -> bytes:
        text: bytes = self._api.llama_vocab_get_text(self._handle, token)
        return text

    def tokenize(self, text: str, *, add_bos: bool, special: bool, cut: str = "") -> list[int]:
        """See protocols.Vocab. Raises BackendError if llama.cpp cannot tokenize the text."""
        if cut and cut in text:
            tokens = self._tokenize_cut(text, special, cut)
        else:
            tokens = self._tokenize(text, special)
        # llama.cpp would add what belongs at the end of a text as well, and a second beginning.
        if add_bos and self.add_bos and self._bos >= 0 and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)
        return tokens

    def _tokenize_cut(self, text: str, special: bool, cut: str) -> list[int]:
        """Tokens of a text in one go, with a character at each cut that is taken out again.

        In pieces, SentencePiece vocabularies would get a space before each of them.
        """
        needs_start = text.startswith(cut) and any(c.behind_space for c in self._cutters)
        text = text.lstrip(cut)
        if cut not in text and not needs_start:
            return self._tokenize(text, special)
        for cutter in self._cutters:
            if cutter.char in text:
                continue
            prefix = cutter.char if needs_start else ""
            marked = prefix + text.replace(cut, cutter.char)
            tokens = self._tokenize(marked, special)
            if tokens.count(cutter.token) == marked.count(cutter.char):
                start = tokens.index(cutter.token) if prefix else 0
                return [token for token in tokens[start:] if token != cutter.token]
        why = "the text has all control characters" if self._cutters else "its vocabulary has none"
        raise BackendError(
            "a message has what looks like a control token in it, and the model cannot be told"
            f" otherwise: control characters do that, and {why}",
            "leave it out",
        )

    @cached_property
    def _cutters(self) -> tuple[_Cutter, ...]:
        found = []
        spells = self._api.llama_vocab_type(self._handle) == _SENTENCE_PIECE
        texts = {self._raw(token) for token in range(self.n_vocab)} if spells else set()
        for char in _CUTTERS:
            if spells and texts.isdisjoint((char.encode(), f"<0x{ord(char):02X}>".encode())):
                continue  # llama.cpp ends the process where a byte is missing
            *before, token = self._tokenize(char, special=False) or [-1]
            is_space = [self.piece(other) for other in before] == [b" "]
            if token >= 0 and self.piece(token) == char.encode() and (is_space or not before):
                found.append(_Cutter(char, token, is_space))
        return tuple(found)

    def _tokenize(self, text: str, special: bool) -> list[int]:
        longest = 0
        if len(text) > _SHORT_RUN:
            longest = max(map(len, _RUN.findall(text)))
        if longest > _LONGEST_RUN:
            raise UsageError(
                f"{longest:,} characters without a space, or of nothing else, are too many to be"
                f" tokenized: {_LONGEST_RUN:,} are the most",
                "put spaces or line breaks into the text",
            )
        if longest > _SHORT_RUN:
            stack = (1 << 20) + longest * _STACK_BYTES
            return _on_stack(stack, lambda: self._tokenize_here(text, special))
        return self._tokenize_here(text, special)

    def _tokenize_here(self, text: str, special: bool) -> list[int]:
        data = text.encode("utf-8", errors="replace")
        size = len(data) + 2  # no token is shorter than a byte; a space may be added
        for _ in range(2):
            buffer = (self._api.llama_token * size)()
            n = self._api.llama_tokenize(
                self._handle, data, len(data), buffer, size, False, special
            )
            if n >= 0:
                return list(buffer[:n])
            size = -n
        raise BackendError(f"llama.cpp could not tokenize a text of {len(data)} bytes")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """See protocols.Vocab."""
        key = (token, special)
        if key not in self._pieces:
            self._pieces[key] = self._read_piece(token, special)
        return self._pieces[key]

    def _read_piece(self, token: int, special: bool) -> bytes:
        size = _PIECE_BYTES
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            n = self._api.llama_token_to_piece(self._handle, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n
        raise BackendError(f"llama.cpp could not turn token {token} into text")


def _on_stack(n_bytes: int, work: Callable[[], list[int]]) -> list[int]:
    """What `work` returns, or raises, on a thread with a stack of so many bytes."""
    done: list[list[int]] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    before = threading.stack_size(n_bytes - n_bytes % (1 << 16))
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
