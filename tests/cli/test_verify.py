"""`specgen verify` on tiny models: what it prints, in which words, and with which exit code."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specgen.core.config import EngineConfig
from specgen.core.cost.measure import LEAST_SAMPLES
from specgen.core.cost.model import load_curve
from specgen.core.knowledge import profiling
from specgen.core.knowledge.profile import Profile
from specgen.core.llama.backend import LlamaBackend
from specgen.core.tree import DraftTree
from specgen.core.verify import Verdict
from specgen.core.verify import verify as core_verify
from tests.conftest import TinyModel
from tests.support.command import Outcome, run

pytestmark = pytest.mark.llama

MACHINE = ("-t", "1", "-c", "1024")
SHORT = (*MACHINE, "--prompts", "4", "-n", "16", "--draws", "0")
WIDTH = 100


@pytest.fixture(scope="session")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for all tests here: each model is measured once."""
    return tmp_path_factory.mktemp("measurements")


@pytest.fixture(autouse=True)
def _measured_quickly(measurements: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that round alike are found with time to spare, and no figure depends on the load."""
    monkeypatch.setenv("SPECGEN_CACHE", str(measurements))
    measure = profiling.measure_profile

    def measured(path: Path, config: EngineConfig, **options: Any) -> Profile:
        found = measure(path, config, deadline_s=20.0, **options)  # tiny models take a tenth of it
        return replace(found, curve=load_curve("cpu2"), noise=1.0, samples=LEAST_SAMPLES)

    monkeypatch.setattr(profiling, "measure_profile", measured)


def keep_wrong_rows(tree: DraftTree, path: Sequence[int]) -> int:
    """A fault: after a side branch was accepted, the main chain stays in the cache."""
    return min(len(path), tree.n_main - 1)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts that show."""
    monkeypatch.setattr("specgen.core.session._accepted_on_main", keep_wrong_rows)


def verify(*words: str | Path) -> Outcome:
    """`specgen verify`, whose lines must fit a terminal."""
    outcome = run("verify", *words)
    assert all(len(line) <= WIDTH for line in outcome.out.splitlines()) or "--json" in words
    return outcome


def test_identical_texts(endless: Path) -> None:
    """A row for each drafter, with side branches and without, and exit code 0."""
    outcome = verify(endless, *SHORT, "--prompts", "2")
    assert outcome.code == 0
    head, *rows = (line.split("  ") for line in outcome.out.split("\n\n")[0].splitlines())
    assert [cell.strip() for cell in head if cell] == [
        "setting", "answers", "tokens", "accepted", "identical", "ties", "faults", "largest gap",
    ]  # fmt: skip
    settings = [row[0] for row in rows]
    assert settings[:3] == ["auto", "auto, chains", "none, again"]
    assert settings[-2:] == ["recycle", "recycle, chains"]
    figures = [[cell.strip() for cell in row[1:] if cell] for row in rows]
    assert all(row[:2] == ["2", "32"] and row[3:] == ["2", "0", "0", "-"] for row in figures)
    assert int(figures[settings.index("recycle")][2]) > 0
    assert "all 26 answers are identical\n" in outcome.out
    assert "specgen: question 2 of 2" in outcome.err


def test_json(endless: Path) -> None:
    """One object with the counts, and with how well the distribution fits."""
    words = (*SHORT[:-1], "100", "--drafter", "recycle,prompt-lookup", "--json")
    record = verify(endless, *words).record
    assert 0 < record.pop("accepted") < 256
    fit = record.pop("distribution")
    assert record == {
        "answers": 16,
        "tokens": 256,
        "identical": 16,
        "ties": 0,
        "faults": 0,
        "gap": 1.0,
        "differences": [],
    }
    assert (fit["draws"], fit["fits"]) == (100, True)
    assert fit["cells"] > 1
    assert fit["p"] >= 1e-4


@pytest.mark.long
@pytest.mark.parametrize("quantization", ["Q4_K", "F16"])
def test_strict(quantization: Any, tiny_model: TinyModel) -> None:
    """Where kernels of different widths round otherwise, strict texts are the same all the same.

    llama.cpp's do for both; ours for neither matrices in Q4_K nor attention to a cache in f16.
    """
    words = (*SHORT, "--strict", "--drafter", "auto,recycle,prompt-lookup")
    outcome = verify(tiny_model("llama", quantization), *words)
    assert outcome.code == 0
    assert re.search(r"^all \d+ answers are identical$", outcome.out, re.M)
    assert "each call had one of these numbers of rows: " in outcome.out


@pytest.fixture
def rounding(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits depend on what is drafted, a little: less than --gap allows a tie."""
    verify(endless, *SHORT, "--drafter", "none", "--prompts", "1")  # it is measured without that
    wait = LlamaBackend.wait

    def rounded(self: LlamaBackend) -> Any:
        rows = wait(self)
        if len(rows) == 1:
            return rows
        noise = np.random.default_rng(len(rows)).uniform(0, 0.3, rows.shape)
        return rows + noise.astype(np.float32)

    monkeypatch.setattr(LlamaBackend, "wait", rounded)


DIFFERENCE = re.compile(
    r"(?P<kind>a tie|a FAULT): question (?P<question>\d), recycle(, chains)?, token \d+:"
    r" '.*' in place of '.*'\n"
    r"  (\S+ logits behind, the worst of its answer \S+|not by rounding); calls of \d+ and \d rows,"
    r" after \d+ tokens\n"
)
GREEDY, SAMPLED = ("--prompts", "2"), ("--prompts", "4")  # the last two of four are sampled


@pytest.mark.usefixtures("rounding")
def test_ties(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are shown with their tokens, but are no reason to fail, unless none is allowed."""
    words = (endless, *SHORT, "--drafter", "recycle", "-n", "80", *GREEDY)
    allowed = verify(*words)
    assert allowed.code == 0
    kinds = [found["kind"] for found in DIFFERENCE.finditer(allowed.out)]
    assert kinds == ["a tie"] * len(kinds)
    assert len(kinds) > 1
    assert f"{len(kinds)} of 4 answers differ by ties, the others are identical" in allowed.out
    assert "--strict avoids it" in allowed.out
    monkeypatch.setattr("specgen.cli.verify._SHOWN", 1)
    refused = verify(*words, "--gap", "0")
    assert refused.code == 7
    assert [found["kind"] for found in DIFFERENCE.finditer(refused.out)] == ["a FAULT"]
    assert f"and {len(kinds) - 1} more; --json has them all\n" in refused.out


@pytest.mark.usefixtures("rounding")
def test_sampled_answers_have_no_ties(endless: Path) -> None:
    """In strict widths nothing rounds otherwise, so drafts that move logits a little show."""
    outcome = verify(endless, *SHORT, "--drafter", "recycle", "-n", "36", *SAMPLED)
    assert outcome.code == 7
    found = [(each["kind"], each["question"]) for each in DIFFERENCE.finditer(outcome.out)]
    sampled = [kind for kind, question in found if question in "34"]
    assert len(sampled) > 1
    assert set(sampled) == {"a FAULT"}
    assert {kind for kind, question in found if question in "12"} == {"a tie"}
    assert f"drafts show: {len(sampled)} of 8 answers are not the target's own" in outcome.out


@pytest.mark.usefixtures("faulty")
def test_faults(endless: Path) -> None:
    """Exit code 7, what differs and where, in words and as JSON."""
    # Without flash attention: with it this text has no such place, and times must not decide.
    words = (endless, *SHORT, "--drafter", "recycle", "--tree", "on", "-n", "40", "-fa", "off")
    outcome = verify(*words)
    assert outcome.code == 7
    kinds = [found["kind"] for found in DIFFERENCE.finditer(outcome.out)]
    assert "a FAULT" in kinds
    n_faults = kinds.count("a FAULT")
    assert f"drafts show: {n_faults} of 4 answers are not the target's own" in outcome.out
    found = verify(*words, "--json")
    assert found.code == 7
    record = found.record
    assert record["faults"] == n_faults
    assert record["answers"] == record["identical"] + record["ties"] + n_faults
    assert len(record["differences"]) == len(kinds)
    fault, *_ = (difference for difference in record["differences"] if not difference["tie"])
    assert set(fault) == {
        "question", "setting", "tie", "position", "context", "tokens", "widths", "gap", "worst",
    }  # fmt: skip
    assert fault["setting"] == "recycle"
    assert len(set(fault["tokens"])) == 2


def test_a_text_that_is_cut_short(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no token to be a tie; JSON has null where a gap has no end."""

    def hasty(*args: Any) -> Verdict:
        verdict = core_verify(*args)
        return replace(verdict, finished=verdict.finished or len(verdict.path) > 0)

    monkeypatch.setattr("specgen.core.session.verify", hasty)
    words = (endless, *SHORT, "--drafter", "prompt-lookup", "--tree", "off")
    outcome = verify(*words)
    assert outcome.code == 7
    assert ": the end in place of '" in outcome.out
    assert "not by rounding" in outcome.out
    assert verify(*words, "--json").record["differences"][0]["worst"] is None


@pytest.mark.long
def test_another_distribution(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 7 though no text was compared with another."""

    def biased(tree: DraftTree, logits: Any, sampler: Any, *rest: Any) -> Verdict:
        # A draft token is called likelier than it is, however wide calls are here.
        if len(tree) > 1 and ("padding",) not in tree.evidence[1]:
            logits = logits.copy()
            logits[0, tree.tokens[1]] += 1
        return core_verify(tree, logits, sampler, *rest)

    monkeypatch.setattr("specgen.core.session.verify", biased)
    # With flash attention, for which one is faster is a matter of time.
    outcome = verify(endless, *SHORT, "-fa", "on", "--drafter", "none", "--draws", "200")
    assert outcome.code == 7
    assert "all 4 answers are identical\n" in outcome.out
    assert "200 sampled answers do NOT fit the target's distribution: chi-square" in outcome.out


def test_questions_of_a_file(endless: Path, tmp_path: Path) -> None:
    """In Spec-Bench's format; as many as asked for, over and over if need be."""
    file = tmp_path / "questions.jsonl"
    records = [{"question_id": i, "category": "qa", "turns": [f"who was {i}"]} for i in range(2)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = (endless, *SHORT, "--data", file, "--prompts", "3", "--drafter", "none", "--json")
    record = verify(*words).record
    assert (record["answers"], record["tokens"]) == (3, 48)
    assert record["distribution"] is None
    missing = verify(endless, "--data", tmp_path / "no.jsonl")
    assert (missing.code, missing.out) == (2, "")
    assert "no.jsonl" in missing.err


def test_long_questions_fit_the_context(endless: Path, tmp_path: Path) -> None:
    """They are as long as the context allows; a prompt that is longer is passed over."""
    file = tmp_path / "questions.jsonl"
    prompts = ["q" * 900, "who was he", "x" * 2000]
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    words = (endless, *SHORT, "--data", file, "--drafter", "none", "--json", "-c", "200")
    assert verify(*words).record["tokens"] == 64
    file.write_text(json.dumps({"prompt": prompts[2]}))
    outcome = verify(*words)
    assert (outcome.code, outcome.out) == (5, "")
    assert "no question leaves room for an answer" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--drafter", "auto,no-such"), "no-such"),
        (("--prompts", "0"), "--prompts"),
        (("--gap", "-1"), "--gap"),
        (("--tree", "maybe"), "--tree"),
    ],
)
def test_a_bad_option(
    words: tuple[str, ...], said: str, endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, exit code 2, and nothing is measured before."""
    monkeypatch.setattr(profiling, "measure_profile", pytest.fail)
    outcome = verify(endless, *MACHINE, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_where_nothing_can_be_drafted(tiny_model: TinyModel) -> None:
    """A recurrent model decodes plainly: trees are refused, and what is proved is said."""
    model = tiny_model("mamba")
    refused = verify(model, *SHORT, "--tree", "on")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.splitlines()[-1].startswith("specgen: error: --tree on is not possible")
    words = ("--draws", "10", "--drafter", "recycle")
    outcome = verify(model, *SHORT, *words)
    assert outcome.code == 0
    assert outcome.out.endswith(
        "all 4 answers are identical\n"
        "no draft token was accepted, so this proves little\n"
        "sampled answers were not tested: no two widths of calls here round alike\n"
    )


@pytest.mark.parametrize("at", [24, 200])
def test_an_interrupted_run(at: int, endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is, is shown: answers so far, or all of them without the distribution."""
    words = (endless, *SHORT, "--drafter", "none", "--prompts", "2", "--draws", "1000")
    verify(endless, *SHORT, "--drafter", "none", "--prompts", "1")  # it is measured now
    submit, calls = LlamaBackend.submit, iter(range(100_000))

    def interrupted(*args: Any) -> Any:
        if next(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return submit(*args)

    monkeypatch.setattr(LlamaBackend, "submit", interrupted)
    outcome = verify(*words)
    assert outcome.code == 130
    n = 0 if at == 24 else 2
    assert outcome.out.endswith(f"stopped after {n} of 2 answers\n")
    assert ("all 2 answers are identical" in outcome.out) == (n == 2)
    assert "chi-square" not in outcome.out
    assert next(calls) < at + 30
