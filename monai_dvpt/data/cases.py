# SPDX-License-Identifier: Apache-2.0
"""The inputs that a folder holds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai_dvpt.utils import InputError

from .dicom import DicomSeries, DicomSeriesReader, find_series
from .dicom.headers import looks_like_dicom

__all__ = ["find_cases", "unique_names"]


NIFTI = (".nii", ".nii.gz")
PICTURES = (".png", ".jpg", ".jpeg")


def find_cases(
    dataset_dir: str | os.PathLike,
    exclude: str | os.PathLike | None = None,
    pictures: bool = False,
    dicom_reader: DicomSeriesReader | None = None,
) -> list[dict[str, Any]]:
    """
    Lists the images at a path, at any depth: every NIfTI file, and of every DICOM study the one series that the reader
    chooses. Hidden files and folders, and folders whose name begins with "labels" (as the Decathlon names its masks),
    are passed over.

    Args:
        dataset_dir: a folder, or one file.
        exclude: folder to pass over, such as that of the results.
        pictures: whether the images are 2D: PNG and JPEG files are then listed too, and every DICOM image by itself,
            also one that has only the name of one (".dcm").
        dicom_reader: what is read of a study; by default its one volume.

    Returns:
        for each input its path, or the paths of the files of a series, as "image", and a "name" that is unique among
        them, made of the path below ``dataset_dir``, in order of the paths. Where that would name the patient it is
        "study_" and a part of the hash of the Study Instance UID (of a picture: of the path), and the case is
        "private". A study of which nothing can be read has the reason as "refused".

    Raises:
        InputError: if the path does not exist or holds no input.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise InputError(f"{root}: dataset_dir must be an existing file or folder.")
    if root.is_file():
        return [{"image": str(root), "name": _stem(root.name)}]
    nifti, dicom = [], []
    for path in _walk(root, Path(exclude) if exclude is not None else None):
        if path.name.endswith(NIFTI) or pictures and path.name.lower().endswith(PICTURES):
            nifti.append((path, {"image": str(path)}, ""))
        elif path.name != "DICOMDIR" and looks_like_dicom(path):
            dicom.append(path)
    series = find_series(dicom, progress=True) if dicom else []
    reader = dicom_reader or DicomSeriesReader()
    found = sorted(nifti + (_pictures(series) if pictures else _studies(series, reader)), key=lambda entry: entry[0])
    if not found:
        kinds = "NIfTI, PNG, JPEG or DICOM files" if pictures else "NIfTI or DICOM files"
        raise InputError(f"{root}: dataset_dir must hold {kinds}, found none.")
    names = unique_names(root, [path for path, _, _ in found])
    return [
        {**case, "name": alias, "private": True} if alias else {**case, "name": name}
        for (_, case, alias), name in zip(found, names, strict=True)
    ]


def unique_names(root: Path, paths: Sequence[Path]) -> list[str]:
    """
    A name of its own for each path, made of its way below ``root``, in order of the paths; of a path elsewhere it is
    made of the last part.
    """
    names: dict[str, None] = {}
    for path in paths:
        inside = path.relative_to(root).parts if path.is_relative_to(root) else path.parts[-1:]
        parts = inside or (root.resolve().name,)
        name = base = "_".join([*parts[:-1], parts[-1] if path.is_dir() else _stem(parts[-1])])
        count = 1
        while name in names:  # scan.nii beside scan.nii.gz
            count += 1
            name = f"{base}_{count}"
        names[name] = None
    return list(names)


Entry = tuple[Path, dict[str, Any], str]
"""What a case is named after, the case, and a name to take instead."""


def _walk(root: Path, exclude: Path | None) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not name.startswith((".", "labels"))
            and (exclude is None or Path(folder, name).resolve() != exclude.resolve())
        ]
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _pictures(found: Sequence[DicomSeries]) -> list[Entry]:
    """Every DICOM file but results and reports."""
    images = [(path, series) for series in found if series.is_image or not series.headers for path in series.files]
    return [(path, {"image": str(path)}, _alias(path, [series], str(path))) for path, series in images]


def _studies(found: Sequence[DicomSeries], reader: DicomSeriesReader) -> list[Entry]:
    """A case for every study; what names no study belongs to one that lies in the same folder."""
    study_in = {path.parent: series.study_uid for series in found for path in series.files if series.study_uid}
    studies: dict[str, list[DicomSeries]] = {}
    for series in found:
        folder = series.files[0].parent
        studies.setdefault(series.study_uid or study_in.get(folder, str(folder)), []).append(series)
    entries = []
    for uid, group in studies.items():
        folder = Path(os.path.commonpath([path.parent for series in group for path in series.files]))
        try:
            series = reader.choose(group)
            case: dict[str, Any] = {"image": sorted(map(str, series.files)), "series_uid": series.series_uid}
        except InputError as error:
            case = {"image": str(folder), "refused": str(error)}
        entries.append((folder, case, _alias(folder, group, uid)))
    return entries


def _alias(path: Path, found: Sequence[DicomSeries], key: str) -> str:
    """A name instead of one that tells who the patient is, or nothing."""
    if any(series.names_patient(str(path)) for series in found):
        return f"study_{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return ""


def _stem(name: str) -> str:
    name = name.removesuffix(".gz").removesuffix(".nii").removesuffix(".dcm") or name
    return Path(name).stem if name.lower().endswith(PICTURES) else name
