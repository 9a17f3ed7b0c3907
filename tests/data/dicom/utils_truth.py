# SPDX-License-Identifier: Apache-2.0
"""What DICOM files say of their frames, by pydicom and arithmetic of its own, and whether a volume agrees."""

from __future__ import annotations

import math
import unittest
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Slice:
    """
    One frame, as the standard places it.

    Attributes:
        modality: such as "CT".
        uid: SOP Instance UID.
        origin: of the first voxel, in mm (LPS).
        along_row: vector (LPS, mm) from a voxel to the next column.
        along_column: vector (LPS, mm) from a voxel to the next row.
        values: (columns, rows), float64, rescaled as this frame says; NaN in padding.
    """

    modality: str
    uid: str
    origin: np.ndarray
    along_row: np.ndarray
    along_column: np.ndarray
    values: np.ndarray

    @property
    def normal(self) -> np.ndarray:
        normal = np.cross(self.along_row, self.along_column)
        return normal / np.linalg.norm(normal)

    def ras(self) -> np.ndarray:
        """World positions of all voxels, (columns, rows, 3), RAS, mm."""
        column, row = (axis[..., None] for axis in np.indices(self.values.shape))
        return (self.origin + column * self.along_row + row * self.along_column) @ LPS_TO_RAS


def frames(path: Path) -> list[Slice]:
    """All frames of a file, read by pydicom."""
    dataset = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return [_frame(dataset, dataset, dataset, dataset, _stored(dataset))]
    shared, arrays = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0], _stored(dataset)
    arrays = arrays[None] if arrays.ndim == 2 else arrays
    result = []
    for own, array in zip(dataset.PerFrameFunctionalGroupsSequence, arrays, strict=True):
        position, axes, measures = (
            getattr(own if name in own else shared, name)[0]
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        place = Dataset()
        place.ImagePositionPatient = position.ImagePositionPatient
        place.ImageOrientationPatient = axes.ImageOrientationPatient
        name = "PixelValueTransformationSequence"
        group = own if name in own else shared
        rescale = getattr(group, name)[0] if name in group else Dataset()
        result.append(_frame(dataset, place, measures, rescale, array))
    return result


def _stored(dataset: Dataset) -> np.ndarray:
    """The lowest BitsStored bits of each pixel, with their sign, NaN in padding; pydicom decompresses, no more."""
    shape = (int(dataset.get("NumberOfFrames") or 1), dataset.Rows, dataset.Columns)
    shape = shape[shape[0] == 1 :]
    for keyword, kind in (("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")):
        if keyword in dataset:
            return np.frombuffer(dataset[keyword].value, kind, math.prod(shape)).reshape(shape)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        words = dataset.pixel_array.astype(np.int64)
    else:
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        words = np.frombuffer(dataset.PixelData, f"{order}u{dataset.BitsAllocated // 8}", math.prod(shape))
    values = words.reshape(shape).astype(np.int64) % 2**dataset.BitsStored
    if dataset.PixelRepresentation:
        values = np.where(values >= 2 ** (dataset.BitsStored - 1), values - 2**dataset.BitsStored, values)
    ends = [dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")]
    ends = [int(end) for end in ends if end is not None]
    return np.where((values >= min(ends)) & (values <= max(ends)), np.nan, values) if ends else values


def _frame(dataset: Dataset, place: Dataset, measures: Dataset, rescale: Dataset, array: np.ndarray) -> Slice:
    along_row, along_column = np.array(place.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, measures.PixelSpacing)
    slope, intercept = rescale.get("RescaleSlope"), rescale.get("RescaleIntercept")
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    values = array.T.astype(np.float64) * slope + intercept
    if dataset.get("ModalityLUTSequence"):
        (table,) = dataset.ModalityLUTSequence
        entries = np.frombuffer(table.LUTData, "<u2") if isinstance(table.LUTData, bytes) else np.array(table.LUTData)
        values = entries.astype(np.float64)[array.T.astype(int) - int(table.LUTDescriptor[1])]
    return Slice(
        str(dataset.Modality),
        str(dataset.get("SOPInstanceUID", "")),
        np.array(place.ImagePositionPatient, float),
        along_row * between_columns,
        along_column * between_rows,
        values,
    )


def sources(made: Sequence[Path | tuple[Path, int]]) -> list[tuple[Path, int, Slice]]:
    """The frames of files, or the chosen frame (from 1) of each: path, number, frame."""
    result = []
    for each in made:
        if isinstance(each, tuple):
            result.append((*each, frames(each[0])[each[1] - 1]))
        else:
            result += [(each, number, frame) for number, frame in enumerate(frames(each), 1)]
    return result


def frames_of(meta: Mapping[str, Any]) -> list[tuple[str, int]]:
    """File and number of the frame of every slice."""
    return [(path, frame.number) for path, frame in meta["series_grid"].frames]


def check_volume(
    test: unittest.TestCase,
    volume: np.ndarray,
    meta: dict[str, Any],
    expected: Sequence[tuple[Path, int, Slice]],
    tolerance_mm: float = 0.1,
) -> None:
    """
    Every voxel of every slice lies where its own file places it and has its own file's value; nothing else is there.
    """
    affine = np.asarray(meta["affine"], float)
    columns, rows = expected[0][2].values.shape
    test.assertEqual(volume.shape, (columns, rows, len(expected)))
    test.assertEqual(volume.dtype, np.float32)
    test.assertEqual([int(size) for size in meta["spatial_shape"]], [columns, rows, len(expected)])
    test.assertEqual(str(getattr(meta["space"], "value", meta["space"])), "RAS")
    np.testing.assert_array_equal(np.asarray(meta["original_affine"], float), affine)
    test.assertEqual(len(frames_of(meta)), len(expected))
    nothing = min(np.nanmin([frame.values for *_, frame in expected]), -1000 if expected[0][2].modality == "CT" else 0)
    test.assertEqual(meta["padding_voxels"], sum(int(np.isnan(frame.values).sum()) for *_, frame in expected))
    seen = set()
    for _, number, frame in expected:
        ras = frame.ras()
        voxels = np.rint((ras - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(int)
        offsets = np.linalg.norm(voxels @ affine[:3, :3].T + affine[:3, 3] - ras, axis=-1)
        test.assertLessEqual(offsets.max(), tolerance_mm)
        for axis, (low, high) in enumerate(zip(voxels.min((0, 1)), voxels.max((0, 1)), strict=True)):
            test.assertTrue(0 <= low <= high < volume.shape[axis], (axis, low, high))
        found = volume[tuple(np.moveaxis(voxels, -1, 0))]
        values = np.nan_to_num(frame.values, nan=nothing)
        np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(values).max()))
        (z,) = np.unique(voxels[..., 2])
        path, named = frames_of(meta)[z]
        test.assertEqual(named, number)
        # of identical copies any may be named
        np.testing.assert_array_equal(frames(Path(path))[named - 1].values, frame.values)
        test.assertEqual(frames(Path(path))[named - 1].uid, frame.uid)
        seen.add(int(z))
        test.assertGreater(float(affine[:3, 2] @ (frame.normal @ LPS_TO_RAS)), 0)  # along the normal, not against it
    test.assertEqual(seen, set(range(len(expected))))
