# SPDX-License-Identifier: Apache-2.0
"""The volumes, label maps and DICOM series of a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK
from pydicom.tag import Tag

from monai_dvpt.data import DicomSeries, find_series
from monai_dvpt.data.dicom.geometry import RAS_TO_LPS
from monai_dvpt.data.dicom.headers import quiet_pydicom
from monai_dvpt.data.dicom.limited import LimitedFile
from monai_dvpt.data.folders import walk_files
from monai_dvpt.data.kinds import file_kind, image_problem, looks_like_dicom
from monai_dvpt.utils import InputError

from .volume_labels import load_label_map

__all__ = ["Folder", "header_grid", "label_values", "patient_identifier", "scan", "series_place"]

FEW_VALUES = 32
MANY_VALUES = 1024
"""A label map has at most so many values."""
OTHER_FILES = (".json", ".txt", ".md", ".csv", ".xlsx", ".tsv", ".pdf", ".bval", ".bvec", ".yaml", ".yml")
"""Suffixes of files that describe the others."""


@dataclass
class Folder:
    """
    What lies in a folder of data.

    Attributes:
        files: all of them.
        volumes: NIfTI, NRRD and MetaImage files.
        series: DICOM series.
        problems: files that cannot be read, each with the reason.
        ignored: number of files that are no volumes, by suffix.
    """

    files: list[Path] = field(default_factory=list)
    volumes: list[Path] = field(default_factory=list)
    series: list[DicomSeries] = field(default_factory=list)
    problems: list[tuple[Path, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def scan(root: Path) -> Folder:
    """Looks at every file once."""
    folder, dicom = Folder(), []
    for path in walk_files(root):
        folder.files.append(path)
        problem = image_problem(path)
        if problem == "":
            folder.volumes.append(path)
        elif looks_like_dicom(path):
            dicom.append(path)
        elif problem is not None:
            folder.problems.append((path, problem))
        elif (suffix := path.suffix.lower()) not in OTHER_FILES and not _is_values(path):
            folder.ignored[suffix or "no suffix"] += 1
    folder.series = find_series(dicom, progress=True) if dicom else []
    return folder


def _is_values(path: Path) -> bool:
    """Whether a file holds the values of a header beside it."""
    return path.name.lower().endswith((".img", ".img.gz", ".raw", ".zraw", ".raw.gz")) or path.name == "DICOMDIR"


def label_values(paths: Sequence[Path]) -> list[list[int] | InputError]:
    """
    For each path the values of a label map but 0; or why it is none: values of a label map are whole numbers, and few,
    or at least constant over regions.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_label_values, paths))


def _label_values(path: Path) -> list[int] | InputError:
    try:
        label = load_label_map(path)[0].numpy().astype(np.int32)
    except InputError as error:
        return error
    values = np.flatnonzero(np.bincount(label.ravel()))
    if len(values) > FEW_VALUES:
        inside = label[:-1] != 0
        alike = float((label[:-1] == label[1:])[inside].mean()) if inside.any() else 0.0
        if len(values) > MANY_VALUES or alike < 0.5:
            return InputError(f"{path}: a label map must have few values, constant over regions, got {len(values)}.")
    return [value for value in values.tolist() if value]


def header_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray] | None:
    """Size and affine (RAS, mm) as a header states them, to tell images apart; None if it cannot be read."""
    try:
        if file_kind(path).startswith("nifti"):
            image: Any = nib.load(path)
            return tuple(image.shape), image.affine
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
        affine[:3, 3] = reader.GetOrigin()
        return tuple(reader.GetSize()), RAS_TO_LPS @ affine
    except Exception:  # it is only compared
        return None


def patient_identifier(series: DicomSeries) -> str:
    """The PatientID of a series; never to be shown or kept."""
    tags: Any = [Tag("PatientID")]
    try:
        with quiet_pydicom(), LimitedFile(series.headers[0].path) as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)
            return str(dataset.get("PatientID") or "")
    except Exception:  # damaged: it counts as absent
        return ""


def series_place(series: DicomSeries) -> Path:
    """The file of a series, or the folder of its files."""
    paths = list(series.files)
    return paths[0] if len(paths) == 1 else Path(os.path.commonpath(paths))
