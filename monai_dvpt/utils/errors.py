# SPDX-License-Identifier: Apache-2.0
"""One clear error for bad input, however deep in a config or a transform it was found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

__all__ = ["InputError", "naming", "reason", "report_input_errors", "root_cause"]


class InputError(ValueError):
    """Input that breaks a rule; the message names the file, the rule and the value."""

    named = False
    """Whether the message names its file, see :func:`naming`."""


@contextmanager
def naming(path: str | os.PathLike, outer: bool = False) -> Iterator[None]:
    """
    Puts the name of a file before the message of an :class:`InputError` that is raised inside.

    Args:
        path: the file.
        outer: whether also before one that names a file already, such as one in this folder.
    """
    try:
        yield
    except InputError as error:
        if outer or not error.named:
            error.args, error.named = (f"{os.fspath(path)}: {error}",), True
        raise


def root_cause(error: BaseException) -> BaseException:
    """The first :class:`InputError` in the chain of causes of ``error``, else the last cause."""
    while not isinstance(error, InputError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def reason(error: BaseException) -> str:
    """One line that says why ``error`` happened, without the wrappers that MONAI puts around it."""
    cause = root_cause(error)
    text = " ".join(str(cause).split())
    return text if isinstance(cause, InputError) else f"{type(cause).__name__}: {text}"


def report_input_errors() -> None:
    """
    From now on an uncaught error caused by an :class:`InputError` ends the process with its message alone, on
    standard error, instead of a traceback through MONAI's config parser; so does one of the file system, such as a
    folder that is read-only, which names the file. Called by the bundles' ``initialize``, so it also checks that the
    paths of the command line arrive as typed.

    Raises:
        InputError: if one does not.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = root_cause(error)
        if isinstance(cause, InputError):
            print(f"error: {reason(error)}", file=sys.stderr)
        elif isinstance(cause, OSError) and cause.filename is not None:
            print(f"error: {cause.filename}: {cause.strerror}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    from .typed import check_typed_paths  # which needs InputError

    sys.excepthook = hook
    check_typed_paths(sys.argv[1:])
