# SPDX-License-Identifier: Apache-2.0
"""The limits of everything that is read from a file or a network, each stated once; ``docs/reference/limits.md``."""

from __future__ import annotations

import os

from .errors import InputError

__all__ = ["MAX_FRAMES", "MAX_HEADER_BYTES", "MAX_ITEMS", "MAX_NAME", "MAX_TENSORS", "check_bytes", "max_bytes"]

VARIABLE = "MONAI_DVPT_MAX_BYTES"
DEFAULT = 2 << 30
MAX_FRAMES = 20_000
"""Most frames of one DICOM file."""
MAX_ITEMS = 200_000
"""Most items in all the sequences of one DICOM file."""
MAX_TENSORS = 20_000
"""Most tensors of one file of weights."""
MAX_NAME = 512
"""Most characters of the name of a tensor."""
MAX_HEADER_BYTES = 16 << 20
"""Most bytes of what describes the tensors of a file: its head, pickle or index, or a ``config.json``."""


def max_bytes() -> int:
    """
    Most memory that the values of one image, as float32, or what a compressed file holds may take: 2 GiB, which is
    512x512x2,048 voxels, or what the environment variable ``MONAI_DVPT_MAX_BYTES`` says.

    Raises:
        InputError: if the variable is not a whole number of at least 1.
    """
    text = os.environ.get(VARIABLE, str(DEFAULT))
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"{VARIABLE} must be a whole number of at least 1, got {text!r}.")
    return int(text)


def check_bytes(what: str, needed: int) -> None:
    """
    Called before memory is taken, by every reader.

    Args:
        what: subject of the error: a file, and what of it is too large.
        needed: bytes that would be taken.

    Raises:
        InputError: if that is more than :func:`max_bytes`.
    """
    if needed > (limit := max_bytes()):
        raise InputError(
            f"{what} must take at most {limit:,} bytes of memory, would take {needed:,}; {VARIABLE} sets the limit."
        )
