"""The text stream: characters, end tokens and stop strings across any token borders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.errors import UsageError
from specgen.core.text.stream import TextStream

EOG = 0


class PieceVocab:
    """Token i + 1 adds pieces[i]; token 0 ends a generation."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.n_vocab = len(pieces) + 1
        self.eog = frozenset({EOG})

    def tokenize(self, text: str, *, add_bos: bool, special: bool, cut: str = "") -> list[int]:
        raise NotImplementedError

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return b"</s>" if token == EOG else self.pieces[token - 1]


def stream_of(pieces: Sequence[bytes], stops: Sequence[str] = ()) -> TextStream:
    return TextStream(PieceVocab(pieces), stops)


def run(stream: TextStream, n_pieces: int) -> list[str]:
    """What `take` gives after each token, until the text is finished, and then `finish`."""
    shown = []
    for token in range(1, n_pieces + 1):
        done = stream.push(token)
        shown.append(stream.take())
        if done:
            break
    return [*shown, stream.finish()]


def naive_cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before its first stop, by looking at every beginning of the text in turn."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def split_at(data: bytes, places: Sequence[int]) -> list[bytes]:
    borders = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(borders)]


# Few letters and some pieces of characters, so that stops and malformed bytes are common.
ALPHABET = [b"a", b"b", b"ab", "é".encode(), "🙂".encode(), b"\xc3", b"\xf0\x9f", b"\x99", b"\xff"]
BYTES = st.one_of(st.binary(max_size=12), st.lists(st.sampled_from(ALPHABET)).map(b"".join))
STOPS = st.lists(st.text(alphabet="abé🙂\ufffd", min_size=1, max_size=4), max_size=3)


@given(data=BYTES, places=st.lists(st.integers(0, 40), max_size=12), stops=STOPS)
@settings(max_examples=800)
def test_any_split_gives_the_whole_decode_cut_at_the_first_stop(
    data: bytes, places: list[int], stops: list[str]
) -> None:
    """However bytes are cut into tokens, the text is that of all bytes, up to the first stop."""
    pieces = split_at(data, places)
    stream = stream_of(pieces, stops)
    text, stop = naive_cut(data.decode("utf-8", "replace"), stops)
    assert "".join(run(stream, len(pieces))) == text
    assert stream.stop_string == stop
    assert stream.finish_reason == ("stop" if stop else None)


@given(data=BYTES, places=st.lists(st.integers(0, 40), max_size=12), stops=STOPS)
@settings(max_examples=300)
def test_text_is_shown_as_soon_as_no_stop_can_claim_it(
    data: bytes, places: list[int], stops: list[str]
) -> None:
    """What is held while tokens come is always the beginning of some stop string, no more."""
    pieces = split_at(data, places)
    stream = stream_of(pieces, stops)
    shown = ""
    for token in range(1, len(pieces) + 1):
        if stream.push(token):
            break
        shown += stream.take()
        whole = b"".join(pieces[:token]).decode("utf-8", "replace")
        held = whole.removeprefix(shown).rstrip("\ufffd")  # half a character is held as well
        assert whole.startswith(shown)
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_half_a_character_is_never_shown() -> None:
    """An emoji of four one-byte tokens appears at its last byte, whole."""
    pieces = [bytes([byte]) for byte in "🙂!".encode()]
    assert run(stream_of(pieces), len(pieces)) == ["", "", "", "🙂", "!", ""]


def test_a_character_cut_off_at_the_end_becomes_one_replacement() -> None:
    """Bytes of an unfinished character come out as U+FFFD once the generation ends."""
    assert run(stream_of([b"a\xf0\x9f"]), 1) == ["a", "\ufffd"]


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "stop"),
    [
        ([b"one\nUs", b"er: two"], ["\nUser:"], ["one", "", ""], "\nUser:"),
        ([b"one STOP two", b"x"], ["STOP"], ["one ", ""], "STOP"),
        ([b"aab"], ["ab"], ["a", ""], "ab"),
        ([b"a", b"a", b"b"], ["aab", "b"], ["", "", "", ""], "aab"),
        ([b"abcd"], ["abcd", "bc"], ["a", ""], "bc"),
        ([b"a\xc3", b"\xa9b"], ["é"], ["a", "", ""], "é"),
        ([b"x\xe2\x80", b"\x94y"], ["x—y"], ["", "", ""], "x—y"),
        ([b"STO", b"P"], ["STOPS"], ["", "", "STOP"], None),
        ([b"ST", b"ew"], ["STOP"], ["", "STew", ""], None),
        ([b"STSTO", b"P"], ["STOP"], ["ST", "", ""], "STOP"),
    ],
)
def test_stop_strings(
    pieces: list[bytes], stops: list[str], shown: list[str], stop: str | None
) -> None:
    """Stops may cross tokens or lie inside one; the first to be complete cuts the text."""
    stream = stream_of(pieces, stops)
    assert run(stream, len(pieces)) == shown
    assert stream.stop_string == stop


def test_an_end_token_finishes_without_text() -> None:
    """An EOG token ends the text, adds nothing, and lets what was held for a stop appear."""
    stream = stream_of([b"go ST"], ["STOP"])
    assert not stream.push(1)
    assert stream.take() == "go "
    assert stream.push(EOG)
    assert stream.finish_reason == "eog"
    assert stream.finish() == "ST"


def test_tokens_after_the_end_change_nothing() -> None:
    """Once finished, further tokens are ignored and the reason stays."""
    stream = stream_of([b"a", b"b", b"c"], ["b"])
    assert [stream.push(token) for token in (1, 2, 3, EOG)] == [False, True, True, True]
    assert stream.finish() == "a"
    assert (stream.finish_reason, stream.stop_string) == ("stop", "b")
    assert stream.finish() == ""


def test_finish_gives_what_was_never_taken() -> None:
    """A caller that does not stream gets the whole text from `finish`."""
    stream = stream_of([b"Hello", b", wor", b"ld"])
    for token in (1, 2, 3):
        stream.push(token)
    assert stream.finish() == "Hello, world"


def test_an_empty_stop_string_is_refused() -> None:
    """An empty stop string would end every text at once, so it is a UsageError."""
    with pytest.raises(UsageError, match="stop string is empty"):
        stream_of([], ["a", ""])
