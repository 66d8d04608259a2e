"""Chat templates: the forms models come with, what they take and leave out, refusals, failures."""

from __future__ import annotations

import json
import random
import re
import sys

import pytest

from specgen.core.errors import ModelError
from specgen.core.stop import Interrupted
from specgen.core.text import sandbox
from specgen.core.text.template import ChatTemplate, Message

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{%- generation %}{{- message.content | trim + '<|eot_id|>' }}{%- endgeneration %}"
    "{%- if loop.index > 99 %}{%- break %}{%- endif %}{%- endfor %}"
    "{%- if tools is not none or documents is not none %}{{- 'TOOLS' }}{%- endif %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
"""
MISTRAL = (
    "{%- set ns = namespace(turn=0) %}{{- bos_token }}{%- for message in messages %}"
    "{%- if message.role == 'system' %}{%- if not loop.first %}"
    "{{- raise_exception('System message must be at the beginning.') }}{%- endif %}"
    "{{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}"
    "{%- else %}{%- if (message.role == 'user') != (ns.turn % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}{%- set ns.turn = ns.turn + 1 %}"
    "{%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}"
    "{%- else %}{{- message.content + eos_token }}{%- endif %}{%- endif %}{%- endfor %}"
)
SYSTEM, USER = Message("system", "Be brief."), Message("user", "Hi")
ANSWER, AGAIN = Message("assistant", "Yes?"), Message("user", "Bye")


# ---- rendering


def test_chatml_adds_its_own_system_message() -> None:
    """A ChatML template with a default system message renders as it would elsewhere."""
    assert ChatTemplate(CHATML).render([USER, ANSWER, AGAIN]) == (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_llama3_uses_bos_and_has_no_tools() -> None:
    """Bos text, `trim`, `break`, `{% generation %}` and tools of None work as templates expect."""
    template = ChatTemplate(LLAMA3, "<|begin_of_text|>", "<|eot_id|>")
    assert template.render([SYSTEM, Message("user", " Hi \n")]) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert not template.folded


def test_generation_prompt_can_be_left_out() -> None:
    """Without the generation prompt the text ends where the last message ends."""
    text = ChatTemplate(CHATML).render([SYSTEM, USER], add_generation_prompt=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_helpers_of_templates() -> None:
    """`tojson` escapes no HTML and keeps letters, and `strftime_now` gives the year."""
    source = "{{ {'b': '<é>', 'a': 1} | tojson }} {{ strftime_now('%Y') }}"
    data, year = ChatTemplate(source).render([]).rsplit(" ", 1)
    assert data == '{"b": "<é>", "a": 1}'
    assert json.loads(data) and re.fullmatch(r"2\d{3}", year)


# ---- refusals


def test_a_refused_system_message_is_folded_into_the_first_user_turn() -> None:
    """A template without a system role gets the system text before the user's, and says so."""
    template = ChatTemplate(GEMMA, "<bos>")
    assert template.render([SYSTEM, USER, ANSWER, AGAIN]) == (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\nYes?<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    assert template.folded


def test_refused_neighbours_of_one_role_become_one_turn() -> None:
    """Two user turns in a row are joined where roles must alternate; the system text stays."""
    template = ChatTemplate(MISTRAL, "<s>", "</s>")
    assert template.render([SYSTEM, USER, AGAIN]) == (
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi\n\nBye[/INST]"
    )
    assert template.folded


def test_a_system_message_that_has_to_be_there(caplog: pytest.LogCaptureFixture) -> None:
    """A template that does without none gets an empty one, which is told."""
    source = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    template = ChatTemplate(source)
    assert template.render([SYSTEM, USER]).startswith("[system]Be brief.[user]Hi")
    assert not caplog.messages
    assert template.render([USER]).startswith("[system][user]Hi")
    assert caplog.messages == [
        "the chat template needs a system message: it gets an empty one",
    ]
    bare = source.replace("[{{ m.role }}]", "/{{ m.role }}: ")  # without a header
    assert ChatTemplate(bare).render([USER]) == "/system: /user: Hi/assistant: "
    skips = ChatTemplate("{% for m in messages[1:] %}[{{ m.role }}]{{ m.content }}{% endfor %}->")
    assert skips.render([USER]) == "[user]Hi->"


def test_folding_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The user hears that the messages were changed, but not with every turn."""
    template = ChatTemplate(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    template.render([SYSTEM, USER])
    template.render([SYSTEM, USER])
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_late_system_message_is_folded_into_the_turn_that_follows() -> None:
    """A system message that must be at the beginning but is not goes into the next user turn."""
    text = ChatTemplate(MISTRAL, "<s>", "</s>").render([USER, ANSWER, SYSTEM, AGAIN])
    assert text == "<s>[INST]Hi[/INST]Yes?</s>[INST]Be brief.\n\nBye[/INST]"


def test_accepted_messages_are_left_alone() -> None:
    """Nothing is folded or joined where the template takes the messages as they are."""
    template = ChatTemplate(CHATML)
    assert template.render([SYSTEM, USER, AGAIN]).count("<|im_start|>user") == 2
    assert not template.folded


def test_a_system_message_without_a_user_turn_opens_the_conversation() -> None:
    """Before an assistant's turn a refused system message becomes the user's opening turn."""
    text = ChatTemplate(GEMMA).render([SYSTEM, ANSWER])
    assert text.startswith("<start_of_turn>user\nBe brief.<end_of_turn>\n<start_of_turn>model\n")


def test_a_refusal_of_every_form_shows_the_templates_own_words() -> None:
    """Messages that no simpler form makes acceptable end in the template's first message."""
    template = ChatTemplate(MISTRAL, "<s>", "</s>")
    with pytest.raises(ModelError, match="roles must alternate"):
        template.render([ANSWER, USER])
    assert not template.folded


# ---- failures


@pytest.mark.parametrize("source", [None, ""])
def test_no_template_says_what_to_do(source: str | None) -> None:
    """A model without a template is a ModelError that names --chat-template-file."""
    with pytest.raises(ModelError, match="no chat template") as caught:
        ChatTemplate(source)
    assert "--chat-template-file" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ok\n{% if %}", "line 2"),
        ("{% nonsense %}", "nonsense"),
        ("{{ missing.field }}", "missing"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ 'x' | no_such_filter }}", "no_such_filter"),
        ("{% include 'other' %}", "loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ raise_exception('first line\nsecond line') }}", "first line"),
        ("{{ raise_exception('') }}", "failed"),
    ],
)
def test_a_broken_template_is_one_clear_line(source: str, words: str) -> None:
    """Whatever a template does wrong is a ModelError of one line with the way out as hint."""
    with pytest.raises(ModelError, match=words) as caught:
        ChatTemplate(source).render([USER])
    assert "\n" not in caught.value.message
    assert "--chat-template-file" in caught.value.hint


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'].__base__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ range(10000000) | list }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    """A template that reaches for Python's insides, or changes the messages, fails cleanly."""
    with pytest.raises(ModelError):
        ChatTemplate(source).render([USER])


@pytest.mark.parametrize("source", ["{{ ''.__class__ }}", "{{ raise_exception.__globals__ }}"])
def test_insides_of_python_are_nothing_to_a_template(source: str) -> None:
    """What the sandbox forbids to read is undefined, so it prints as nothing."""
    assert ChatTemplate(source + "{{ messages[0].content }}").render([USER]) == USER.content


# ---- what a template takes, and what arrives

TURNS = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.role in typed %}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}[end]"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_HEADER = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"


def typed(*roles: str) -> str:
    """A template that takes typed parts from some roles, and strings from the others."""
    return "{% set typed = " + json.dumps(roles) + " %}" + TURNS


@pytest.mark.parametrize(
    "roles",
    [(), ("user",), ("system",), ("assistant",), ("user", "assistant"), ("system", "user")],
)
def test_each_role_is_given_in_the_form_that_arrives(roles: tuple[str, ...]) -> None:
    """Strings or typed parts, role by role: the text is the same, and nothing is folded."""
    template = ChatTemplate(typed(*roles))
    assert template.render([SYSTEM, USER, ANSWER, AGAIN]) == (
        "[system]Be brief.[end][user]Hi[end][assistant]Yes?[end][user]Bye[end][assistant]"
    )
    assert not template.folded


def test_a_template_that_takes_both_forms_gets_strings() -> None:
    """Typed parts are for templates that need them."""
    source = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "parts: {{ m.content[0].text }}{% endif %}{% endfor %}"
    )
    assert ChatTemplate(source).render([USER]) == "Hi"


def test_an_ignored_system_message_is_folded(caplog: pytest.LogCaptureFixture) -> None:
    """A template that passes over the role of system gets its text in the user's, and says so.

    So it is with a text that happens to be in what the template writes.
    """
    for text in ("Be brief.", "a"):
        template = ChatTemplate(NO_SYSTEM)
        rendered = template.render([Message("system", text), USER])
        assert rendered == f"[user]{text}\n\nHi[end][assistant]"
        assert template.folded
        template.render([Message("system", text), USER, ANSWER, AGAIN])
    assert len(caplog.messages) == 2
    assert "takes no system message" in caplog.messages[0]


def test_a_missing_header_is_added() -> None:
    """Where the template does not begin the answer, what it writes before answers does."""
    template = ChatTemplate(NO_HEADER)
    assert template.render([USER]) == "[user]Hi[end][assistant]"
    assert template.render([USER, ANSWER, AGAIN]).endswith("[user]Bye[end][assistant]")
    assert template.render([USER], add_generation_prompt=False) == "[user]Hi[end]"
    assert template.render([USER, ANSWER]) == "[user]Hi[end][assistant]Yes?[end]"


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("", "{{ eos_token }}"),
        ("", "{{ eos_token }}\n"),
        ("", "{{ '\\n' + eos_token + '\\n' }}"),
        ("{% if messages[-1].role != 'user' %}{{ raise_exception('no') }}{% endif %}", ""),
    ],
)
def test_a_missing_header_stands_where_answers_do(begin: str, end: str) -> None:
    """What ends a conversation comes behind the answer, not before; and a template may insist on
    a question at the end."""
    template = ChatTemplate(begin + NO_HEADER + end, "<s>", "</s>")
    assert template.render([USER]) == "[user]Hi[end][assistant]"
    assert template.render([USER, ANSWER, AGAIN]) == (
        "[user]Hi[end][assistant]Yes?[end][user]Bye[end][assistant]"
    )


def test_no_header_is_invented() -> None:
    """Answers that follow questions directly, and headers that are always there, are left alone."""
    assert ChatTemplate(MISTRAL, "<s>", "</s>").render([USER]) == "<s>[INST]Hi[/INST]"
    assert ChatTemplate(NO_HEADER + "[assistant]").render([USER]) == "[user]Hi[end][assistant]"
    spaced = "{% for m in messages %}{{ m.content }} {% endfor %}"
    assert ChatTemplate(spaced).render([USER]) == "Hi "
    other = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\n\nassistant:"
    assert ChatTemplate(other).render([USER]) == "user: Hi\n\nassistant:"
    arrow = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} ->"
    assert ChatTemplate(arrow).render([USER]) == "[user] Hi ->"
    assert ChatTemplate(NO_HEADER + " ->").render([USER]) == "[user]Hi[end] ->"


@pytest.mark.parametrize(
    "source",
    [
        "no messages at all",
        "{{ messages[0].content }}",
        "{% for m in messages %}{{ m.content[:3] }}{% endfor %}",
        "{% for m in messages %}{{ m.text }}{% endfor %}",
        "{% for m in messages %}{% if 'secret' not in m.content %}{{ m.content }}{% endif %}"
        "{% endfor %}",
    ],
)
def test_a_last_message_that_does_not_arrive_is_an_error(source: str) -> None:
    """An answer to nothing is of no use: the template is at fault, and another can be given."""
    with pytest.raises(ModelError, match="leaves out or changes the text of the last") as caught:
        ChatTemplate(source).render([USER, ANSWER, Message("user", "a secret word")])
    assert "--chat-template-file" in caught.value.hint


@pytest.mark.parametrize("word", ["user", "assistant", "a", "Hi", "Yes?"])
def test_a_word_of_others_does_not_pass_for_the_last_message(word: str) -> None:
    """What a message says may be in the template, or in another message: it is missing still."""
    source = "user: {{ messages[0].content }} {% for m in messages if m.role == 'assistant' %}"
    source += "assistant: {{ m.content }}{% endfor %}assistant:"
    with pytest.raises(ModelError, match="leaves out or changes the text of the last"):
        ChatTemplate(source).render([USER, ANSWER, Message("user", word)])


def test_a_system_message_that_later_turns_lose_is_folded() -> None:
    """A template that writes the system message in a short conversation alone gets it otherwise."""
    source = (
        "{% for m in messages %}{% if m.role != 'system' or messages | length < 3 %}"
        "[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
    )
    for word in ("Be brief.", "user"):
        template = ChatTemplate(source)
        system = Message("system", word)
        assert template.render([system, USER]).startswith(f"[system]{word}[user]Hi")
        assert f"[user]{word}\n\nHi[assistant]" in template.render([system, USER, ANSWER, AGAIN])


@pytest.mark.parametrize(
    "change",
    ["m.content.split() | join(' ')", "m.content | indent", "m.content | replace(' ', '')"],
)
def test_white_space_does_not_change_without_a_word(
    caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """Spaces within a message may matter; around it, templates trim."""
    template = ChatTemplate(f"{{% for m in messages %}}{{{{ {change} }}}}{{% endfor %}}")
    template.render([Message("user", " Hi ")])
    assert not caplog.messages
    template.render([Message("user", "def f(x):\n    return  x")])
    assert caplog.messages == ["the chat template changes white space in text of the user"]


def test_earlier_messages_that_do_not_arrive_are_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A template that renders the last message alone works, and says what is left out."""
    template = ChatTemplate("{{ messages[-1].content }}")
    for _ in range(2):
        assert template.render([USER, ANSWER, AGAIN]) == "Bye"
    (warning,) = caplog.messages
    assert "user and assistant" in warning


