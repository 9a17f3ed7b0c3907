# SPDX-License-Identifier: Apache-2.0
"""
Images and labels of a PACS for MONAI Label. Labels are DICOM Segmentations in the PACS; names tell segments apart.

MONAI Label's own datastore logs and keeps the patient's ID. This one keeps it nowhere, and sets the loggers of
``monailabel.datastore`` to warnings.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from monai_dvpt.data.dicom import DicomSeriesReader, SeriesGrid
from monai_dvpt.data.dicom_segmentation import read_dicom_seg
from monai_dvpt.data.dicom_writers.codes import long_string
from monai_dvpt.data.nifti import save_nifti
from monai_dvpt.utils import InputError, reason

from .dicom_labels import choose_model, read_label_file, read_series, told_segments, write_seg
from .labels import ModelLabels, labels_in_file, plain, to_model_values
from .pacs import Pacs, Segmentation
from .studies import check_tag, locked

__all__ = ["PacsDatastore", "check_uid"]

logging.getLogger("monailabel.datastore").setLevel(logging.WARNING)
logger = logging.getLogger(__name__)

FINAL = DefaultLabelTag.FINAL.value
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID = 64


class PacsDatastore(DICOMWebDatastore):
    """
    The series of a PACS, which :class:`DicomSeriesReader` reads or refuses. The final label of a series is its newest
    DICOM Segmentation. Files on disk are copies.

    Args:
        client: a ``DICOMwebClient`` of the PACS.
        search_filter: which series are images, as for QIDO-RS.
        cache_path: folder of the copies.
        fetch_by_frame: fetch pixel data frame by frame.
        models: labels of the segmentation models.
        reader: reads the series.
    """

    def __init__(
        self,
        client: Any,
        search_filter: dict[str, Any],
        cache_path: str | None = None,
        fetch_by_frame: bool = False,
        *,
        models: Sequence[ModelLabels] = (),
        reader: DicomSeriesReader | None = None,
    ) -> None:
        self._models, self._reader = list(models), reader or DicomSeriesReader()
        self._lock = threading.RLock()  # the thread that watches the folder also changes files and their list
        self._pacs = Pacs(client)
        # not the folder of MONAI Label's own datastore, which places slices otherwise and names patients
        root = Path(cache_path) if cache_path else Path.home() / ".cache" / "monailabel" / "dicom"
        super().__init__(client, search_filter, str(root / "monai_dvpt"), fetch_by_frame)

    refresh = locked("refresh")
    _init_from_datastore_file = locked("_init_from_datastore_file")

    def list_images(self) -> list[str]:
        """UIDs of the series that pass the filter."""
        return self._pacs.list_series(self._search_filter)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the series that have a final label in the PACS."""
        newest = self._newest()
        return [uid for uid in self.list_images() if uid in newest and self._fits(newest[uid])]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the series without a final label in the PACS."""
        labelled = set(self.get_labeled_images())
        return [uid for uid in self.list_images() if uid not in labelled]

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Always raises an :class:`InputError`."""
        raise InputError(f"an image must be stored in the PACS itself, got {image_id[:MAX_UID]!r}.")

    def series_folder(self, image_id: str) -> Path:
        """
        The folder of a series' DICOM files, beside its NIfTI file. Fetches them if the PACS has more.

        Raises:
            InputError: if the PACS lacks the series or does not send all of it.
        """
        check_uid(image_id)
        folder = Path(self._datastore.image_path()).resolve() / image_id
        with self._lock:
            series = self._pacs.find(image_id)
            count = int(series.get("NumberOfSeriesRelatedInstances") or 0)
            if folder.is_dir() and len(os.listdir(folder)) >= max(count, 1):
                return folder
            with self._temporary() as temporary:
                study, fetched = series["StudyInstanceUID"], Path(temporary) / "series"
                self._pacs.fetch(study, image_id, fetched, self._fetch_by_frame)
                if (have := len(os.listdir(fetched))) < max(count, 1):
                    raise InputError(f"series {image_id}: must have {count} files, the PACS sent {have}.")
                labels = Path(self._datastore.label_path(None)).glob(f"*/{image_id}.nii.gz")
                for old in (folder.parent / f"{image_id}.nii.gz", *labels):
                    old.unlink(missing_ok=True)  # of fewer slices
                shutil.rmtree(folder, ignore_errors=True)
                fetched.rename(folder)
        return folder

    def get_image_uri(self, image_id: str) -> str:
        """
        The NIfTI file of a series.

        Raises:
            InputError: if the PACS lacks the series or the reader refuses it.
        """
        with self._lock:
            folder = self.series_folder(image_id)
            path = folder.parent / f"{image_id}.nii.gz"
            if not path.exists() or "SeriesInstanceUID" not in self.get_image_info(image_id):
                values, grid = read_series(folder, self._reader)
                with self._temporary() as temporary:
                    os.replace(save_nifti(Path(temporary) / path.name, values, grid.affine_ras, scanner=True), path)
                self.refresh()
                series = self._pacs.find(image_id)
                told = {keyword: series[keyword] for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "Modality")}
                self.update_image_info(image_id, told)
        return str(path)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """
        The NIfTI file of a label, or "". A final label comes from the PACS, with the values of the model that has the
        names of its segments.

        Args:
            label_id: UID of the image or the segmentation.
            image_id: UID of the image, if ``label_id`` is of the segmentation.

        Raises:
            InputError: if the label is of another series, no model has its names, or it cannot be placed on the image.
        """
        tag = check_tag(label_tag)
        for uid in filter(None, (label_id, image_id)):
            check_uid(uid)
        if tag != FINAL:
            return LocalDatastore.get_label_uri(self, label_id, tag)
        by_uid = {seg.uid: seg for seg in self._pacs.list_segmentations()}
        newest = by_uid.get(label_id) or self._newest().get(label_id)
        if newest is None:
            return ""
        if image_id and newest.image != image_id:
            raise InputError(f"DICOM SEG {newest.uid}: must be of series {image_id}, is of {newest.image}.")
        return str(self._label_of(newest))

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any], label_id: str = ""
    ) -> str:
        """
        Stores a label, which may be empty. A final one goes to the PACS, as a DICOM Segmentation that declares all
        labels of the model.

        Args:
            image_id: UID of the series, which is returned.
            label_filename: label map on the voxels of the image: .nii.gz, .nrrd, or .bin (bytes of the voxels).
            label_info: "label_info" lists the segments, each with "name", see :func:`labels_in_file`; "params" marks a
                model's own answer.
            label_id: not used.

        Raises:
            InputError: if the label does not lie on the image, does not fit one model, or the PACS refuses it.
        """
        tag, told = check_tag(label_tag), told_segments((label_info or {}).get("label_info"))
        with self._lock:
            _, grid = read_series(Path(self.get_image_uri(image_id)).parent / image_id, self._reader)
            label = read_label_file(label_filename, grid.shape, grid.affine_ras)
            if tag != FINAL:  # such as a model's answer
                kept = {key: label_info[key] for key in ("label_info", "model", "params") if key in (label_info or {})}
                return self._keep_label(image_id, label, grid, tag, kept)
            used = labels_in_file([int(value) for value in np.unique(label[np.isfinite(label)]) if value > 0], told)
            model = choose_model(self._models, told, list(used.values()))
            label = to_model_values(label, told, model)
            with self._temporary() as temporary:
                path = Path(temporary) / "seg.dcm"
                write_seg(path, label, grid, model, corrected="params" not in label_info)
                seg_uid = self._pacs.store(path, image_id)
            return self._keep_label(image_id, label, grid, FINAL, _final_info(model, seg_uid))

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """
        "image" and "label" of each series with a final label; without ``full_path`` relative to the folder of the
        copies. A warning names each series that cannot be read.
        """
        images, pairs = set(self.list_images()), []
        for uid, seg in self._newest().items():
            if uid not in images:
                continue
            try:
                paths = {"image": self.get_image_uri(uid), "label": str(self._label_of(seg))}
            except (InputError, requests.RequestException) as error:
                logger.warning("series %s is left out: %s", uid, reason(error))
                continue
            start = Path(self._datastore_path).resolve()
            pairs.append(paths if full_path else {key: os.path.relpath(path, start) for key, path in paths.items()})
        return pairs

    def _newest(self) -> dict[str, Segmentation]:
        """Each series' newest segmentation with the names of a model, else its newest."""
        newest: dict[str, Segmentation] = {}
        for seg in sorted(self._pacs.list_segmentations()):
            if seg.image not in newest or self._fits(seg) or not self._fits(newest[seg.image]):
                newest[seg.image] = seg
        return newest

    def _fits(self, seg: Segmentation) -> bool:
        """Whether a model has all names of the segments."""
        known = ({plain(long_string(name)) for name in model.names} for model in self._models)
        return any({plain(name) for name in seg.names} <= names for names in known)

    def _label_of(self, seg: Segmentation) -> Path:
        """The label map of a segmentation, with the values of the model that has its names."""
        with self._lock:
            image = Path(self.get_image_uri(seg.image))
            path = Path(self._datastore.label_path(FINAL)).resolve() / image.name
            known = self.get_label_info(seg.image, FINAL)
            wanted = [{**known, **_final_info(model, seg.uid)} for model in self._models]
            if path.exists() and known in wanted:  # made from this segmentation, with the labels of a model
                return path
            _, grid = read_series(image.parent / seg.image, self._reader)
            try:
                label, names = self._read_seg(seg, grid)
                model = choose_model(self._models, [{"name": name} for name in names.values()])
                values = {plain(long_string(name)): value for value, name in enumerate(model.names)}
                if unknown := [name for name in names.values() if plain(name) not in values]:
                    known = list(model.names[1:])
                    raise InputError(f"segments must be of {model.algorithm_name}'s {known}, got {unknown}.")
            except InputError as error:
                raise InputError(f"DICOM SEG {seg.uid} of series {seg.image}: {error}") from error
            mapped = np.zeros_like(label, dtype=np.uint8 if len(model.names) <= 256 else np.uint16)
            for number, name in names.items():
                mapped[label == number] = values[plain(name)]
            self._keep_label(seg.image, mapped, grid, FINAL, _final_info(model, seg.uid))
        return path

    def _read_seg(self, seg: Segmentation, grid: SeriesGrid) -> tuple[np.ndarray, dict[int, str]]:
        with self._temporary() as temporary:
            folder = Path(temporary) / "seg"
            self._pacs.fetch(seg.study, seg.uid, folder)
            files = list(folder.iterdir())
            if len(files) != 1:
                raise InputError(f"must be one file, has {len(files)}.")
            return read_dicom_seg(files[0], grid)

    def _keep_label(self, image_id: str, label: np.ndarray, grid: SeriesGrid, tag: str, info: dict[str, Any]) -> str:
        if label.dtype in (np.int64, np.uint64):
            label = label.astype(np.int32)  # NIfTI readers know no 64-bit integers
        with self._temporary() as temporary:
            path = save_nifti(Path(temporary) / f"{image_id}.nii.gz", label, grid.affine_ras, scanner=True)
            return LocalDatastore.save_label(self, image_id, str(path), tag, info)

    def _temporary(self) -> tempfile.TemporaryDirectory:
        """A folder beside the watched one, on the same disk."""
        return tempfile.TemporaryDirectory(dir=Path(self._datastore_path).parent, prefix=".")


def _final_info(model: ModelLabels, seg_uid: str) -> dict[str, Any]:
    return {"SeriesInstanceUID": seg_uid, "model": model.algorithm_name, "label_info": model.label_info}


def check_uid(uid: str) -> None:
    """Raises an :class:`InputError` if ``uid`` cannot be that of a series."""
    if not UID.fullmatch(str(uid)) or len(uid) > MAX_UID:
        raise InputError(f"an image of a PACS must be named by its Series Instance UID, got {str(uid)[:MAX_UID]!r}.")
