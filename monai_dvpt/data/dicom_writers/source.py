# SPDX-License-Identifier: Apache-2.0
"""
The images that a DICOM result is about: what its header takes from them, and where their pixels lie.

Nothing that names a patient is given to highdicom, which writes names into warnings: it gets stand-ins with the
references and the geometry alone, and patient and study are copied when the result is complete.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.utils import OptionalImportError, optional_import
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import monai_dvpt
from monai_dvpt.data.dicom.geometry import TOLERANCE_MM
from monai_dvpt.data.dicom.limited import LimitedFile, refusal
from monai_dvpt.utils import InputError, atomic_path

from .codes import PRIVATE_SCHEME, long_string

__all__ = ["Source", "document", "place_on_frames", "read_source", "require_highdicom", "save_document"]

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("AccessionNumber", "StudyID", "ReferringPhysicianName"),
)
"""May be empty, but not absent, in patient and study (DICOM PS3.3 C.7.1.1, C.7.2.1)."""
REFERENCE = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("Modality", "Rows", "Columns", "PositionReferenceIndicator", "BurnedInAnnotation"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
GEOMETRY = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}
"""Attributes, and the functional groups that hold them in multi-frame files (DICOM PS3.3 C.7.6.16)."""


def require_highdicom() -> Any:
    """
    The package highdicom.

    Raises:
        OptionalImportError: if it is not installed.
    """
    highdicom, installed = optional_import("highdicom")
    if not installed:
        raise OptionalImportError("DICOM results are written with highdicom: pip install 'monai_dvpt[dicom]'")
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every module that it copies
    return highdicom


@dataclass(frozen=True)
class Source:
    """
    The frames that a result is about, ``n`` of them.

    Attributes:
        paths: file of each frame.
        numbers: number of each frame in its file, from 1.
        images: header of each file without anything on patient and study, by path in the order of first use.
        identity: what the standard requires on patient and study, for the result alone: never to be shown or logged;
            and FrameOfReferenceUID as it is stated, without what ``images`` has filled in.
        geometry: position, orientation and spacing of each frame by their keywords, or less where it has less.
    """

    paths: list[str]
    numbers: list[int]
    images: dict[str, Dataset]
    identity: Dataset
    geometry: list[dict[str, np.ndarray]]

    @cached_property
    def planes(self) -> np.ndarray:
        """
        Matrices of shape (n, 4, 4) from (column, row, 0, 1) of each frame to patient coordinates (LPS, mm).

        Raises:
            InputError: if a frame has no position, or another orientation or spacing than the first.
        """
        planes = np.zeros((len(self.paths), 4, 4))
        for plane, found, path in zip(planes, self.geometry, self.paths, strict=True):
            if missing := [keyword for keyword in list(GEOMETRY)[:3] if keyword not in found]:
                raise InputError(f"{path}: has no {missing[0]}, which a result with a position needs.")
            row, column = found["ImageOrientationPatient"].reshape(2, 3)
            plane[:3, 0], plane[:3, 1] = row * found["PixelSpacing"][1], column * found["PixelSpacing"][0]
            plane[:3, 2], plane[:3, 3], plane[3, 3] = np.cross(row, column), found["ImagePositionPatient"], 1
        # (n, 3, 4): how far the corners of each frame are from where they would be with the axes of the first, in mm
        differences = (planes - planes[0])[:, :3, :3] @ _corners(self.images[self.paths[0]])[:3]
        offsets = np.linalg.norm(differences, axis=1).max(axis=1)
        worst = int(offsets.argmax())
        if offsets[worst] > TOLERANCE_MM:
            raise InputError(
                f"{self.paths[worst]}: frame {self.numbers[worst]} has another orientation or spacing than the first: "
                f"its corners are {offsets[worst]:.3f} mm apart; at most {TOLERANCE_MM} mm is allowed."
            )
        return planes

    def references(self, indices: Sequence[int] | None = None) -> list[tuple[Dataset, list[int] | None]]:
        """
        Args:
            indices: of frames, else all.

        Returns:
            images with the numbers of the frames, or with None if they are not multi-frame.
        """
        numbers: dict[str, list[int]] = {}
        for index in range(len(self.paths)) if indices is None else indices:
            numbers.setdefault(self.paths[index], []).append(self.numbers[index])
        return [(self.images[p], found if "NumberOfFrames" in self.images[p] else None) for p, found in numbers.items()]


def read_source(frames: Sequence[Sequence[Any]]) -> Source:
    """
    Reads the headers of the files; what the standard asks for and anonymised files lack is filled in, the same for
    every result on the same frames. The files are not changed.

    Args:
        frames: ``[path, number]`` of each frame, numbers from 1.

    Raises:
        InputError: if there is no frame, a file cannot be read, an instance has no identifier, or the frames differ
            in study, series, frame of reference or size.
    """
    if not frames:
        raise InputError("dicom_frames must list the frames that the result is about, got none.")
    paths, numbers = [os.fspath(path) for path, _ in frames], [int(number) for _, number in frames]
    with disable_value_validation():  # its warnings quote values
        headers = {path: _read(path) for path in dict.fromkeys(paths)}
        geometry = [_geometry(headers[p], n, p) for p, n in zip(paths, numbers, strict=True)]
        images = {path: _reference(header, path) for path, header in headers.items()}
        identity = _identity(headers[paths[0]])
    _complete(images)
    identity.SOPClassUID, identity.SOPInstanceUID = images[paths[0]].SOPClassUID, images[paths[0]].SOPInstanceUID
    identity.StudyInstanceUID = images[paths[0]].StudyInstanceUID
    return Source(paths, numbers, images, identity, geometry)


def _read(path: str) -> Dataset:
    try:
        with LimitedFile(path, path) as file:
            return pydicom.dcmread(file, stop_before_pixels=True, force=True)
    except Exception as error:
        raise refusal(error) or InputError(f"{path}: cannot be read as DICOM: {type(error).__name__}.") from None


def _reference(header: Dataset, path: str) -> Dataset:
    """What a result needs to refer to an image."""
    image = Dataset()
    for keyword in REFERENCE:
        if header.get(keyword) not in (None, ""):
            image[keyword] = header[keyword]
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if keyword not in image:
            uid = header.file_meta.get(f"MediaStorage{keyword}")
            if not uid:
                raise InputError(f"{path}: has no {keyword}, which a DICOM result must refer to.")
            setattr(image, keyword, uid)
    if "Rows" not in image or "Columns" not in image:
        raise InputError(f"{path}: has no Rows or Columns: it is not an image.")
    if "PerFrameFunctionalGroupsSequence" in header or int(header.get("NumberOfFrames") or 1) > 1:
        image.NumberOfFrames = int(header.get("NumberOfFrames") or 1)
    image.Modality = image.get("Modality", "OT")
    return image


def _identity(header: Dataset) -> Dataset:
    """What the standard requires of patient and study, and the frame of reference, empty where it is not stated.
    Comments, history and whatever else is optional stay behind."""
    identity = Dataset()
    for keyword in (*TYPE_2, "FrameOfReferenceUID"):
        try:
            identity[keyword] = header[keyword]
        except Exception:  # absent, or damaged: a message would quote the value
            setattr(identity, keyword, "")
    return identity


def _complete(images: dict[str, Dataset]) -> None:
    """Fills identifiers that are absent, and checks those that all images must share."""
    seed = min(image.SOPInstanceUID for image in images.values())
    first_path, first = next(iter(images.items()))
    for path, image in images.items():
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            if keyword not in image:
                setattr(image, keyword, generate_uid(entropy_srcs=[keyword, seed]))
        if "FrameOfReferenceUID" not in image:
            image.FrameOfReferenceUID = generate_uid(entropy_srcs=["FrameOfReferenceUID", image.SeriesInstanceUID])
        image.PositionReferenceIndicator = image.get("PositionReferenceIndicator", "")
        for keyword in TYPE_2:
            setattr(image, keyword, "")
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
            if image[keyword].value != first[keyword].value:
                raise InputError(f"{path}: {keyword} must be that of {first_path}, {first[keyword].value}, got "
                                 f"{image[keyword].value}.")  # fmt: skip


def _geometry(header: Dataset, number: int, path: str) -> dict[str, np.ndarray]:
    """What is there of ``GEOMETRY`` for one frame."""
    places = [header]
    for keyword, index in (("PerFrameFunctionalGroupsSequence", number - 1), ("SharedFunctionalGroupsSequence", 0)):
        groups = header.get(keyword)
        if groups and not 0 <= index < len(groups):
            raise InputError(f"{path}: frame {number} is asked for, but it has {len(groups)} frames.")
        places += [groups[index]] if groups else []
    found: dict[str, np.ndarray] = {}
    for keyword, group in GEOMETRY.items():
        for place in places:
            holder = place if place is header else (place.get(group) or [Dataset()])[0]
            if keyword not in found and holder.get(keyword) is not None:
                found[keyword] = np.array(holder[keyword].value, dtype=float)
    return found


def _corners(image: Dataset) -> np.ndarray:
    """(column, row, 0, 1) of the four corners, in columns."""
    return np.array([[c, r, 0, 1] for c in (0, image.Columns - 1) for r in (0, image.Rows - 1)], dtype=float).T


def place_on_frames(volume: np.ndarray, affine_ras: np.ndarray, source: Source) -> np.ndarray:
    """
    A volume as it lies on the pixels of the source. Each frame must be one plane of the volume's grid, to 0.1 mm, and
    each plane one frame. Pixels that are not voxels of the grid, as in a gantry-tilted series that was straightened
    (planes shifted within themselves), take the nearest voxel, or 0 outside.

    Args:
        volume: of shape (x, y, z), such as label values.
        affine_ras: 4x4 matrix from its voxels to patient coordinates (RAS, mm).
        source: ``n`` frames of ``rows`` times ``columns`` pixels.

    Returns:
        (n, rows, columns) in the order of the frames.

    Raises:
        InputError: if the frames have no position, or do not lie on the planes of the grid one by one.
    """
    volume, affine = np.asarray(volume), np.asarray(affine_ras, dtype=float)
    planes, image = source.planes, source.images[source.paths[0]]
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise InputError(f"affine_ras must be an invertible 4x4 matrix, got {affine.tolist()}.")
    if volume.ndim != 3 or volume.shape[2] != len(planes):
        raise InputError(f"the result must have as many slices as frames ({len(planes)}), got shape {volume.shape}.")
    affine = RAS_TO_LPS @ affine
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    slice_mm = abs(affine[:3, 2] @ normal) / np.linalg.norm(normal)
    corners, columns, rows = _corners(image), np.arange(image.Columns), np.arange(image.Rows)[:, None]
    placed = np.zeros((len(planes), image.Rows, image.Columns), volume.dtype)
    used = []
    for index, plane in enumerate(planes):
        same = affine @ (corners + [[0], [0], [index], [0]]) - plane @ corners
        if volume.shape[:2] == (image.Columns, image.Rows) and np.linalg.norm(same, axis=0).max() <= TOLERANCE_MM:
            placed[index] = volume[:, :, index].T
            used.append(index)
            continue
        to_voxel = np.linalg.inv(affine) @ plane
        heights = (to_voxel @ corners)[2]  # in slices, of the four corners
        nearest = int(np.clip(np.rint(heights.mean()), 0, len(planes) - 1))
        offset = np.abs(heights - nearest).max() * slice_mm
        if offset > TOLERANCE_MM:
            raise InputError(
                f"{source.paths[index]}: frame {source.numbers[index]} must lie on a plane of the result's grid to "
                f"{TOLERANCE_MM} mm, but is {offset:.3f} mm off the nearest: the result is not of this series, or its "
                "affine is wrong."
            )
        x, y = (np.rint(m[0] * columns + m[1] * rows + m[3]).astype(int) for m in to_voxel[:2])  # (rows, columns)
        inside = (x >= 0) & (x < volume.shape[0]) & (y >= 0) & (y < volume.shape[1])
        placed[index][inside] = volume[x[inside], y[inside], nearest]
        used.append(nearest)
    if len(set(used)) < len(planes):
        raise InputError(f"{source.paths[0]}: several frames lie on one plane of the result's grid: {used}.")
    return placed


def document(algorithm_name: str, algorithm_version: str, description: str, series_number: int) -> dict[str, Any]:
    """
    Arguments that all of highdicom's objects take. New UIDs have the root of pydicom, 1.2.826.0.1.3680043.8.498.

    Args:
        algorithm_name: name of the model.
        algorithm_version: version of the model.
        description: of the series.
        series_number: behind those of the source in lists of viewers.
    """
    highdicom = require_highdicom()
    scheme = highdicom.coding_schemes.CodingSchemeIdentificationItem(
        PRIVATE_SCHEME, "monai_dvpt", responsible_organization="monai_dvpt"
    )
    return {
        "series_instance_uid": generate_uid(),
        "series_number": series_number,
        "series_description": long_string(description),
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": "monai_dvpt",
        "manufacturer_model_name": long_string(algorithm_name),
        "software_versions": [f"monai_dvpt {monai_dvpt.__version__}", long_string(f"model {algorithm_version}")],
        "device_serial_number": "0",  # an empty one is not allowed, and software has none
        "content_qualification": "RESEARCH",
        "coding_schemes": [scheme],
    }


def save_document(dataset: Any, source: Source, path: str | os.PathLike) -> Path:
    """
    Copies patient and study from the source and writes the file.

    Args:
        dataset: a highdicom object.
        source: what it is about.
        path: the file.

    Raises:
        InputError: if it cannot be written.
    """
    with disable_value_validation():
        dataset.copy_patient_and_study_information(source.identity)
        dataset.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of labels and patients alike
        with atomic_path(path) as temporary:
            dataset.save_as(temporary)
    return Path(path)