def test_thoughts_may_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Templates drop the thoughts of earlier answers, and trim: that is no loss."""
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ (m.content.split('</think>') | last) | trim }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    thinking = Message("assistant", "<think>\nhm\n</think>\n\nYes?\n")
    assert ChatTemplate(source).render([USER, thinking, AGAIN]) == (
        "[user]Hi[assistant]Yes?[user]Bye[assistant]"
    )
    assert not caplog.messages


def test_a_byte_order_mark_is_no_text() -> None:
    """A template that was saved with one is rendered without it."""
    assert ChatTemplate("\ufeff" + NO_HEADER).render([USER]).startswith("[user]")


# ---- templates that take too much


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ [0] * 10**9 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 3 ** (3 ** (3 ** 3)) }}",
        "{{ 'a'.center(10**9) }}",
        "{{ 'a' | center(10**9) }}",
        "{{ 'a'.zfill(10**12) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ 1 | round(10**9, 'floor') }}",
        "{{ lipsum(n=10**6) }}",
        "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
        "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}"
        "{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}{{ ns.x }}",
        "{{ 'a' * 2**21 + 'a' * 2**21 + 'a' }}",
    ],
)
def test_a_template_that_takes_too_much_fails(source: str) -> None:
    """Sizes, numbers and steps are bounded: one clear line instead of all memory or time."""
    with pytest.raises(ModelError, match="chat template failed: ") as caught:
        ChatTemplate(source).render([USER])
    assert "\n" not in caught.value.message
    assert "last message" not in caught.value.message


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of a process")
@pytest.mark.parametrize(
    "source",
    [
        "{{ '{:>1000000000}'.format('a') }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
        "{{ (['a' * 10**6] * 10**6) | join }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}{{ ns.x }}",
    ],
)
def test_a_template_gets_so_much_memory_and_no_more(source: str) -> None:
    """What no operator shows is stopped by the system, and the process goes on as before."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ModelError, match="too much memory"):
        ChatTemplate(source).render([USER])
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert len(bytearray(300 << 20)) == 300 << 20


