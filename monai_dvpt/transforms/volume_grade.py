# SPDX-License-Identifier: Apache-2.0
"""A grade of size: the quantile of a population that the volume of a structure falls into."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from monai_dvpt.transforms.load_volume import LoadVolume
from monai_dvpt.utils import InputError, check_counts, progress

__all__ = ["VolumeGrade", "VolumeGraded", "volume_thresholds_ml"]


class VolumeGrade(Transform):
    """
    The grade of a mask by its volume: the number of thresholds that the volume reaches.

    Args:
        thresholds_ml: millilitres, ascending; one fewer than there are grades.

    Raises:
        ValueError: if ``thresholds_ml`` is empty or does not ascend.
    """

    def __init__(self, thresholds_ml: Sequence[float]) -> None:
        self.thresholds_ml = np.asarray(thresholds_ml, dtype=float)
        if not len(self.thresholds_ml) or (np.diff(self.thresholds_ml) <= 0).any():
            raise ValueError(f"thresholds_ml must be one or more ascending numbers, got {list(thresholds_ml)}.")

    def __call__(self, label_map: MetaTensor) -> torch.Tensor:
        """
        Args:
            label_map: of shape (1, x, y, z) with its affine in millimetres; all values above 0 count.

        Returns:
            the grade, whole number in ``[0, len(thresholds_ml)]``, of shape (1,).
        """
        grade = np.searchsorted(self.thresholds_ml, _volume_ml(label_map), side="right")
        return torch.tensor([int(grade)])


class VolumeGraded(MapTransform):
    """
    Dictionary version of :class:`VolumeGrade`; the grade replaces the mask under each of ``keys``.
    """

    def __init__(self, keys: KeysCollection, thresholds_ml: Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grade = VolumeGrade(thresholds_ml)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.grade(data[key]) for key in self.key_iterator(dict(data))}}


def volume_thresholds_ml(cases: Sequence[Mapping[str, str]], num_grades: int, num_classes: int) -> list[float]:
    """
    The volumes that divide masks into equally frequent grades, such as quartiles.

    Args:
        cases: each with the path of its mask as "label".
        num_grades: number of grades, at least 2.
        num_classes: number of classes of the masks, with background; all others count.

    Returns:
        ``num_grades - 1`` thresholds in millilitres, to three decimals.

    Raises:
        InputError: if a mask is refused (see :class:`monai_dvpt.transforms.LoadVolume`), or the volumes are too few
            or too alike to be divided.
    """
    check_counts(2, num_grades=num_grades)
    load = LoadVolume(num_classes)
    volumes = [_volume_ml(load(case["label"])) for case in progress(cases, "volumes of the masks", unit="mask")]
    quantiles = np.linspace(0, 1, num_grades + 1)[1:-1]
    thresholds = [round(float(value), 3) for value in np.quantile(volumes, quantiles)] if volumes else []
    if len(volumes) < num_grades or len(set(thresholds)) < len(thresholds):
        raise InputError(f"the masks must have volumes that divide into {num_grades} grades, got {sorted(volumes)} mL.")
    return thresholds


def _volume_ml(label_map: MetaTensor) -> float:
    voxel_ml = abs(float(torch.linalg.det(label_map.affine[:3, :3].double()))) / 1000
    return int((label_map.as_tensor() > 0).sum()) * voxel_ml
