# SPDX-License-Identifier: Apache-2.0
"""What a file is, by what is in it: its name decides nothing."""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path

from monai_dvpt.utils import InputError

__all__ = ["check_regular", "file_kind", "is_regular"]

START = 1024
"""Bytes that are looked at; a header of NIfTI-2 has 540."""
NIFTI_1, NIFTI_2 = 348, 540
MAGIC = {b"n+1\0": "nifti", b"ni1\0": "nifti pair"}
MAGIC_2 = {b"n+2\0": "nifti", b"ni2\0": "nifti pair"}


def is_regular(path: str | os.PathLike) -> bool:
    """Whether a path is a file that can be read to its end, or a link to one: no pipe, socket, device or folder."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def check_regular(path: str | os.PathLike) -> None:
    """
    Raises:
        InputError: if the path is no regular file, or a link to something else.
    """
    if not is_regular(path):
        raise InputError(f"{os.fspath(path)!s}: must be an existing file, and a regular one.")


def file_kind(path: str | os.PathLike) -> str:
    """
    Args:
        path: any path.

    Returns:
        "nifti" (a file of its own, NIfTI-1 or NIfTI-2, compressed or not), "nifti pair" (the header of a pair),
        "analyze" (a header of Analyze 7.5, which does not say how an image lies), "nrrd", "metaimage", "png", "jpeg" or
        "dicom" (with the preamble of PS3.10); "" of anything else and of what cannot be read.
    """
    if not is_regular(path):
        return ""
    try:
        with open(path, "rb") as file:
            start = _inflated(file.read(START))
    except OSError:
        return ""
    for order in ("little", "big"):
        size = int.from_bytes(start[:4], order)
        if size == NIFTI_1 and len(start) >= NIFTI_1:
            return MAGIC.get(start[344:348], "analyze")
        if size == NIFTI_2 and start[4:8] in MAGIC_2:
            return MAGIC_2[start[4:8]]
    if start[128:132] == b"DICM":
        return "dicom"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"NRRD000"):
        return "nrrd"
    lines = [line.partition(b"=")[0].strip() for line in start.split(b"\n")[:4]]
    return "metaimage" if b"ObjectType" in lines or b"NDims" in lines else ""


def _inflated(start: bytes) -> bytes:
    if not start.startswith(b"\x1f\x8b"):
        return start
    try:
        return zlib.decompressobj(31).decompress(start, START)
    except zlib.error:
        return b""


def nifti_image_of(header: Path) -> Path | None:
    """The file with the values of a pair, beside its header: ``.img`` or ``.img.gz``, in upper or lower case."""
    stem = header.name[: header.name.lower().rfind(".hdr")]
    names = [path for path in header.parent.iterdir() if path.name.startswith(stem)]
    return next((path for path in names if path.name[len(stem) :].lower() in (".img", ".img.gz")), None)