_TWICE = "{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ([[1] * 40] * 100000) | sum(start=[]) | length }}",
        "{{ ('a' * 2000000).rfind('a' * 500000 + 'b' + 'a' * 500000) }}",
        "{% set ns = namespace(a=[0], b=[0]) %}" + _TWICE + "{% endfor %}{{ ns.a == ns.b }}",
        "{{ 1 }}" * 140_000,
    ],
)
def test_what_no_check_sees_ends_with_its_process(
    monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """A single operation of Python's may take hours, and so may what is done while compiling."""
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 1.0)
    with pytest.raises(ModelError, match="it runs for more than 1 seconds"):
        ChatTemplate(source).render([USER])
    assert ChatTemplate(CHATML).render([USER]).endswith("assistant\n")


@pytest.mark.long
@pytest.mark.parametrize(
    "source", ["{{ 1" + "+1" * 400_000 + " }}", "{{ 1" + "|int" * 200_000 + " }}"]
)
def test_a_template_that_makes_python_crash_is_one_clear_line(source: str) -> None:
    """Python's compiler may run out of stack or memory in a way that nothing comes back from."""
    with pytest.raises(ModelError, match="chat template failed: ") as caught:
        ChatTemplate(source)
    assert "\n" not in caught.value.message


def test_a_template_that_runs_is_left_when_someone_asks_to_stop() -> None:
    """Whatever it does: nobody waits for it."""
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    source = "{% set ns = namespace(a=[0], b=[0]) %}" + _TWICE + "{% endfor %}{{ ns.a == ns.b }}"
    with pytest.raises(Interrupted):
        ChatTemplate(source, should_stop=should_stop).render([USER])
    assert ChatTemplate(CHATML).render([USER]).endswith("assistant\n")


