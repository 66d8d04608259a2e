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
from itertools import groupby, takewhile
from typing import Any, Final

from specgen.core.errors import ModelError
from specgen.core.stop import ShouldStop, never

from .sandbox import Failed, Program, Refused, TooMuch

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


_NO_SYSTEM: Final = Message("system", "")  # given to templates that insist on a system message


@dataclass(frozen=True, slots=True)
class Habits:
    """What a template takes, and what it leaves to others.

    Attributes:
        typed: roles whose text arrives as a list of typed parts only.
        takes_system: whether the text of a system message arrives beside that of a user.
        header: what begins an answer, where the template does not write it.
        ending: the end of a text that it writes in the place of the header.
    """

    typed: frozenset[str]
    takes_system: bool
    header: str
    ending: str


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A text, the form of the messages that it was made of, and which of them are not in it."""

    text: str
    form: list[Message]
    missing: list[int]


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
        question = [user]
        if not self._tried(question, typed) and not self._tried(question, frozenset({"user"})):
            question = [_NO_SYSTEM, user]
        for tried, messages in (
            (user, question),
            (answer, [*question, answer, user]),
            (system, [system, user]),
        ):
            if tried.content in self._tried(messages, typed):
                continue
            text = self._tried(messages, typed | {tried.role})
            if tried.content in text and not _LISTED.search(text):
                typed |= {tried.role}
        both = self._tried([system, user], typed)
        ending, header = self._beginning(question, answer, typed)
        return Habits(typed, _SYSTEM in both and _USER in both, header, ending)

    def _beginning(
        self, question: Sequence[Message], answer: Message, typed: frozenset[str]
    ) -> tuple[str, str]:
        """What a question ends with, and what takes its place before an answer.

        Both are "" where the template begins answers by itself, or begins them with nothing.
        """
        asked = self._tried(question, typed)
        if asked != self._tried(question, typed, add_generation_prompt=False):
            return "", ""
        for messages in ([*question, answer], [*question, answer, question[-1]]):
            answered = self._tried(messages, typed, add_generation_prompt=False)
            before = answered.partition(_ANSWER)[0]
            if before == answered or _USER not in before:
                continue  # it takes no answer at the end, for one
            n = _n_shared(asked, before)
            ending, header = asked[n:], before[n:]
            # What else ends a question may be meant to begin the answer.
            is_end = ending.strip() in ("", self.eos_text) and answered.endswith(ending)
            if header.strip() and is_end:
                return ending, header
        return "", ""

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
            found.append(_Rendered(text, form, self._missing(form, text)))
            if not found[-1].missing:
                break
        if not found:
            raise _failure(str(refusal)) from refusal
        best = min(found, key=lambda rendered: len(rendered.missing))
        self._tell(messages, best)
        return best.text

    def _missing(self, messages: Sequence[Message], text: str) -> list[int]:
        """Which of the messages are not in `text`, white space aside: templates trim and indent.

        What is in it may be words of the template, or of another message. Then it is asked what
        becomes of a message of one word in its place.
        """
        shown = [_squeezed(_shown(message)) for message in messages]
        words = [f"Qzword{i}z" for i in range(len(messages))]
        tried = [replace(m, content=word) for m, word in zip(messages, words, strict=True)]
        trial = _squeezed(self._tried(tried, self.habits.typed))
        squeezed = _squeezed(text)

        def is_missing(i: int) -> bool:
            if shown[i] not in squeezed:
                return True
            if not shown[i] or not trial or words[i] in trial:
                return False
            others = (trial, *shown[:i], *shown[i + 1 :])
            return any(shown[i] in other for other in others)

        return [i for i in range(len(messages)) if is_missing(i)]

    def _tell(self, messages: Sequence[Message], rendered: _Rendered) -> None:
        """Warn of what became of the messages. Raises ModelError if the last one is missing."""
        form, missing = rendered.form, rendered.missing
        if form and form[-1].role == "user" and len(form) - 1 in missing:
            raise _failure("it leaves out or changes the text of the last message")
        if form != list(messages):
            self.folded = True
            self._warn(_folding(messages, form))
        if missing:
            self._warn(
                f"the chat template leaves out or changes text of the {_roles(form, missing)}: the"
                " model does not see it as it was written"
            )
        spaced = [i for i, m in enumerate(form) if _shown(m).strip() not in rendered.text]
        if changed := [i for i in spaced if i not in missing]:
            self._warn(
                f"the chat template changes white space in text of the {_roles(form, changed)}"
            )

    def _forms(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """The messages as they are, then with fewer turns, then without the role of system.

        Where there is no such role, an empty one comes last: some templates insist on it.
        """
        seen: list[list[Message]] = []
        joined = _join_neighbours(messages)
        folded = _join_neighbours(
            [replace(m, role="user") if m.role == "system" else m for m in messages]
        )
        forms = [list(messages), joined, folded]
        if all(message.role != "system" for message in messages):
            forms.append([_NO_SYSTEM, *joined])
        elif not self.habits.takes_system:
            forms = [folded]
        for form in forms:
            if form not in seen:
                seen.append(form)
                yield form

    def _rendered(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            text = self._run(messages, self.habits.typed, add_generation_prompt)
        except Failed as error:
            raise _failure(str(error)) from error
        asks = not messages or messages[-1].role != "assistant"
        if not (add_generation_prompt and asks and self.habits.header):
            return text
        return text.removesuffix(self.habits.ending) + self.habits.header

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


def _n_shared(one: str, other: str) -> int:
    """How many characters two texts begin with that are the same."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _squeezed(text: str) -> str:
    """A text without white space."""
    return "".join(text.split())


def _roles(messages: Sequence[Message], chosen: Sequence[int]) -> str:
    return " and ".join(dict.fromkeys(messages[i].role for i in chosen))


def _shown(message: Message) -> str:
    """What of a message has to arrive."""
    if message.role != "assistant":
        return message.content
    return _END_OF_THOUGHT.split(message.content)[-1]


def _folding(messages: Sequence[Message], form: Sequence[Message]) -> str:
    """What became of the messages, as a warning."""
    before, after = (any(m.role == "system" for m in some) for some in (messages, form))
    if before and not after:
        return "the chat template takes no system message: it goes into the user's message"
    if after and not before:
        return "the chat template needs a system message: it gets an empty one"
    return "the chat template takes no neighbours of one role: they are joined into one message"


def _join_neighbours(messages: Sequence[Message]) -> list[Message]:
    """Make one turn of neighbours with the same role."""
    groups = groupby(messages, key=lambda message: message.role)
    return [Message(role, "\n\n".join(m.content for m in group)) for role, group in groups]


def _failure(reason: str) -> ModelError:
    first_line = reason.strip().partition("\n")[0]
    return ModelError(f"the model's chat template failed: {first_line}", hint=_HINT)
