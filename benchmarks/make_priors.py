"""Write core/priors.json: what guesses were worth in recorded answers, for models yet unknown.

    python benchmarks/make_priors.py VOCABULARY.gguf RECORDING…

Recordings as for `specgen bench --replay`. What is counted by tokens is left out: it belongs to
one vocabulary.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from specgen.core.calibrate import Calibrator
from specgen.core.cost import load_curve
from specgen.core.llama import open_vocab
from specgen.core.protocols import Drafter, Tokens
from specgen.core.replay import learn, load_recordings
from specgen.drafters import AUTO, create, with_past

CURVES = ("cpu2", "mi50", "flat")
MAX_DRAFTS = 63
BY_TOKEN = (1, 2)  # first entries of the keys that name tokens, see Calibrator.guess


def main(vocabulary: Path, files: list[Path]) -> None:
    """Learn from all files under all curves."""
    vocab = open_vocab(vocabulary)
    tokenize = partial(vocab.tokenize, add_bos=False, special=False)
    calibrator = Calibrator()
    recordings = [recording for file in files for recording in load_recordings(file, tokenize)]
    for curve in CURVES:
        learn(recordings, _drafters, load_curve(curve), MAX_DRAFTS, calibrator)
    record = calibrator.record(lambda key: key[0] not in BY_TOKEN)
    target = Path(__file__).parents[1] / "core" / "priors.json"
    for part in record.values():
        part.sort(key=str)
    target.write_text(json.dumps(record, separators=(",", ":")).replace("],[[", "],\n[[") + "\n")
    print(f"{len(record['buckets'])} buckets, {len(record['weights'])} weights: {target}")


def _drafters(answers: Tokens) -> tuple[Drafter, ...]:
    return with_past(create(AUTO), answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
