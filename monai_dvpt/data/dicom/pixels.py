# SPDX-License-Identifier: Apache-2.0
"""The values of slices: decoded, rescaled each by its own header, and where the gantry was tilted put straight."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.utils import optional_import
from pydicom.tag import Tag
from scipy.ndimage import shift

from monai_dvpt.utils import InputError

from .geometry import Grid
from .headers import DicomFile, Frame, quiet_pydicom
from .volumes import DicomVolume

apply_modality_lut, has_pixels = optional_import("pydicom.pixels", name="apply_modality_lut")
if not has_pixels:
    apply_modality_lut, _ = optional_import("pydicom.pixel_data_handlers.util", name="apply_modality_lut")

get_decoder, has_decoders = optional_import("pydicom.pixels", name="get_decoder")

__all__ = ["MAX_BYTES", "read_values", "straighten"]

MAX_BYTES = 8 << 30
"""Largest volume that is read, in memory, as float32: 8 GiB."""
PIXEL_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "ModalityLUTSequence"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
_TAGS: list[Any] = [Tag(keyword) for keyword in PIXEL_TAGS]


def read_values(volume: DicomVolume) -> np.ndarray:
    """
    Args:
        volume: slices and where they lie.

    Returns:
        of shape (columns, rows, slices), float32: stored value x RescaleSlope + RescaleIntercept, each slice by its
        own, or by its Modality LUT (PS3.3 C.11.1). MONOCHROME1 changes nothing: it says how values are shown.

    Raises:
        InputError: if a file cannot be decoded, or its pixels are not what its header says.
    """
    _check_size(volume.size)
    columns, rows, count = volume.size
    values = np.empty((count, rows, columns), np.float32)
    wanted: dict[Path, list[tuple[int, Frame]]] = {}
    for index, (file, frame) in enumerate(volume.slices):
        wanted.setdefault(file.path, []).append((index, frame))
    files = {file.path: file for file, _ in volume.slices}
    for path, frames in wanted.items():
        dataset, stored = _decode(files[path])
        for index, frame in frames:
            values[index] = _rescale(stored[frame.number - 1], dataset, frame)
    return values.transpose(2, 1, 0)


def _check_size(size: tuple[int, int, int]) -> None:
    if (needed := 4 * math.prod(size)) > MAX_BYTES:
        raise InputError(f"a volume must have at most {MAX_BYTES:,} bytes in memory, would have {needed:,}.")


def _decode(file: DicomFile) -> tuple[pydicom.Dataset, np.ndarray]:
    """The stored values of all frames, of shape (frames, rows, columns)."""
    columns, rows = file.size or (0, 0)
    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(file.path, force=True, specific_tags=_TAGS)
            if "TransferSyntaxUID" not in dataset.file_meta:  # a file without its preamble
                dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            stored = _array(dataset).reshape(-1, rows, columns)
    except MemoryError:
        raise InputError(f"{file.label}: cannot be decoded in the memory there is.") from None
    except Exception as error:  # every decoder has its own kinds of error
        raise InputError(f"{file.label}: pixel data cannot be decoded: {_why(error)}") from error
    if len(stored) != len(file.frames):
        raise InputError(f"{file.label}: must have the pixels of {len(file.frames)} frames, has {len(stored)}.")
    return dataset, stored


def _array(dataset: pydicom.Dataset) -> np.ndarray:
    if not has_decoders:
        return dataset.pixel_array
    # what Dataset.pixel_array calls, without the book-keeping by which it would know the array again
    return get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, raw=True)[0]


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _rescale(stored: np.ndarray, dataset: pydicom.Dataset, frame: Frame) -> Any:
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset)
    slope = 1.0 if frame.slope is None else frame.slope
    intercept = frame.intercept or 0.0
    return stored if (slope, intercept) == (1.0, 0.0) else stored * np.float64(slope) + intercept


def straighten(values: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """
    Puts the slices of a tilted gantry on a straight grid: each is moved within its plane to where it lies, with linear
    interpolation; the planes stay. Where no slice reaches, the least value stands.

    Args:
        values: of shape (columns, rows, slices).
        grid: where they lie.

    Returns:
        the values, of shape (columns or more, rows or more, slices), and their affine (LPS, mm), 4x4.
    """
    count = values.shape[2]
    offsets = np.arange(count)[:, None] * grid.shift_pixels  # of each slice in columns and rows, (slices, 2)
    low, high = np.floor(offsets.min(axis=0)).astype(int), np.ceil(offsets.max(axis=0)).astype(int)
    size = np.array(values.shape[:2]) + high - low
    _check_size((int(size[0]), int(size[1]), count))
    straight = np.full((*size, count), values.min(), np.float32)
    for index, offset in enumerate(offsets - low):
        padded = np.full(tuple(size), values.min(), np.float32)
        padded[: values.shape[0], : values.shape[1]] = values[:, :, index]
        straight[:, :, index] = shift(padded, offset, order=1, mode="grid-constant", cval=float(values.min()))
    affine = grid.affine_lps.copy()
    affine[:3, 3] += affine[:3, :2] @ low
    affine[:3, 2] -= affine[:3, :2] @ grid.shift_pixels
    return straight, affine
