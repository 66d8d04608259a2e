"""Write core/drafting/priors.json: what guesses turned out to be worth, for models yet unknown.

    python benchmarks/make_priors.py MODEL.gguf PROMPTS.jsonl…

Each line of PROMPTS has `turns`, a list of messages, and may have `question_id`. The model
answers greedily, with all drafters and trees as on a machine where drafts are neither cheap nor
dear. What is counted by tokens is left out of the file: it belongs to one vocabulary. So are the
weights of drafters that agree: they are those of one machine, where others rest than elsewhere.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from specgen.core.config import EngineConfig
from specgen.core.cost.model import load_curve
from specgen.core.drafting.acceptance import AcceptanceModel
from specgen.core.drafting.builder import Builder
from specgen.core.drafting.speculator import Speculator
from specgen.core.engine import Engine
from specgen.core.generation import Generation
from specgen.core.knowledge.learned import Learned
from specgen.core.sampling import Sampler, SamplingParams
from specgen.core.session import Session
from specgen.core.text.stream import TextStream
from specgen.drafters import AUTO
from specgen.drafters.ensemble import ensemble

CURVE = "mi50"
MAX_DRAFTS = 16
ANSWER = 128  # tokens


def main(model: Path, files: list[Path]) -> None:
    """Answer all prompts, learn, and write."""
    learned = Learned(AcceptanceModel())
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    config = EngineConfig(n_ctx=4096, flash_attention=True, max_drafts=MAX_DRAFTS)
    with Engine(model, ensemble("none"), config) as engine:
        for number, line in enumerate(lines, start=1):
            print(f"\r{number}/{len(lines)}", end="", file=sys.stderr, flush=True)
            for answer in _answers(engine, json.loads(line)["turns"], learned):
                learned.add(answer)
    record = learned.acceptance.record(lambda key: isinstance(key[0], tuple))
    record["weights"] = []
    record["buckets"].sort(key=str)
    target = Path(__file__).parents[1] / "core" / "drafting" / "priors.json"
    target.write_text(json.dumps(record, separators=(",", ":")).replace("],[[", "],\n[[") + "\n")
    print(f"\n{len(record['buckets'])} buckets: {target}")


def _answers(engine: Engine, turns: list[str], learned: Learned) -> list[list[int]]:
    """Tokens of the answers to one conversation."""
    builder = Builder(
        engine.backend.limits,
        MAX_DRAFTS,
        acceptance=learned.acceptance,
        pricing=load_curve(CURVE),
    )
    drafters = ensemble(AUTO, answers=learned.answers)
    session = Session(engine.backend, Speculator(builder, drafters))
    engine.backend.rewind(0)
    conversation = engine.conversation()
    answers = []
    for turn in turns:
        prompt = conversation.ask(turn)
        sampler = Sampler(SamplingParams(temperature=0), engine.vocab.n_vocab)
        stream = TextStream(engine.vocab, ())
        generation = Generation(session, stream, prompt, sampler, ANSWER, None)
        for _ in generation:
            pass
        conversation.answer(generation.text, prompt, generation.tokens)
        answers.append(generation.tokens)
    return answers


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
