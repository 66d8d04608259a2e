"""`specgen generate` on tiny models: prompts, options, and what goes to stdout and stderr."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.command import (
    ROOT,
    TIMEOUT_S,
    finish,
    generate,
    record_of,
    run,
    shell_words,
    start,
    text_of,
)
from tests.support.tiny import write_tiny

pytestmark = pytest.mark.llama

LOOP = "the and was the and was the and was the and was"
GREEDY = ("--greedy", "-n", "12")
FIGURES = re.compile(
    r"\[specgen\] (?P<tokens>\d+) tokens, [\d.]+ t/s"
    r" \| first token \d+ ms \(prompt (?P<prompt>\d+) @ \d+ t/s, 0 cached\)"
    r" \| [\d.]+ tokens/step,"
    r" (no drafts|accepted \d+/\d+ \(\d+%\)( \| [a-z-]+ \d+/\d+ \(\d+%\))+)"
    r" \| seed (?P<seed>\d+) \| memory \d+ MiB of \d+ MiB planned\n"
)


def continued(model: Path, prompt: str) -> str:
    """What the model makes of `prompt`, which says whether it got that prompt."""
    return text_of(model, "-p", prompt, *GREEDY)


def test_only_the_text(endless: Path) -> None:
    """In a pipe, stdout has the text as UTF-8 and no newline after it; stderr has nothing."""
    words = (endless, "he was", *GREEDY, "-t", "1")
    outcome = finish(start("generate", *words))
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == text_of(*words) != ""


def test_where_a_prompt_comes_from(endless: Path, tmp_path: Path) -> None:
    """A prompt is the second argument, --prompt, a file, or stdin, less one last newline."""
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"he was\r\n")
    expected = continued(endless, "he was")
    assert expected != continued(endless, "he was\n")
    assert text_of(endless, "he was", *GREEDY) == expected
    assert text_of(endless, "--prompt", "he was", *GREEDY) == expected
    assert text_of(endless, "-f", file, *GREEDY) == expected
    assert text_of(endless, *GREEDY, stdin="he was\n") == expected
    assert text_of(endless, "--file", "-", *GREEDY, stdin="he was") == expected


def test_order_of_the_parts_of_a_prompt(endless: Path, tmp_path: Path) -> None:
    """stdin comes first, then the file, then the argument, with a blank line between them."""
    file = tmp_path / "prompt.txt"
    file.write_text("to be\n")
    every = text_of(endless, "her", "-f", file, *GREEDY, stdin="he was\n")
    assert every == continued(endless, "he was\n\nto be\n\nher")
    two = text_of(endless, "-p", "her", "-f", "-", *GREEDY, stdin="he was\n")
    assert two == continued(endless, "he was\n\nher")
    assert text_of(endless, "her", *GREEDY, stdin="") == continued(endless, "her")


def test_terminal_is_not_read(endless: Path) -> None:
    """Where stdin is a terminal, the prompt is the argument; the text ends with a newline there."""
    ours, theirs = os.openpty()
    with start("generate", endless, "he was", *GREEDY, "-t", "1", stdin=theirs, stdout=theirs) as p:
        os.close(theirs)
        shown = os.read(ours, 1000)
        while not shown.endswith(b"\r\n"):
            shown += os.read(ours, 1000)
        assert p.wait(TIMEOUT_S) == 0
    os.close(ours)
    assert shown.decode() == continued(endless, "he was") + "\r\n"


def test_first_argument_is_the_model(endless: Path) -> None:
    """A prompt where the model belongs is an error that says how to leave the model out."""
    outcome = generate("Once upon a time")
    assert (outcome.code, outcome.out) == (3, "")
    assert "to give a prompt without a model, use -p" in outcome.err


def test_stats(endless: Path) -> None:
    """--stats adds one line to stderr and nothing to stdout."""
    outcome = generate(endless, LOOP, "-n", "5", "--seed", "7", "--stats")
    assert outcome.out == text_of(endless, LOOP, "-n", "5", "--seed", "7")
    line = FIGURES.fullmatch(outcome.err)
    assert line, outcome.err
    assert (line["tokens"], line["seed"]) == ("5", "7")
    assert int(line["prompt"]) > 12
    plain = generate(endless, LOOP, "-n", "0", "--seed", "7", "--stats", "--drafter", "none")
    assert FIGURES.fullmatch(plain.err)


def test_verbose(endless: Path) -> None:
    """-v tells on stderr what is done, -vv adds llama.cpp's log; stdout stays the text."""
    words = (endless, "her", "-n", "2", "--greedy")
    text = text_of(*words)
    some, all_ = generate(*words, "-v"), generate(*words, "-vv")
    assert some.out == all_.out == text
    assert "trees" in some.err
    assert "llama_model_loader" in all_.err
    assert "llama_model_loader" not in some.err


