# SPDX-License-Identifier: Apache-2.0
"""
Label maps from DICOM Segmentations (DICOM PS3.3 A.51) of any writer.

They are read with pydicom alone: highdicom writes patients' names into warnings, and its releases for pydicom 2 and 3
differ in reading.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pydicom
from monai.config import PathLike
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from monai_dvpt.data.dicom.geometry import RAS_TO_LPS, TOLERANCE_MM, corner_offsets_mm, corners
from monai_dvpt.data.dicom.grid import GRID_TAGS, SeriesGrid, reference_of
from monai_dvpt.data.dicom.headers import quiet_pydicom, read_header
from monai_dvpt.data.dicom.limited import LimitedFile, refusal
from monai_dvpt.data.dicom.pixels import decode
from monai_dvpt.data.dicom.terms import number_text, term, uid_text
from monai_dvpt.data.label_overlap import overlap_error
from monai_dvpt.utils import InputError, naming

__all__ = ["describe_dicom_seg", "read_dicom_seg"]

STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes: Segmentation, Label Map Segmentation."""
TYPES = ("BINARY", "FRACTIONAL", "LABELMAP")
TAGS = (
    *("SegmentationType", "SegmentSequence", "ReferencedSeriesSequence", "FrameOfReferenceUID"),
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
)


def describe_dicom_seg(path: PathLike) -> tuple[set[str], dict[int, str]]:
    """
    Returns:
        Series Instance UIDs that a segmentation refers to, and the names of its segments by number.

    Raises:
        InputError: if it is no DICOM Segmentation, or describes no segment.
    """
    tags: Any = [Tag(keyword) for keyword in ("SOPClassUID", *TAGS[:3])]
    with naming(path):
        try:
            with quiet_pydicom(), LimitedFile(os.fspath(path)) as file:
                seg = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)
                if seg.get("SOPClassUID") not in STORAGE:
                    raise InputError("must be a DICOM Segmentation, is another object.")
                return set(_referred(seg)), _names(seg)
        except InputError:
            raise
        except Exception as error:  # damaged elements can raise anything
            why = refusal(error) or InputError(f"cannot be read as a segmentation: {type(error).__name__}.")
            raise why from None


