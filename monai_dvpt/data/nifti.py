# SPDX-License-Identifier: Apache-2.0
"""NIfTI files, without guesses for what a header lacks or repairs of what it states."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import nibabel as nib
import numpy as np

from monai_dvpt.data.kinds import NIFTI_2, check_regular, file_kind, image_kind, nifti_image_of, pair_header
from monai_dvpt.utils import InputError, atomic_path
from monai_dvpt.utils.limits import check_bytes

__all__ = ["Nifti", "as_float32", "nifti_frame", "nifti_size", "read_nifti", "save_nifti"]

BLOCK_BYTES = 16 << 20
FRAMES = {1: "the patient", 2: "the patient", 3: "Talairach", 4: "MNI152", 5: "another template"}
"""
What the codes of sform and qform say that the coordinates are of. Programs write 1, the scanner, and 2, another image
that this is aligned to, for the same coordinates.
"""
UNITS = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}
HEADERS = {
    (True, True): nib.nifti2.Nifti2Header,
    (True, False): nib.nifti2.Nifti2PairHeader,
    (False, True): nib.nifti1.Nifti1Header,
    (False, False): nib.nifti1.Nifti1PairHeader,
}
"""By whether it is NIfTI-2, and whether header and values are one file."""


class Nifti(NamedTuple):
    """The content of a file."""

    values: np.ndarray
    """float32, after slope and intercept; (x, y, z, ...), without dimensions of the size 1 after the third."""
    affine: np.ndarray
    """4x4, to RAS+, by the sform if the file has one, else by the qform."""
    unit: str
    """Of length: "mm", "meter", "micron" or "unknown"."""


def as_float32(values: np.ndarray, exact: bool = False) -> np.ndarray:
    """
    Casts the values of a reader.

    Args:
        values: any array.
        exact: whether no value may change, as in a label map; otherwise values are rounded.

    Raises:
        InputError: if the values are not real numbers, or one is too large for float32 or, if ``exact``, would change.
    """
    if values.dtype.kind not in "biuf":
        kind = "complex" if values.dtype.kind == "c" else "RGB" if values.dtype.names else "another type"
        raise InputError(f"values must be real numbers, one for each voxel, got {kind}.")
    with np.errstate(over="ignore", invalid="ignore"):
        cast_values = values.astype(np.float32)
    lost = np.isinf(cast_values)
    if lost.any() and (lost := lost & np.isfinite(values)).any():
        raise InputError(f"values must be finite as float32, got {values[lost].flat[0]:g}.")
    if exact and not np.can_cast(values.dtype, np.float32):
        changed = (cast_values != values) & (cast_values == np.rint(cast_values))  # a fraction that stays one is seen
        if values.dtype.kind in "iu":  # compared as float64, in which 2**53 + 1 is 2**53
            changed |= np.abs(values.astype(np.float64)) > 2**24
        if changed.any():
            value = values[changed].flat[0].item()
            raise InputError(f"labels must be whole numbers up to 2**24, got {value!r}.")
    return cast_values


def read_nifti(path: str | os.PathLike, exact: bool = False) -> Nifti:
    """
    Reads NIfTI-1 or NIfTI-2, compressed or not, with any name.

    Args:
        path: the file, or either file of a pair.
        exact: see :func:`as_float32`; scaled values are rounded.

    Raises:
        InputError: without the name of the file, if it cannot be read, has no orientation, states an impossible value,
            or would take more memory than :func:`monai_dvpt.utils.limits.max_bytes`.
    """
    header_path = pair_header(path) or Path(path)
    check_regular(header_path)
    kind = file_kind(header_path)
    if kind == "analyze":
        raise InputError("must say where it lies; an Analyze file does not.")
    if kind not in ("nifti", "nifti pair"):
        raise InputError("cannot be read: is no NIfTI file.")
    image_path = header_path if kind == "nifti" else nifti_image_of(header_path)
    if image_path is None:
        raise InputError("must have its values beside it, in a file .img or .img.gz of the same name.")
    check_regular(image_path)
    try:
        header = _header(header_path, kind == "nifti")
        affine = _affine(header)
        values = _values(image_path, header, exact)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"cannot be read: is truncated or damaged: {error}") from error
    return Nifti(values, affine, UNITS.get(int(header["xyzt_units"]) & 7, "unknown to the standard"))


def nifti_frame(path: str | os.PathLike) -> str:
    """What the coordinates are of, by the code of the sform, else of the qform; "" if the standard has no such code."""
    header = _header(pair_header(path) or Path(path), image_kind(path) == "nifti")
    return FRAMES.get(int(header["sform_code"]) or int(header["qform_code"]), "")


def nifti_size(path: str | os.PathLike) -> tuple[int, ...]:
    """The sizes as :class:`Nifti` has them, but at least three, of the header alone; an InputError if it is damaged."""
    try:
        header = _header(Path(path), image_kind(path) == "nifti")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be read: is truncated or damaged: {error}") from error
    sizes = [int(size) for size in header["dim"][1 : 1 + max(0, min(7, int(header["dim"][0])))]]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    return (*sizes, 1, 1, 1)[: max(3, len(sizes))]


def save_nifti(path: str | os.PathLike, values: np.ndarray, affine_ras: np.ndarray, scanner: bool = False) -> Path:
    """
    Writes an image.

    Args:
        path: the file.
        values: of shape (x, y, z, ...).
        affine_ras: 4x4 matrix from voxels to RAS+ in mm.
        scanner: whether these are the coordinates of the scanner; then the qform states them, too.
    """
    image = nib.Nifti1Image(values, affine_ras)
    if scanner:
        image.set_sform(affine_ras, code="scanner")
        image.set_qform(affine_ras, code="scanner")
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as part:
        nib.save(image, part)
    return Path(path)


def _stream(path: Path) -> BinaryIO:
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if compressed else open(path, "rb")


def _header(path: Path, single: bool) -> nib.nifti1.Nifti1Header:
    """The header as it is in the file; with its checks, nibabel would repair it."""
    with _stream(path) as stream:
        start = stream.read(NIFTI_2)
    order = "<" if start[0] > start[3] else ">"  # 348 or 540, in four bytes
    second = int.from_bytes(start[:4], "little" if order == "<" else "big") == NIFTI_2
    kind = HEADERS[second, single]
    return kind(start[: kind.template_dtype.itemsize], order, check=False)


def _affine(header: nib.nifti1.Nifti1Header) -> np.ndarray:
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7 or (header["dim"][1 : dimensions + 1] < 1).any():
        sizes = header["dim"].tolist()
        raise InputError(f"must have 1 to 7 dimensions of a size of at least 1, got dim {sizes}.")
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not sform and not qform:
        raise InputError("must say where it lies, by an sform_code or a qform_code above 0; both are 0.")
    sides = header["pixdim"][1 : 1 + min(dimensions, 3)]
    if not (np.isfinite(sides) & (sides > 0)).all():
        raise InputError(f"voxel size must be finite and above 0, got pixdim {sides.tolist()}.")
    if not sform and float(header["pixdim"][0]) not in (-1, 0, 1):  # readers differ on other values
        raise InputError(f"pixdim[0] must be 1, -1 or 0, got {float(header['pixdim'][0]):g}.")
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # as the standard has it
    try:
        return header.get_best_affine()
    except (ValueError, nib.spatialimages.HeaderDataError) as error:  # of a quaternion
        raise InputError(f"qform must be a rotation: {error}") from error


def _scale(header: nib.nifti1.Nifti1Header) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):  # the standard's way to say that there is none
        return 1, 0
    if not np.isfinite([slope, intercept]).all():
        raise InputError(f"slope and intercept must be finite, got {slope:g} and {intercept:g}.")
    return slope, intercept


def _values(image: Path, header: nib.nifti1.Nifti1Header, exact: bool) -> np.ndarray:
    shape = [int(size) for size in header["dim"][1 : int(header["dim"][0]) + 1]]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    try:
        dtype = header.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError) as error:
        raise InputError(f"datatype must be one of the standard, got {int(header['datatype'])}.") from error
    as_float32(np.zeros(0, dtype))
    slope, intercept = _scale(header)
    count = int(np.prod(shape, dtype=object))
    check_bytes("values", 4 * count)
    offset = float(header["vox_offset"])
    least = header.single_vox_offset if header.is_single else 0
    offset = least if offset == 0 else offset
    if not least <= offset < 2**62 or offset != int(offset):
        raise InputError(f"vox_offset must be a whole number of at least {least}, got {offset:g}.")
    check_bytes("what stands before the values", int(offset))
    values = np.empty(count, np.float32)
    with _stream(image) as stream:
        stream.seek(int(offset))
        step = BLOCK_BYTES // dtype.itemsize
        for first in range(0, count, step):
            wanted = min(step, count - first)
            data = stream.read(wanted * dtype.itemsize)
            if len(data) < wanted * dtype.itemsize:
                raise EOFError(f"has {first + len(data) // dtype.itemsize:,} of {count:,} values")
            block = np.frombuffer(data, dtype)
            if (slope, intercept) != (1, 0):
                block = block.astype(np.float64) * slope + intercept
            values[first : first + wanted] = as_float32(block, exact and (slope, intercept) == (1, 0))
        stream.read(1)  # where a compressed file ends here, its check sum is compared
    return np.ascontiguousarray(values.reshape(shape, order="F"))