def test_json(endless: Path) -> None:
    """--json is one line with the text, how it ended, token counts, times and the seed."""
    words = (endless, LOOP, "-n", "30", "--seed", "3", "--temp", "0.2")
    record = record_of(*words, "--drafter", "prompt-lookup")
    (choice,) = record["choices"]
    assert choice["text"] == text_of(*words)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "length")
    assert record["object"] == "text_completion"
    assert record["model"] == "endless.gguf"
    assert record["specgen"]["seed"] == 3
    usage, timings = record["usage"], record["timings"]
    assert usage["completion_tokens"] == timings["predicted_n"] == 30
    assert usage["total_tokens"] == usage["prompt_tokens"] + 30
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert timings["prompt_n"] == usage["prompt_tokens"]
    guesses = usage["completion_tokens_details"]
    accepted, rejected = (guesses[f"{word}_prediction_tokens"] for word in ("accepted", "rejected"))
    assert (timings["draft_n"], timings["draft_n_accepted"]) == (accepted + rejected, accepted)
    by_drafter = record["specgen"]["by_drafter"]["prompt-lookup"]
    assert by_drafter == {"drafted": timings["draft_n"], "accepted": accepted}
    assert record["specgen"]["steps"] + accepted == 30
    assert all(timings[name] >= 0 for name in ("prompt_ms", "predicted_ms"))


@pytest.mark.parametrize("options", [("--seed", "11"), ("--greedy",)], ids=" ".join)
def test_drafters_change_no_text(endless: Path, options: tuple[str, ...]) -> None:
    """A seed's text is the same every time and with every drafter, and differs between seeds."""
    words = (str(endless), LOOP, "-n", "120", *options)
    drafted = record_of(*words, "--drafter", "prompt-lookup")
    assert drafted["timings"]["draft_n_accepted"] > 0
    plain = record_of(*words, "--drafter", "none")
    assert (
        plain["timings"]["draft_n"] == record_of(*words, "--draft-max", "0")["timings"]["draft_n"]
    )
    assert plain["timings"]["draft_n"] == 0
    texts = {r["choices"][0]["text"] for r in (drafted, plain, record_of(*words))}
    assert len(texts) == 1
    assert text_of(endless, LOOP, "-n", "120", "--seed", "12") not in texts


def test_seed_is_reported(endless: Path) -> None:
    """Without --seed one is drawn, anew each time; the one reported gives the text again."""
    first, second = (record_of(endless, "he was", "-n", "20") for _ in range(2))
    seeds = [record["specgen"]["seed"] for record in (first, second)]
    assert seeds[0] != seeds[1]
    again = text_of(endless, "he was", "-n", "20", "--seed", str(seeds[0]))
    assert again == first["choices"][0]["text"] != second["choices"][0]["text"]


def test_greedy(endless: Path) -> None:
    """--greedy is --temp 0: the seed does not matter."""
    texts = {
        text_of(endless, "he was", "-n", "20", *options)
        for options in (("--greedy",), ("--temp", "0"), ("--greedy", "--seed", "5", "--temp", "2"))
    }
    assert len(texts) == 1


@pytest.mark.parametrize("n", [0, 1, 5])
def test_length(endless: Path, n: int) -> None:
    """-n is the number of tokens, the text of fewer tokens a beginning of that of more."""
    record = record_of(endless, LOOP, "--greedy", "-n", str(n))
    assert record["usage"]["completion_tokens"] == n
    assert record["choices"][0]["finish_reason"] == "length"
    text = record["choices"][0]["text"]
    assert (text == "") == (n == 0)
    assert text_of(endless, LOOP, "--greedy", "-n", "9").startswith(text)


