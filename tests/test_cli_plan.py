"""`specgen plan` and `--memory-budget`, on a tiny model."""

from __future__ import annotations

import pytest

from specgen.core.memory import MemoryPlan

from .command import generate, record_of, run
from .conftest import TinyModel

pytestmark = pytest.mark.llama


def test_table(tiny_model: TinyModel) -> None:
    """A line for each term, what was chosen, and what is needed."""
    outcome = run("plan", tiny_model(), "-c", "512")
    assert (outcome.code, outcome.err) == (0, "")
    head, *rows = outcome.out.split("\n\n")[0].splitlines()
    assert head.split() == ["memory", "MiB"]
    names = [row.split()[0] for row in rows]
    assert names[-1] == "total"
    assert set(names) <= {*MemoryPlan.__dataclass_fields__, "total"}
    total = sum(float(row.split()[1]) for row in rows[:-1])
    assert float(rows[-1].split()[1]) == pytest.approx(total, abs=0.5)
    assert "context   512 tokens, cache of type f16\n" in outcome.out
    assert all(len(line) <= 110 for line in outcome.out.splitlines())


def test_json(tiny_model: TinyModel) -> None:
    """Everything in bytes; with the least budget all is given up that can be."""
    record = run("plan", tiny_model(), "--json").record
    assert record["plan"]["total"] == record["needs"]["as_asked"]
    low = record["needs"]["least"]
    tight = run("plan", tiny_model(), "--json", "--memory-budget", str(low)).record
    assert (tight["budget"], tight["plan"]["total"]) == (low, low)
    assert tight["settings"]["max_drafts"] == 0
    assert len(tight["concessions"]) == 5
    assert record["concessions"] == []


@pytest.mark.parametrize("budget", ["0", "-3M", "1K", "100000T", "abc"])
@pytest.mark.parametrize("command", ["plan", "generate"])
def test_absurd_budgets(tiny_model: TinyModel, command: str, budget: str) -> None:
    """One line, exit code 4, before anything is loaded."""
    words = ["-p", "x"] if command == "generate" else []
    outcome = run(command, tiny_model(), f"--memory-budget={budget}", *words)
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err.startswith("specgen: error: ")
    assert outcome.err.count("\n") == 1


def test_generate_within_a_budget(tiny_model: TinyModel) -> None:
    """What is given up is told; the text is the same, and the peak is below the plan."""
    model = tiny_model(quantization="Q4_1")
    words = (model, "-p", "abc", "-n", "8", "--greedy", "-c", "512", "--no-learn")
    budget = run("plan", model, "-c", "512", "--json").record["needs"]["as_asked"] - (16 << 20)
    plain = generate(*words)
    tight = generate(*words, "--memory-budget", str(budget), "--stats")
    assert (plain.code, tight.code, tight.out) == (0, 0, plain.out)
    assert "specgen: to stay within" in tight.err
    assert "memory" in tight.err.splitlines()[-1]
    memory = record_of(*words)["specgen"]["memory"]
    assert memory["planned"] > 0 < memory["peak"]