def test_a_process_that_someone_else_ends_is_started_again() -> None:
    """As the system does where memory is short."""
    template = ChatTemplate(CHATML)
    text = template.render([USER])
    process = sandbox._child()._process
    assert process
    process.kill()
    process.wait()
    assert template.render([USER]) == text
    sandbox.end()
    assert sandbox._child()._process is None
    assert template.render([USER]) == text


def test_a_long_conversation_is_no_excess() -> None:
    """A thousand turns and messages of a megabyte are rendered as they are."""
    long = [Message(role, f"text {i} " * 20) for i in range(500) for role in ("user", "assistant")]
    text = ChatTemplate(CHATML).render([*long, Message("user", "é" * 1_000_000)])
    assert text.count("<|im_start|>") == 1003
    assert "é" * 1_000_000 in text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for i in x %}" * 25 + "{% endfor %}" * 25, "nested"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested"),
        ("{{ " + "9" * 5000 + " }}", "4300 digits"),
        ("{% macro f(a, a) %}{% endmacro %}", "duplicate"),
        ("{{ -" * 2000, "nested"),
        ("x" * (2 << 20), "characters"),
        ("{{ [" * 10, "line 1"),
        ("{% set a = {" + "1:" * 100 + "}", "line 1"),
    ],
)
def test_a_template_that_cannot_be_compiled_is_one_clear_line(source: str, words: str) -> None:
    """Python's own limits on what Jinja writes are the template's fault, too."""
    with pytest.raises(ModelError, match=words) as caught:
        ChatTemplate(source)
    assert "\n" not in caught.value.message
    assert "--chat-template-file" in caught.value.hint


