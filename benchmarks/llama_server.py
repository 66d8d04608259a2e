"""llama-server as a peer: built, started in one of its modes, and asked over loopback.

It is built from the llama.cpp sources that the llama-cpp-python in use comes with, for this CPU, so
that both sides of a comparison compute with the same library. CFLAGS, CXXFLAGS and CMAKE_ARGS of
the environment reach the build, as they reach that of llama-cpp-python.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, sleep
from typing import IO, Any, Final

from specgen.cli.terminal import note
from specgen.core.errors import BackendError, UsageError
from specgen.core.host.limits import usable_cpus

PLAIN: Final = "plain"
MODES: Final[Mapping[str, Sequence[str]]] = {  # options by name; sizes of n-gram and draft
    PLAIN: (),
    "ngram-mod": ("--spec-type", "ngram-mod"),
    "ngram-simple": (
        *("--spec-type", "ngram-simple"),
        *("--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "10"),
    ),
    "ngram-map-k": (
        *("--spec-type", "ngram-map-k"),
        *("--spec-ngram-map-k-size-n", "3", "--spec-ngram-map-k-size-m", "8"),
    ),
}

_HOST: Final = "127.0.0.1"
_DISTRIBUTION: Final = "llama-cpp-python"
_CMAKE: Final = (
    *("-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_OPENSSL=OFF"),
    "-DCMAKE_BUILD_TYPE=Release",
)
_START_S: Final = 600.0  # that a server may take to load its model
_ANSWER_S: Final = 3600.0  # that an answer may take
_END_S: Final = 10.0  # that a server may take to end when asked to
_POLL_S: Final = 0.05
WARM_UP: Final = 8  # tokens that are generated before anything counts


@dataclass(frozen=True, slots=True)
class Reply:
    """What an answer took.

    Attributes:
        tokens: emitted.
        timed: of these, the tokens that `seconds` were spent on.
        seconds: of decoding, by the program's own clock; processing the prompt is left out.
        wall_s: seconds from the question to the end of the answer, as whoever asks sees them.
    """

    tokens: int
    timed: int
    seconds: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Setup:
    """What all servers have in common.

    Attributes:
        binary: llama-server.
        model: a GGUF file.
        n_ctx: tokens of context.
        threads: CPU threads, for prompts as well.
        flash_attention: None leaves it to llama.cpp.
    """

    binary: Path
    model: Path
    n_ctx: int
    threads: int
    flash_attention: bool | None

    def command(self, mode: str, port: int) -> list[str]:
        """The command line of a server in a mode."""
        flash = {True: "on", False: "off", None: "auto"}[self.flash_attention]
        return [
            *(str(self.binary), "--model", str(self.model), "--offline"),
            *("--host", _HOST, "--port", str(port), "--parallel", "1", "--cache-ram", "0"),
            *("--ctx-size", str(self.n_ctx), "--flash-attn", flash),
            *("--threads", str(self.threads), "--threads-batch", str(self.threads)),
            *MODES[mode],
        ]


class Server:
    """A llama-server in one of its modes, as `running` makes it.

    Args:
        log: what the process writes into.
    """

    def __init__(
        self, mode: str, port: int, process: subprocess.Popen[bytes], log: IO[bytes]
    ) -> None:
        self._mode = mode
        self._port = port
        self._process = process
        self._log = log

    def ask(self, prompt: Sequence[int], n_predict: int) -> Reply:
        """Answer a prompt of tokens greedily. Raises BackendError."""
        try:
            return ask(self._port, prompt, n_predict)
        except (OSError, HTTPException) as error:
            raise self._failure(f"gave no answer: {error or type(error).__name__}") from None

    def wait(self) -> None:
        """Until the model is loaded. Raises BackendError with the last line that was written."""
        end = perf_counter() + _START_S
        while not is_ready(self._port):
            if self._process.poll() is not None:
                raise self._failure(f"ended with {self._process.returncode} while starting")
            if perf_counter() > end:
                raise self._failure(f"was not ready after {_START_S:.0f} s")
            sleep(_POLL_S)

    def _failure(self, what: str) -> BackendError:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        return BackendError(f"llama-server ({self._mode}) {what}", f"it wrote last: {last}")


@contextmanager
def running(setup: Setup, mode: str) -> Iterator[Server]:
    """A server that is ready to answer; its process is ended at the end. Raises BackendError."""
    port = _free_port()
    command = [*_dying_with_us(), *setup.command(mode, port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            server = Server(mode, port, process, log)
            server.wait()
            server.ask([1], WARM_UP)
            yield server
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and wait until it has ended."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def is_ready(port: int) -> bool:
    """Whether the server at a port of this machine has loaded its model."""
    try:
        with closing(HTTPConnection(_HOST, port, timeout=_END_S)) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False


def ask(port: int, prompt: Sequence[int], n_predict: int) -> Reply:
    """Let the server at a port of this machine answer a prompt of tokens greedily.

    Raises BackendError for a refusal, OSError or HTTPException where the server is not there.
    """
    question = {
        "prompt": list(prompt),
        "n_predict": n_predict,
        "temperature": 0.0,
        "samplers": ["top_k"],  # the whole chain of samplers would take time and choose the same
        "top_k": 1,
        "seed": 0,
        "cache_prompt": False,
    }
    body = json.dumps(question)
    start = perf_counter()
    with closing(HTTPConnection(_HOST, port, timeout=_ANSWER_S)) as connection:
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        wall_s = perf_counter() - start
    if response.status != 200:
        raise BackendError(f"llama-server refused a question: {_message(answer)}")
    return parse_reply(answer, wall_s)


def parse_reply(answer: bytes, wall_s: float) -> Reply:
    """What an answer took, by its `timings`. Raises BackendError if they are not there.

    Its clock starts when the first token is there, which the prompt's last call has paid for.
    """
    try:
        timings = json.loads(answer)["timings"]
        tokens, milliseconds = int(timings["predicted_n"]), float(timings["predicted_ms"])
    except (ValueError, KeyError, TypeError):
        raise BackendError(f"llama-server answered without timings: {_start(answer)}") from None
    return Reply(tokens, max(0, tokens - 1), milliseconds / 1e3, wall_s)


def _message(answer: bytes) -> str:
    """Why it refused."""
    try:
        return str(json.loads(answer)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return _start(answer)


def _start(answer: bytes) -> str:
    return answer[:200].decode("utf-8", "replace")


def _free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server((_HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _dying_with_us() -> list[str]:
    """What to put before a command that shall end even where this process is killed: Linux only."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv and sys.platform == "linux" else []


