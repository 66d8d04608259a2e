"""What is planned is what is taken, and it is enough: real processes, under real limits."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import llama_cpp
import pytest

from tests.support.command import ROOT, finish, run, shell_words, start
from tests.support.limited import is_linux, run_limited

MIB = 1 << 20
OWN = 6 * MIB  # of the group itself: its shell, and the kernel's notes about it
PROMPT = "The lighthouse keeper wrote in his book every evening. On the first evening he wrote:"
WORDS = ("one", "river", "light", "to", "the", "sea", "and", "back", "again", "by", "night")

pytestmark = [
    pytest.mark.llama,
    pytest.mark.skipif(not is_linux(), reason="limits and sizes are Linux's"),
]

Kind: TypeAlias = Literal["Q4_1", "Q8_0", "F16"]


def least_budget(*words: str | Path) -> int:
    """MiB that `specgen generate WORDS` needs, by what it says when there is too little."""
    outcome = run("generate", *words, "--memory-budget", "1M")
    assert outcome.code == 4
    hint = outcome.err.partition("--memory-budget ")[2]
    return int(hint[: hint.index("M")])


def test_a_strict_text_under_the_least_budget(endless: Path) -> None:
    """In a group that has no more than what was planned: the bytes of the unlimited text."""
    settings = ("-t", "1", "-c", "256", "-n", "200", "--strict", "--greedy", "--no-learn")
    words = (endless, *settings, "-p", "of the")
    free = finish(start("generate", *words))
    assert free.code == 0
    assert len(free.out) > 400
    least = least_budget(*words)
    limited = run_limited(
        least * MIB + OWN, "generate", *words, "--memory-budget", f"{least}M", "--stats"
    )
    assert limited.outcome.code == 0, limited.outcome.err
    assert limited.outcome.out == free.out
    assert "MiB planned" in limited.outcome.err
    assert limited.peak is None or limited.peak <= least * MIB + OWN


def test_too_small_a_limit_is_refused_and_not_met(endless: Path) -> None:
    """With less than is needed, the default budget says so: exit code 4, nobody is killed."""
    least = least_budget(endless, "-p", "x")
    limited = run_limited((least - 4) * MIB, "generate", endless, "-p", "x", "-n", "3")
    if limited.peak is None:
        pytest.skip("no control group can be made here")
    assert (limited.outcome.code, limited.outcome.out) == (4, "")
    assert limited.outcome.err.count("\n") == 1


@pytest.mark.model
def test_two_thousand_tokens_under_the_least_budget(default_model: Path) -> None:
    """On the default model, strictly: the text of the unlimited run, within the planned minimum."""
    settings = ("-c", "2048", "-n", "2000", "--strict", "--greedy", "--no-learn")
    words = (default_model, *settings, "-p", PROMPT)
    free = text_of(*words)
    assert len(free) > 4000
    least = least_budget(*words)
    limited = run_limited(
        least * MIB + OWN, "generate", *words, "--memory-budget", f"{least}M", "--stats"
    )
    assert limited.outcome.code == 0, limited.outcome.err
    assert limited.outcome.out == free
    assert limited.peak is None or limited.peak <= least * MIB + OWN


@pytest.mark.model
def test_the_default_model_in_170_mib(default_model: Path) -> None:
    """What `specgen plan` says of that budget is so, under a limit that is not to be crossed.

    How much of its libraries' code is resident depends on what of it the system has in memory.
    """
    prompt = " ".join(WORDS[i * i % 11] for i in range(300))
    words = (default_model, "--memory-budget", "170M", "-p", prompt, "-n", "60", "--no-learn")
    limited = run_limited(170 * MIB + OWN, "generate", *words, "--json")
    assert limited.outcome.code == 0, limited.outcome.err
    memory = limited.outcome.record["specgen"]["memory"]
    assert memory["planned"] <= 170 * MIB
    assert memory["peak"] <= 1.05 * 170 * MIB
    assert limited.peak is None or limited.peak <= 170 * MIB + OWN


@pytest.fixture(scope="module")
def requantized(
    default_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Kind], Path]:
    """The default model in another quantization."""
    kinds = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16}
    folder = tmp_path_factory.mktemp("requantized")

    def path_of(kind: Kind) -> Path:
        path = folder / f"{kind}.gguf"
        if kind == "Q4_1":
            return default_model
        if not path.exists():
            params = llama_cpp.llama_model_quantize_default_params()
            params.allow_requantize, params.ftype, params.nthread = True, kinds[kind], 2
            source, target = str(default_model).encode(), str(path).encode()
            assert llama_cpp.llama_model_quantize(source, target, params) == 0
        return path

    return path_of


@pytest.mark.model
@pytest.mark.parametrize("flash", ["on", "off"])
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_what_is_planned_is_taken(
    kind: Kind, flash: str, requantized: Callable[[Kind], Path]
) -> None:
    """Within 5 % or 20 MB of the measured peak once the context is full; hardly ever under it.

    The prompt is prose, with many different tokens: rows of the table come from all over it.
    """
    prompt = (ROOT / "docs" / "guide.md").read_text("utf-8")[:2900]  # some 890 tokens
    memory = memory_of(requantized(kind), "-c", "1024", "-fa", flash, "-p", prompt, "-n", "60")
    over = memory["planned"] - memory["peak"]
    assert over <= max(0.05 * memory["peak"], 20e6)
    assert over >= -0.05 * memory["peak"]


@pytest.mark.gemma
def test_what_is_planned_is_taken_by_a_sliding_window(gemma_model: Path) -> None:
    """As above, with two caches and a large vocabulary."""
    prompt = " ".join(WORDS[i * i % 11] for i in range(900))
    memory = memory_of(gemma_model, "-c", "1024", "-fa", "on", "-p", prompt, "-n", "60")
    over = memory["planned"] - memory["peak"]
    assert -0.05 * memory["peak"] <= over <= max(0.05 * memory["peak"], 20e6)


def memory_of(*words: str | Path) -> Any:
    """What `specgen generate WORDS` planned and took, in a process of its own."""
    command = shell_words("generate", *words, "--json", "--no-learn", "--seed", "1")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    return record["specgen"]["memory"]


def text_of(*words: str | Path) -> str:
    """The text of `specgen generate WORDS`, in a process of its own, however long it takes."""
    command = shell_words("generate", *words)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.model
@pytest.mark.parametrize("command", ["calibrate", "bench", "verify"])
def test_nobody_is_killed_while_measuring(default_model: Path, command: str) -> None:
    """Measuring takes two contexts; where they do not fit, that is said before, exit code 4."""
    limited = run_limited(300 * MIB, command, default_model)
    if limited.peak is None:
        pytest.skip("no control group can be made here")
    assert (limited.outcome.code, limited.outcome.out) == (4, "")
    assert "must be measured once" in limited.outcome.err
