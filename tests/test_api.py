"""The Python API: what programs get is what the command writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import specgen
from specgen.core.errors import ContextFull, ModelError, SpecgenError, UsageError
from specgen.drafters import REGISTRY, Spec
from tests.conftest import TinyModel
from tests.support.command import ROOT, run

PROMPT = "the and was the and was"


def blocks(page: str) -> list[str]:
    """The Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)


@pytest.mark.llama
def test_a_text_is_that_of_the_command(endless: Path) -> None:
    """Text, tokens and reason; with drafts and without."""
    words = ("generate", endless, "-p", PROMPT, "-n", "20", "--greedy", "--json", "--no-learn")
    expected = run(*words).record
    for drafter in ("auto", "none", "prompt-lookup"):
        with specgen.load(endless, drafter=drafter, n_ctx=256) as model:
            result = model.generate(PROMPT, max_tokens=20, temperature=0)
        assert (result.text, result.finish_reason) == (expected["choices"][0]["text"], "length")
        assert len(result.tokens) == 20 == result.stats.tokens
        assert result.prompt_tokens == expected["usage"]["prompt_tokens"]


@pytest.mark.llama
def test_a_stream_is_the_text_in_pieces(endless: Path) -> None:
    """A seed gives the same text again, and a stop string ends it without being part of it."""
    with specgen.load(endless, n_ctx=256) as model:
        whole = model.generate(PROMPT, max_tokens=20, seed=7)
        stream = model.stream(PROMPT, max_tokens=20, seed=7)
        assert stream.result.text == "" and stream.result.finish_reason == ""
        pieces = list(stream)
        assert "".join(pieces) == whole.text == stream.result.text and all(pieces)
        middle = whole.text[len(whole.text) // 2 :][:3]
        cut = model.generate(PROMPT, max_tokens=20, seed=7, stop=[middle])
        assert cut.text == whole.text[: whole.text.index(middle)]
        assert cut.finish_reason == "stop"


@pytest.mark.llama
def test_messages_are_answered(endless: Path) -> None:
    """As by `generate --chat`; the next turn takes what is the same from the cache."""
    words = ("generate", endless, "--chat", "-p", "hello", "-n", "10", "--greedy", "--json")
    expected = run(*words, "--no-learn").record
    with specgen.load(endless, n_ctx=512) as model:
        messages = [{"role": "user", "content": "hello"}]
        answer = model.chat(messages, max_tokens=10, temperature=0)
        assert answer.text == expected["choices"][0]["text"]
        assert answer.prompt_tokens == expected["usage"]["prompt_tokens"]
        messages += [{"role": "assistant", "content": answer.text}, *messages]
        again = model.chat(messages, max_tokens=10, temperature=0)
        assert again.prompt_tokens > answer.prompt_tokens + 10
        streamed = model.stream_chat(messages, max_tokens=10, temperature=0)
        assert "".join(streamed) == again.text


@pytest.mark.llama
def test_errors_are_told_by_their_kind(endless: Path, tmp_path: Path) -> None:
    """A value out of bounds, a file that is none, no drafter, no message, a full context."""
    with pytest.raises(ModelError):
        specgen.load(tmp_path / "none.gguf")
    with pytest.raises(UsageError, match="no drafter named 'nobody'"):
        specgen.load(endless, drafter="nobody")
    with specgen.load(endless, n_ctx=256) as model:
        with pytest.raises(UsageError, match="temperature"):
            model.generate(PROMPT, temperature=-1)
        with pytest.raises(UsageError, match="max_tokens is -2"):
            model.generate(PROMPT, max_tokens=-2)
        with pytest.raises(UsageError, match="a message is"):
            model.chat([{"role": "user"}])
        stream = model.stream(PROMPT, temperature=0)
        with pytest.raises(ContextFull):
            list(stream)
        assert len(stream.result.tokens) > 200 and stream.result.finish_reason == "context"
        assert model.generate(PROMPT, max_tokens=3).text  # it goes on


@pytest.mark.llama
def test_a_drafter_of_another_package(endless: Path, tmp_path: Path) -> None:
    """That of docs/drafters.md keeps the contract, is found by its entry point, and drafts."""
    drafter, check = blocks("docs/drafters.md")
    (tmp_path / "bigrams.py").write_text(drafter, "utf-8")
    info = tmp_path / "bigrams-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bigrams\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[specgen.drafters]\nbigram = bigrams:Bigram\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "specgen", *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    words = ("generate", str(endless), "-p", PROMPT, "-n", "60", "--greedy", "--json")
    plain = json.loads(command(*words, "--drafter", "none").stdout)
    for drafters in ("bigram", "bigram,prompt-lookup"):
        done = command(*words, "--drafter", drafters)
        assert (done.returncode, done.stderr) == (0, "")
        record = json.loads(done.stdout)
        assert record["choices"] == plain["choices"]
        # Several are weighed: what is not worth its row is not drafted.
        assert drafters != "bigram" or record["specgen"]["by_drafter"]["bigram"]["drafted"] > 0
    checked = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, b"")
    planned = command("plan", str(endless), "--drafter", "bigram", "--json")
    assert planned.returncode == 0, planned.stderr
    unknown = command(*words, "--drafter", "trigrams")
    assert unknown.returncode == 2 and "bigram" in unknown.stderr.splitlines()[0]


