"""What a tight memory budget costs in speed: two engines of one model, asked in turns.

One has what it takes by default, the other its plan with so much less for everything but the
weights. Each question is answered by both, one right after the other, so that whatever else
the machine does slows down both.

    python benchmarks/tight_memory.py [MODEL.gguf] [--less 65] [--rounds 5] [--tasks chat,summarize]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

from specgen.cli.prepare import Wanted, ensure_model, fitted
from specgen.core.config import EngineConfig
from specgen.core.engine import Engine
from specgen.core.evaluation.benchmark import Arm, Plan, measure_arms
from specgen.core.evaluation.tasks import Prompt, own_prompts
from specgen.core.knowledge.profile import find_profile
from specgen.core.memory.budget import FittedConfig
from specgen.core.protocols import Drafter, Tokens
from specgen.drafters import AUTO, create, fewer

N_PREDICT = 128
MIB = 1 << 20


@dataclass(frozen=True)
class Side:
    """An engine and the drafters that fit its memory."""

    engine: Engine
    fit: FittedConfig

    def answer(self, prompt: Prompt) -> Iterator[float]:
        """Seconds a token of each turn's answer."""
        names = fewer(AUTO) if self.fit.config.few_drafters else AUTO

        def drafters(prompt: Prompt, answers: Tokens) -> Sequence[Drafter]:
            return create(names) if self.fit.config.max_drafts else ()

        plan = Plan([prompt], [Arm(AUTO, drafters)], 1, N_PREDICT)
        for run in measure_arms(self.engine, plan):
            yield run.seconds / run.tokens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--less", type=float, default=65, help="percent of the memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", default="chat,summarize")
    asked = parser.parse_args()
    path = ensure_model(asked.model)
    prompts = [prompt for prompt in own_prompts() if prompt.task in asked.tasks.split(",")]
    with ExitStack() as stack:
        full = open_side(stack, path, None)
        needed = full.fit.plan.total - asked.less / 100 * full.fit.plan.generation
        tight = open_side(stack, path, f"{int(needed)}")
        for name, side in (("default", full), ("tight", tight)):
            plan, given_up = side.fit.plan, ", ".join(side.fit.concessions) or "nothing"
            print(
                f"{name}: {plan.total / MIB:.0f} MiB planned, {plan.generation / MIB:.0f} without"
                f" the weights; given up: {given_up}"
            )
        report(measure((full, tight), prompts, asked.rounds))


def open_side(stack: ExitStack, path: Path, budget: str | None) -> Side:
    """An engine within a budget, closed with `stack`."""
    config = EngineConfig()
    profile = find_profile(path, config)
    fit = fitted(Wanted(path, config, AUTO, budget), profile)
    return Side(stack.enter_context(Engine(path, (), fit.config, profile=profile)), fit)


def measure(
    sides: tuple[Side, Side], prompts: Sequence[Prompt], rounds: int
) -> dict[str, list[float]]:
    """By task: how fast the second is in terms of the first, for each answer that both gave."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for i, prompt in enumerate(prompts):
            first = (number + i) % 2
            times = {side: list(sides[side].answer(prompt)) for side in (first, 1 - first)}
            ratios[prompt.task] += [a / b for a, b in zip(times[0], times[1], strict=False)]
    return ratios


def report(ratios: dict[str, list[float]]) -> None:
    """Medians, with the range that 95 % of resamplings give."""
    everything = {"all": [ratio for found in ratios.values() for ratio in found]}
    for task, found in (ratios | everything).items():
        random = Random(0)
        draws = sorted(median(random.choices(found, k=len(found))) for _ in range(2000))
        low, high = draws[50], draws[-51]
        print(f"{task}: {median(found):.3f} of the speed, {low:.3f} to {high:.3f} ({len(found)})")


if __name__ == "__main__":
    main()
