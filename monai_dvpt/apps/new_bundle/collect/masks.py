# SPDX-License-Identifier: Apache-2.0
"""Masks of pictures: their values, what these mean, and the label map of a case."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from monai_dvpt.data.kinds import check_regular, image_kind
from monai_dvpt.data.nifti import read_nifti
from monai_dvpt.data.nifti_picture import read_nifti_picture
from monai_dvpt.transforms.load_image_2d import open_picture
from monai_dvpt.utils import InputError, naming, reason

from ..model import IGNORED, Finding, Options
from .images import some

__all__ = ["FOREGROUND", "MaskFile", "MaskReader", "MaskScheme", "find_scheme", "is_turned", "read_mask"]

FOREGROUND = "foreground"
"""Name of the only label of masks, where nothing names it."""
MAX_VALUES = 64
"""Different values of a mask; more are a picture, or a mask that was resized or compressed with loss."""
WHITE = 255
GREY = 0x010101
"""Of a grey value its colour."""
MOST_BLENDED = 0.02
"""Pixels of a grey value for each white one, up to which it may come of blending black and white at an edge."""
FEWEST_BLENDED = 3
AFFINE_TOLERANCE = 1e-3
ORIENTATION = 0x0112
"""The EXIF tag."""


@dataclass(frozen=True)
class MaskFile:
    """
    A mask, or the mask of one label.

    Attributes:
        path: the file.
        shown: its name in errors, which names no patient.
        label: of all its pixels that are not 0; "" where its values tell labels apart.
    """

    path: Path
    shown: str
    label: str = ""


@dataclass(frozen=True)
class MaskScheme:
    """
    What the values of masks mean.

    Attributes:
        codes: value in the label map, from 1, by the mask's value; a colour is red * 65536 + green * 256 + blue.
        names: name of the label by its value in the label map.
        coloured: whether the masks' values are colours.
    """

    codes: Mapping[int, int]
    names: Mapping[int, str]
    coloured: bool = False

    def value_of(self, label: str) -> int:
        """The value of a label in the label map."""
        return next(value for value, name in self.names.items() if name == label)


def read_mask(path: Path) -> tuple[np.ndarray, bool]:
    """
    Reads a mask: a palette's indices, grey values, or colours. Its own EXIF data turn it, as a picture's do.

    Returns:
        whole numbers of shape (rows, columns), and whether they are of red, green and blue, as red * 65536 + green *
        256 + blue, also where all three are equal.

    Raises:
        InputError: without the name of the file, if it cannot be read, or has too many values for a mask.
    """
    check_regular(path)
    kind = image_kind(path)
    if kind in ("nifti", "nifti pair"):
        values, coloured = read_nifti_picture(path)[0], False
        if not (np.isfinite(values).all() and (values == np.rint(values)).all() and values.min() >= 0):
            raise InputError("mask must hold whole numbers from 0.")
        values = values.astype(np.int64)
    elif kind in ("png", "jpeg"):
        try:
            values, coloured = _values(ImageOps.exif_transpose(open_picture(path)))
        except InputError:
            raise
        except Exception as error:  # of a damaged file
            raise InputError(f"mask cannot be read: {reason(error)}") from error
    else:
        raise InputError("mask must be a PNG, JPEG or NIfTI file.")
    _check_values(values, kind == "jpeg")
    return values, coloured


def _is_grey(values: np.ndarray) -> bool:
    """Whether red, green and blue are equal."""
    return bool((values == (values & 0xFF) * GREY).all())


def _values(image: Image.Image) -> tuple[np.ndarray, bool]:
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("LA", "PA", "RGBA"):
        if image.getchannel("A").getextrema() != (WHITE, WHITE):
            raise InputError("mask must have no transparent pixels.")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        image = image.convert("RGB")
    values = np.asarray(image).astype(np.int64)
    if values.ndim == 2:
        return values, False
    return values @ np.array([1 << 16, 1 << 8, 1]), True


def _check_values(values: np.ndarray, lossy: bool) -> None:
    counts = _counts(values)
    if lossy and len(counts) > 2:
        raise InputError(
            f"mask must be saved without loss, as PNG; JPEG makes {len(counts)} values of the labels', which cannot be "
            "told apart."
        )
    white = max(counts)
    between = [value for value in counts if 0 < value < white]
    blended = white in (WHITE, WHITE * GREY) and len(between) >= FEWEST_BLENDED
    few = all(counts[value] <= MOST_BLENDED * counts[white] for value in between)
    blended = blended and (few or _is_thin(values, between))
    if blended or len(counts) > MAX_VALUES:
        raise InputError(
            f"mask must have a value for each label, got {len(counts)} values; edges must not be smooth, and a mask is "
            "to be resized by the nearest pixel."
        )


def _is_thin(values: np.ndarray, some_of: Sequence[int]) -> bool:
    """Whether some of the values fill no square of 2 x 2 pixels."""
    first = values[:-1, :-1]
    square = (first == values[1:, :-1]) & (first == values[:-1, 1:]) & (first == values[1:, 1:])
    return not np.isin(first[square], some_of).any()


def _counts(values: np.ndarray) -> dict[int, int]:
    if values.max() < 1 << 16:
        counts = np.bincount(values.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def find_scheme(files: Sequence[MaskFile], options: Options, single: str = "") -> tuple[MaskScheme, list[Finding]]:
    """
    What the values of all masks mean together. A mask that cannot be read does not count; reading its case tells why.

    Args:
        files: the masks of all cases.
        options: with names of values, and labels to ignore.
        single: name of the only label, where there is one.
    """
    if any(file.label for file in files):
        labels = sorted({file.label for file in files})
        names = {index: _named(label, label, options) for index, label in enumerate(labels, 1)}
        return MaskScheme({index: index for index in names}, names), []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = [each for each in pool.map(_found, files) if each is not None]
    coloured = any(each.coloured and not each.grey for each in found)
    values = sorted(set().union(*(each.in_scheme(coloured) for each in found)))
    only = single or FOREGROUND
    default = {
        value: f"{value:06x}" if coloured else only if len(values) == 1 else f"label_{value}" for value in values
    }
    known = sorted({*values, *(value for value in options.label_names if value > 0)})
    names = {value: options.label_names.get(value, default.get(value, "")) for value in known}
    codes = {value: code for code, value in enumerate(known, 1)}
    scheme = MaskScheme(codes, {codes[value]: _named(names[value], str(value), options) for value in known}, coloured)
    return scheme, _odd_values(found, values, options)


def _named(name: str, value: str, options: Options) -> str:
    return IGNORED if {name, value} & set(options.ignored) else name


@dataclass
class _Found:
    """The values of a mask but 0, whether they are colours, whether all are grey, and their colours in a palette."""

    values: set[int]
    coloured: bool
    grey: bool
    palette: Mapping[int, tuple[int, ...]]

    def in_scheme(self, coloured: bool) -> set[int]:
        """The values as colours, or else as grey values."""
        return self.values if coloured or not self.coloured else {value & 0xFF for value in self.values}


def _found(file: MaskFile) -> _Found | None:
    try:
        values, coloured = read_mask(file.path)
    except InputError:
        return None
    used = set(_counts(values)) - {0}
    return _Found(used, coloured, coloured and _is_grey(values), _palette_of(file.path, used))


def _palette_of(path: Path, indices: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """The colours of a palette's indices; empty for a picture without a palette."""
    if image_kind(path) != "png":
        return {}
    with Image.open(path, formats=("PNG",)) as image:
        colours = (image.getpalette("RGB") or []) if image.mode == "P" else []
    return {index: tuple(colours[3 * index : 3 * index + 3]) for index in indices if 3 * index + 3 <= len(colours)}


