# SPDX-License-Identifier: Apache-2.0
"""The label maps of a bundle, each on the grid of its image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from PIL import Image

from monai_dvpt.data.nifti import save_nifti
from monai_dvpt.utils import InputError, atomic_path, naming

from ..check.measure import load_image
from ..model import IGNORED, Case, Collection, Measurement

__all__ = ["BACKGROUND", "LabelValues", "write_label_maps"]

BACKGROUND = "background"
MOST = 255
"""Largest value of a label map in uint8."""


class LabelValues:
    """
    The value of each label, and of each set of labels that a voxel of a map that is drawn in part may have.

    Args:
        labels: names in the order of their values, from 1.
        label_sets: sets that there are already.

    Attributes:
        names: the labels, background first.
        label_sets: sets of names; the value ``len(names) + i`` stands for ``label_sets[i]``.
    """

    def __init__(self, labels: Sequence[str], label_sets: Sequence[Sequence[str]] = ()) -> None:
        self.names = [BACKGROUND, *labels]
        self.label_sets = [list(names) for names in label_sets]

    def prepare(self, labelled: Sequence[str] | None, measurement: Measurement | None) -> None:
        """Makes the sets that the map of a case needs."""
        self.value_outside(labelled)
        if measurement is not None and IGNORED in measurement.voxels:
            self.value_of(IGNORED)

    def value_of(self, name: str) -> int:
        """The value of a label, of the background, or of :data:`IGNORED`, the set of all labels."""
        return self._value_of_set(self.names) if name == IGNORED else self.names.index(name)

    def value_outside(self, labelled: Sequence[str] | None) -> int:
        """The value of voxels outside the labels of a case: background, or a label that was not drawn in it."""
        left = [] if labelled is None else [name for name in self.names[1:] if name not in labelled]
        return self._value_of_set([BACKGROUND, *left]) if left else 0

    def _value_of_set(self, names: list[str]) -> int:
        if names not in self.label_sets:
            self.label_sets.append(names)
        return len(self.names) + self.label_sets.index(names)


def write_label_maps(
    folder: Path, collection: Collection, indices: Iterable[int], values: LabelValues
) -> Iterator[tuple[int, str]]:
    """
    Writes the label map of every case: ``NAME.nii.gz``, uint8, with the affine of the image, or ``NAME.png``.

    Args:
        folder: to write to.
        collection: the cases.
        indices: of the cases to write.
        values: of the labels; it gets a set for all maps that are drawn in part.

    Yields:
        the index of a case and the name of its file, when it is written.

    Raises:
        InputError: if a label map cannot be read or has more than 255 values.
    """
    for index in indices:
        case = collection.cases[index]
        with naming(case.name):
            image = load_image(case, collection.spatial_dims, collection.channels, collection.file_channels)
            label = _label_map(case, image, values)
        if collection.spatial_dims == 3:
            path = save_nifti(folder / f"{case.name}.nii.gz", label, image.affine.numpy())
        else:
            path = folder / f"{case.name}.png"
            with atomic_path(path) as part:
                Image.fromarray(label).save(part, format="PNG")
        yield index, path.name


def _label_map(case: Case, image: MetaTensor, values: LabelValues) -> np.ndarray:
    if case.read_label is None:
        raise InputError("must have a label, has none.")
    given, names = case.read_label(image)
    shape = tuple(image.shape[1:])
    if given.shape != shape:
        raise InputError(f"the label map must have the size of the image, {shape}, got {given.shape}.")
    label = np.full(shape, values.value_outside(case.labelled), np.int64)
    taken = {value: name for value, name in names.items() if name in values.names or name == IGNORED}
    for value, name in taken.items():
        label[given == value] = values.value_of(name)
    if label.max() > MOST:
        raise InputError(f"there must be at most {MOST} labels and sets of labels, got {label.max()}.")
    return label.astype(np.uint8)
