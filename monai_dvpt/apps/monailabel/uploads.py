# SPDX-License-Identifier: Apache-2.0
"""Files that come with a request: an image or a label that our readers read, by name and by content, or not kept."""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import UploadFile

from monai_dvpt.data.text_headers import check_nrrd
from monai_dvpt.transforms import LoadImage2D, LoadVolume
from monai_dvpt.utils import InputError, check_bytes, naming, reason

__all__ = ["check_image", "check_label", "check_type"]

VOLUMES = (".nii.gz", ".nii", ".nrrd")
PICTURES = (".png", ".jpg", ".jpeg")


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
    upload.filename = f"{kind}{'.jpg' if found == '.jpeg' else found}"
    if found == ".nrrd":
        with _copy_of(upload) as path, _told_of(kind, path), naming(path):
            check_nrrd(path, alone=True)
    if found == ".nii.gz":
        _check_inflated(upload, kind)
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
        refusals = []
        for dimension in wanted:
            try:
                with _told_of("image", path):
                    loaders[dimension](str(path))
                return
            except InputError as error:
                refusals.append(error)
        raise refusals[0]


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


@contextmanager
def _told_of(kind: str, path: Path) -> Iterator[None]:
    """Refusals name what was sent, not where it lay."""
    try:
        yield
    except InputError as error:
        raise InputError(reason(error).replace(str(path), f"the {kind} that was sent")) from None


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
