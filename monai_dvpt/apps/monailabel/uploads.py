# SPDX-License-Identifier: Apache-2.0
"""Files that come with a request: an image or a label that our readers read, by name and by content, or not kept."""

from __future__ import annotations

import gzip
import math
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import UploadFile

from monai_dvpt.transforms import LoadImage2D, LoadVolume
from monai_dvpt.utils import InputError, check_bytes, reason

__all__ = ["check_image", "check_label", "check_type"]

VOLUMES = (".nii.gz", ".nii", ".nrrd")
PICTURES = (".png", ".jpg", ".jpeg")
MAX_HEADER = 1 << 20
"""Bytes of the header of an NRRD file."""


def check_type(upload: UploadFile, kind: str, types: Iterable[str]) -> str:
    """
    Gives an upload the name of its kind, since that of its sender may be a path or name a patient.

    Args:
        upload: the file.
        kind: what it is, for a refusal and as its name.
        types: endings of names there may be.

    Returns:
        the ending.

    Raises:
        InputError: if the name of the file has none of them, it holds more than may be read, or it is an NRRD file that
            names another file.
    """
    name, known = (upload.filename or "").lower(), list(types)
    found = next((ending for ending in known if name.endswith(ending)), None)
    if found is None:
        raise InputError(f"{kind} must be a file of the type {', '.join(known)}.")
    if found == ".nrrd":
        _check_nrrd(upload, kind)
    if found == ".nii.gz":
        _check_inflated(upload, kind)
    upload.filename = f"{kind}{'.jpg' if found == '.jpeg' else found}"
    return found


def check_image(upload: UploadFile, dimensions: Iterable[int]) -> None:
    """
    Args:
        upload: the file.
        dimensions: of the images of the models that are served, 2 or 3.

    Raises:
        InputError: if no reader of those reads it.
    """
    loaders: dict[int, Any] = {3: LoadVolume(), 2: LoadImage2D()}
    wanted = sorted(set(dimensions), reverse=True)
    check_type(upload, "image", [*VOLUMES, *(PICTURES if 2 in wanted else ())])
    with _copy_of(upload) as path:
        why = ""
        for dimension in wanted:
            try:
                loaders[dimension](str(path))
                return
            except InputError as error:
                why = why or reason(error).replace(str(path), "the image that was sent")
        raise InputError(why)


def check_label(upload: UploadFile, beside_pacs: bool) -> None:
    """
    Checks the type; the datastore checks that the label lies on its image.

    Args:
        upload: the file.
        beside_pacs: whether the bytes of the voxels alone are a label too, as OHIF sends it.

    Raises:
        InputError: see :func:`check_type`.
    """
    check_type(upload, "label", [*VOLUMES, *([".bin"] if beside_pacs else [])])


@contextmanager
def _copy_of(upload: UploadFile) -> Iterator[Path]:
    """A copy that is gone when the block ends; the upload is at its start again."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / str(upload.filename)
        with open(path, "wb") as file:
            shutil.copyfileobj(upload.file, file)
        upload.file.seek(0)
        yield path


def _check_inflated(upload: UploadFile, kind: str) -> None:
    had = 0
    try:
        with gzip.open(upload.file) as file:
            while chunk := file.read(1 << 20):
                had += len(chunk)
                check_bytes(f"{kind}: what it inflates to", had)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{kind} must be a gzip file, cannot be inflated: {reason(error)}") from error
    upload.file.seek(0)


def _check_nrrd(upload: UploadFile, kind: str) -> None:
    """The header of an NRRD file may name another file of the server as that of its values."""
    start = upload.file.read(MAX_HEADER)
    upload.file.seek(0)
    header, end, _ = start.replace(b"\r\n", b"\n").partition(b"\n\n")
    if not start.startswith(b"NRRD000") or not end:
        raise InputError(f"{kind} must begin with the header of an NRRD file, of at most {MAX_HEADER:,} bytes.")
    lines = (line.partition(b":") for line in header.splitlines()[1:] if not line.startswith(b"#"))
    fields = {key.strip().lower().replace(b" ", b""): value.split() for key, _, value in lines}
    if b"datafile" in fields:
        raise InputError(f"{kind} must hold its values, got an NRRD header that names another file.")
    sizes = fields.get(b"sizes", [])
    if not sizes or not all(size.isdigit() and len(size) < 10 for size in sizes):
        raise InputError(f"{kind} must state its sizes as whole numbers.")
    check_bytes(kind, 4 * math.prod(map(int, sizes)))