def read_dicom_seg(
    path: PathLike, source: SeriesGrid, wanted: Collection[str] | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """
    Reads a segmentation of a series onto the grid of the volume that was read from it. Every frame is placed by its own
    position and orientation, never by its order. It must lie on a plane of the grid, and its pixels on voxels, to
    0.1 mm, or on a frame of the series that was moved to straighten a tilted gantry. It may be cropped, flipped or
    transposed.

    Args:
        path: the file, of type BINARY or LABELMAP.
        source: grid of the series.
        wanted: names of the segments to read, such as those that do not overlap; all by default.

    Returns:
        label map of the shape of the volume, uint8 or uint16, with the segment numbers of the file as values, and the
        name of each segment by number, in any numbering, with those of empty segments.

    Raises:
        InputError: if it is no such segmentation or cannot be decoded, is of another series, a frame lies elsewhere, or
            segments overlap.
    """
    path = os.fspath(path)
    seg, grid, pixels = _read(path)
    with naming(path):
        try:
            with quiet_pydicom():  # its warnings quote values
                names = _names(seg)
                _check_reference(seg, source)
                numbers = [_number_of(seg, index) for index in range(len(pixels))]
        except InputError:
            raise
        except Exception as error:  # damaged elements can raise anything
            raise InputError(f"cannot be read as a segmentation: {type(error).__name__}.") from None
        label = np.zeros(source.shape, np.uint8 if max(names) < 256 else np.uint16)
        for index, frame in enumerate(pixels):
            if not frame.any():
                continue  # an empty frame may lie anywhere
            to_voxel = _to_voxel(grid, index, source)
            for number, mask in _masks(frame, numbers[index]):
                if number not in names:
                    raise InputError(f"frame {index + 1} is of segment {number}, which the file does not describe.")
                if wanted is not None and names[number] not in wanted:
                    continue
                rows, columns = mask.nonzero()
                voxels = (to_voxel @ [columns, rows, np.ones_like(rows)]).astype(int)
                outside = ((voxels < 0) | (voxels >= np.array(source.shape)[:, None])).any(axis=0)
                if outside.any():
                    raise InputError(f"{outside.sum()} pixels of frame {index + 1} lie outside the image.")
                there = label[tuple(voxels)]
                if there.any():
                    raise overlap_error("segment", there, (int(there.max()), number), f"frame {index + 1}")
                label[tuple(voxels)] = number
        return label, {number: name for number, name in names.items() if wanted is None or name in wanted}


def _read(path: str) -> tuple[Dataset, SeriesGrid, np.ndarray]:
    """The file, the grid of its frames, and their pixels, (frames, rows, columns)."""
    try:
        header = read_header(path)
    except InputError as error:
        raise InputError(f"{path}: cannot be read as DICOM: {error}") from None
    kind = None
    if header.sop_class in STORAGE:
        seg, pixels, _ = decode(header, TAGS + GRID_TAGS)
        if (kind := str(seg.get("SegmentationType") or "")) in ("BINARY", "LABELMAP"):
            slices = [(header, frame) for frame in header.frames]
            return seg, SeriesGrid.of(slices, {header.path: reference_of(seg)}), pixels
    raise InputError(
        f"{path}: must be a DICOM Segmentation of type BINARY or LABELMAP, is of modality {header.modality or 'none'}, "
        f"type {term(kind or '', TYPES) or 'none'}."
    )


def _names(seg: Dataset) -> dict[int, str]:
    names = {}
    for item in seg.get("SegmentSequence") or []:
        kinds = item.get("SegmentedPropertyTypeCodeSequence") or [Dataset()]
        name = str(item.get("SegmentLabel") or kinds[0].get("CodeMeaning") or "").strip()
        number = item.get("SegmentNumber")
        if number == 0 and seg.SegmentationType == "LABELMAP":
            continue  # background
        if not isinstance(number, int) or not 1 <= number < 1 << 16 or number in names or not name:
            got = number_text(number) + ("" if name else " without a name")
            raise InputError(f"segments must have a name, and numbers from 1 once each, got {got}.")
        names[int(number)] = name
    if not names:
        raise InputError("describes no segment.")
    return names


def _referred(seg: Dataset) -> list[str]:
    return [uid_text(item.get("SeriesInstanceUID")) for item in seg.get("ReferencedSeriesSequence") or []]


def _check_reference(seg: Dataset, source: SeriesGrid) -> None:
    referred = _referred(seg)
    series = str(source.first.SeriesInstanceUID)
    if series not in referred:
        raise InputError(f"must be of the series {uid_text(series)}, is of {', '.join(referred) or 'none'}.")
    place, own = (header.get("FrameOfReferenceUID") for header in (source.headers[source.frames[0][0]], seg))
    if place and own and place != own:
        raise InputError(f"must have the frame of reference of the series, {uid_text(place)}, has {uid_text(own)}.")


def _number_of(seg: Dataset, index: int) -> int | None:
    """Segment of a frame; None if each pixel has its own."""
    for groups, at in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        group = (seg.get(groups) or [])[at : at + 1]
        found = group[0].get("SegmentIdentificationSequence") if group else None
        if found:
            return int(found[0].ReferencedSegmentNumber)
    if seg.SegmentationType == "LABELMAP":
        return None
    raise InputError(f"frame {index + 1} does not say of which segment it is.")


def _masks(frame: np.ndarray, number: int | None) -> Iterator[tuple[int, np.ndarray]]:
    if number is not None:
        yield number, frame != 0
        return
    for value in np.unique(frame):
        if value:
            yield int(value), frame == value


def _to_voxel(seg: SeriesGrid, index: int, source: SeriesGrid) -> np.ndarray:
    """3x3 matrix of whole numbers from (column, row, 1) of a frame to (x, y, z)."""
    affine, plane = RAS_TO_LPS @ source.affine_ras, seg.planes[index]
    exact = (np.linalg.inv(affine) @ plane)[:3, [0, 1, 3]]
    whole = np.floor(exact + 0.5)
    whole[2, :2] = 0  # a plane of the grid
    inexact = exact - whole
    of_series = seg.size == source.size and corner_offsets_mm(source.planes, plane, seg.size).min() <= TOLERANCE_MM
    if of_series:
        inexact[:2, 2] = 0  # moved by a part of a pixel
    offset = np.linalg.norm(affine[:3, :3] @ inexact @ corners(seg.size)[[0, 1, 3]], axis=0).max()
    turns = np.abs(whole[:2, :2])
    if offset > TOLERANCE_MM or not ((turns.sum(axis=0) == 1).all() and (turns.sum(axis=1) == 1).all()):
        raise InputError(
            f"frame {index + 1} must lie on the voxels of the image to {TOLERANCE_MM} mm, but is "
            f"{offset:.3f} mm off, or has another spacing."
        )
    return whole