def sources() -> str:
    """The version of the sources in use, in words."""
    return f"{_DISTRIBUTION} {version(_DISTRIBUTION)}"


def existing_server(path: Path) -> Path:
    """The llama-server at `path`, made absolute. Raises UsageError if there is none."""
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise UsageError(f"there is no program {path}", "give a llama-server that was built")
    return path.absolute()


def built_server(folder: Path) -> Path:
    """The llama-server of the version in use, built in `folder` if it is not there yet.

    Raises UsageError where something is missing or fails; its own output says what.
    """
    build = folder.absolute() / version(_DISTRIBUTION)
    binary = build / "bin" / "llama-server"
    if not binary.is_file():
        _build(build, _sources(folder.absolute()))
    return binary


def _sources(folder: Path) -> Path:
    """llama.cpp's sources, fetched if they are not there yet."""
    name = f"{_DISTRIBUTION.replace('-', '_')}-{version(_DISTRIBUTION)}"
    if not (folder / name).is_dir():
        note(f"fetching the sources of {sources()} into {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        _run(
            [
                *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download"),
                *("--quiet", "--no-deps", "--no-binary", _DISTRIBUTION, "--dest", "."),
                f"{_DISTRIBUTION}=={version(_DISTRIBUTION)}",
            ],
            folder,
        )
        part = folder / "part"  # an unpacking that was interrupted is not taken for a whole one
        part.mkdir(exist_ok=True)
        _run([_cmake(), "-E", "tar", "xzf", f"../{name}.tar.gz"], part)
        (part / name).rename(folder / name)
    return folder / name / "vendor" / "llama.cpp"


def _build(build: Path, source: Path) -> None:
    note(f"building llama-server in {build}: this takes some minutes")
    build.mkdir(parents=True, exist_ok=True)
    options = [*_CMAKE, *shlex.split(os.environ.get("CMAKE_ARGS", ""))]
    _run([_cmake(), "-S", str(source), "-B", ".", *options], build)
    jobs = str(usable_cpus())
    _run([_cmake(), "--build", ".", "-j", jobs, "--target", "llama-server"], build)


def _cmake() -> str:
    found = shutil.which("cmake")
    if found is None:
        raise UsageError(
            "llama-server cannot be built: there is no cmake",
            "install it, or name a llama-server with --server",
        )
    return found


def _run(command: Sequence[str], folder: Path) -> None:
    """Run a command in a folder, its output on stderr. Raises UsageError if it fails."""
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=2, check=False
    )
    if done.returncode:
        raise UsageError(f"{shlex.join(command)} failed with {done.returncode}")
