"""What a generation looks like: text on stdout, a line of figures on stderr, or one JSON object."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from specgen import __version__
from specgen.core.engine import Engine
from specgen.core.errors import SpecgenError
from specgen.core.generation import Generation
from specgen.core.host.paths import path_text
from specgen.core.host.process_memory import peak_bytes
from specgen.core.logprobs import RecordingSampler
from specgen.core.memory.plan import memory_text
from specgen.core.protocols import Vocab

from .terminal import write

# How core's reasons are called in OpenAI's and llama.cpp's JSON.
_FINISH = {"eog": "stop", "stop": "stop", "length": "length", "context": "length", None: "abort"}


class PromptProgress:
    """Shows on a terminal's stderr how much of a long prompt is processed, while entered."""

    def __init__(self) -> None:
        self._shown = ""

    def __enter__(self) -> PromptProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._show("")

    def __call__(self, done: int, total: int) -> None:
        self._show(f"prompt: {done}/{total} tokens" if done < total else "")

    def _show(self, line: str) -> None:
        if sys.stderr.isatty() and (line or self._shown):
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
            self._shown = line


def end_text() -> None:
    """End the last line of a text on stdout, on a terminal only: a file has the text alone."""
    if sys.stdout.isatty():
        write("\n")


def stats_line(generation: Generation, engine: Engine | None = None) -> str:
    """One line about a generation, in llama.cpp's terms, and about the memory of its engine."""
    stats = generation.stats
    n_prompt = len(generation.prompt) - generation.reused
    speed = n_prompt / generation.prefill_s if generation.prefill_s else 0.0
    guesses = f"accepted {_share(stats.accepted, stats.drafted)}" if stats.drafted else "no drafts"
    parts = [
        f"{stats.tokens} tokens, {stats.tokens_per_s:.1f} t/s",
        f"first token {1e3 * generation.first_token_s:.0f} ms"
        f" (prompt {len(generation.prompt)} @ {speed:.0f} t/s, {generation.reused} cached)",
        f"{stats.tokens_per_step:.2f} tokens/step, {guesses}",
    ]
    parts += [
        f"{name} {_share(stats.accepted_by[name], drafted)}"
        for name, drafted in sorted(stats.drafted_by.items())
    ]
    parts.append(f"seed {generation.sampler.seed}")
    if engine and engine.planned:
        peak, most = memory_text(peak_bytes()), memory_text(engine.planned.total)
        parts.append(f"memory {peak} of {most} planned")
        if engine.device_bytes:
            taken, most = memory_text(engine.device_bytes), memory_text(engine.planned.device)
            parts.append(f"on GPUs {taken} of {most} planned")
    return "[specgen] " + " | ".join(parts)


def _share(accepted: int, drafted: int) -> str:
    return f"{accepted}/{drafted} ({100 * accepted / drafted:.0f}%)"


def write_json(engine: Engine, generation: Generation, error: SpecgenError | None) -> None:
    """The generation as one line of JSON on stdout: OpenAI's fields, llama.cpp's timings."""
    record = _record(engine, generation)
    if error:
        record["error"] = {"code": error.code, "message": error.message}
        if generation.finish is None:
            record["choices"][0]["finish_reason"] = "error"
    write(json.dumps(record, ensure_ascii=False) + "\n")


def _record(engine: Engine, generation: Generation) -> dict[str, Any]:
    stats = generation.stats
    reason = generation.stop_string if generation.finish == "stop" else generation.finish
    return {
        "object": "text_completion",
        "model": path_text(engine.path.name),
        "choices": [
            {
                "index": 0,
                "text": generation.text,
                "logprobs": _logprobs(engine.vocab, generation),
                "finish_reason": _FINISH[generation.finish],
                "stop_reason": reason,
            }
        ],
        "usage": {
            "prompt_tokens": len(generation.prompt),
            "completion_tokens": stats.tokens,
            "total_tokens": len(generation.prompt) + stats.tokens,
            "prompt_tokens_details": {"cached_tokens": generation.reused},
            "completion_tokens_details": {
                "accepted_prediction_tokens": stats.accepted,
                "rejected_prediction_tokens": stats.drafted - stats.accepted,
            },
        },
        "timings": _timings(generation),
        "specgen": {
            "version": __version__,
            "seed": generation.sampler.seed,
            "load_ms": _ms(engine.load_s),
            "first_token_ms": _ms(generation.first_token_s),
            "memory": {
                "planned": engine.planned and engine.planned.total,
                "peak": peak_bytes(),
                "planned_device": engine.planned and engine.planned.device,
                "device": engine.device_bytes,
            },
            "steps": stats.steps,
            "tokens_per_step": round(stats.tokens_per_step, 3),
            "host_ms_per_step": _ms(stats.host_s_per_step),
            "by_drafter": {
                name: {"drafted": drafted, "accepted": stats.accepted_by[name]}
                for name, drafted in sorted(stats.drafted_by.items())
            },
        },
    }


def _logprobs(vocab: Vocab, generation: Generation) -> dict[str, Any] | None:
    """One entry for each emitted token, shown or not; None if the sampler took nothing down."""
    sampler = generation.sampler
    if not isinstance(sampler, RecordingSampler):
        return None
    recorded = sampler.recorded[: len(generation.tokens)]  # without those of a step that failed
    return {
        "content": [
            {
                **_token(vocab, entry.token, entry.logprob),
                "top_logprobs": [_token(vocab, *likely) for likely in entry.top],
            }
            for entry in recorded
        ]
    }


def _token(vocab: Vocab, token: int, logprob: float) -> dict[str, Any]:
    """A token by its name and by the bytes that it adds to a text: control tokens add none."""
    return {
        "token": vocab.piece(token, special=True).decode("utf-8", "replace"),
        "id": token,
        "bytes": list(vocab.piece(token)),
        "logprob": logprob if math.isfinite(logprob) else None,  # JSON has no infinity
    }


def _timings(generation: Generation) -> dict[str, Any]:
    stats = generation.stats
    n_prompt = len(generation.prompt) - generation.reused
    return {
        "cache_n": generation.reused,
        "prompt_n": n_prompt,
        "prompt_ms": _ms(generation.prefill_s),
        "predicted_n": stats.tokens,
        "predicted_ms": _ms(stats.total_s),
        "predicted_per_second": round(stats.tokens_per_s, 2),
        "draft_n": stats.drafted,
        "draft_n_accepted": stats.accepted,
    }


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)