def _odd_values(found: Sequence[_Found], values: Sequence[int], options: Options) -> list[Finding]:
    colours, greys = ([each for each in found if each.values and each.coloured == kind] for kind in (True, False))
    if greys and any(not each.grey for each in colours):
        message = (
            f"all masks must be in colours, or none; got {len(colours)} in colours, {len(greys)} in indices or grey."
        )
        return [Finding("masks differ", "", message, error=True)]
    counts = Counter(value for each in found if len(each.values) == 1 for value in each.in_scheme(False))
    if set(values) == {1, WHITE} and counts[1] and counts[WHITE] and not options.label_names:
        message = f"masks must mean the same by their values: {counts[1]} have 1 as their only value, {counts[WHITE]} "
        message += "have 255; save them alike, or name both values with --label-names."
        return [Finding("masks differ", "", message, error=True)]
    painted = {(value, colour) for each in found for value, colour in each.palette.items()}
    if twice := sorted(value for value, count in Counter(value for value, _ in painted).items() if count > 1):
        message = f"an index must have one colour in the palettes of all masks, {some(twice)} have several; save the "
        message += "masks with one palette, or as grey values."
        return [Finding("masks differ", "", message, error=True)]
    others = [value for value in values if value != WHITE]
    indices = others == list(range(1, len(others) + 1)) and len(others) > 0
    if WHITE in values and indices and not {WHITE} & set(options.label_names) and str(WHITE) not in options.ignored:
        message = (
            f"the masks have 255 beside {some(others)}; if it marks pixels that are not labelled, pass --ignore 255."
        )
        return [Finding("unlabelled pixels", "", message)]
    return []


