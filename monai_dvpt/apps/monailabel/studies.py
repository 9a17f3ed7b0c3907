# SPDX-License-Identifier: Apache-2.0
"""A folder of images as MONAI Label sees it: NIfTI and NRRD files, and folders of DICOM series."""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore

from monai_dvpt.data.dicom.files import looks_like_dicom

from .series import nifti_of_series

__all__ = ["StudiesDatastore", "check_name"]

CACHE = ".monai_dvpt"
"""Folder, below that of the studies, of what DICOM series were converted to."""
NAME = re.compile(r"[^./\\\x00][^/\\\x00]*")


def check_name(kind: str, name: str) -> str:
    """
    ``name``, if it can be that of a file, and of no other than in its own folder.

    Raises:
        HTTPException: status 400, if it is empty, begins with a dot or has a separator.
    """
    if not NAME.fullmatch(name):
        raise HTTPException(400, detail=f"{kind} must be a name without a path, got {name!r}.")
    return name


class StudiesDatastore(LocalDatastore):
    """
    MONAI Label's local datastore, in which every folder with DICOM files is an image too, and which no name of an image
    or of a tag leads out of. A folder beside a file of its name is not an image.

    The list of the images is one file, which the server keeps. A process in the background does not look for new files,
    and reads the list again before it adds a label to it: else it would write what it read before a user submitted one.

    Args:
        studies: the folder.
        extensions: patterns of the names of images.
        auto_reload: whether to look for new files.
        writes: whether this process keeps the list.
    """

    def __init__(self, studies: str, extensions: Sequence[str], auto_reload: bool, writes: bool) -> None:
        self._writes = writes
        self._lock = threading.RLock()  # files and their list also change in the thread that watches the folder
        super().__init__(studies, extensions=extensions, auto_reload=auto_reload and writes, read_only=not writes)

    def series_folder(self, image_id: str) -> Path | None:
        """The folder of DICOM files that an image is, or None."""
        known = self._datastore.objects.get(image_id)
        if known is None or known.image.ext:
            return None
        folder = Path(self._datastore.image_path()) / image_id
        return folder if folder.is_dir() else None

    def get_image_uri(self, image_id: str) -> str:
        """
        Path of an image; of a DICOM folder, that of the NIfTI file which it was converted to.

        Raises:
            InputError: if the series cannot be read or placed.
        """
        if (folder := self.series_folder(image_id)) is None:
            return super().get_image_uri(image_id)
        return str(nifti_of_series(folder, Path(self._datastore_path) / CACHE / f"{image_id}.nii.gz"))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """
        Raises:
            HTTPException: status 400, if ``image_id`` is a path.
        """
        if image_id:
            check_name("image", image_id)
        with self._lock:
            return super().add_image(image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """
        Raises:
            HTTPException: status 400, if a name is a path; 404, if there is no such image.
        """
        check_name("tag", label_tag)
        with self._lock:
            if image_id not in self._datastore.objects:
                raise HTTPException(404, detail=f"image must be one of the studies, got {image_id!r}.")
            if not self._writes:
                self._init_from_datastore_file()
            return super().save_label(image_id, label_filename, label_tag, label_info)

    def refresh(self) -> None:
        """Looks for new files."""
        with self._lock:
            super().refresh()

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self._lock:
            super()._init_from_datastore_file(throw_exception)

    def _to_id(self, file: str) -> tuple[str, str]:
        if (Path(self._datastore.image_path()) / file).is_dir():
            return file, ""
        return super()._to_id(file)

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        found = super()._list_files(path, patterns)
        if os.path.realpath(path) == os.path.realpath(self._datastore.image_path()):
            taken = {super(StudiesDatastore, self)._to_id(name)[0] for name in found}
            folders = (entry.name for entry in os.scandir(path) if _is_series(Path(entry.path)))
            found.update({name: name for name in folders if name not in taken})
        return found


def _is_series(folder: Path) -> bool:
    """Whether one of a folder's first files is DICOM, at any depth; hidden ones, labels and adapters do not count."""
    if not folder.is_dir() or folder.name.startswith(".") or folder.name in ("labels", "adapters"):
        return False
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in sorted(names))
    return any(map(looks_like_dicom, itertools.islice(files, 100)))
