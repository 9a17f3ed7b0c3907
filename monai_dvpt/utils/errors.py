# SPDX-License-Identifier: Apache-2.0
"""One clear error for bad input, from any depth of a config or transform."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["InputError", "naming", "naming_argument", "reason", "root_cause"]

Function = TypeVar("Function", bound=Callable[..., Any])


class InputError(ValueError):
    """Input that breaks a rule; the message names the file, the rule and the value."""

    named = False
    """Whether :func:`naming` named the file in the message."""


@contextmanager
def naming(path: str | os.PathLike, outer: bool = False) -> Iterator[None]:
    """
    Puts the name of a file before the message of an :class:`InputError` from inside.

    Args:
        path: the file.
        outer: whether also before a message that already names a file, such as one in this folder.
    """
    try:
        yield
    except InputError as error:
        if outer or not (error.named or str(error).startswith(f"{os.fspath(path)}: ")):
            error.args, error.named = (f"{os.fspath(path)}: {error}",), True
        raise


def naming_argument(name: str) -> Callable[[Function], Function]:
    """Decorator: runs a function in :func:`naming` of the path that it gets as argument ``name``."""

    def decorate(function: Function) -> Function:
        bind = inspect.signature(function).bind

        @functools.wraps(function)
        def named(*args: Any, **kwargs: Any) -> Any:
            with naming(bind(*args, **kwargs).arguments[name]):
                return function(*args, **kwargs)

        return named  # type: ignore[return-value]

    return decorate


def root_cause(error: BaseException) -> BaseException:
    """The first :class:`InputError` in the chain of causes of ``error``, else the last cause."""
    while not isinstance(error, InputError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def reason(error: BaseException) -> str:
    """Why ``error`` happened, in one line without MONAI's wrappers."""
    cause = root_cause(error)
    text = " ".join(str(cause).split())
    return text if isinstance(cause, InputError) else f"{type(cause).__name__}: {text}"
