"""Which model: the first argument of a command, or -m."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from specgen.core.errors import UsageError
from specgen.core.text.encoding import text_of

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        help="Path of a GGUF file, or a name of `specgen list`. Default: smollm2-135m.",
        show_default=False,
    ),
]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        show_default=False,
        help="The model, as an option instead of the first argument.",
    ),
]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model, as the first argument or as an option."""

    model: ModelArgument = None
    model_option: ModelOption = None

    @property
    def name(self) -> str | None:
        """MODEL, None for the default. Raises UsageError if it was given in both ways."""
        return self.alone()

    def alone(self, hint: str = "leave out one of them") -> str | None:
        """The same, with a hint of the command's own for who gives an argument beside -m."""
        if self.model_option is not None and self.model is not None:
            raise UsageError(
                f"the model is given with -m, and there is an argument as well: '{self.model}'",
                hint,
            )
        return self.model if self.model_option is None else self.model_option

    def and_prompt(self, argument: str | None) -> tuple[str | None, str | None]:
        """MODEL and the prompt: behind -m the first argument is the prompt. Raises UsageError."""
        if self.model_option is None:
            return self.model, argument
        if argument is not None:
            raise UsageError(
                "with -m the only argument is the prompt, and there are two:"
                f" '{self.model}' and '{argument}'",
                "leave out -m or one of them; quote a prompt of several words",
            )
        # A path need not be text; a prompt is.
        text = None if self.model is None else text_of(self.model, "PROMPT")
        return self.model_option, text
