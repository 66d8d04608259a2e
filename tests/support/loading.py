"""Loads damaged models and writes a few words with each, one process a model, as users would.

usage: python -m tests.support.loading FOLDER ARCHITECTURE SEED N

Each line on stdout is what became of one of N models that pass the plan: exit code (or minus the
signal), and what was written to stderr. Files that ended by a signal are kept in FOLDER.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from specgen.cli.main import main
from specgen.core.config import EngineConfig
from specgen.core.engine import Engine  # noqa: F401  # before the fork: imports take time
from specgen.core.errors import SpecgenError
from specgen.core.llama.door import judged
from specgen.core.memory.budget import PlanInputs, fit
from specgen.core.models.modelinfo import ModelInfo, read_headers

from .mutations import Model, mutated
from .tiny import write_tiny

_BUDGET = 400 << 20  # bytes
_MOST_ADDRESSES = 12 << 30  # bytes; a header may make llama.cpp ask for more than there is
_LONGEST_S = 30  # only a hang takes as long
_PROMPT = "he was the <s> one. 12\n\u00e9"


def passes_the_plan(path: Path) -> bool:
    """Whether specgen would go on to load the model."""
    try:
        headers = read_headers(path)
        info = judged(ModelInfo.from_headers(headers))
        info.require_runnable()
        fit(
            PlanInputs(headers, info, frozenset(), lambda n_ctx, few: 1 << 20),
            EngineConfig(),
            _BUDGET,
        )
    except SpecgenError:
        return False
    return True


def load(path: Path) -> tuple[int, str]:
    """Exit code and stderr of `specgen generate` in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _generate(path, writer)
    os.close(writer)
    with open(reader, "rb") as stream:
        said = stream.read().decode("utf-8", "replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def _generate(path: Path, stderr: int) -> None:
    os.dup2(stderr, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 0)
    signal.alarm(_LONGEST_S)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESSES, _MOST_ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    options = ("-n", "4", "-t", "1", "--greedy", "--no-learn", "--memory-budget", str(_BUDGET))
    sys.argv = ["specgen", "generate", str(path), _PROMPT, *options]
    code: Any = 70
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        os._exit(code)


def run(folder: Path, architecture: Any, seed: int, n: int) -> None:
    """Damage a tiny model in `n` ways that pass the plan, and load each."""
    rng = random.Random(seed)
    path = folder / f"{architecture}-{seed}.gguf"
    model = Model.read(write_tiny(path, architecture))
    done = 0
    while done < n:
        mutated(model, rng).write(path)
        if not passes_the_plan(path):
            continue
        code, said = load(path)
        print(json.dumps([code, said]), flush=True)
        if code < 0:
            path.rename(folder / f"{architecture}-{seed}-{done}.gguf")
        done += 1


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
