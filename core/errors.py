"""Every error that specgen raises on purpose, and the exit code that each one means.

    SpecgenError            1   something failed while running
    ├── UsageError          2   a bad option, argument or input
    ├── ModelError          3   the model is missing, damaged, or not one we can run
    │   └── PullError       3   a catalogue model could not be fetched
    ├── MemoryBudgetError   4   the model does not fit the memory budget, or that the machine
    ├── ContextFull         5   the text does not fit the context (`context_length_exceeded`)
    └── BackendError        1   llama.cpp refused or failed

A message says what, which value and which limit; the hint says what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class SpecgenError(Exception):
    """Base of the tree: one line for the user, one hint, one exit code."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "runtime_error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SpecgenError):
    """An option, argument or input that cannot be used as given."""

    exit_code = 2
    code = "invalid_request"


class ModelError(SpecgenError):
    """The model file is missing, unreadable, damaged or unsupported."""

    exit_code = 3
    code = "model_error"


class PullError(ModelError):
    """A catalogue model could not be fetched or did not match its checksum."""

    code = "pull_error"


class MemoryBudgetError(SpecgenError):
    """The model cannot run within the memory budget, or the machine has not so much."""

    exit_code = 4
    code = "memory_budget_exceeded"


class ContextFull(SpecgenError):
    """The tokens do not fit the context; nothing was cut to make them fit."""

    exit_code = 5
    code = "context_length_exceeded"


class BackendError(SpecgenError):
    """llama.cpp returned an error."""

    code = "backend_error"
