"""Chat templates: from messages to the text, and the tokens, that a model was trained on.

A template is a Jinja program out of the model's file, so it runs in a sandbox and may fail in
any way. Control tokens come from the template alone: text that a person wrote is never read as
one.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import Any, NoReturn

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import ModelError
from .protocols import Vocab

_log = logging.getLogger("specgen.template")

_HINT = "--chat-template-file FILE gives another template"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str  # "system", "user" or "assistant"
    content: str


@dataclass(frozen=True, slots=True)
class Known:
    """The start of a conversation as text and as the tokens that made it."""

    text: str
    tokens: tuple[int, ...]


class ChatTemplate:
    """A compiled chat template.

    Attributes:
        folded: whether a `render` had to fold system messages into user turns, or to join
            neighbours of one role, because the template refused them as they were.
    """

    def __init__(self, source: str | None, bos_text: str = "", eos_text: str = "") -> None:
        """Compile `source`; None or "" means that the model has no template.

        Raises ModelError where there is no template or its syntax is wrong.
        """
        if not source:
            raise ModelError("the model has no chat template", hint=_HINT)
        self.source = source
        self.bos_text = bos_text
        self.eos_text = eos_text
        self.folded = False
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise _failure(f"line {error.lineno}: {error.message}") from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of the conversation, by default up to where the assistant's answer begins.

        Raises ModelError where the template fails, or refuses every form of the messages.
        """
        try:
            return self._render(messages, add_generation_prompt)
        except _Refused as refusal:
            for simpler in _simpler_forms(messages):
                try:
                    text = self._render(simpler, add_generation_prompt)
                except _Refused:
                    continue
                if not self.folded:
                    _log.warning(
                        "the chat template takes no such messages: the system message, or"
                        " neighbours of one role, went into one user turn"
                    )
                self.folded = True
                return text
            raise _failure(str(refusal)) from refusal

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_text,
                eos_token=self.eos_text,
                tools=None,  # templates tell "no tools" by None
                documents=None,
            )
        except _Refused:
            raise
        except Exception as error:  # a stranger's program: anything may come out of it
            raise _failure(str(error) or type(error).__name__) from error


def tokenize_chat(
    vocab: Vocab,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    control_texts: frozenset[str],
    known: Known = Known("", ()),
) -> tuple[str, list[int]]:
    """The rendered conversation, and its tokens.

    `control_texts` are the texts of the vocabulary's control tokens; where one stands in a
    message it is tokenized as ordinary text. The model's own beginning-of-text is added unless
    the template wrote it. If the text begins with that of `known`, so do the tokens. Raises
    ModelError where `ChatTemplate.render` does.
    """
    guard = _Guard(template.source, messages, control_texts)
    parts = guard.split(template.render(guard.messages))
    text = "".join(parts)
    tokens: list[int] = []
    add_bos = not (template.bos_text and parts[0].startswith(template.bos_text))
    if known.text and text.startswith(known.text):
        tokens += known.tokens
        parts = _without_start(parts, len(known.text))
        add_bos = False
    for i, part in enumerate(parts):
        if part or (i == 0 and add_bos):
            is_template = i % 2 == 0
            tokens += vocab.tokenize(part, add_bos=add_bos and i == 0, special=is_template)
    return text, tokens


def _without_start(parts: list[str], n: int) -> list[str]:
    """`parts` without their first `n` characters, as many parts as before."""
    rest = []
    for part in parts:
        rest.append(part[n:])
        n = max(0, n - len(part))
    return rest


class _Guard:
    """Messages in which marks stand for control texts while a template renders them.

    Looking for the messages in the rendered text instead would not do: a message that is
    nothing but "<|im_end|>" looks the same as the template's own.
    """

    def __init__(
        self, source: str, messages: Sequence[Message], control_texts: frozenset[str]
    ) -> None:
        taken = {*source, *(char for m in messages for char in m.content)}
        self._mark = next(char for char in map(chr, range(0xE000, 0xF900)) if char not in taken)
        self._texts = sorted(filter(None, control_texts))
        self.messages = [replace(m, content=self._hide(m.content)) for m in messages]

    def _hide(self, content: str) -> str:
        if not any(text in content for text in self._texts):
            return content
        places = {text: f"{self._mark}{i}{self._mark}" for i, text in enumerate(self._texts)}
        pattern = "|".join(map(re.escape, self._texts))
        return re.sub(pattern, lambda match: places[match[0]], content)

    def split(self, rendered: str) -> list[str]:
        """Parts in order: every second one, from the second on, is a control text written by
        a person."""
        parts = re.split(f"{self._mark}([0-9]+){self._mark}", rendered)
        parts[1::2] = [self._texts[int(i)] for i in parts[1::2]]
        return parts


def _simpler_forms(messages: Sequence[Message]) -> list[list[Message]]:
    """What to try when a template refuses the messages: fewer turns, then no system role."""
    joined = _join_neighbours(messages)
    folded = _join_neighbours(
        [replace(m, role="user") if m.role == "system" else m for m in messages]
    )
    return [form for form in (joined, folded) if form != list(messages)]


def _join_neighbours(messages: Sequence[Message]) -> list[Message]:
    """Make one turn of neighbours with the same role."""
    groups = groupby(messages, key=lambda message: message.role)
    return [Message(role, "\n\n".join(m.content for m in group)) for role, group in groups]


class _Refused(Exception):
    """The template called `raise_exception`."""


def _failure(reason: str) -> ModelError:
    first_line = reason.strip().partition("\n")[0]
    return ModelError(f"the model's chat template failed: {first_line}", hint=_HINT)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates expect to find, as in Hugging Face's `apply_chat_template`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationTag],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of jinja2's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
