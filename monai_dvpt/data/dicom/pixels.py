# SPDX-License-Identifier: Apache-2.0
"""The values of slices: decoded, each rescaled by its own header, and straightened if the gantry was tilted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.utils import optional_import
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from scipy.ndimage import shift

from monai_dvpt.utils import InputError, naming
from monai_dvpt.utils.limits import check_bytes

from .geometry import Grid
from .grid import GRID_TAGS, reference_of
from .headers import DicomFile, Frame, quiet_pydicom
from .limited import LimitedFile, refusal
from .streams import check_streams
from .terms import PHOTOMETRIC, number_text
from .volumes import DicomVolume

pixel_functions, is_pydicom_3 = optional_import("pydicom.pixels")
if not is_pydicom_3:
    pixel_functions, _ = optional_import("pydicom.pixel_data_handlers.util")

__all__ = ["decode", "fill_padding", "pixel_functions", "read_values", "straighten"]

PADDING = {
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
"""Keywords of pixels, and of the range of padding in them."""
PIXEL_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "ModalityLUTSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", *PADDING, *sum(PADDING.values(), ())),
)
AIR = -1000.0  # Hounsfield units


def read_values(volume: DicomVolume) -> tuple[np.ndarray, int, float, dict[Path, Dataset]]:
    """
    Returns:
        values of shape (columns, rows, slices), float32: stored value x RescaleSlope + RescaleIntercept of each slice,
        or by its Modality LUT (PS3.3 C.11.1); MONOCHROME1, which only says how they are shown, has no effect; the
        number of padding voxels; the value that replaces padding: 0, in CT -1000 or the least other value if that is
        lower, so that a normalisation that ignores 0, or clips, ignores it; the headers that results refer to, by file.

    Raises:
        InputError: if a file cannot be decoded, its pixels are not what its header says, or all are padding.
    """
    columns, rows, count = volume.size
    check_bytes("a volume", 4 * math.prod(volume.size))
    wanted: dict[Path, list[tuple[int, Frame]]] = {}
    for index, (file, frame) in enumerate(volume.slices):
        wanted.setdefault(file.path, []).append((index, frame))
    files = {file.path: file for file, _ in volume.slices}
    references = {}
    try:
        values, padded = np.empty((count, rows, columns), np.float32), np.zeros((count, rows, columns), bool)
        with quiet_pydicom():  # once, and not for each file
            for path, frames in wanted.items():
                dataset, stored, padding = decode(files[path], GRID_TAGS)
                references[path] = reference_of(dataset)
                for index, frame in frames:
                    with naming(files[path].label):
                        values[index] = _rescale(stored[frame.number - 1], dataset, frame)
                    padded[index] = padding[frame.number - 1]
    except MemoryError:
        raise InputError("a volume cannot be read in the memory there is.") from None
    nothing = 0.0
    if volume.slices[0][0].modality.upper() == "CT":
        nothing = min(AIR, float(values.min(initial=math.inf, where=~padded)))
    fill_padding("a volume", values, padded, nothing)
    return values.transpose(2, 1, 0), int(padded.sum()), nothing, references


def fill_padding(what: str, values: np.ndarray, padded: np.ndarray, nothing: float | None = None) -> None:
    """
    Replaces padding (PS3.3 C.7.5.1.1.2) in volumes and radiographs, so that it is not taken for a measured value.

    Args:
        what: subject of the error.
        values: changed in place.
        padded: where they are padding, of the same shape.
        nothing: what padding becomes; by default the least other value.

    Raises:
        InputError: if all is padding.
    """
    if padded.all():
        raise InputError(f"{what} must have pixels that are no padding (PixelPaddingValue, PixelPaddingRangeLimit).")
    if padded.any():
        values[padded] = values[~padded].min() if nothing is None else nothing


@lru_cache(maxsize=16)
def _tags(keywords: tuple[str, ...]) -> list[BaseTag]:
    return [Tag(keyword) for keyword in keywords]


def decode(file: DicomFile, keywords: Sequence[str] = ()) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """
    Decodes the pixels of a file within the limits. Bits above BitsStored, such as an overlay or a sign that was not
    extended, are no part of a value, for any decoder and any number of bits in a compressed stream (PS3.5 8.1.1).

    Args:
        file: header of the file, from :func:`monai_dvpt.data.dicom.headers.read_header`.
        keywords: of further elements of the header to read.

    Returns:
        the header; the stored values, and whether each is padding, both of shape (frames, rows, columns).

    Raises:
        InputError: if the pixels cannot be decoded, or do not fit the header.
    """
    with naming(file.label):
        if file.problem:
            raise InputError(f"cannot be read: {file.problem}.")
        if file.photometric not in PHOTOMETRIC:  # a decoder would quote it
            kind = file.photometric or "none"
            raise InputError(f"PhotometricInterpretation must be one of the standard, is {kind}.")
        columns, rows = file.size or (0, 0)
        tags: Any = _tags((*PIXEL_TAGS, *keywords))
        try:
            with quiet_pydicom():
                with LimitedFile(file.path) as opened:
                    dataset = pydicom.dcmread(opened, force=True, specific_tags=tags)
                if "TransferSyntaxUID" not in dataset.file_meta:  # a file without its preamble
                    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
                size = math.prod((rows, columns, len(file.frames), file.samples))
                check_bytes("its pixels", size * int(dataset.get("BitsAllocated") or 8) // 8)
                compressed = "PixelData" in dataset and dataset.file_meta.TransferSyntaxUID.is_compressed
                bits = check_streams(dataset) if compressed else [None] * len(file.frames)
                words = _words(dataset).reshape(-1, rows, columns)
                if len(words) != len(file.frames):
                    raise InputError(f"must have the pixels of {len(file.frames)} frames, has {len(words)}.")
                stored = _stored(words, dataset, bits)
                return dataset, stored, _padding(words, stored, dataset)
        except MemoryError:
            raise InputError("cannot be decoded in the memory there is.") from None
        except Exception as error:  # every decoder has its own kinds of error
            if (refused := refusal(error)) is not None:
                raise refused from None
            text = " ".join(str(error).split())[:300]
            raise InputError(f"pixel data cannot be decoded: {type(error).__name__}: {text}") from error


def _words(dataset: Dataset) -> np.ndarray:
    """The decoded values, perhaps with bits above BitsStored."""
    if is_pydicom_3:
        # as Dataset.pixel_array, without its cache
        decoder = pixel_functions.get_decoder(dataset.file_meta.TransferSyntaxUID)
        words = decoder.as_array(dataset, raw=True, correct_unused_bits=False)[0]
    else:
        signed = dataset.get("PixelRepresentation")
        words = dataset.pixel_array
        if signed is not None:
            dataset.PixelRepresentation = signed  # pydicom 2 sets it to 0 for JPEG 2000 without a sign
    return words.astype(words.dtype.newbyteorder("="), copy=False)


def _stored(words: np.ndarray, dataset: Dataset, bits: Sequence[int | None]) -> np.ndarray:
    """The values in the lowest BitsStored bits, or in fewer where the stream of a frame has fewer, with their sign."""
    if words.dtype.kind == "f":
        return words
    of_frames = [min(int(dataset.BitsStored), each or 64) for each in bits]
    return _lowest(words, np.reshape(of_frames, (-1, 1, 1)), bool(dataset.PixelRepresentation))


def _lowest(words: np.ndarray, bits: Any, signed: bool) -> np.ndarray:
    width = words.dtype.itemsize
    above = np.maximum(8 * width - np.asarray(bits), 0).astype(f"u{width}")
    lifted = words.view(f"u{width}") << above
    return lifted.view(f"{'i' if signed else 'u'}{width}") >> above.astype(f"{'i' if signed else 'u'}{width}")


def _padding(words: np.ndarray, stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """
    Whether stored values are padding. Its value and limit have the bits of a pixel, whichever sign their VR gives them.
    If they need more bits than BitsStored, as with some scanners, they are compared with all bits of the pixels.
    """
    keywords = next(names for holder, names in PADDING.items() if holder in dataset)
    given = [dataset.get(keyword) for keyword in keywords]
    value, limit = given[0], given[0] if given[1] in (None, "") else given[1]
    if value in (None, ""):
        return np.zeros(words.shape, bool)
    if not all(isinstance(each, (int, float)) for each in (value, limit)):
        raise InputError(f"{' and '.join(keywords)} must be numbers, got {number_text([value, limit])}.")
    if words.dtype.kind == "f":
        low, high = sorted((value, limit))
        return (words >= low) & (words <= high)
    width, signed = words.dtype.itemsize, bool(dataset.PixelRepresentation)
    if not all(-(1 << 8 * width - 1) <= each < 1 << 8 * width for each in (value, limit)):
        return np.zeros(words.shape, bool)  # no pixel can have it
    ends = np.array([int(each) % (1 << 8 * width) for each in (value, limit)], f"u{width}")
    bits = int(dataset.BitsStored)
    lowest, whole = _lowest(ends, bits, signed), _lowest(ends, 8 * width, signed)
    fits = bool(((lowest == whole) | (ends >> bits == 0)).all())
    pixels, ends = (stored, lowest) if fits else (words.view(whole.dtype), whole)
    return (pixels >= ends.min()) & (pixels <= ends.max())


def _rescale(stored: np.ndarray, dataset: Dataset, frame: Frame) -> Any:
    try:
        with quiet_pydicom():
            if dataset.get("ModalityLUTSequence"):
                return pixel_functions.apply_modality_lut(stored, dataset)
    except Exception as error:  # its message may quote the header
        raise InputError(f"its Modality LUT makes a {type(error).__name__}.") from None
    slope = 1.0 if frame.slope is None else frame.slope
    intercept = frame.intercept or 0.0
    return stored if (slope, intercept) == (1.0, 0.0) else stored * np.float64(slope) + intercept


def straighten(values: np.ndarray, grid: Grid, nothing: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Puts the slices of a tilted gantry on a straight grid: each is moved within its plane, with linear interpolation.

    Args:
        values: of shape (columns, rows, slices).
        grid: of the tilted slices.
        nothing: value outside the slices, see :func:`read_values`.

    Returns:
        the values, of shape (columns or more, rows or more, slices), and their affine (LPS, mm), 4x4.
    """
    count = values.shape[2]
    offsets = np.arange(count)[:, None] * grid.shift_pixels  # of each slice in columns and rows, (slices, 2)
    low, high = np.floor(offsets.min(axis=0)).astype(int), np.ceil(offsets.max(axis=0)).astype(int)
    size = np.array(values.shape[:2]) + high - low
    check_bytes("a volume", 4 * int(math.prod(map(int, size))) * count)
    straight = np.full((*size, count), nothing, np.float32)
    for index, offset in enumerate(offsets - low):
        padded = np.full(tuple(size), nothing, np.float32)
        padded[: values.shape[0], : values.shape[1]] = values[:, :, index]
        straight[:, :, index] = shift(padded, offset, order=1, mode="grid-constant", cval=nothing)
    affine = grid.affine_lps.copy()
    affine[:3, 3] += affine[:3, :2] @ low
    affine[:3, 2] -= affine[:3, :2] @ grid.shift_pixels
    return straight, affine
