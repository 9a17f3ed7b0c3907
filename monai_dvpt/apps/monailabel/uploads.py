# SPDX-License-Identifier: Apache-2.0
"""Files that come with a request: only an image or a label that our readers read is kept."""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import UploadFile

from monai_dvpt.data.text_headers import check_nrrd
from monai_dvpt.transforms import LoadImage2D, LoadVolume
from monai_dvpt.utils import InputError, check_bytes, naming, reason

__all__ = ["PICTURES", "VOLUMES", "check_image", "check_type"]

VOLUMES = (".nii.gz", ".nii", ".nrrd")
PICTURES = (".png", ".jpg", ".jpeg")


def check_type(upload: UploadFile, kind: str, types: Sequence[str]) -> None:
    """
    Checks the type of an upload, and renames it to its kind: the sender's name may be a path or name a patient.

    Args:
        upload: the file.
        kind: "image" or "label".
        types: allowed endings of the name.

    Raises:
        InputError: if the name has another ending, the content is too large, or an NRRD header names another file.
    """
    name = (upload.filename or "").lower()
    found = next((ending for ending in types if name.endswith(ending)), None)
    if found is None:
        raise InputError(f"{kind} must be a file of the type {', '.join(types)}.")
    upload.filename = f"{kind}{'.jpg' if found == '.jpeg' else found}"
    if found == ".nrrd":
        with _copy_of(upload) as path, _told_of(kind, path), naming(path):
            check_nrrd(path, alone=True)
    if found == ".nii.gz":
        _check_inflated(upload, kind)


def check_image(upload: UploadFile, dimensions: Iterable[int]) -> None:
    """
    Args:
        upload: the file.
        dimensions: 2 or 3, of the images that the served models read.

    Raises:
        InputError: if no reader of these dimensions reads it.
    """
    loaders: dict[int, Any] = {3: LoadVolume(), 2: LoadImage2D()}
    wanted = sorted(set(dimensions), reverse=True)
    check_type(upload, "image", [*VOLUMES, *(PICTURES if 2 in wanted else ())])
    with _copy_of(upload) as path:
        refusals = []
        for dimension in wanted:
            try:
                with _told_of("image", path):
                    loaders[dimension](str(path))
                return
            except InputError as error:
                refusals.append(error)
        raise refusals[0]


@contextmanager
def _copy_of(upload: UploadFile) -> Iterator[Path]:
    """A copy for the block; rewinds the upload."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / str(upload.filename)
        with open(path, "wb") as file:
            shutil.copyfileobj(upload.file, file)
        upload.file.seek(0)
        yield path


@contextmanager
def _told_of(kind: str, path: Path) -> Iterator[None]:
    """Refusals name the upload, not the path of its copy."""
    try:
        yield
    except InputError as error:
        raise InputError(reason(error).replace(str(path), f"the {kind} that was sent")) from None


def _check_inflated(upload: UploadFile, kind: str) -> None:
    size = 0
    try:
        with gzip.open(upload.file) as file:
            while chunk := file.read(1 << 20):
                size += len(chunk)
                check_bytes(f"{kind}: what it inflates to", size)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{kind} must be a gzip file, cannot be inflated: {reason(error)}") from error
    upload.file.seek(0)
