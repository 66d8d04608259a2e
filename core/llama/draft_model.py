"""A draft model: a smaller model with the same tokens, opened beside the one that it drafts for."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final

from specgen.core.config import ContextConfig
from specgen.core.errors import UsageError
from specgen.core.host.paths import path_text
from specgen.core.stop import ShouldStop, never

from .backend import LlamaBackend, LlamaModel

_DIFFERENT: Final = 0.01  # of the tokens that may differ: names of control tokens, say


def open_draft(
    path: Path,
    target: LlamaModel,
    context: ContextConfig,
    gpu_layers: int | None,
    stack: ExitStack,
    *,
    should_stop: ShouldStop = never,
) -> LlamaBackend:
    """A context of the model in `path` beside the `context` of the one that it drafts for.

    `stack` closes it. Raises ModelError, BackendError or Interrupted, and UsageError for a model
    that cannot draft for `target`. (Whatever it drafts, the text is the target's: a check spares
    time.)
    """
    model = LlamaModel(path, gpu_layers, should_stop)
    stack.callback(model.close)
    require_undo(path, is_stateful=model.is_recurrent or model.is_hybrid)
    share = target.vocab.different_share(model.vocab)
    if share > _DIFFERENT:
        raise UsageError(
            f"{path_text(path.name)} cannot draft: {share:.0%} of its tokens are not those of the"
            " model",
            "use a smaller model of the same family",
        )
    backend = LlamaBackend(model, context.for_draft_model(model.n_ctx_train), should_stop)
    stack.callback(backend.close)
    return backend


def require_undo(path: Path, *, is_stateful: bool) -> None:
    """Raise UsageError for a draft model with states, which cannot undo a guess."""
    if is_stateful:
        raise UsageError(
            f"{path_text(path.name)} cannot draft: a recurrent model cannot undo a guess",
            "use a draft model with attention alone",
        )