_PIECES = [
    *("{{", "}}", "{%", "%}", "{#", "#}", "-", "for", "in", "if", "else", "endif", "endfor", "set"),
    *("macro", "endmacro", "call", "filter", "messages", "m", "content", "role", "loop", "range"),
    *("namespace", "(", ")", "[", "]", "{", "}", ".", ",", ":", "|", "~", "+", "*", "**", "//"),
    *("%", "'", '"', "9999999", "10", "0", "-1", "1e9", "\n", " ", "é", "\x00", "length", "join"),
    *("replace", "tojson", "trim", "sort", "batch", "slice", "center", "indent", "raise_exception"),
    *("is", "not", "none", "string", "=", "==", "<", "generation", "endgeneration", "break", "do"),
]


@pytest.mark.long
def test_any_template_makes_text_or_one_clear_line() -> None:
    """5,000 strings of template-like pieces and broken templates: text or ModelError, no more."""
    rng = random.Random(17)
    whole = (CHATML, LLAMA3, GEMMA, MISTRAL, TURNS)
    for _ in range(5000):
        if rng.random() < 0.5:
            source = " ".join(rng.choices(_PIECES, k=rng.randrange(1, 40)))
        else:
            source = rng.choice(whole)
            for _ in range(rng.randrange(1, 5)):
                at = rng.randrange(len(source))
                source = source[:at] + rng.choice(_PIECES) + source[at + rng.randrange(6) :]
        try:
            assert USER.content in ChatTemplate(source, "<s>", "</s>").render([SYSTEM, USER])
        except ModelError as error:
            assert "\n" not in error.message
            assert error.message.startswith("the model")
