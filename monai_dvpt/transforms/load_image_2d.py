# SPDX-License-Identifier: Apache-2.0
"""Loading of radiographs and other 2D images, with the same picture from every kind of file."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple_rep
from PIL import Image, ImageOps
from pydicom.dataset import Dataset

from monai_dvpt.data.dicom import SeriesGrid
from monai_dvpt.data.dicom.grid import GRID_TAGS, reference_of
from monai_dvpt.data.dicom.headers import quiet_pydicom, read_header
from monai_dvpt.data.dicom.pixels import decode, fill_padding, pixel_functions
from monai_dvpt.data.dicom.terms import VOI_FUNCTIONS
from monai_dvpt.data.kinds import check_regular, image_kind, looks_like_dicom
from monai_dvpt.data.nifti import as_float32
from monai_dvpt.data.nifti_picture import read_nifti_picture
from monai_dvpt.utils import InputError, naming, reason
from monai_dvpt.utils.limits import check_bytes

__all__ = ["LoadImage2D", "LoadImage2Dd", "open_picture"]

SIDES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
VOI_TAGS = (
    *("RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
)
GREY_MODES = ("L", "I", "I;16", "I;16B")  # of 8, 32 and 16 bit, as Pillow calls them
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue, as in ITU-R BT.601
WHITE = 255  # of the only label of a mask
MAX_STRETCH = 1.01  # longer side of a pixel over the shorter one


class LoadImage2D(Transform):
    """
    Loads one 2D image as people look at it: rows run down, columns run to the right, and air in a radiograph is dark.

    - PNG and JPEG: 8 bit grey, colour or palette, or 16 bit grey; turned by its EXIF data; transparent pixels are
      black. 16 bit colour, or grey with opacity, is refused.
    - DICOM: one grey frame, after its modality and VOI look-up tables, with the first window. MONOCHROME1 is inverted,
      and padding becomes the darkest other value. Bits above BitsStored are ignored. A window that is narrower than the
      standard allows (0, or below 1 for the function LINEAR) is ignored.
    - NIfTI: two dimensions, or three, one of which has the size 1. The affine (RAS+) gives the directions of the two
      axes. As in radiology, columns run to the patient's left, or to posterior in a sagittal plane, and rows to
      inferior, or to posterior in an axial plane. A file without an orientation (``sform_code`` and ``qform_code`` 0),
      or turned by more than 37 degrees, is refused.

    The content of a file decides what it is, not its name. Also refused is an image that cannot be read, has several
    frames or slices, is constant, has values that are complex or not finite as float32, or has pixels that are not
    square to 1 % by its DICOM or NIfTI header. The metadata are the path and, for DICOM, "series_grid" (see
    :class:`monai_dvpt.data.SeriesGrid`).

    A label map may be constant. Its values must be whole numbers in ``[0, num_classes)``; the only label, 1, may also
    be 255, as in a mask of black and white. In colours all three must be equal.

    Args:
        channels: 1 for grey, the luminance of a coloured image; 3 for red, green and blue, all equal in a grey image.
        num_classes: None for an image; for a label map, the number of classes with background.

    Raises:
        ValueError: if ``channels`` is something else, or is 3 for a label map.
    """

    def __init__(self, channels: int = 1, num_classes: int | None = None) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}.")
        if num_classes is not None and channels != 1:
            raise ValueError(f"channels must be 1 for a label map, got {channels}.")
        self.channels = channels
        self.num_classes = num_classes

    def __call__(self, path: str) -> MetaTensor:
        """
        Args:
            path: the file.

        Returns:
            tensor of shape (channels, rows, columns), float32, in the units of the file.

        Raises:
            InputError: if a rule above is broken.
        """
        with naming(path):
            check_regular(path)
            read = READERS.get(image_kind(path))
            if read is None and looks_like_dicom(Path(path)):  # it has no preamble
                read = _read_dicom
            if read is None:
                raise InputError("cannot be read: is no PNG, JPEG, DICOM or NIfTI file.")
            try:
                array, meta = read(path)  # (1 or 3, rows, columns)
            except InputError:
                raise
            except Exception as error:  # every reader has its own kinds of error
                raise InputError(f"cannot be read: {reason(error)}") from error
            if self.num_classes is not None:
                array = _label_map(array, self.num_classes)
            if self.channels == 1 and len(array) == 3:
                array = np.tensordot(LUMINANCE, array, axes=1)[None]
            array = np.broadcast_to(array, (self.channels, *array.shape[1:]))
            array = as_float32(array)
            if bad := int((~np.isfinite(array)).sum()):
                raise InputError(f"values must be finite, got {bad} that are NaN or infinite.")
            if self.num_classes is None and array.min() == array.max():
                raise InputError(f"image must not be constant, got {array.min():g} everywhere.")
            return MetaTensor(torch.from_numpy(array), meta={"filename_or_obj": str(path), **meta})


def _label_map(array: np.ndarray, num_classes: int) -> np.ndarray:
    """The values of a label map, of shape (1, rows, columns), from those of a file."""
    if (array != array[:1]).any():
        raise InputError("labels must be grey, got colours.")
    labels = array[:1]
    if num_classes == 2 and labels.max() == WHITE and np.isin(labels, (0, WHITE)).all():
        return (labels == WHITE).astype(np.float32)
    if not (labels == np.rint(labels)).all() or labels.min() < 0 or labels.max() >= num_classes:
        values = ", ".join(f"{value:g}" for value in np.unique(labels)[:5])
        also = f" or {WHITE} for 1" if num_classes == 2 else ""
        raise InputError(f"labels must be whole numbers in [0, {num_classes}){also}, got {values}.")
    return labels


def open_picture(path: str | os.PathLike) -> Image.Image:
    """
    The only frame of a PNG or JPEG file, as it is stored.

    Raises:
        InputError: without the name of the file, if it has several frames, or a depth that Pillow would reduce.
    """
    with open(path, "rb") as stream:
        header = stream.read(26)
    # bit depth and colour type of a PNG; Pillow would drop half the bits of these
    if header.startswith(b"\x89PNG") and header[24:25] == b"\x10" and header[25:26] != b"\0":
        raise InputError("must have 8 bit, or 16 bit grey, got 16 bit colour or grey with opacity.")
    with Image.open(path, formats=("PNG", "JPEG")) as file:
        if (frames := getattr(file, "n_frames", 1)) > 1:
            raise InputError(f"must have one frame, got {frames}.")
        check_bytes("values", 4 * 3 * file.width * file.height)
        file.load()
        return file


def _read_picture(path: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Values of shape (1 or 3, rows, columns), and metadata, as from every reader here."""
    image = ImageOps.exif_transpose(open_picture(path))
    if image.mode in GREY_MODES:
        array, transparent = np.asarray(image)[None], image.info.get("transparency")
        return (array if transparent is None else np.where(array == transparent, 0, array)), {}
    rgba = np.moveaxis(np.asarray(image.convert("RGBA"), dtype=np.float64), 2, 0)  # (4, rows, columns)
    return rgba[:3] * (rgba[3] / 255), {}


