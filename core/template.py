"""Chat templates: from messages to the text that a model was trained on.

What a template takes is found out once, by letting it render messages of known words: strings or
typed parts, a system message or none, whether it begins the answer. Each message is then given in
the form in which its text arrives, and every text that was rendered is looked through for the
messages: none may be missing from it without a word.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any, Final

from .errors import ModelError
from .sandbox import Failed, Program, Refused, TooMuch
from .stop import ShouldStop, never

_log = logging.getLogger("specgen.template")

_HINT = "--chat-template-file FILE gives another template"

# Words that no template has of its own.
_SYSTEM, _USER, _ANSWER = "Qzsystem7", "Qzuser7", "Qzanswer7"

# Templates leave the thoughts of earlier answers out, up to this.
_END_OF_THOUGHT: Final = re.compile(r"</\w*think\w*>|\[/THINK\]", re.IGNORECASE)

# Typed parts that were printed as a list, not read.
_LISTED: Final = re.compile(r"""['"]type['"]: *['"]text['"]""")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str  # "system", "user" or "assistant"
    content: str


@dataclass(frozen=True, slots=True)
class Habits:
    """What a template takes, and what it leaves to others.

    Attributes:
        typed: roles whose text arrives as a list of typed parts only.
        takes_system: whether the text of a system message arrives beside that of a user.
        header: what begins an answer, where the template does not write it.
    """

    typed: frozenset[str]
    takes_system: bool
    header: str


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A text, the form of the messages that it was made of, and those that are not in it."""

    text: str
    form: list[Message]
    missing: list[Message]


class ChatTemplate:
    """A compiled chat template.

    Attributes:
        folded: whether a `render` had to fold system messages into user turns, or to join
            neighbours of one role, because the template does not take them as they are.
    """

    def __init__(
        self,
        source: str | None,
        bos_text: str = "",
        eos_text: str = "",
        should_stop: ShouldStop = never,
    ) -> None:
        """Compile `source`; None or "" means that the model has no template.

        `should_stop` is asked while it is compiled and while it runs; then Interrupted is raised.
        Raises ModelError where there is no template or it cannot be compiled.
        """
        if not source:
            raise ModelError("the model has no chat template", hint=_HINT)
        self.source = source
        self.bos_text = bos_text
        self.eos_text = eos_text
        self.folded = False
        self._warned: set[str] = set()
        try:
            self._program = Program(source.removeprefix("\ufeff"), should_stop)
        except Failed as error:
            raise _failure(str(error)) from error

    @cached_property
    def habits(self) -> Habits:
        """What the template takes, by what becomes of messages that it is tried on."""
        user, answer, system = (
            Message("user", _USER),
            Message("assistant", _ANSWER),
            Message("system", _SYSTEM),
        )
        typed: frozenset[str] = frozenset()
        for tried, messages in (
            (user, [user]),
            (answer, [user, answer, user]),
            (system, [system, user]),
        ):
            if tried.content in self._tried(messages, typed):
                continue
            text = self._tried(messages, typed | {tried.role})
            if tried.content in text and not _LISTED.search(text):
                typed |= {tried.role}
        both = self._tried([system, user], typed)
        return Habits(
            typed,
            takes_system=_SYSTEM in both and _USER in both,
            header=self._missing_header([user], [user, answer], typed),
        )

    def _missing_header(
        self, question: Sequence[Message], answered: Sequence[Message], typed: frozenset[str]
    ) -> str:
        """What comes between a question and its answer, if only answers bring it."""
        asked = self._tried(question, typed)
        if asked != self._tried(question, typed, add_generation_prompt=False):
            return ""
        whole = self._tried(answered, typed, add_generation_prompt=False)
        if not asked or not whole.startswith(asked) or _ANSWER not in whole:
            return ""
        header = whole[len(asked) : whole.index(_ANSWER)]
        return header if header.strip() else ""

    def _tried(
        self,
        messages: Sequence[Message],
        typed: frozenset[str],
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text of the messages; empty where the template refuses them or fails.

        Raises ModelError where the template takes too much: it would do so again and again.
        """
        try:
            return self._run(messages, typed, add_generation_prompt)
        except TooMuch as error:
            raise _failure(str(error)) from error
        except (Failed, Refused):
            return ""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of the conversation, by default up to where the assistant's answer begins.

        Messages that the template does not take as they are go into it in a simpler form, which
        is told once. Raises ModelError where the template fails, refuses every form of the
        messages, or leaves out the last one.
        """
        refusal: Refused | None = None
        found: list[_Rendered] = []
        for form in self._forms(messages):
            try:
                text = self._rendered(form, add_generation_prompt)
            except Refused as error:
                refusal = refusal or error
                continue
            found.append(_Rendered(text, form, _missing(form, text)))
            if not found[-1].missing:
                break
        if not found:
            raise _failure(str(refusal)) from refusal
        best = min(found, key=lambda rendered: len(rendered.missing))
        self._tell(messages, best)
        return best.text

    def _tell(self, messages: Sequence[Message], rendered: _Rendered) -> None:
        """Warn of what became of the messages. Raises ModelError if the last one is missing."""
        form, missing = rendered.form, rendered.missing
        if form and form[-1].role == "user" and form[-1] in missing:
            raise _failure("it leaves out or changes the text of the last message")
        if form != list(messages):
            self.folded = True
            self._warn(_folding(messages, form))
        if missing:
            roles = " and ".join(dict.fromkeys(message.role for message in missing))
            self._warn(
                f"the chat template leaves out or changes text of the {roles}: the model does not"
                " see it as it was written"
            )

    def _forms(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """The messages as they are, then with fewer turns, then without the role of system."""
        seen: list[list[Message]] = []
        joined = _join_neighbours(messages)
        folded = _join_neighbours(
            [replace(m, role="user") if m.role == "system" else m for m in messages]
        )
        takes_all = self.habits.takes_system or all(m.role != "system" for m in messages)
        for form in (list(messages), joined, folded) if takes_all else (folded,):
            if form not in seen:
                seen.append(form)
                yield form

    def _rendered(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            text = self._run(messages, self.habits.typed, add_generation_prompt)
        except Failed as error:
            raise _failure(str(error)) from error
        asks = not messages or messages[-1].role != "assistant"
        return text + self.habits.header if add_generation_prompt and asks else text

    def _run(
        self, messages: Sequence[Message], typed: frozenset[str], add_generation_prompt: bool
    ) -> str:
        return self._program.run(
            sum(len(message.content) for message in messages),
            messages=[_given(message, typed) for message in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_text,
            eos_token=self.eos_text,
            tools=None,  # templates tell "no tools" by None
            documents=None,
        )

    def _warn(self, warning: str) -> None:
        """Once, not with every turn."""
        if warning not in self._warned:
            _log.warning("%s", warning)
        self._warned.add(warning)


def _given(message: Message, typed: frozenset[str]) -> dict[str, Any]:
    """A message as templates know them."""
    if message.role in typed:
        return {"role": message.role, "content": [{"type": "text", "text": message.content}]}
    return {"role": message.role, "content": message.content}


def _missing(messages: Sequence[Message], text: str) -> list[Message]:
    """The messages whose text is not in `text`, white space aside: templates trim and indent."""
    squeezed = "".join(text.split())
    return [m for m in messages if "".join(_shown(m).split()) not in squeezed]


def _shown(message: Message) -> str:
    """What of a message has to arrive."""
    if message.role != "assistant":
        return message.content
    return _END_OF_THOUGHT.split(message.content)[-1]


def _folding(messages: Sequence[Message], form: Sequence[Message]) -> str:
    """What became of the messages, as a warning."""
    n_system = sum(message.role == "system" for message in messages)
    if n_system and all(message.role != "system" for message in form):
        return "the chat template takes no system message: it goes into the user's message"
    return "the chat template takes no neighbours of one role: they are joined into one message"


def _join_neighbours(messages: Sequence[Message]) -> list[Message]:
    """Make one turn of neighbours with the same role."""
    groups = groupby(messages, key=lambda message: message.role)
    return [Message(role, "\n\n".join(m.content for m in group)) for role, group in groups]


def _failure(reason: str) -> ModelError:
    first_line = reason.strip().partition("\n")[0]
    return ModelError(f"the model's chat template failed: {first_line}", hint=_HINT)
