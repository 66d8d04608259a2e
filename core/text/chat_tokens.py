"""From the messages of a chat to tokens, in which only the template writes control tokens.

Vocabularies have texts that a tokenizer reads as one token wherever they stand, such as
`<|im_end|>`: here called marks. What looks like one in a message is a person's text, not the end
of their turn. So before a template renders the messages, each such place is cut behind its first
character, and the tokenizer reads nothing across a cut.

Looking for the messages in the rendered text instead would not do: a message that is nothing but
"<|im_end|>" looks the same as the template's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from specgen.core.protocols import Vocab

from .template import ChatTemplate, Message

# Marks that templates look for in answers, to leave the thoughts out: they stay whole there.
_OF_THOUGHT: Final = re.compile(r"</?\w*think\w*>|\[/?THINK\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Known:
    """The start of a conversation as text and as the tokens that made it."""

    text: str
    tokens: tuple[int, ...]


NOTHING: Final = Known("", ())


def tokenize_chat(
    vocab: Vocab,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    marks: frozenset[str],
    known: Known = NOTHING,
) -> tuple[str, list[int]]:
    """The rendered conversation, and its tokens.

    `marks` are the texts that the vocabulary reads as one token wherever they stand; in a message
    they are ordinary text. The model's own beginning-of-text is added unless the template wrote
    it. If the text begins with that of `known`, so do the tokens. Raises ModelError where
    `ChatTemplate.render` does.
    """
    texts = (template.source, template.bos_text, template.eos_text, known.text)
    cut = _unused(*texts, *(message.content for message in messages))
    rendered = template.render([_with_cuts(message, marks, cut) for message in messages])
    text = rendered.replace(cut, "")
    if known.text and text.startswith(known.text):
        rest = cut + _without_start(rendered, len(known.text), cut)
        tokens = vocab.tokenize(rest, add_bos=False, special=True, cut=cut)
        return text, [*known.tokens, *tokens]
    # Some templates begin with white space that nobody meant.
    has_bos = bool(template.bos_text) and rendered.lstrip().startswith(template.bos_text)
    return text, vocab.tokenize(rendered, add_bos=not has_bos, special=True, cut=cut)


def _unused(*texts: str) -> str:
    """A character for private use that is in none of the texts."""
    taken = set().union(*texts)
    return next(char for char in map(chr, range(0xE000, 0xF900)) if char not in taken)


def _with_cuts(message: Message, marks: Iterable[str], cut: str) -> Message:
    """The message with a cut in each mark, in marks that overlap, too."""
    present = [mark for mark in marks if len(mark) > 1 and mark in message.content]
    if message.role == "assistant":
        present = [mark for mark in present if not _OF_THOUGHT.fullmatch(mark)]
    if not present:
        return message
    pattern = "|".join(map(re.escape, sorted(present)))
    content = re.sub(f"(?={pattern})(.)", rf"\1{cut}", message.content, flags=re.DOTALL)
    return replace(message, content=content)


def _without_start(rendered: str, n: int, cut: str) -> str:
    """`rendered` without its first `n` characters, cuts not counted."""
    end = n
    while (seen := end - rendered.count(cut, 0, end)) < n:
        end += n - seen
    return rendered[end:]
