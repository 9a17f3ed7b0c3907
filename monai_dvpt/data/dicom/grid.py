# SPDX-License-Identifier: Apache-2.0
"""The grid of a series: the places of its frames, the headers that results refer to, and the placing of results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from monai_dvpt.utils import InputError, naming

from .geometry import RAS_TO_LPS, TOLERANCE_MM, corner_offsets_mm, corners, plane_lps
from .headers import DicomFile, Frame, quiet_pydicom
from .limited import LimitedFile, refusal

__all__ = ["GRID_TAGS", "SeriesGrid", "reference_of"]

TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("AccessionNumber", "StudyID", "ReferringPhysicianName"),
)
"""Attributes of patient and study that may be empty, but not absent (DICOM PS3.3 C.7.1.1, C.7.2.1)."""
REFERENCE = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("Modality", "Rows", "Columns", "PositionReferenceIndicator", "BurnedInAnnotation"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
GRID_TAGS = (*REFERENCE, "NumberOfFrames", "PerFrameFunctionalGroupsSequence")
"""Keywords that :func:`reference_of` looks for in a header."""
POSITION = {
    "position_lps": "ImagePositionPatient",
    "orientation_stated": "ImageOrientationPatient",
    "spacing_mm": "PixelSpacing",
}


@dataclass(frozen=True, eq=False, repr=False)
class SeriesGrid(str):
    """
    The ``n`` frames that an image was read from, made once when they are read. It names no patient. For MONAI it is a
    text, since MONAI's functions that load, collate and decollate metadata accept no other object unchanged.

    Attributes:
        frames: file and frame of each slice of the image.
        headers: the part of each file's header that a result refers to, see :func:`reference_of`.
        shape: of the image, (x, y, z); empty for a radiograph.
        affine_ras: 4x4 matrix from its voxels to patient coordinates (RAS, mm); None for a radiograph.
    """

    frames: tuple[tuple[str, Frame], ...]
    headers: Mapping[str, Dataset]
    shape: tuple[int, ...] = ()
    affine_ras: Any = None

    def __new__(cls, *_: Any, **__: Any) -> SeriesGrid:
        return super().__new__(cls, "grid of a DICOM series")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "identity"}  # names the patient

    def __deepcopy__(self, memo: Any) -> SeriesGrid:
        return self  # it is immutable, and caches copy their images often

    @classmethod
    def of(
        cls,
        slices: Iterable[tuple[DicomFile, Frame]],
        headers: Mapping[Path, Dataset],
        shape: Sequence[int] = (),
        affine_ras: np.ndarray | None = None,
    ) -> SeriesGrid:
        """The grid of files and their frames, without what could name a patient."""
        frames = tuple((str(file.path), replace(frame, stack="", times={})) for file, frame in slices)
        return cls(frames, {str(path): header for path, header in headers.items()}, tuple(shape), affine_ras)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of a frame."""
        image = self.headers[self.frames[0][0]]
        return image.Columns, image.Rows

    @cached_property
    def images(self) -> dict[str, Dataset]:
        """
        Headers that a result refers to, by path in the order of first use. What the standard requires and anonymised
        files lack is filled in, the same for every result on the same frames.

        Raises:
            InputError: if there is no frame, an instance has no identifier, or the frames differ in study, series,
                frame of reference or size.
        """
        if not self.frames:
            raise InputError("the grid of the series must list the frames that the result is about, got none.")
        images = {path: Dataset(self.headers[path]) for path, _ in self.frames}
        for path, image in images.items():
            with naming(path):
                for keyword in ("SOPClassUID", "SOPInstanceUID"):
                    if keyword not in image:
                        raise InputError(f"has no {keyword}, which a DICOM result must refer to.")
                if "Rows" not in image or "Columns" not in image:
                    raise InputError("has no Rows or Columns: it is not an image.")
        _complete(images)
        return images

    @property
    def first(self) -> Dataset:
        """The image with the first frame, see :attr:`images`."""
        return self.images[self.frames[0][0]]

    @cached_property
    def identity(self) -> Dataset:
        """
        Patient and study as the standard requires them, for the result alone: never to be shown, logged or kept. They
        are read from the first file when a result is written.

        Raises:
            InputError: if that file cannot be read, or was replaced.
        """
        identity, path = Dataset(), self.frames[0][0]
        with naming(path), quiet_pydicom():
            header = _read(path)
            if reference_of(header).get("SOPInstanceUID") != self.first.SOPInstanceUID:
                raise InputError("must be the file that the image was read from, is another.")
            for keyword in TYPE_2:
                try:
                    identity[keyword] = header[keyword]
                except Exception:  # absent, or damaged: a message would quote the value
                    setattr(identity, keyword, "")
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"):
            setattr(identity, keyword, self.first[keyword].value)
        return identity

    @cached_property
    def planes(self) -> np.ndarray:
        """
        Matrices of shape (n, 4, 4) from (column, row, 0, 1) of each frame to patient coordinates (LPS, mm).

        Raises:
            InputError: if a frame has no position, or another orientation or spacing than the first.
        """
        for path, frame in self.frames:
            missing = [keyword for name, keyword in POSITION.items() if getattr(frame, name) is None]
            with naming(path):
                if missing:
                    raise InputError(f"has no {missing[0]}, which a result with a position needs.")
        planes = np.array([plane_lps(*(getattr(frame, name) for name in POSITION)) for _, frame in self.frames])
        axes = planes * [1, 1, 1, 0]
        offsets = corner_offsets_mm(axes, axes[0], self.size)
        worst = int(offsets.argmax())
        path, frame = self.frames[worst]
        with naming(path):
            if offsets[worst] > TOLERANCE_MM:
                raise InputError(
                    f"frame {frame.number} has another orientation or spacing than the first: "
                    f"its corners are {offsets[worst]:.3f} mm apart; at most {TOLERANCE_MM} mm is allowed."
                )
        return planes

    def references(self, indices: Sequence[int] | None = None) -> list[tuple[Dataset, list[int] | None]]:
        """
        Args:
            indices: of frames; all by default.

        Returns:
            images with the numbers of the frames, or with None if they are not multi-frame.
        """
        numbers: dict[str, list[int]] = {}
        for index in range(len(self.frames)) if indices is None else indices:
            path, frame = self.frames[index]
            numbers.setdefault(path, []).append(frame.number)
        return [(self.images[p], found if "NumberOfFrames" in self.images[p] else None) for p, found in numbers.items()]

    def place(self, volume: np.ndarray, affine_ras: np.ndarray) -> np.ndarray:
        """
        The values of a volume at the pixels of the frames. Each frame must be one plane of the volume's grid to 0.1 mm,
        and each plane one frame. Pixels that are not voxels of the grid, as in a gantry-tilted series that was
        straightened (planes shifted within themselves), take the nearest voxel, or 0 outside.

        Args:
            volume: of shape (x, y, z), such as label values.
            affine_ras: 4x4 matrix from its voxels to patient coordinates (RAS, mm).

        Returns:
            (n, rows, columns) in the order of the frames.

        Raises:
            InputError: if the frames have no position, or do not match the planes of the grid one to one.
        """
        volume, affine = np.asarray(volume), np.asarray(affine_ras, dtype=float)
        columns, rows = self.first.Columns, self.first.Rows
        planes = self.planes
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
            raise InputError(f"affine_ras must be an invertible 4x4 matrix, got {affine.tolist()}.")
        if volume.ndim != 3 or volume.shape[2] != len(planes):
            raise InputError(
                f"the result must have as many slices as frames ({len(planes)}), got shape {volume.shape}."
            )
        affine = RAS_TO_LPS @ affine
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        slice_mm = abs(affine[:3, 2] @ normal) / np.linalg.norm(normal)
        placed = np.zeros((len(planes), rows, columns), volume.dtype)
        used, slices = [], affine.copy()
        for index, plane in enumerate(planes):
            slices[:3, 3] = affine[:3, 3] + index * affine[:3, 2]
            if volume.shape[:2] == (columns, rows) and corner_offsets_mm(slices, plane, self.size) <= TOLERANCE_MM:
                placed[index] = volume[:, :, index].T
                used.append(index)
                continue
            to_voxel = np.linalg.inv(affine) @ plane
            heights = (to_voxel @ corners(self.size))[2]  # in slices, of the four corners
            nearest = int(np.clip(np.rint(heights.mean()), 0, len(planes) - 1))
            offset = np.abs(heights - nearest).max() * slice_mm
            if offset > TOLERANCE_MM:
                path, frame = self.frames[index]
                raise InputError(
                    f"{path}: frame {frame.number} must lie on a plane of the result's grid to {TOLERANCE_MM} mm, but "
                    f"is {offset:.3f} mm off the nearest: the result is not of this series, or its affine is wrong."
                )
            pixels = np.arange(columns), np.arange(rows)[:, None]
            x, y = (np.rint(m[0] * pixels[0] + m[1] * pixels[1] + m[3]).astype(int) for m in to_voxel[:2])
            inside = (x >= 0) & (x < volume.shape[0]) & (y >= 0) & (y < volume.shape[1])  # (rows, columns)
            placed[index][inside] = volume[x[inside], y[inside], nearest]
            used.append(nearest)
        if len(set(used)) < len(planes):
            path = self.frames[0][0]
            raise InputError(f"{path}: several frames lie on one plane of the result's grid: {used}.")
        return placed