def _read_dicom(path: str) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        header = read_header(path)
    except InputError as error:
        raise InputError(f"cannot be read: {error}") from error
    if len(header.frames) != 1:
        raise InputError(f"must have one frame, got {len(header.frames)}.")
    if header.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(
            f"PhotometricInterpretation must be MONOCHROME1 or MONOCHROME2, got {header.photometric or 'none'}."
        )
    dataset, stored, padded = decode(header, VOI_TAGS + SIDES + GRID_TAGS)
    grid = SeriesGrid.of([(header, header.frames[0])], {header.path: reference_of(dataset)})
    try:
        with quiet_pydicom():
            values = _shown(stored[0], dataset)
    except InputError:
        raise
    except Exception as error:  # its message may quote the header
        raise InputError(f"cannot be read: how it is to be shown makes a {type(error).__name__}.") from None
    fill_padding("an image", values, padded[0])
    return values[None], {"series_grid": grid}


def _shown(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    for name in SIDES:
        _check_square(name, np.ravel(dataset.get(name) or 1).astype(float))
    function = dataset.VOILUTFunction = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function not in VOI_FUNCTIONS:
        raise InputError(f"VOILUTFunction must be one of {sorted(VOI_FUNCTIONS)}, is another.")
    width = float(np.ravel(dataset.get("WindowWidth") or 0)[0])  # of the first window
    if width <= 0 or width < 1 and function == "LINEAR":
        dataset.pop("WindowWidth", None)
    values = _displayed(stored, dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        least = -(2 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0
        ends = np.array([[least, least + 2**dataset.BitsStored - 1]])
        values = _displayed(ends, dataset).sum() - values
    return values


def _displayed(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Stored values after the modality and VOI look-up tables."""
    measured = pixel_functions.apply_modality_lut(stored, dataset)
    return pixel_functions.apply_voi_lut(measured, dataset).astype(np.float64)


def _check_square(name: str, sides: np.ndarray) -> None:
    if sides.max() > MAX_STRETCH * sides.min():
        raise InputError(f"pixels must be square to {MAX_STRETCH - 1:.0%}, got {name} {sides.tolist()}.")


def _read_nifti(path: str) -> tuple[np.ndarray, dict[str, Any]]:
    picture, spacing = read_nifti_picture(path)
    _check_square("the spacing", spacing)
    return picture[None], {}


READERS = {
    **dict.fromkeys(("nifti", "nifti pair", "analyze"), _read_nifti),
    **dict.fromkeys(("png", "jpeg"), _read_picture),
    "dicom": _read_dicom,
}
"""By what :func:`monai_dvpt.data.kinds.file_kind` says."""


class LoadImage2Dd(MapTransform):
    """
    Dictionary version of :class:`LoadImage2D`; all pictures must have the size of the first.

    Args:
        keys: keys of the paths.
        channels: of an image; a label map has one.
        num_classes: for each key, None for an image or the number of classes of a label map.
    """

    def __init__(
        self, keys: KeysCollection, channels: int = 1, num_classes: Any = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        each = ensure_tuple_rep(num_classes, len(self.keys))
        self.loaders = [LoadImage2D(channels if classes is None else 1, classes) for classes in each]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        first = None
        for key, load in self.key_iterator(d, self.loaders):
            path, picture = d[key], load(d[key])
            if first is None:
                first, first_path = picture, path
            elif picture.shape[1:] != first.shape[1:]:
                sizes = f"{tuple(first.shape[1:])}, got {tuple(picture.shape[1:])}"
                raise InputError(f"{path}: must have the rows and columns of {first_path}, {sizes}.")
            d[key] = picture
        return d
