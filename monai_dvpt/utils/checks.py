# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments, each with one message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["as_bool", "check_counts"]


def as_bool(name: str, value: Any) -> bool:
    """
    A truth value, also as the "true" or "false" of MONAI's command line.

    Args:
        name: the argument's name.
        value: its value.

    Raises:
        ValueError: if ``value`` is something else.
    """
    if (text := str(value).lower()) not in ("true", "false"):
        raise ValueError(f"{name} must be true or false, got {value!r}.")
    return text == "true"


def check_counts(minimum: int = 1, **counts: int | Sequence[int]) -> None:
    """
    Args:
        minimum: smallest value allowed.
        counts: arguments by name, each a whole number or several.

    Raises:
        ValueError: if a value is not a whole number of at least ``minimum``.
    """
    for name, given in counts.items():
        for count in given if isinstance(given, Sequence) else (given,):
            if not isinstance(count, int) or isinstance(count, bool) or count < minimum:
                raise ValueError(f"{name} must be a whole number of at least {minimum}, got {given}.")