def reference_of(header: Dataset) -> Dataset:
    """What a result needs of a file's header to refer to it; without NumberOfFrames if it has one frame."""
    image = Dataset()
    with quiet_pydicom():
        for keyword in REFERENCE:
            try:
                if header.get(keyword) not in (None, ""):
                    image[keyword] = header[keyword]
            except Exception:  # damaged: it counts as absent
                continue
        for keyword in ("SOPClassUID", "SOPInstanceUID"):
            if keyword not in image and (uid := header.file_meta.get(f"MediaStorage{keyword}")):
                setattr(image, keyword, uid)
        if "PerFrameFunctionalGroupsSequence" in header or int(header.get("NumberOfFrames") or 1) > 1:
            image.NumberOfFrames = int(header.get("NumberOfFrames") or 1)
        image.Modality = image.get("Modality", "OT")
    return image


def _read(path: str) -> Dataset:
    tags: Any = [Tag(keyword) for keyword in (*TYPE_2, *REFERENCE)]
    try:
        with LimitedFile(path) as file:
            return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)
    except Exception as error:
        raise refusal(error) or InputError(f"cannot be read as DICOM: {type(error).__name__}.") from None


def _complete(images: Mapping[str, Dataset]) -> None:
    """Fills in missing identifiers, and checks those that all images must share."""
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
            wanted, got = first[keyword].value, image[keyword].value
            with naming(path):
                if got != wanted:
                    raise InputError(f"{keyword} must be that of {first_path}, {wanted}, got {got}.")
