"""The comparison with llama-server: who is asked when, what an answer took, and the table."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from http.server import HTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from time import sleep

import pytest
import typer

from benchmarks import llama_server, peers
from benchmarks.llama_server import (
    MODES,
    PLAIN,
    Reply,
    Setup,
    ask,
    built_server,
    existing_server,
    is_ready,
    parse_reply,
    running,
)
from benchmarks.peers import Arm, Question, Servers, chosen_prompts, measure, parsed, run, turned
from benchmarks.peers_report import (
    BASES,
    Answer,
    Name,
    decoding,
    paired,
    ratio_text,
    report,
    rows,
    whole,
    worst_text,
)
from specgen.cli.bench.format import render
from specgen.cli.choices import Format
from specgen.core.errors import BackendError, ContextFull, UsageError
from specgen.core.knowledge.profile import Profile
from tests.support.fake_llama_server import Handler, write_program
from tests.support.made_up import CARD, CURVE

PROFILE = Profile(CURVE, True, None, {128: ((1, 2, 4, 8),)}, {128: {2: True, 4: True}}, 1.0)
SERVER, OURS = BASES
FAST: Name = ("specgen", "auto")


def setup(program: Path) -> Setup:
    """A server of two threads and no model."""
    return Setup(program, Path("model.gguf"), 2048, 2, True)


@pytest.fixture
def port() -> Iterator[int]:
    """Where a server of this process answers."""
    Handler.questions = 0
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


# ---- one server


def test_an_answer_is_read() -> None:
    """The first token is the prompt's work, so the server's clock counts one token less."""
    answer = json.dumps({"timings": {"predicted_n": 65, "predicted_ms": 640.0}}).encode()
    assert parse_reply(answer, 1.5) == Reply(65, 64, 0.64, 1.5)
    assert decoding(parse_reply(answer, 1.5)) == pytest.approx(0.01)
    assert whole(parse_reply(answer, 1.3)) == pytest.approx(0.02)


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"timings": {}}', b'{"timings": null}', b"\xff"])
def test_an_answer_without_timings_is_an_error(answer: bytes) -> None:
    """It is quoted in one line."""
    with pytest.raises(BackendError, match="without timings"):
        parse_reply(answer, 1.0)


def test_the_client_asks(port: int) -> None:
    """By tokens; what comes back is the server's clock, and one around the request."""
    assert is_ready(port)
    reply = ask(port, [1, 2, 3], 16)
    assert (reply.tokens, reply.timed, reply.seconds) == (1, 0, 0.1)
    assert reply.wall_s > 0


def test_a_refusal_is_told(port: int) -> None:
    """With the server's own words."""
    with pytest.raises(BackendError, match="refused a question: no tokens are wanted"):
        ask(port, [1], 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_command_is_greedy_for_nothing_but_its_mode(mode: str) -> None:
    """All modes have the same setting, on this machine only, and what drafts comes last."""
    command = setup(Path("llama-server")).command(mode, 4711)
    plain = setup(Path("llama-server")).command(PLAIN, 4711)
    assert command == [*plain, *MODES[mode]]
    given = dict(pairwise(command))
    assert given["--host"] == "127.0.0.1"
    assert (given["--threads"], given["--ctx-size"], given["--flash-attn"]) == ("2", "2048", "on")


def test_a_server_runs_and_ends(tmp_path: Path) -> None:
    """It is warm when it is first asked, and nobody listens when it has ended."""
    with running(setup(write_program(tmp_path)), PLAIN) as server:
        assert [server.ask([1], 4).tokens for _ in range(2)] == [102, 103]  # the first warmed it up
        port = server._port
        assert is_ready(port)
    assert not is_ready(port)
    assert server._process.returncode is not None


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """One line, with the last that it wrote."""
    program = write_program(tmp_path, "echo loading; echo 'no such model' >&2; exit 3")
    with pytest.raises(BackendError) as raised, running(setup(program), "ngram-mod"):
        pass
    assert raised.value.message == "llama-server (ngram-mod) ended with 3 while starting"
    assert raised.value.hint == "it wrote last: no such model"


def test_a_server_that_dies_is_an_error(tmp_path: Path) -> None:
    """Not a traceback, and not an answer."""
    with running(setup(write_program(tmp_path)), PLAIN) as server:
        server._process.kill()
        server._process.wait()
        with pytest.raises(BackendError, match=r"llama-server \(plain\) gave no answer"):
            server.ask([1], 4)


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("setpriv") is None, reason="needs setpriv"
)
def test_no_server_outlives_us(tmp_path: Path) -> None:
    """Not even where the process that started it is killed."""
    program = write_program(tmp_path)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from benchmarks.llama_server import Setup, running\n"
        f"with running(Setup(Path({str(program)!r}), Path('m'), 64, 1, None), 'plain') as server:\n"
        "    print(server._port, flush=True); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    for _ in range(100):  # the system ends it soon, not at once
        if not is_ready(int(done.stdout)):
            return
        sleep(0.1)
    pytest.fail("it still answers")


