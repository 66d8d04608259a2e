"""specgen: faster local text generation with train-free speculative decoding.

    import specgen

    with specgen.load() as model:
        print(model.generate("Once upon a time", max_tokens=40).text)

The package is put together from three folders: `core` (tokens, trees, sessions, text),
`drafters` (one drafting algorithm a file) and `cli` (the commands); `api.py` is what Python
programs use.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself is not imported before signals are heard
if TYPE_CHECKING:
    from typing import Any

    from .api import Model, Result, Stream, load

__version__ = "0.1.0"
__all__ = ["Model", "Result", "Stream", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """The API is imported when it is used: the command shows its help without it."""
    if name in ("Model", "Result", "Stream", "load"):
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
