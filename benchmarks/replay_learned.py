"""What learning from some recorded conversations is worth in others.

    python benchmarks/replay_learned.py MODEL.gguf RECORDING.jsonl [CURVE…]

The recording is one of `specgen bench --replay`. First all drafters learn, as earlier runs would
have, from the conversations whose question_id is a multiple of 4. Then those that leave 2 when
divided by 4 are replayed: cold, where the acceptance model goes along from one to the next, and
learned, where each begins with what was learnt and teaches the next nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from specgen.core.cost.model import CostModel, load_curve
from specgen.core.drafting.acceptance import AcceptanceModel, shipped_priors
from specgen.core.evaluation.replay import Recording, Tally, load_recordings, replay
from specgen.core.knowledge.learned import Learned
from specgen.core.llama.backend import open_vocab
from specgen.core.protocols import Drafter, Tokens
from specgen.drafters import AUTO, create, with_past

MAX_DRAFTS = 63
NOTHING = np.empty(0, np.int32)  # no past answers
PARTS = 4
LEARNT, MEASURED = 0, 2  # what is left of a question_id when divided by PARTS


def main(model: Path, file: Path, curves: Sequence[str]) -> None:
    """Print tokens per step and speed, cold and learned, under each curve."""
    recordings = load(model, file)
    past = {q: alike for q, alike in recordings.items() if q % PARTS == LEARNT}
    subject = [r for q, alike in recordings.items() if q % PARTS == MEASURED for r in alike]
    for name in curves:
        curve = load_curve(name)
        learned = learn(past, _drafters, curve, shipped_priors())
        acceptance = shipped_priors()
        cold, warm = Tally(), Tally()
        for recording in subject:
            _add(cold, recording, NOTHING, curve, acceptance)
            _add(warm, recording, learned.answers, curve, learned.acceptance.copy())
        for label, tally in (("cold", cold), ("learned", warm)):
            speed = f"{tally.tokens_per_step:.3f} tokens per step, {tally.speedup:.3f}x"
            print(f"{name} {label}: {speed}")


def load(model: Path, file: Path) -> Mapping[int, Sequence[Recording]]:
    """The conversations of a file by question_id, by default the line's number."""
    vocab = open_vocab(model)
    recordings = load_recordings(file, lambda t: vocab.tokenize(t, add_bos=False, special=False))
    lines = [line for line in enumerate(file.read_text("utf-8").splitlines(), 1) if line[1].strip()]
    found: dict[int, list[Recording]] = {}
    for (number, line), recording in zip(lines, recordings, strict=True):
        found.setdefault(int(json.loads(line).get("question_id", number)), []).append(recording)
    return found


def learn(
    recordings: Mapping[int, Sequence[Recording]],
    make: Callable[[Tokens], Sequence[Drafter]],
    curve: CostModel,
    acceptance: AcceptanceModel,
) -> Learned:
    """What runs that gave the recorded answers would have left behind, one after the other.

    Of the same question all answers are given before any is remembered, or it would look as if
    past answers were always right.

    Args:
        recordings: by question.
        make: new drafters, told the past answers.
        acceptance: what is known at the start; it goes on learning.
    """
    learned = Learned(acceptance)
    for _, alike in sorted(recordings.items()):
        for recording in alike:
            replay(recording, make(learned.answers), curve, learned.acceptance, MAX_DRAFTS)
        for recording in alike:
            for _, answer in recording.turns:
                learned.add(answer)
    return learned


def _drafters(answers: Tokens) -> Sequence[Drafter]:
    return with_past(create(AUTO), answers)


def _add(
    tally: Tally,
    recording: Recording,
    answers: Tokens,
    curve: CostModel,
    acceptance: AcceptanceModel,
) -> None:
    made = replay(recording, _drafters(answers), curve, acceptance, MAX_DRAFTS)
    for group in made.values():
        tally.add(group)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or ["cpu2"])
