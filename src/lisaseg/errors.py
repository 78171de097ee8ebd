"""Every error that lisaseg raises on purpose.

Each message has three parts in one or two sentences: what was wrong, where, and what to do next. `code` is stable: programs may compare it, people
may search for it. `exit_code` is what the command line returns.

    LisaSegError
    |- InputError            exit 2   the caller gave something that cannot be used
    |  |- ImageError                  the picture (codes image_*, corrupt_image, truncated_image, unsupported_format, ...)
    |  |- InstructionError            the text (prompt_empty, prompt_too_long, ...)
    |  |- DataError                   a data set or annotation file: names file, line and field
    |  `- UsageError                  options that do not fit together, unknown names
    |- ModelLoadError        exit 3   the model could not be found, fetched or loaded completely
    |- TrainingError         exit 2   a run cannot start or go on
    `- ServiceError          exit 3   a server (`lisaseg.Client`) cannot be reached, refuses or fails
"""

from __future__ import annotations

from typing import Any


class LisaSegError(Exception):
    """Base of all lisaseg errors.

    Args:
        message: what was wrong and where.
        next_step: what the reader should do; it ends the printed message.
        code: stable machine-readable name, snake_case.
    """

    code = "internal"
    exit_code = 2

    def __init__(self, message: str, *, next_step: str, code: str | None = None) -> None:
        self.message = message.rstrip()
        self.next_step = next_step.rstrip()
        if code is not None:
            self.code = code
        super().__init__(f"{self.message} {self.next_step}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes (data workers) whole."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[LisaSegError], args: tuple[Any, ...], values: dict[str, Any]) -> LisaSegError:
    error = kind.__new__(kind)  # not its __init__: subclasses may want other arguments
    error.args = args
    error.__dict__.update(values)
    return error


class InputError(LisaSegError):
    """The caller gave something that cannot be used."""

    code = "invalid_input"


class ImageError(InputError):
    """The picture cannot be used."""

    code = "corrupt_image"


class InstructionError(InputError):
    """The instruction cannot be used."""

    code = "prompt_empty"


class DataError(InputError):
    """A data set or annotation file is wrong; the message names file, line and field."""

    code = "bad_data"


class UsageError(InputError):
    """Options that do not fit together, or a name that is not known."""

    code = "usage"


class ModelLoadError(LisaSegError):
    """The model could not be found, fetched or loaded completely."""

    code = "model_load"
    exit_code = 3


class TrainingError(LisaSegError):
    """A training run cannot start or go on."""

    code = "training"


class ServiceError(LisaSegError):
    """A lisaseg server cannot be reached, refuses or fails; codes as in its error catalogue, or `unreachable`, `unexpected_response`."""

    code = "unreachable"
    exit_code = 3
