"""The tokenizer that a GGUF file brings along, as llama.cpp runs it."""

from __future__ import annotations

import ctypes
from typing import Any

from .errors import BackendError

_PIECE_BYTES = 512  # longer than nearly all pieces; a longer one is asked for again


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
        ids = range(self.n_vocab)
        self.eog = frozenset(t for t in ids if self._api.llama_vocab_is_eog(handle, t))
        self.bos_text = self._text(self._api.llama_vocab_bos(handle))
        self.eos_text = self._text(self._api.llama_vocab_eos(handle))

    def _text(self, token: int) -> str:
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def control_texts(self) -> frozenset[str]:
        """The texts of all control tokens, such as `<|im_end|>`."""
        ids = range(self.n_vocab)
        control = (t for t in ids if self._api.llama_vocab_is_control(self._handle, t))
        return frozenset(text for t in control if (text := self._text(t)))

    def different_share(self, other: LlamaVocab) -> float:
        """Of the tokens that this or `other` has, the part that is not the same in both."""
        shared = range(min(self.n_vocab, other.n_vocab))
        same = sum(self._raw(token) == other._raw(token) for token in shared)
        return 1 - same / max(self.n_vocab, other.n_vocab)

    def _raw(self, token: int) -> bytes:
        text: bytes = self._api.llama_vocab_get_text(self._handle, token)
        return text

    def tokenize(self, text: str, *, add_bos: bool, special: bool) -> list[int]:
        """See protocols.Vocab. Raises BackendError if llama.cpp cannot tokenize the text."""
        data = text.encode("utf-8", errors="replace")
        size = len(data) + 2  # no token is shorter than a byte; BOS and EOS may be added
        for _ in range(2):
            buffer = (self._api.llama_token * size)()
            n = self._api.llama_tokenize(
                self._handle, data, len(data), buffer, size, add_bos, special
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
