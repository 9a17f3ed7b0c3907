# SPDX-License-Identifier: Apache-2.0
"""The prediction set of every grade of one image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from monai_dvpt.metrics import PredictionSets

__all__ = ["PredictionSetsd"]


class PredictionSetsd(MapTransform):
    """
    Adds the entries "grade_set", whether each grade is in the set of each output, of shape (O, K), and "coverage", the
    probability with which a set holds the true grade; see :class:`monai_dvpt.metrics.PredictionSets`.

    Args:
        keys: the key of the logits, of shape (O * K,), the grades of the first output first; beside them is the
            "grade" of :class:`monai_dvpt.transforms.GradeLogitsd`.
        sets: the calibrated sets, of O outputs and K grades.

    Raises:
        ValueError: if ``keys`` is more than one key, or when called, if the number of logits is not O * K.
    """

    def __init__(self, keys: KeysCollection, sets: PredictionSets) -> None:
        super().__init__(keys)
        if len(self.keys) > 1:
            raise ValueError(f"keys must be one key, got {self.keys}.")
        self.sets = sets

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        shape = len(self.sets.counts), len(self.sets.counts[0])
        for key in self.key_iterator(d):
            logits = convert_to_tensor(d[key], dtype=torch.float64, device="cpu", track_meta=False)
            if logits.shape != (shape[0] * shape[1],):
                raise ValueError(f"logits must have the shape ({shape[0]} * {shape[1]},), got {tuple(logits.shape)}.")
            inside = self.sets(logits.view(shape).numpy(), torch.as_tensor(d["grade"]).cpu().numpy())
            d["grade_set"], d["coverage"] = torch.from_numpy(inside), self.sets.coverage
        return d