@dataclass(frozen=True)
class MaskReader:
    """
    Reads the label map of a picture, see :data:`monai_dvpt.apps.new_bundle.model.LabelReader`.

    Args:
        files: the mask, or one for each label.
        scheme: what their values mean.
        order: labels from the bottom to the top, where masks of several labels may overlap; without it, they must not.
    """

    files: Sequence[MaskFile]
    scheme: MaskScheme
    order: Sequence[str] = ()

    def __call__(self, image: Any) -> tuple[np.ndarray, dict[int, str]]:
        """
        Args:
            image: of shape (C, rows, columns), from :class:`monai_dvpt.transforms.LoadImage2D`.

        Returns:
            label map of shape (rows, columns), int32, and the name of each value.

        Raises:
            InputError: if a mask cannot be read, has another size or place than the picture, or a value without a
                name, or masks of several labels overlap.
        """
        label = np.zeros(tuple(image.shape[1:]), np.int32)
        for file in self._in_order():
            with naming(file.shown):
                values, coloured = read_mask(file.path)
                _check_place(values.shape, file.path, image)
                if file.label:
                    self._add(label, values, file.label)
                else:
                    label = self._coded(values, coloured)
        return label, dict(self.scheme.names)

    def _in_order(self) -> list[MaskFile]:
        return sorted(self.files, key=lambda file: self.order.index(file.label) if file.label in self.order else -1)

    def _add(self, label: np.ndarray, values: np.ndarray, name: str) -> None:
        if len(kinds := set(_counts(values)) - {0}) > 1:
            raise InputError(f"the mask of one label must have one value beside 0, got {some(sorted(kinds))}.")
        inside = values > 0
        if name not in self.order and (shared := int((label[inside] > 0).sum())):
            raise InputError(
                f"masks of different labels must not overlap, {shared} pixels are in two; where one lies on another, "
                "name all with --labels, the one on top last."
            )
        label[inside] = self.scheme.value_of(name)

    def _coded(self, values: np.ndarray, coloured: bool) -> np.ndarray:
        if coloured and not self.scheme.coloured:
            if not _is_grey(values):
                raise InputError("mask must be grey, as the others, got colours.")
            values = values & 0xFF
        elif self.scheme.coloured and not coloured and values.any():
            raise InputError("mask must be in colours, as the others, got indices or grey values.")
        label = np.zeros(values.shape, np.int32)
        for value in _counts(values):
            if value and value not in self.scheme.codes:
                known, got = (some(map(self._shown, each)) for each in (self.scheme.codes, [value]))
                raise InputError(f"mask must have the values {known}, got {got}.")
            label[values == value] = self.scheme.codes.get(value, 0)
        return label

    def _shown(self, value: int) -> str:
        return f"{value:06x}" if self.scheme.coloured else str(value)


def _check_place(size: Iterable[int], path: Path, image: Any) -> None:
    wanted, got = tuple(image.shape[1:]), tuple(size)
    source = Path(str(image.meta["filename_or_obj"]))
    if wanted != got:
        turned = "; the picture is turned by its EXIF data, the mask is not" if is_turned(source) else ""
        raise InputError(f"mask must have the rows and columns of its picture, {wanted}, got {got}{turned}.")
    if all(image_kind(each).startswith("nifti") for each in (path, source)):
        if not np.allclose(read_nifti(path).affine, read_nifti(source).affine, atol=AFFINE_TOLERANCE):
            raise InputError("mask must lie where its picture lies, their affines differ.")


def is_turned(path: Path) -> bool:
    """Whether a picture is shown turned or mirrored by its EXIF data."""
    if image_kind(path) not in ("png", "jpeg"):
        return False
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # a damaged file; reading it tells why
        return False
