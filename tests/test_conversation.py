"""A conversation's prompts: rendered by the template, with the model's own tokens kept."""

from __future__ import annotations

from specgen.core.conversation import Conversation
from specgen.core.template import ChatTemplate

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
END = ord(";")


class Characters:
    """A vocabulary of characters, where 1000 is a token for two of them: "ab"."""

    n_vocab = 2000
    eog = frozenset({END})

    def tokenize(self, text: str, *, add_bos: bool, special: bool, cut: str = "") -> list[int]:
        return [0] * add_bos + [ord(char) for char in text if char != cut]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        if token in self.eog and not special:
            return b""
        return b"ab" if token == 1000 else chr(token).encode()


def conversation(system: str | None = None) -> Conversation:
    return Conversation(Characters(), ChatTemplate(TEMPLATE), frozenset(), system)


def written(tokens: list[int]) -> str:
    vocab = Characters()
    return b"".join(vocab.piece(token, special=True) for token in tokens[1:]).decode()


def test_turns_are_rendered_in_order() -> None:
    """System message first, then the turns, then the start of the answer."""
    chat = conversation("be brief")
    prompt = chat.ask("hi")
    assert prompt[0] == 0
    assert written(prompt) == "[system]be brief;[user]hi;[assistant]"
    chat.answer("hey", prompt, [*map(ord, "hey"), END])
    assert written(chat.ask("more")) == (
        "[system]be brief;[user]hi;[assistant]hey;[user]more;[assistant]"
    )


def test_answers_stay_as_the_tokens_that_the_model_emitted() -> None:
    """The next prompt begins with the last prompt and answer, token by token."""
    chat = conversation()
    prompt = chat.ask("hi")
    chat.answer("abc", prompt, [1000, ord("c"), END])
    following = chat.ask("more")
    assert following[: len(prompt) + 2] == [*prompt, 1000, ord("c")]
    assert written(following) == "[user]hi;[assistant]abc;[user]more;[assistant]"


def test_a_cut_answer_is_tokenized_anew() -> None:
    """Tokens that say more than the text shown, as after a stop string, are not kept."""
    chat = conversation()
    prompt = chat.ask("hi")
    chat.answer("a", prompt, [1000, END])
    assert 1000 not in chat.ask("more")


def test_an_answer_can_be_dropped_and_given_anew() -> None:
    """Dropping leaves the prompt of that answer; there is nothing to drop before one."""
    chat = conversation()
    assert not chat.drop_answer()
    prompt = chat.ask("hi")
    assert not chat.drop_answer()
    chat.answer("x", prompt, [ord("x"), END])
    assert chat.drop_answer()
    assert chat.prompt() == prompt


def test_a_question_without_an_answer_can_be_dropped() -> None:
    """What was asked and not answered leaves no trace."""
    chat = conversation()
    chat.ask("hi")
    chat.drop_question()
    assert chat.turns == []
    chat.drop_question()
    assert written(chat.ask("yo")) == "[user]yo;[assistant]"


def test_clear_forgets_all_but_the_system_message() -> None:
    """A cleared conversation starts like a new one."""
    chat = conversation("s")
    chat.answer("x", chat.ask("hi"), [ord("x"), END])
    chat.clear()
    assert chat.ask("hi") == conversation("s").ask("hi")
