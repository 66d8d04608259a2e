"""Folders of the user's that specgen keeps files in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from specgen.core.errors import UsageError

_WHAT = {"cache": "what is kept between runs", "data": "models"}


def user_folder(kind: Literal["cache", "data"], variable: str) -> Path:
    """The folder that the environment variable names, or specgen's among the user's of a kind.

    Raises UsageError where it is in a home folder that nobody knows: of a process without HOME
    whose user the system does not know, as in containers, or of a user that there is not.
    """
    given = os.environ.get(variable, "")
    try:
        return (Path(given) if given else _default(kind)).expanduser()
    except RuntimeError:
        hint = f"set {variable} to a folder"
        if given:
            message = f"{variable} is '{given}', and there is no such home folder"
            raise UsageError(message, hint) from None
        raise UsageError(
            f"the folder of {_WHAT[kind]} is not known: there is no home folder",
            f"set HOME, or {hint}",
        ) from None


def _default(kind: Literal["cache", "data"]) -> Path:
    import platformdirs  # here, since few commands need it

    if kind == "cache":
        return platformdirs.user_cache_path("specgen")
    return platformdirs.user_data_path("specgen")
