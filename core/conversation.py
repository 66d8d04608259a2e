"""A chat: messages, and the tokens of the prompt for the next answer.

Answers go back into the prompt as the very tokens that the model emitted, so the cache is
reused between turns even where the text would be split into other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .chat_tokens import NOTHING, Known, tokenize_chat
from .protocols import Vocab
from .template import ChatTemplate, Message


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
        self._rendered = ""
        self.system = system
        self.turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """All messages, the system message first."""
        system = [Message("system", self.system)] if self.system else []
        return [*system, *self.turns]

    def ask(self, text: str) -> list[int]:
        """Add a user's message and return the prompt for its answer."""
        self.turns.append(Message("user", text))
        return self.prompt()

    def prompt(self) -> list[int]:
        """Tokens of all messages and the start of the next answer."""
        contents = (message.content for message in self.messages)
        self._require_room(sum(len(text.encode("utf-8", "replace")) for text in contents))
        self._rendered, tokens = tokenize_chat(
            self._vocab,
            self._template,
            self.messages,
            marks=self._marks,
            known=self._known,
        )
        return tokens

    def answer(self, text: str, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        """Add the model's answer: its text, the last `prompt()`, the tokens emitted after it.

        The tokens are remembered if they make exactly this text, control tokens aside.
        """
        self.turns.append(Message("assistant", text))
        visible = list(tokens)
        while visible and visible[-1] in self._vocab.eog:
            visible.pop()
        made = b"".join(map(self._vocab.piece, visible)).decode("utf-8", "replace")
        same = made == text
        self._known = Known(self._rendered + text, (*prompt, *visible)) if same else NOTHING

    def drop_answer(self) -> bool:
        """Forget the last answer, so that it can be given anew; False if there is none."""
        if not self.turns or self.turns[-1].role != "assistant":
            return False
        self.turns.pop()
        self._known = NOTHING
        return True

    def drop_question(self) -> None:
        """Forget the last message if it is a user's that has no answer."""
        if self.turns and self.turns[-1].role == "user":
            self.turns.pop()

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns.clear()
        self._known = NOTHING