@pytest.mark.llama
def test_one_text_at_a_time(endless: Path) -> None:
    """A stream that another text came between ends with an error; it can be read once."""
    with specgen.load(endless, n_ctx=256) as model:
        first = model.stream(PROMPT, max_tokens=20, temperature=0)
        pieces = iter(first)
        next(pieces)
        whole = model.generate("he was", max_tokens=8, temperature=0)
        with pytest.raises(UsageError, match="another text was begun"):
            list(pieces)
        with pytest.raises(UsageError, match="generated before"):
            list(first)
        assert model.generate("he was", max_tokens=8, temperature=0).text == whole.text


@pytest.mark.llama
def test_a_closed_model_is_an_error(endless: Path) -> None:
    """Whatever is asked of it, and also of a stream that began before."""
    with specgen.load(endless, n_ctx=256) as model:
        waiting, begun = (model.stream(PROMPT, max_tokens=20) for _ in range(2))
        pieces = iter(begun)
        next(pieces)
    for use in (
        lambda: model.generate(PROMPT),
        lambda: model.chat([{"role": "user", "content": "hello"}]),
        lambda: list(waiting),
        lambda: list(pieces),
    ):
        with pytest.raises(SpecgenError, match="the model is closed"):
            use()


@pytest.mark.llama
def test_what_a_stream_holds_back_is_not_lost(endless: Path) -> None:
    """A beginning of a stop string comes when the text ends without it, however it ends."""
    with specgen.load(endless, n_ctx=256) as model:
        text = model.generate(PROMPT, max_tokens=20, temperature=0).text
        stop = f"{text[-3:]}\N{SNOWMAN}"  # its beginning is the end of the text
        held = model.stream(PROMPT, max_tokens=20, temperature=0, stop=stop)
        assert "".join(held) == held.result.text == text
        left = model.stream(PROMPT, max_tokens=40, temperature=0, stop=text[:1] + "\N{SNOWMAN}")
        for piece in left:
            if piece:
                break
        assert left.result.text.startswith(piece) and left.result.finish_reason == ""


@pytest.mark.llama
def test_arguments_of_other_kinds(endless: Path) -> None:
    """One stop string is a list of one; bytes, ids out of range and odd messages are errors."""
    with specgen.load(endless, n_ctx=256) as model:
        text = model.generate(PROMPT, max_tokens=20, temperature=0).text
        stop = text[4:8]
        cut = model.generate(PROMPT, max_tokens=20, temperature=0, stop=stop)
        assert cut.text == text[: text.index(stop)]
        for prompt in (b"hello", [1, -1], [10**9]):
            with pytest.raises(UsageError, match="token ids from 0 to"):
                model.generate(prompt)
        content: Any
        for content in (None, [{"type": "text", "text": "hi"}], 5):
            with pytest.raises(UsageError, match="a message is"):
                model.chat([{"role": "user", "content": content}])
        with pytest.raises(UsageError, match="there are no messages"):
            model.chat([])
    for name in ("threads", "gpu_layers", "max_drafts", "n_ctx"):
        wrong: dict[str, Any] = {name: -1}
        with pytest.raises(UsageError, match=f"{name} is -1"):
            specgen.load(endless, **wrong)


def test_help_does_not_load_the_api() -> None:
    """`import specgen` is light; what it has is what it says."""
    code = "import sys, specgen; print([n for n in ('numpy', 'specgen.api') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert all(hasattr(specgen, name) for name in specgen.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = specgen.nothing


@pytest.mark.model
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_examples_run(page: str) -> None:
    """Each as it stands, on the default model."""
    assert blocks(page)
    for code in blocks(page):
        code = f"import specgen\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()


@pytest.mark.llama
def test_one_file_and_one_line_make_a_drafter(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CONTRIBUTING.md says: a module and a line of the registry, and everything knows it."""
    drafter, _ = blocks("docs/drafters.md")
    (tmp_path / "added_bigrams.py").write_text(drafter, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(REGISTRY, "added", Spec("added_bigrams", "Bigram"))
    with specgen.load(tiny_model(), drafter="added", n_ctx=256) as model:
        drafted = model.generate([5, 6, 5, 6, 5], max_tokens=30, temperature=0)
        assert model.engine.planned and model.engine.planned.drafters == 0
    with specgen.load(tiny_model(), drafter="none", n_ctx=256) as model:
        plain = model.generate([5, 6, 5, 6, 5], max_tokens=30, temperature=0)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.drafted_by["bigram"] > 0