def test_a_server_must_be_there(tmp_path: Path) -> None:
    """A file that is none, or that cannot be run, is a bad option."""
    (tmp_path / "notes").write_text("")
    for name in ("nothing", "notes"):
        with pytest.raises(UsageError, match="there is no program"):
            existing_server(tmp_path / name)
    assert existing_server(write_program(tmp_path)).is_absolute()


def test_it_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler's tools one line says what is missing; what is there is not built."""
    monkeypatch.setattr(llama_server, "version", lambda _: "1.2.3")
    (tmp_path / "llama_cpp_python-1.2.3").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no cmake"):
        built_server(tmp_path)
    (tmp_path / "1.2.3" / "bin").mkdir()
    program = write_program(tmp_path / "1.2.3" / "bin")
    assert built_server(tmp_path) == program


# ---- several


def test_servers_stay_until_they_are_renewed(tmp_path: Path) -> None:
    """One process for each mode, started when it is first asked."""
    with Servers(setup(write_program(tmp_path)), one=False) as servers:
        asked = [PLAIN, "ngram-mod", PLAIN, "ngram-mod"]
        assert [servers.answer(m, [1], 4).tokens for m in asked] == [102, 202, 103, 203]
        servers.renew()
        assert servers.answer(PLAIN, [1], 4).tokens == 302


def test_one_server_at_a_time(tmp_path: Path) -> None:
    """Anew for each answer, and what was there before has ended."""
    with Servers(setup(write_program(tmp_path)), one=True) as servers:
        assert [servers.answer(PLAIN, [1], 4).tokens for _ in range(2)] == [102, 202]
        first = next(iter(servers._servers.values()))
        servers.answer("ngram-mod", [1], 4)
        assert first._process.returncode is not None
        assert len(servers._servers) == 1


