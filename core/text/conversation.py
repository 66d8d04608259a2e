"""A chat: messages, and the tokens of the prompt for the next answer.

Answers go back into the prompt as the very tokens that the model emitted, so the cache is
reused between turns even where the text would be split into other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specgen.core.protocols import Vocab

from .chat_tokens import NOTHING, Known, tokenize_chat
from .template import ChatTemplate, Message

# A template is given this to see whether it takes a system message.
_TRIAL = Message("user", "Hello")


class Conversation:
    """Turns of a user and the model.

    Args:
        vocab: of the model.
        template: the model's chat template.
        marks: texts that the vocabulary reads as one token; only the template may write them.
        system: the system message, if any.
        require_room: raises ContextFull for messages of so many bytes, if they cannot fit.
    """

    def __init__(
        self,
        vocab: Vocab,
        template: ChatTemplate,
        marks: frozenset[str],
        system: str | None = None,
        require_room: Callable[[int], None] = lambda n_bytes: None,
    ) -> None:
        self._vocab = vocab
        self._template = template
        self._marks = marks
        self._require_room = require_room
        self._known = NOTHING
        self._asked: tuple[list[Message], str] = ([], "")  # turns, and their text
        self.system = system
        self.turns: list[Message] = []  # questions, each with its answer

    @property
    def messages(self) -> list[Message]:
        """All messages, the system message first."""
        return [*_system_message(self.system), *self.turns]

    def ask(self, text: str) -> list[int]:
        """The prompt that asks `text`. Nothing changes before there is an `answer` to it."""
        return self._ask([*self.turns, Message("user", text)], self._known)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The prompt that is answered after `messages`, whatever was said before.

        Raises ModelError where the template does not take them.
        """
        return self._tokens(None, messages, NOTHING)[1]

    def again(self) -> list[int]:
        """The prompt of the last answer, which stays until another takes its place.

        Raises ValueError if there is none.
        """
        if not self.turns:
            raise ValueError("there is no answer")
        return self._ask(self.turns[:-1], NOTHING)

    def _ask(self, turns: list[Message], known: Known) -> list[int]:
        """Tokens of all messages up to `turns` and of the start of the next answer."""
        text, tokens = self._tokens(self.system, turns, known)
        self._asked = (turns, text)
        return tokens

    def _tokens(
        self, system: str | None, turns: Sequence[Message], known: Known
    ) -> tuple[str, list[int]]:
        messages = [*_system_message(system), *turns]
        texts = (message.content.encode("utf-8", "replace") for message in messages)
        self._require_room(sum(map(len, texts)))
        return tokenize_chat(self._vocab, self._template, messages, marks=self._marks, known=known)

    def answer(self, text: str, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        """Add what was asked last and its answer: a text, the prompt, the tokens after it.

        The tokens are remembered if they make exactly this text, control tokens aside.
        """
        visible = list(tokens)
        while visible and visible[-1] in self._vocab.eog:
            visible.pop()
        made = b"".join(map(self._vocab.piece, visible)).decode("utf-8", "replace")
        same = made == text
        turns, rendered = self._asked
        self._known = Known(rendered + text, (*prompt, *visible)) if same else NOTHING
        self.turns = [*turns, Message("assistant", text)]

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns, self._known = [], NOTHING

    def try_system(self, text: str) -> None:
        """Raise ModelError if the template does not take this system message."""
        self._tokens(text, [_TRIAL], NOTHING)

    def start_over(self, system: str | None) -> None:
        """Forget all turns and have another system message, or none."""
        self.system, self.turns, self._known = system, [], NOTHING


def _system_message(text: str | None) -> list[Message]:
    return [Message("system", text)] if text else []
