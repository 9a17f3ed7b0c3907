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

from monai_dvpt.data.dicom.detect import looks_like_dicom
from monai_dvpt.transforms import LoadVolume
from monai_dvpt.utils import InputError

from .dicom_labels import read_label_file
from .nifti_of_series import nifti_of_series

__all__ = ["StudiesDatastore", "check_name", "check_tag"]

CACHE = ".monai_dvpt"
"""Folder, below that of the studies, of what DICOM series were converted to."""
NAME = re.compile(r"[^./\\][^/\\]*")
MAX_NAME = 200
"""Bytes of a name, so that a file system has room for its ending."""
TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_name(kind: str, name: str) -> str:
    """
    ``name``, if it can be that of a file, and of no other than in its own folder.

    Raises:
        InputError: if it is empty or too long, begins with a dot, or has a separator or what cannot be printed.
    """
    if not NAME.fullmatch(name) or not name.isprintable() or len(name.encode()) > MAX_NAME:
        raise InputError(f"{kind} must be a name without a path, of at most {MAX_NAME} bytes, got {name[:MAX_NAME]!r}.")
    return name


def check_tag(tag: Any) -> str:
    """
    ``tag``, if it can be that of a label, which is also the name of a folder.

    Raises:
        InputError: if it is no text of letters, digits, ``-`` and ``_``.
    """
    text = getattr(tag, "value", tag)
    if not isinstance(text, str) or not TAG.fullmatch(text):
        raise InputError(f"the tag of a label must be of letters, digits, - and _, 64 at most, got {str(text)[:64]!r}.")
    return text


def _locked(name: str) -> Any:
    """MONAI Label's method, but while no other thread changes the list of the images."""

    def method(self: StudiesDatastore, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return getattr(LocalDatastore, name)(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, getattr(LocalDatastore, name).__doc__
    return method


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
        self._lock = threading.RLock()  # requests, and what watches the folder, are threads of their own
        self._converting = threading.Lock()
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
        with self._converting:
            return str(nifti_of_series(folder, Path(self._datastore_path) / CACHE / f"{image_id}.nii.gz"))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """
        Raises:
            InputError: if ``image_id`` is a path, or that of an image that is there already.
        """
        check_name("image", image_id)
        with self._lock:
            if image_id in self._datastore.objects:
                raise InputError(f"image must be a new one, {image_id!r} is there already.")
            return super().add_image(image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """
        Raises:
            HTTPException: status 404, if there is no such image.
            InputError: if ``label_tag`` is a path, or the label cannot be read or lies elsewhere than its image.
        """
        tag = check_tag(label_tag)
        if not (image_file := self.get_image_uri(image_id)):
            raise HTTPException(404, detail=f"image must be one of the studies, got {image_id!r}.")
        image = LoadVolume()(image_file)
        read_label_file(label_filename, tuple(image.shape[1:]), image.affine.numpy())
        with self._lock:
            if not self._writes:
                self._init_from_datastore_file()
            return super().save_label(image_id, label_filename, tag, label_info)

    datalist = _locked("datalist")
    get_labeled_images = _locked("get_labeled_images")
    get_unlabeled_images = _locked("get_unlabeled_images")
    list_images = _locked("list_images")
    json = _locked("json")
    status = _locked("status")
    update_image_info = _locked("update_image_info")

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