def test_stop_strings(endless: Path) -> None:
    """The text ends before the first stop string, however many tokens it spreads over."""
    text = text_of(endless, "he was", "--greedy", "-n", "60")
    stop = text[20:32]  # no token of the model has as many characters
    record = record_of(endless, "he was", "--greedy", "-n", "60", "--stop", "%", "-r", stop)
    choice = record["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    kept = text_of(endless, "he was", "--greedy", "-n", "60", "--stop", text[-3:] + "%")
    assert kept == text


def test_end_of_text(tmp_path: Path) -> None:
    """An end token ends the text, and is not shown."""
    model = write_tiny(tmp_path / "ending.gguf", end_gain=30)
    record = record_of(model, "he was", "--greedy")
    choice = record["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "eog")
    assert not re.search(r"</s>|<\|im_end\|>", choice["text"])
    shorter = str(record["usage"]["completion_tokens"] - 1)
    assert text_of(model, "he was", "--greedy", "-n", shorter) == choice["text"]


@pytest.mark.parametrize("system", ["", "be her"])
def test_chat_template(endless: Path, system: str) -> None:
    """--chat puts the message, and a system message, into the model's template."""
    prompt = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    prompt += "<|im_start|>user\nwho was he<|im_end|>\n<|im_start|>assistant\n"
    options = ("-sys", system) if system else ()
    plain = (*GREEDY, "--drafter", "none")  # what is drafted depends on what runs learnt
    chat = record_of(endless, "who was he", "--chat", *options, *plain)
    raw = record_of(endless, prompt, *plain)
    assert chat["usage"] == raw["usage"]
    assert chat["choices"] == raw["choices"]
    assert chat["choices"][0]["text"] != continued(endless, "who was he")


def test_template_file(endless: Path, tmp_path: Path) -> None:
    """--chat-template-file replaces the model's template."""
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} ->\n")
    words = (endless, "her", "--chat", "--chat-template-file", template, *GREEDY)
    assert text_of(*words) == continued(endless, "[user] her ->")


def test_full_context(endless: Path) -> None:
    """A text that fills the context is kept and ends with an error; nothing is dropped unsaid."""
    words = (endless, "he was", "--greedy", "-c", "64")
    outcome = generate(*words)
    assert outcome.code == 5
    assert "available context size of 64" in outcome.err
    assert outcome.err.count("\n") == 1
    held = generate(*words, "--stop", outcome.out[-3:] + "%")  # the end might become this
    assert held == outcome
    in_json = generate(*words, "--json")
    assert in_json.code == 5
    record = in_json.record
    assert record["usage"]["total_tokens"] == 65  # the last one needs no room in the cache
    room = str(record["usage"]["completion_tokens"])
    assert outcome.out == text_of(endless, "he was", "--greedy", "-n", room)
    assert record["error"]["code"] == "context_length_exceeded"
    assert "available context size" in record["error"]["message"]
    assert record["choices"][0]["text"] == outcome.out
    assert record["choices"][0]["finish_reason"] == "length"


def test_prompt_beyond_the_context(endless: Path) -> None:
    """A prompt that does not fit is refused whole, with both numbers; --json says so as well."""
    words = (endless, "he was there", "-c", "4")
    outcome = generate(*words)
    assert (outcome.code, outcome.out) == (5, "")
    assert re.search(r"prompt of \d+ tokens exceeds the available context size of 4", outcome.err)
    record = generate(*words, "--json").record
    assert record["error"]["code"] == "context_length_exceeded"
    assert record["choices"][0]["finish_reason"] == "error"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("--temp", "0.3"), ("--temperature", "0.3")),
        (("-n", "4"), ("--predict", "4")),
        (("-n", "4"), ("--n-predict", "4")),
        (("-n", "4"), ("--max-tokens", "4")),
        (("--seed", "9"), ("-s", "9")),
        (("--stop", "e"), ("-r", "e")),
        (("--stop", "e"), ("--reverse-prompt", "e")),
        (("--typical", "0.5"), ("--typical-p", "0.5")),
        (("-c", "128"), ("--ctx-size", "128")),
        (("-ngl", "0"), ("--n-gpu-layers", "0")),
        (("-fa", "on"), ("--flash-attn", "on")),
    ],
)
def test_names_of_llama_cpp(endless: Path, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
    """Options go by all the names that llama.cpp's users know."""
    words = (endless, "he was", "-n", "20", "--seed", "2")
    assert text_of(*words, *ours) == text_of(*words, *theirs)


def test_help_of_the_command() -> None:
    """-h shows the options; it does not need a model."""
    outcome = run("generate", "-h")
    assert outcome.code == 0
    assert "--temperature" in outcome.out


def test_in_a_pipeline(endless: Path) -> None:
    """Text goes in on stdin and comes out on stdout, with nothing around it."""
    command = shell_words("generate", endless, *GREEDY, "-t", "1")
    done = subprocess.run(command, cwd=ROOT, input=b"he was\n", capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout.decode() == continued(endless, "he was")


def test_predicted_output(endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A predicted output changes nothing but the number of steps, however right it is."""
    # Next to a call of a tiny model the time that rows take is much.
    monkeypatch.setattr("specgen.core.engine._HOST_S", 0.0)
    words = (endless, "her", "-n", "60", "--greedy", "--drafter", "none")
    text = text_of(*words)
    file = tmp_path / "predicted.txt"
    for predicted in (text, text[20:], "another one", ""):
        file.write_text(predicted)
        record = record_of(*words, "--predicted-output", file)
        assert record["choices"][0]["text"] == text
    file.write_text(text)
    record = record_of(*words, "--predicted-output", file)
    assert record["specgen"]["by_drafter"]["predicted"]["accepted"] > 0
    missing = generate(*words, "--predicted-output", tmp_path / "nowhere")
    assert (missing.code, missing.out) == (2, "")
    assert "cannot read the predicted output" in missing.err
