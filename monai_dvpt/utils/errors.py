# SPDX-License-Identifier: Apache-2.0
"""One clear error for bad input, however deep in a config or a transform it was found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["InputError", "naming", "reason", "root_cause"]


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
