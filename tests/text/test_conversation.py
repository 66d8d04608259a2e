"""A conversation's prompts: rendered by the template, with the model's own tokens kept."""

from __future__ import annotations

import pytest

from specgen.core.errors import ModelError
from specgen.core.text.conversation import Conversation
from specgen.core.text.template import ChatTemplate, Message

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


def state(chat: Conversation) -> tuple[object, ...]:
    """All that the next prompts depend on."""
    return chat.system, list(chat.turns), chat.ask("next")


def test_an_answer_stays_until_another_takes_its_place() -> None:
    """Its prompt can be had again, and changes nothing; the next answer replaces it."""
    chat = conversation()
    prompt = chat.ask("hi")
    with pytest.raises(ValueError, match="no answer"):
        chat.again()
    chat.ask("hi")
    chat.answer("x", prompt, [ord("x"), END])
    before = state(chat)
    assert chat.again() == prompt
    assert state(chat) == before
    chat.answer("yz", chat.again(), [ord("y"), ord("z"), END])
    assert [m.content for m in chat.turns] == ["hi", "yz"]
    assert written(chat.ask("more")) == "[user]hi;[assistant]yz;[user]more;[assistant]"


def test_an_empty_answer_can_be_given_again() -> None:
    """Its prompt is the one before it, without tokens of the answer that show nothing."""
    chat = conversation()
    prompt = chat.ask("hi")
    chat.answer("", prompt, [END, END])
    assert chat.again() == prompt


def test_a_question_without_an_answer_leaves_no_trace() -> None:
    """What was asked and not answered is not in the conversation."""
    chat = conversation()
    chat.ask("hi")
    assert chat.turns == []
    prompt = chat.ask("yo")
    assert written(prompt) == "[user]yo;[assistant]"
    chat.answer("x", prompt, [ord("x"), END])
    before = state(chat)
    chat.ask("what")
    assert state(chat) == before
    assert chat.messages == [Message("user", "yo"), Message("assistant", "x")]


def test_a_template_that_fails_changes_nothing() -> None:
    """Neither a question that it refuses, nor a system message, nor an answer given again."""
    refuses = "{% if 'no' in messages|map(attribute='content')|join %}{{ raise_exception('n') }}"
    chat = Conversation(Characters(), ChatTemplate(refuses + "{% endif %}" + TEMPLATE), frozenset())
    chat.answer("x", chat.ask("hi"), [ord("x"), END])
    before = state(chat)
    for fails in (lambda: chat.ask("no"), lambda: chat.try_system("no")):
        with pytest.raises(ModelError):
            fails()
        assert state(chat) == before
    chat.try_system("yes")
    assert state(chat) == before
    chat.start_over("yes")
    assert state(chat) == ("yes", [], conversation("yes").ask("next"))


def test_clear_forgets_all_but_the_system_message() -> None:
    """A cleared conversation starts like a new one."""
    chat = conversation("s")
    chat.answer("x", chat.ask("hi"), [ord("x"), END])
    chat.clear()
    assert chat.ask("hi") == conversation("s").ask("hi")
