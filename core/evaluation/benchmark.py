"""The live benchmark: the same prompts plainly and with drafters, in turns, in one loaded model.

Load on the machine comes and goes, so what is compared runs one right after the other, and who
goes first changes with every prompt. Nothing is carried from one conversation to the next, but
for arms that are to be warm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from specgen.core.drafting.acceptance import shipped_priors
from specgen.core.engine import Engine
from specgen.core.errors import ContextFull
from specgen.core.generation import Generation
from specgen.core.host.process_memory import peak_bytes, reset_peak
from specgen.core.knowledge.learned import Learned
from specgen.core.protocols import Drafter, Tokens
from specgen.core.sampling import Sampler

from .results import Run
from .tasks import Prompt

_WARM_UP: Final = 8  # so many tokens are generated before anything counts
_SEEDS: Final = 1000  # seeds of two prompts are so far apart: more than anybody makes repetitions


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of decoding that is compared.

    Attributes:
        name: as it is shown.
        drafters: makes new ones for a prompt, told the tokens of past answers.
        warm: whether what specgen learns from a conversation, its answers included, is there in
            the next one, as between runs of a user. It starts anew with each repetition, or
            answers would only be recited.
        strict: whether calls are padded, see strict.WidthClass.
    """

    name: str
    drafters: Callable[[Prompt, Tokens], Sequence[Drafter]]
    warm: bool = False
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        prompts: conversations, each had with each arm.
        arms: plain decoding first.
        repetitions: of the whole.
        n_predict: most tokens of an answer.
    """

    prompts: Sequence[Prompt]
    arms: Sequence[Arm]
    repetitions: int
    n_predict: int

    @property
    def n_turns(self) -> int:
        """Answers that will be given."""
        turns = sum(len(prompt.turns) for prompt in self.prompts)
        return turns * len(self.arms) * self.repetitions


def answers_by_task(prompts: Sequence[Prompt], repetitions: int) -> Counter[str]:
    """How many answers each way of decoding will give, by task as runs name it."""
    turns = ((p, turn) for p in prompts for turn in range(1, len(p.turns) + 1))
    return Counter(task_name(prompt, turn) for prompt, turn in turns for _ in range(repetitions))


def task_name(prompt: Prompt, turn: int) -> str:
    """Turns of a conversation, counted from 1, are tasks of their own."""
    return prompt.task if len(prompt.turns) == 1 else f"{prompt.task} turn {turn}"


def measure_arms(
    engine: Engine, plan: Plan, check: Callable[[], None] = lambda: None
) -> Iterator[Run]:
    """A run for each answer, as it is given. `check` is called often, and may raise to stop.

    A conversation that fills the context ends there, without its last answer.
    """
    for arm in (plan.arms[0], plan.arms[-1]):
        for _ in _converse(engine, replace(plan, n_predict=_WARM_UP), 0, arm, 0, None, check):
            break
    for repetition in range(plan.repetitions):
        learned = [Learned(shipped_priors()) if arm.warm else None for arm in plan.arms]
        for number in range(len(plan.prompts)):
            for i in range(len(plan.arms)):
                turn = (i + number + repetition) % len(plan.arms)
                yield from _converse(
                    engine, plan, number, plan.arms[turn], repetition, learned[turn], check
                )


def _converse(
    engine: Engine,
    plan: Plan,
    number: int,
    arm: Arm,
    repetition: int,
    learned: Learned | None,
    check: Callable[[], None],
) -> Iterator[Run]:
    """All turns of one prompt with one arm."""
    prompt = plan.prompts[number]
    answers = learned.answers if learned else np.zeros(0, np.int32)
    engine.renew(arm.drafters(prompt, answers), learned, strict=arm.strict)
    params = replace(prompt.sampling, seed=number * _SEEDS + repetition)
    sampler = Sampler(params, engine.vocab.n_vocab)
    ask = asking(engine)
    for turn, text in enumerate(prompt.turns, start=1):
        reset_peak()
        tokens, keep = ask(text)
        generation = engine.generate(
            tokens, sampler, max_tokens=plan.n_predict, on_chunk=lambda *_: check()
        )
        try:
            for _ in generation:
                check()
        except ContextFull:
            return
        keep(generation)
        engine.keep(generation)
        yield _run(generation, task_name(prompt, turn), (number, turn, repetition), arm.name)


Ask = Callable[[str], tuple[list[int], Callable[[Generation], None]]]


def asking(engine: Engine) -> Ask:
    """Gives the tokens that ask a text, and what is to be done with the answer.

    A model without a chat template continues the text of the conversation so far.
    """
    if engine.model.chat_template() is not None:
        conversation = engine.conversation()

        def ask(text: str) -> tuple[list[int], Callable[[Generation], None]]:
            tokens = conversation.ask(text)
            return tokens, lambda g: conversation.answer(g.text, tokens, g.tokens)

        return ask
    said: list[int] = []

    def go_on(text: str) -> tuple[list[int], Callable[[Generation], None]]:
        said.extend(engine.vocab.tokenize(text, add_bos=not said, special=False))
        return list(said), lambda g: said.extend(g.tokens)

    return go_on


def _run(generation: Generation, task: str, asked: tuple[int, int, int], arm: str) -> Run:
    stats = generation.stats
    prompt, turn, repetition = asked
    return Run(
        task=task,
        prompt=prompt,
        turn=turn,
        repetition=repetition,
        drafter=arm,
        tokens=stats.tokens,
        seconds=stats.total_s,
        first_token_s=generation.first_token_s,
        steps=stats.steps,
        nodes=stats.nodes,
        drafted=stats.drafted,
        accepted=stats.accepted,
        host_s=stats.total_s - stats.score_s,
        context=len(generation.prompt) + stats.tokens // 2,
        peak_bytes=peak_bytes(),
        accepted_by=dict(stats.accepted_by),
        sizes=dict(stats.sizes),
        reached=dict(stats.reached),
        offered=dict(stats.offered),
    )
