# SPDX-License-Identifier: Apache-2.0
"""Readers of the label map of a case, from files of any format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from monai_dvpt.data import SeriesGrid
from monai_dvpt.data.dicom_rtstruct import read_rtstruct
from monai_dvpt.data.dicom_segmentation import read_dicom_seg
from monai_dvpt.data.label_overlap import overlap_error
from monai_dvpt.data.slicer_segmentation import read_slicer_segmentation
from monai_dvpt.transforms import LoadVolume
from monai_dvpt.transforms.load_volume import AFFINE_TOLERANCE_MM, check_same_grid
from monai_dvpt.utils import InputError, naming

from ..model import IGNORED, LabelReader

__all__ = ["MAX_VALUES", "LabelFile", "label_reader", "load_label_map", "names_of"]

MAX_VALUES = 1 << 16
FORMATS: Mapping[str, Callable[..., tuple[np.ndarray, dict[int, str]]]] = {
    "SEG": read_dicom_seg,
    "RTSTRUCT": read_rtstruct,
}


@dataclass(frozen=True)
class LabelFile:
    """
    A file with labels.

    Attributes:
        path: of the file.
        kind: "SEG", "RTSTRUCT", "Slicer", or "map": the values of a NIfTI, NRRD or MetaImage file.
        names: name by value, or by number of segment.
        declared: whether the file says which labels were drawn: its format has names, or it is of one label.
        ignored: names, or values of a map as text, of labels whose voxels train nothing.
    """

    path: Path
    kind: str
    names: Mapping[int, str]
    declared: bool = True
    ignored: Collection[str] = ()

    @property
    def labels(self) -> dict[int, str]:
        """As ``names``, with ``IGNORED`` for what is to be ignored."""
        return {
            value: IGNORED if name in self.ignored or self.kind == "map" and str(value) in self.ignored else name
            for value, name in self.names.items()
        }


def load_label_map(path: Path) -> MetaTensor:
    """A label map of shape (1, x, y, z); an InputError unless its values are whole numbers in [0, 65536)."""
    return LoadVolume(num_classes=MAX_VALUES)(str(path))


def names_of(values: Sequence[int], names: Mapping[int, str]) -> dict[int, str]:
    """The name of each value, or the value as text."""
    return {**names, **{value: names.get(value, str(value)) for value in values}}


def label_reader(files: Sequence[LabelFile], wanted: Sequence[str] = (), hidden: str = "") -> LabelReader:
    """
    Reads the labels of a case, which may lie in several files.

    Args:
        files: with different names.
        wanted: names of the labels to read of formats with names, whose segments may overlap; all by default.
        hidden: name of the case, if the paths of the files must not be shown because they name the patient.
    """

    def read(image: Any) -> tuple[np.ndarray, dict[int, str]]:
        try:
            label, names = _read(files, image, wanted)
            return label.astype(np.uint8 if label.max() < 256 else np.int32), names  # torch turns over no uint16
        except InputError as error:
            if not hidden:
                raise
            text = str(error)
            for file in files:
                text = text.replace(str(file.path), "its label")
            raise InputError(f"{hidden}: {text}") from None

    return read


def _read(files: Sequence[LabelFile], image: MetaTensor, wanted: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    if len(files) == 1:
        return _read_file(files[0], image, wanted)
    merged, names = np.zeros(image.shape[1:], np.uint16), {}
    numbers: dict[str, int] = {}
    for file in files:
        label, found = _read_file(file, image, wanted)
        for value, name in found.items():
            number = numbers.setdefault(name, len(numbers) + 1)
            names[number] = name
            inside = label == value
            if (there := merged[inside]).any():
                with naming(file.path):
                    raise overlap_error("label", there, (names[int(there.max())], name))
            merged[inside] = number
    return merged, names


def _read_file(file: LabelFile, image: MetaTensor, wanted: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    if file.kind == "map":
        volume = load_label_map(file.path)
        if "series_grid" in image.meta:
            volume = _turned(volume, image)
        image_path = "its series" if "series_grid" in image.meta else image.meta["filename_or_obj"]
        check_same_grid(volume, image, file.path, image_path, AFFINE_TOLERANCE_MM)
        return volume[0].numpy().astype(np.uint16), file.labels
    labels = {value: name for value, name in file.labels.items() if not wanted or name in (*wanted, IGNORED)}
    own_names = {file.names[value] for value in labels}
    if file.kind == "Slicer":
        label, _ = read_slicer_segmentation(file.path, tuple(image.shape[1:]), image.affine.numpy(), own_names)
    else:
        grid = image.meta.get("series_grid")
        if not isinstance(grid, SeriesGrid):
            raise InputError(f"{file.path}: must be of a DICOM series, but the image is none.")
        label, _ = FORMATS[file.kind](file.path, grid, own_names)
    return label, labels


def _turned(volume: MetaTensor, image: MetaTensor) -> MetaTensor:
    """
    The same voxels with their axes in the order and direction of those of the image: programs that convert a series
    may turn its rows over, and state so in the affine.
    """
    affine = volume.affine.numpy()
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.io_orientation(image.affine.numpy())
    )
    values = nib.orientations.apply_orientation(volume[0].numpy(), turn)
    turned = affine @ nib.orientations.inv_ornt_aff(turn, tuple(volume.shape[1:]))
    return MetaTensor(np.ascontiguousarray(values)[None], affine=turned)
