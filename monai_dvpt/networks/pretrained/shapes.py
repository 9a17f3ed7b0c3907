# SPDX-License-Identifier: Apache-2.0
"""What readers of weights say of shapes: one error for those that no network has, and their usual form in messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from monai_dvpt.utils import InputError

__all__ = ["one_or_each", "shapes_of", "times"]


@contextmanager
def shapes_of(kind: str, look_for: Callable[[str], object] = str) -> Iterator[None]:
    """
    Context in which the tensors of a file are taken apart.

    Args:
        kind: of network.
        look_for: called with the name of a tensor that is missing; may raise an error that says where it is.

    Raises:
        InputError: if a tensor is missing, or has a shape that does not occur in networks of this kind.
    """
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        look_for(error.args[0])
        raise InputError(f"must have {error.args[0]}, under its name in {kind}.") from error
    except (IndexError, RuntimeError, ArithmeticError, TypeError, ValueError) as error:
        raise InputError(f"has tensors of shapes that no {kind} has: {error}") from error


def times(sides: int | Sequence[int]) -> str:
    """Such as 16, or 14x14x1."""
    return str(sides) if isinstance(sides, int) else "x".join(map(str, sides))


def one_or_each(sides: Sequence[int]) -> int | tuple[int, ...]:
    """One number if all sides are equal, else one for each."""
    return int(sides[0]) if len(set(sides)) == 1 else tuple(map(int, sides))