def test_turns() -> None:
    """Each number begins with another one, and all have their turn."""
    assert [turned("abc", first) for first in range(4)] == [
        *(["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]),
        ["a", "b", "c"],
    ]


def test_all_are_asked_the_same_in_turns() -> None:
    """Question by question, each arm first in its turn; servers are new in each round."""
    log: list[str] = []

    def arm(name: str) -> Arm:
        def answer(tokens: Sequence[int], n_predict: int) -> Reply:
            log.append(f"{name}{tokens[0]}")
            return Reply(n_predict, n_predict, 1.0, 1.0)

        return Arm(("p", name), answer)

    questions = [Question(("t", n, 1), [n]) for n in range(2)]
    arms = [arm("a"), arm("b"), arm("c")]
    answers = list(measure(arms, questions, 2, 8, lambda: log.append("new")))
    assert " ".join(log) == "new a0 b0 c0 b1 c1 a1 new b0 c0 a0 c1 a1 b1"
    assert [(a.asked[1], a.round, a.arm[1]) for a in answers[:4]] == [
        *((0, 0, "a"), (0, 0, "b"), (0, 0, "c"), (1, 0, "b")),
    ]


# ---- the table


def answers(speeds: dict[str, float], rounds: int = 2, **others: float) -> list[Answer]:
    """By task: how fast FAST is, where llama-server makes 10 and specgen 20 tokens a second."""
    made = []
    for number in range(rounds):
        for i, (task, speed) in enumerate(speeds.items()):
            for arm, rate in ((SERVER, 10.0), (OURS, 20.0), (FAST, 10.0 * speed)):
                reply = Reply(50, 40, 40 / rate, others.get("prompt", 0.0) + 50 / rate)
                made.append(Answer(arm, (task, i, 1), number, reply))
    return made


def test_ratios_are_of_the_time_a_token() -> None:
    """An answer that is longer is not slower for it, and one without a token has no speed."""
    made = answers({"code": 4.0}, rounds=1)
    made.append(Answer(FAST, ("code", 0, 1), 1, Reply(5, 4, 0.1, 0.2)))
    made.append(Answer(SERVER, ("code", 0, 1), 1, Reply(1, 0, 0.0, 0.2)))
    assert paired(made, FAST, SERVER, decoding) == [(("code", 0, 1), 0.1, 0.025)]
    assert len(paired(made, FAST, SERVER, whole)) == 2


def test_questions_weigh_the_same() -> None:
    """The mean of ratios is geometric: twice as fast and half as fast make one."""
    made = answers({"code": 2.0, "noise": 0.5, "edit": 1.0})
    assert ratio_text(paired(made, FAST, SERVER, decoding)) == "1.00 ±0.01"
    made = answers({"code": 4.0, "noise": 1.0})
    assert ratio_text(paired(made, FAST, SERVER, decoding)) == "2.00 ±0.01"
    assert ratio_text(paired(made, FAST, OURS, decoding)) == "1.00 ±0.01"


def test_what_was_not_repeated_has_no_noise() -> None:
    """It is not said to be exact, either."""
    made = answers({"code": 4.0, "edit": 1.0}, rounds=1)
    assert ratio_text(paired(made, FAST, SERVER, decoding)) == "2.00"
    assert ratio_text([]) == "-"


def test_the_worst_kind_of_text() -> None:
    """The task, not the question, with the least speed."""
    made = answers({"code": 4.0, "noise": 0.8, "edit": 2.0})
    assert worst_text(paired(made, FAST, SERVER, decoding)) == "noise 0.80"
    assert worst_text([]) == "-"


def test_a_row_for_each_arm() -> None:
    """Speeds of decoding; the prompt is in the time of whole requests alone."""
    found = {row.arm: row for row in rows(answers({"code": 4.0, "edit": 4.0}, prompt=5.0))}
    assert list(found) == [SERVER, OURS, FAST]
    assert found[FAST].tokens_per_s == pytest.approx(40)
    assert found[FAST].of_bases == ["4.00 ±0.01", "2.00 ±0.01"]
    assert found[FAST].whole == f"{(5 + 50 / 10) / (5 + 50 / 40):.2f} ±0.01"
    assert found[SERVER].of_bases == ["1", "0.50 ±0.01"]
    assert (found[SERVER].whole, found[SERVER].worst) == ("1", "-")
    assert found[OURS].of_bases == ["2.00 ±0.01", "1"]
    assert found[OURS].worst == "code 2.00"


def test_the_report() -> None:
    """Markdown with the machine, the settings and a table; JSON with every answer."""
    made = answers({"code": 4.0, "edit": 2.0})
    shown = report(made, CARD, {"answers": "greedy, up to 50 tokens"})
    text = render(shown, Format.md, False)
    assert f"- model: {CARD.model}\n" in text
    assert "- answers: greedy, up to 50 tokens\n" in text
    assert "| specgen | auto | 30.0 | 2.83 ±0.01 | 1.41 ±0.01 | 2.83 ±0.01 | edit 2.00 |" in text
    saved = json.loads(render(shown, Format.json, False))
    assert len(saved["answers"]) == len(made)
    assert saved["answers"][0]["reply"]["seconds"] == pytest.approx(4.0)
    assert saved["card"]["model"] == CARD.model


# ---- the command


def test_prompts_are_chosen() -> None:
    """So many of each task, of the tasks that are named."""
    chosen = chosen_prompts(parsed(["--tasks", "noise,edit", "--per-task", "2"]))
    assert sorted(prompt.task for prompt in chosen) == ["edit", "edit", "noise", "noise"]
    assert len(chosen_prompts(parsed([]))) == 11
    with pytest.raises(UsageError, match="no such tasks: edits"):
        chosen_prompts(parsed(["--tasks", "edits"]))


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5"])
def test_bad_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are told with the option."""
    with pytest.raises(SystemExit):
        parsed(["--rounds", text])
    assert f"--rounds: '{text}' is no number" in capsys.readouterr().err


@pytest.fixture
def options(tmp_path: Path, endless: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of a run on a tiny model and a server that is none, without measuring the machine."""
    monkeypatch.setattr(peers, "ensure_profile", lambda *_, **__: PROFILE)
    monkeypatch.setattr(peers, "card_of", lambda *_, **__: CARD)
    (tmp_path / "data").write_text('{"turns": ["a b c d", "e f"]}\n{"prompt": "g h"}\n')
    given = {"data": tmp_path / "data", "server": write_program(tmp_path), "tokens": 8}
    return [str(endless), *(f"--{name}={value}" for name, value in given.items())]


@pytest.mark.llama
def test_a_whole_run(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each arm answers each turn in each round; the table has a row for each."""
    save = tmp_path / "saved.json"
    run(parsed([*options, "--rounds=2", "--per-task=2", f"--save={save}"]))
    saved = json.loads(save.read_text())["answers"]
    arms = {tuple(answer["arm"]) for answer in saved}
    assert len(arms) == len(MODES) + 3
    assert len(saved) == 2 * 3 * len(arms)
    assert {a["reply"]["tokens"] for a in saved if a["arm"][0] == "specgen"} == {8}
    assert all(math.isfinite(a["reply"]["seconds"]) and a["reply"]["wall_s"] > 0 for a in saved)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + len(arms)


@pytest.mark.llama
def test_answers_that_cannot_fit(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and the exit code of a full context, and no server is started."""
    monkeypatch.setattr(sys, "argv", ["peers", *options, "--tokens=100000"])
    with pytest.raises(SystemExit) as raised:
        peers.main()
    assert raised.value.code == ContextFull.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "no question and its answer fit the context of" in line
    assert not (Path(options[2].partition("=")[2]).parent / "started").exists()


@pytest.mark.llama
def test_an_interrupt_shows_what_there_is(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM, too; the exit code is a shell's, and no server is left."""
    servers: list[Servers] = []
    answer = Servers.answer

    def interrupted(self: Servers, mode: str, prompt: Sequence[int], n_predict: int) -> Reply:
        servers.append(self)
        if mode == "ngram-simple":
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(self, mode, prompt, n_predict)

    monkeypatch.setattr(Servers, "answer", interrupted)
    with pytest.raises(typer.Exit) as raised:
        run(parsed(options))
    assert raised.value.exit_code == 128 + signal.SIGTERM
    assert "| llama-server | ngram-mod |" in capsys.readouterr().out
    assert servers[-1]._servers == {}
