# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments, each with one message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from .errors import InputError

__all__ = ["as_bool", "check_counts", "is_number", "per_channel"]


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


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, and no truth value."""
    return type(value) in (int, float) and math.isfinite(value)


def per_channel(name: str, value: Any, channels: int, above: float = -math.inf) -> list[float]:
    """
    A number for each channel of an image.

    Args:
        name: the argument's name.
        value: one number for all channels, or one for each.
        channels: number of channels.
        above: what every number must be larger than.

    Raises:
        InputError: if ``value`` is something else.
    """
    values = [value] * channels if is_number(value) else value
    fits = isinstance(values, (list, tuple)) and len(values) == channels and all(map(is_number, values))
    if not fits or not min(values) > above:
        least = "" if above == -math.inf else f" above {above:g}"
        raise InputError(f"{name} must be a number{least}, or one for each of {channels} channels, got {value!r}.")
    return list(values)
