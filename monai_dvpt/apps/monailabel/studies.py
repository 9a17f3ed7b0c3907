# SPDX-License-Identifier: Apache-2.0
"""A folder of images as MONAI Label sees it: NIfTI and NRRD files, and folders of DICOM series."""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore

from monai_dvpt.data.dicom import DicomSeriesReader
from monai_dvpt.data.kinds import looks_like_dicom
from monai_dvpt.data.nifti import save_nifti
from monai_dvpt.transforms import LoadVolume
from monai_dvpt.utils import InputError, atomic_path, fingerprint

from .dicom_labels import read_label_file, read_series

__all__ = ["StudiesDatastore", "check_name", "check_tag", "locked"]

CACHE = ".monai_dvpt"
"""Folder among the studies for the NIfTI files of DICOM series."""
NAME = re.compile(r"[^./\\][^/\\]*")
MAX_NAME = 200
"""Bytes, so that a file system has room for an ending."""
TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_name(kind: str, name: str) -> str:
    """
    Returns ``name``, which can then name a file, and none outside its own folder.

    Raises:
        InputError: if it is empty or too long, begins with a dot, or has a separator or an unprintable character.
    """
    if not NAME.fullmatch(name) or not name.isprintable() or len(name.encode()) > MAX_NAME:
        raise InputError(f"{kind} must be a name without a path, of at most {MAX_NAME} bytes, got {name[:MAX_NAME]!r}.")
    return name


def check_tag(tag: Any) -> str:
    """
    Returns the tag of a label, which also names a folder.

    Raises:
        InputError: if it is not text of 1 to 64 letters, digits, ``-`` and ``_``.
    """
    text = getattr(tag, "value", tag)
    if not isinstance(text, str) or not TAG.fullmatch(text):
        raise InputError(f"the tag of a label must be of letters, digits, - and _, 64 at most, got {str(text)[:64]!r}.")
    return text


def locked(name: str) -> Any:
    """A method of MONAI Label's local datastore, under ``self._lock``: no other thread changes the list meanwhile."""
    original = getattr(LocalDatastore, name)

    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return original(self, *args, **kwargs)

    return method


class StudiesDatastore(LocalDatastore):
    """
    MONAI Label's local datastore. A folder with DICOM files is an image too, unless a file beside it has its name. No
    name of an image or a tag leads out of the studies.

    The server keeps the list of images, one file. A process in the background does not look for new files, and reads
    the list again before it adds a label; else it would undo what a user has submitted since.

    Args:
        studies: the folder.
        extensions: patterns of the names of images.
        auto_reload: look for new files.
        writes: this process keeps the list.
    """

    def __init__(self, studies: str, extensions: Sequence[str], auto_reload: bool, writes: bool) -> None:
        self._writes = writes
        self._lock = threading.RLock()  # requests and the watch of the folder are threads
        self._converting = threading.Lock()
        super().__init__(studies, extensions=extensions, auto_reload=auto_reload and writes, read_only=not writes)

    def series_folder(self, image_id: str) -> Path | None:
        """The folder of an image that is a DICOM series, else None."""
        known = self._datastore.objects.get(image_id)
        if known is None or known.image.ext:
            return None
        folder = Path(self._datastore.image_path()) / image_id
        return folder if folder.is_dir() else None

    def get_image_uri(self, image_id: str) -> str:
        """
        Path of an image; of a DICOM series, that of its NIfTI file.

        Raises:
            InputError: if the series cannot be read, or placed to 0.1 mm on a grid that NIfTI can store.
        """
        if (folder := self.series_folder(image_id)) is None:
            return super().get_image_uri(image_id)
        with self._converting:
            return str(_nifti_of_series(folder, Path(self._datastore_path) / CACHE / f"{image_id}.nii.gz"))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Raises an :class:`InputError` if ``image_id`` is a path or the name of an image that exists."""
        check_name("image", image_id)
        with self._lock:
            if image_id in self._datastore.objects:
                raise InputError(f"image must be a new one, {image_id!r} is there already.")
            return super().add_image(image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """
        Raises:
            HTTPException: status 404, if there is no such image.
            InputError: if ``label_tag`` is a path, or the label cannot be read or does not lie on its image.
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

    datalist = locked("datalist")
    get_labeled_images = locked("get_labeled_images")
    get_unlabeled_images = locked("get_unlabeled_images")
    list_images = locked("list_images")
    json = locked("json")
    status = locked("status")
    update_image_info = locked("update_image_info")
    refresh = locked("refresh")
    _init_from_datastore_file = locked("_init_from_datastore_file")

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


def _nifti_of_series(folder: Path, path: Path) -> Path:
    """Writes a series to ``path``, unless a record beside it says that no file of the series has changed since."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    facts = [(str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    made_of, record = fingerprint(facts), path.with_name(f"{path.name}.sha256")
    if path.is_file() and record.is_file() and record.read_text() == made_of:
        return path
    path.unlink(missing_ok=True)
    values, grid = read_series(folder, DicomSeriesReader())
    save_nifti(path, values, grid.affine_ras, scanner=True)
    with atomic_path(record) as temporary:
        temporary.write_text(made_of)
    return path


def _is_series(folder: Path) -> bool:
    """Whether one of the first 100 files, at any depth, is DICOM; never of hidden folders, labels and adapters."""
    if not folder.is_dir() or folder.name.startswith(".") or folder.name in ("labels", "adapters"):
        return False
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in sorted(names))
    return any(map(looks_like_dicom, itertools.islice(files, 100)))
