# SPDX-License-Identifier: Apache-2.0
"""Label maps from DICOM RT Structure Sets (DICOM PS3.3 A.19) of any writer."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pydicom
from monai.config import PathLike
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from monai_dvpt.data.dicom.geometry import RAS_TO_LPS, TOLERANCE_MM
from monai_dvpt.data.dicom.grid import SeriesGrid
from monai_dvpt.data.dicom.headers import quiet_pydicom, read_header
from monai_dvpt.data.dicom.limited import LimitedFile, refusal
from monai_dvpt.data.dicom.terms import number_text, term, uid_text
from monai_dvpt.data.label_overlap import overlap_error
from monai_dvpt.utils import InputError, naming

__all__ = ["describe_rtstruct", "read_rtstruct"]

STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
"""SOP class: RT Structure Set."""
REFERENCES = ("StructureSetROISequence", "ReferencedFrameOfReferenceSequence")
KINDS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "OPEN_PLANAR", "OPEN_NONPLANAR", "POINT")
"""Defined terms of ContourGeometricType (PS3.3 C.8.8.6.1)."""
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
MAX_NUMBER = (1 << 16) - 1
ON_EDGE = 1e-4  # pixels


def describe_rtstruct(path: PathLike) -> tuple[set[str], dict[int, str]]:
    """
    Returns:
        Series Instance UIDs that the file refers to, and the names of its ROIs as :func:`read_rtstruct` numbers them.

    Raises:
        InputError: if it is no RT Structure Set, or describes no ROI.
    """
    with naming(path):
        dataset = _read(path, REFERENCES)
        return _guarded(lambda: (_series(dataset), _names(dataset)))


def read_rtstruct(
    path: PathLike, source: SeriesGrid, wanted: Collection[str] | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """
    Reads the contours of a series onto the grid of the volume that was read from it. A voxel is of an ROI if its centre
    lies inside an odd number of the contours of its slice, so that a contour inside another cuts a hole, or on a
    contour and in no ROI. Every contour must lie on a plane of the grid to 0.1 mm, and on an image that it names, if it
    names any.

    A contour stands for its slice (PS3.3 C.8.8.6). An ROI is drawn with gaps if most of its steps from one slice with
    contours to the next, in which it shares a pixel, go over slices without any. What lies between is never guessed:
    all these steps must be alike, and the file must state a Contour Slab Thickness (3006,0044) of their length. The
    slab around a contour, its border towards the first slice included, is then of the ROI.

    Args:
        path: the file.
        source: grid of the series.
        wanted: names of the ROIs to read, such as those that do not overlap; all by default.

    Returns:
        label map of the shape of the volume, uint8 or uint16, with the ROI numbers of the file as values (or, if one is
        not in [1, 65535], numbers from 1 in the order of the file), and the name of each ROI by number, with those that
        have no contour.

    Raises:
        InputError: if it is no such file, is of another series or frame of reference, a contour is not closed and
            planar, lies elsewhere, or has an offset (Contour Offset Vector), contours of an ROI cross or are the same,
            an ROI is drawn with gaps that no stated thickness fills, or two ROIs overlap or have one name.
    """
    with naming(path):
        dataset = _read(path, (*REFERENCES, "ROIContourSequence"))
        return _guarded(lambda: _rasterise(dataset, source, wanted))


def _guarded(work: Any) -> Any:
    try:
        with quiet_pydicom():  # its warnings quote values
            return work()
    except InputError:
        raise
    except Exception as error:  # damaged elements can raise anything
        raise InputError(f"cannot be read as a structure set: {type(error).__name__}.") from None


def _read(path: PathLike, keywords: Collection[str]) -> Dataset:
    try:
        header = read_header(path)
    except InputError as error:
        raise InputError(f"cannot be read as DICOM: {error}") from None
    if header.sop_class != STORAGE:
        raise InputError(f"must be a DICOM RT Structure Set, is of modality {header.modality or 'none'}.")
    tags: Any = [Tag(keyword) for keyword in keywords]
    try:
        with quiet_pydicom(), LimitedFile(os.fspath(path)) as file:
            return pydicom.dcmread(file, force=True, specific_tags=tags)
    except Exception as error:
        raise refusal(error) or InputError(f"cannot be read as DICOM: {type(error).__name__}.") from None


def _series(dataset: Dataset) -> set[str]:
    return {
        uid_text(series.get("SeriesInstanceUID"))
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    }


def _numbers(dataset: Dataset) -> dict[int, int]:
    """Value in the label map by ROI number."""
    numbers = [item.get("ROINumber") for item in dataset.get("StructureSetROISequence") or []]
    if not numbers:
        raise InputError("describes no ROI.")
    if not all(isinstance(number, int) for number in numbers) or len(set(numbers)) < len(numbers):
        raise InputError(f"ROIs must have whole numbers, each once, got {number_text(numbers)}.")
    if all(1 <= number <= MAX_NUMBER for number in numbers):
        return {int(number): int(number) for number in numbers}
    return {int(number): value for value, number in enumerate(numbers, 1)}


def _names(dataset: Dataset) -> dict[int, str]:
    values, names = _numbers(dataset), {}
    for item in dataset.StructureSetROISequence:
        value = values[int(item.ROINumber)]
        names[value] = str(item.get("ROIName") or "").strip()
        if not names[value]:
            raise InputError(f"ROIs must have a name, ROI {number_text(item.ROINumber)} has none.")
    return names


def _rasterise(
    dataset: Dataset, source: SeriesGrid, wanted: Collection[str] | None
) -> tuple[np.ndarray, dict[int, str]]:
    names, values = _names(dataset), _numbers(dataset)
    _check_reference(dataset, source, {values[n] for n in values if wanted is None or names[values[n]] in wanted})
    if wanted is not None:
        names = {value: name for value, name in names.items() if name in wanted}
    number_of = {value: number for number, value in values.items()}
    _check_different(names, number_of)
    label = np.zeros(source.shape, np.uint8 if max(names, default=0) < 256 else np.uint16)
    to_voxel = np.linalg.inv(RAS_TO_LPS @ source.affine_ras)
    polygons: dict[int, dict[int, list[np.ndarray]]] = {}
    thickness_mm: dict[int, set[float]] = {value: set() for value in names}
    exclusive = set()  # ROIs whose contours are combined by exclusive or, as the file says
    slice_mm = float(1 / np.linalg.norm(to_voxel[2, :3]))  # between planes
    for item in dataset.get("ROIContourSequence") or []:
        number = item.get("ReferencedROINumber")
        if number not in values:
            raise InputError(f"contours must be of an ROI of the file, are of {number_text(number)}.")
        if (value := values[int(number)]) not in names:
            continue
        slices = polygons.setdefault(value, {})
        for contour in item.get("ContourSequence") or []:
            index, polygon = _polygon(contour, to_voxel, source, int(number))
            slices.setdefault(index, []).append(polygon)
            thickness_mm[value].add(float(contour.get("ContourSlabThickness") or 0))
            if str(contour.ContourGeometricType) == "CLOSEDPLANAR_XOR":
                exclusive.add(value)
    for value, slices in polygons.items():
        if step := _gap(slices, source.shape[:2], number_of[value], thickness_mm[value], slice_mm):
            polygons[value] = _slabs(slices, step, source.shape[2], number_of[value])
    for value, slices in polygons.items():
        for index, of_slice in slices.items():
            if value not in exclusive:
                _check_nested(of_slice, source.shape[:2], index, value)
            inside = _inside(of_slice, source.shape[:2])
            there = label[:, :, index][inside]
            if there.any():
                numbers = number_of[int(there.max())], number_of[value]
                raise overlap_error("ROI", there, numbers, f"slice {index + 1}")
            label[:, :, index][inside] = value
    for value, slices in polygons.items():
        for index, of_slice in slices.items():
            plane = label[:, :, index]
            plane[_on_border(of_slice, source.shape[:2]) & (plane == 0)] = value
    return label, names


def _check_reference(dataset: Dataset, source: SeriesGrid, values: set[int]) -> None:
    series, referred = str(source.first.SeriesInstanceUID), _series(dataset)
    if series not in referred:
        raise InputError(f"must be of the series {uid_text(series)}, is of {', '.join(sorted(referred)) or 'none'}.")
    place = source.headers[source.frames[0][0]].get("FrameOfReferenceUID")
    number_of = _numbers(dataset)
    for item in dataset.StructureSetROISequence:
        own = item.get("ReferencedFrameOfReferenceUID")
        if number_of[int(item.ROINumber)] in values and place and own and place != own:
            raise InputError(
                f"ROI {int(item.ROINumber)} must have the frame of reference of the series, {uid_text(place)}, "
                f"has {uid_text(own)}."
            )


def _check_different(names: dict[int, str], number_of: dict[int, int]) -> None:
    for name in names.values():
        same = [number_text(number_of[value]) for value, other in names.items() if other == name]
        if len(same) > 1:
            raise InputError(f"ROIs must have different names, ROIs {' and '.join(same)} have the same.")


def _gap(
    slices: dict[int, list[np.ndarray]], size: tuple[int, ...], number: int, thickness_mm: set[float], slice_mm: float
) -> int:
    """Slices from one contour to the next where an ROI is drawn with gaps that its slabs fill; else 0."""
    drawn = sorted(slices)
    if len(drawn) < 2 or drawn[-1] - drawn[0] == len(drawn) - 1:
        return 0  # one after another
    inside = {index: _inside(slices[index], size) for index in drawn}
    touching = [pair for pair in pairwise(drawn) if (inside[pair[0]] & inside[pair[1]]).any()]
    over = [(first, second) for first, second in touching if second - first > 1]
    if 2 * len(over) <= len(touching):
        return 0
    steps, (first, second) = {second - first for first, second in touching}, over[0]
    step = second - first
    if len(steps) > 1 or any(abs(stated - step * slice_mm) > TOLERANCE_MM for stated in thickness_mm):
        stated = ", ".join(f"{each:g}" if each else "none" for each in sorted(thickness_mm))
        raise InputError(
            f"contours of an ROI must be on every slice that it fills, or state a thickness of one regular gap, those "
            f"of ROI {number_text(number)} leave out slices in {len(over)} of {len(touching)} steps, the first from "
            f"slice {first + 1} to {second + 1}, {step * slice_mm:g} mm; their Contour Slab Thickness is {stated}."
        )
    return step


def _slabs(slices: dict[int, list[np.ndarray]], step: int, count: int, number: int) -> dict[int, list[np.ndarray]]:
    """The contours of every slice whose plane lies in the slab of one, of ``step`` slices around it."""
    filled: dict[int, list[np.ndarray]] = {}
    for index, of_slice in slices.items():
        for target in range(max(0, index - step // 2), min(count, index + step - step // 2)):
            if target in filled or (target in slices and target != index):
                raise InputError(
                    f"contours of an ROI must be on every slice that it fills, or have slabs that do not meet, those "
                    f"of ROI {number_text(number)} have two on slice {target + 1}."
                )
            filled[target] = of_slice
    return filled


def _polygon(contour: Dataset, to_voxel: np.ndarray, source: SeriesGrid, number: int) -> tuple[int, np.ndarray]:
    """Slice of a contour, and its points in columns and rows, of shape (points, 2)."""
    if (kind := str(contour.get("ContourGeometricType") or "")) not in CLOSED:
        raise InputError(f"contours must be CLOSED_PLANAR, one of ROI {number} is {term(kind, KINDS) or 'of no type'}.")
    numbers = contour.get("ContourData")
    flat = np.array([] if numbers is None else numbers, dtype=float).ravel()
    if len(flat) == 0 or len(flat) % 3 or not np.isfinite(flat).all():
        raise InputError(f"contours must have finite x, y and z of each point, one of ROI {number} has not.")
    if any(float(each) for each in contour.get("ContourOffsetVector") or ()):
        raise InputError(f"contours must lie where their points are, one of ROI {number} has a Contour Offset Vector.")
    points = flat.reshape(-1, 3) @ to_voxel[:3, :3].T + to_voxel[:3, 3]  # (points, 3), in voxels
    index = int(np.rint(points[:, 2].mean()))
    normal_mm = 1 / np.linalg.norm(to_voxel[2, :3])
    offset = float(np.abs(points[:, 2] - index).max()) * normal_mm
    if offset > TOLERANCE_MM or not 0 <= index < source.shape[2]:
        raise InputError(
            f"contours must lie on the planes of the series to {TOLERANCE_MM} mm, one of ROI {number} is "
            f"{max(offset, _beyond(points[:, 2], source.shape[2]) * normal_mm):.3f} mm off."
        )
    _check_image(contour, source, index, number)
    for axis in (0, 1):
        if (beyond := _beyond(points[:, axis], source.shape[axis])) > 1.5:  # half a pixel is its border
            raise InputError(f"contours must lie in the image, one of ROI {number} is {beyond:.1f} pixels outside.")
    return index, points[:, :2].round(6)


def _check_image(contour: Dataset, source: SeriesGrid, index: int, number: int) -> None:
    """A contour that names images lies on one of them."""
    path, frame = source.frames[index]
    own = str(source.images[path].SOPInstanceUID)
    named = [item for item in contour.get("ContourImageSequence") or [] if "ReferencedSOPInstanceUID" in item]
    for item in named:
        numbers = np.ravel(item.get("ReferencedFrameNumber") or frame.number)
        if str(item.ReferencedSOPInstanceUID) == own and frame.number in numbers.astype(int):
            return
    if named:
        raise InputError(
            f"contours must lie on an image that they name, one of ROI {number} lies on slice {index + 1} and names "
            "another."
        )


def _inside(polygons: list[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """
    The pixels, of shape (columns, rows), whose centres lie inside an odd number of polygons. Along each row, the pixels
    after a crossing with an edge change sides. An edge that is there twice, such as the channel to a hole (the keyhole
    technique of PS3.3 C.8.8.6.3), is crossed twice at the very same place: matplotlib's test of points rounds the two
    directions differently, and loses pixels on it.
    """
    crossings = np.zeros((size[0] + 1, size[1]), np.int64)
    for polygon in polygons:
        edges = np.stack([polygon, np.roll(polygon, -1, axis=0)], axis=1)  # (edges, 2 ends, 2)
        turned = edges[:, 0, 1] > edges[:, 1, 1]
        edges[turned] = edges[turned, ::-1]  # from the lower row to the higher
        for (x0, y0), (x1, y1) in edges.tolist():
            rows = np.arange(max(math.ceil(y0), 0), min(math.ceil(y1), size[1]))  # the higher end is excluded
            if len(rows):
                at = x0 + (rows - y0) * ((x1 - x0) / (y1 - y0))
                crossings[np.clip(np.ceil(at), 0, size[0]).astype(int), rows] += 1
    return np.cumsum(crossings[:-1], axis=0) % 2 == 1


def _on_border(polygons: list[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """
    The pixels whose centres lie on an edge, to ``ON_EDGE``. Programs that trace a mask through the centres of its
    outermost pixels mean these too; the half-open rule of :func:`_inside` takes those of one side alone. An edge that
    is there twice, a channel to a hole, is no border.
    """
    border = np.zeros(size, bool)
    edges: Counter[frozenset[tuple[float, ...]]] = Counter()
    for polygon in polygons:
        points = [tuple(point) for point in polygon.tolist()]
        edges.update(frozenset(pair) for pair in zip(points, [*points[1:], points[0]], strict=True))
    for edge, count in edges.items():
        if count == 1:
            start, end = np.array(min(edge)), np.array(max(edge))
            low = np.maximum(np.ceil(np.minimum(start, end) - ON_EDGE), 0).astype(int)
            high = np.minimum(np.floor(np.maximum(start, end) + ON_EDGE), np.array(size) - 1).astype(int)
            if (high < low).any():
                continue
            columns, rows = np.mgrid[low[0] : high[0] + 1, low[1] : high[1] + 1]
            length = float(np.hypot(*(end - start)))
            along = (end - start) / length if length else np.zeros(2)
            off = np.abs((columns - start[0]) * along[1] - (rows - start[1]) * along[0])
            border[low[0] : high[0] + 1, low[1] : high[1] + 1] |= off <= ON_EDGE
    return border


def _check_nested(polygons: list[np.ndarray], size: tuple[int, ...], index: int, value: int) -> None:
    """Contours of one ROI in a slice lie apart or inside each other; else one would erase the other."""
    masks = [_inside([polygon], size) for polygon in polygons]
    boxes = [(polygon.min(axis=0), polygon.max(axis=0)) for polygon in polygons]
    for (first, one), (second, other) in combinations(enumerate(masks, 1), 2):
        (low, high), (others_low, others_high) = boxes[first - 1], boxes[second - 1]
        if (high < others_low).any() or (others_high < low).any():
            continue
        shared, sizes = np.count_nonzero(one & other), (np.count_nonzero(one), np.count_nonzero(other))
        if shared and (shared < min(sizes) or shared == max(sizes)):
            raise InputError(
                f"contours of an ROI must lie apart or inside each other, {first} and {second} of value {value} in "
                f"slice {index + 1} cross or are the same."
            )


def _beyond(values: np.ndarray, size: int) -> float:
    """How far values lie outside the centres of the first and the last voxel."""
    return float(max(-values.min(), values.max() - (size - 1), 0))
