# SPDX-License-Identifier: Apache-2.0
"""Limits of input that several readers share; ``docs/reference/limits.md`` lists all limits."""

from __future__ import annotations

import os

from .errors import InputError, naming

__all__ = [
    "MAX_FRAMES",
    "MAX_HEADER_BYTES",
    "MAX_ITEMS",
    "MAX_NAME",
    "MAX_TENSORS",
    "check_bytes",
    "check_file_bytes",
    "max_bytes",
]

VARIABLE = "MONAI_DVPT_MAX_BYTES"
DEFAULT = 2 << 30
MAX_FRAMES = 20_000
"""Most frames of one DICOM file."""
MAX_ITEMS = 200_000
"""Most items in all sequences of one DICOM file."""
MAX_TENSORS = 20_000
"""Most tensors of one file of weights."""
MAX_NAME = 512
"""Most characters of a tensor's name."""
MAX_HEADER_BYTES = 16 << 20
"""Most bytes of a file's description of its tensors: head, pickle or index, or a ``config.json``."""


def max_bytes() -> int:
    """
    Most memory for the values of one image, as float32, or the content of a compressed file: 2 GiB (512x512x2,048
    voxels), or the environment variable ``MONAI_DVPT_MAX_BYTES``.

    Raises:
        InputError: if the variable is not a whole number of at least 1.
    """
    text = os.environ.get(VARIABLE, str(DEFAULT))
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        with naming(VARIABLE):  # and no file
            raise InputError(f"must be a whole number of at least 1, got {text!r}.")
    return int(text)


def check_bytes(what: str, needed: int) -> None:
    """
    Every reader calls this before it takes memory.

    Args:
        what: subject of the error: what takes too much, such as a part of a file.
        needed: bytes to take.

    Raises:
        InputError: if that is more than :func:`max_bytes`.
    """
    if needed > (limit := max_bytes()):
        raise InputError(
            f"{what} must take at most {limit:,} bytes of memory, would take {needed:,}; {VARIABLE} sets the limit."
        )


def check_file_bytes(path: str | os.PathLike, what: str, needed: int) -> None:
    """
    As :func:`check_bytes`, but what takes no more memory than a file takes on disk always passes.

    Args:
        path: the file, named in no error.
        what: subject of the error.
        needed: bytes to take.

    Raises:
        InputError: if that is more than the file and :func:`max_bytes`.
    """
    status = os.stat(path)
    if needed > min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512):
        check_bytes(what, needed)
