"""From tokens to the text that may be shown: UTF-8 pieces, end tokens and stop strings.

What was shown is never taken back: half a character and anything that may yet become a stop
string are held until more tokens decide.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Literal

from specgen.core.errors import UsageError
from specgen.core.protocols import Vocab


class TextStream:
    """The text of one generation, built token by token.

    Malformed bytes become U+FFFD. The text ends before the stop string that is complete first;
    of several complete at the same place, before the one that begins first.

    Attributes:
        finish_reason: "eog" after an end token, "stop" after a stop string, else None.
        stop_string: the stop string that ended the text, else None.
    """

    def __init__(self, vocab: Vocab, stop_strings: Sequence[str] = ()) -> None:
        if not all(stop_strings):
            raise UsageError("a stop string is empty; it must have at least one character")
        self.finish_reason: Literal["eog", "stop"] | None = None
        self.stop_string: str | None = None
        self._vocab = vocab
        self._stops = tuple(dict.fromkeys(stop_strings))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ready: list[str] = []
        self._held = ""  # the longest end of the text that some stop string begins with

    def push(self, token: int) -> bool:
        """Add an emitted token; True once the text is finished. Later tokens change nothing."""
        if self.finish_reason is None:
            if token in self._vocab.eog:
                self.finish_reason = "eog"
            else:
                self._extend(self._decoder.decode(self._vocab.piece(token)))
        return self.finish_reason is not None

    def take(self) -> str:
        """Text that may be shown and was not taken yet."""
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def finish(self) -> str:
        """All text not taken yet, at the end of the generation: nothing is held any more."""
        if self.finish_reason != "stop":
            self._extend(self._decoder.decode(b"", final=True))
            self._ready.append(self._held)
            self._held = ""
        return self.take()

    def _extend(self, new: str) -> None:
        """Add decoded text: all of it is ready, but for what is held or follows a stop."""
        if not (new and self._stops):  # nothing to look for, as for most tokens of most texts
            self._ready.append(new)
            return
        text = self._held + new  # a stop string can begin no earlier
        match = self._first_stop(text)
        if match is not None:
            begin, self.stop_string = match
            self.finish_reason = "stop"
            self._ready.append(text[:begin])
            self._held = ""
            return
        n_ready = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._ready.append(text[:n_ready])
        self._held = text[n_ready:]

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """Where the stop string that ends the text begins, and which one it is."""
        begins = ((text.find(stop), stop) for stop in self._stops)
        found = [(begin + len(stop), begin, stop) for begin, stop in begins if begin >= 0]
        return min(found)[1:] if found else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, not all of it."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return len(text) - at if at >= 0 else 0
