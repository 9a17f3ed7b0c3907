# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments, each with one message."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["check_counts"]


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
