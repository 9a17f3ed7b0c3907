# SPDX-License-Identifier: Apache-2.0
"""Truth and prediction of label maps that are drawn in part, as metrics take them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from monai_dvpt.utils import labels_of_values
from monai_dvpt.utils.label_sets import UNKNOWN

__all__ = ["LabelSetsd"]


class LabelSetsd(MapTransform):
    """
    Turns a label map into one mask per class, and leaves out of each mask, of the truth and of the predictions, the
    voxels of which is not known whether they are of the class: those whose value stands for a set with the class (see
    :func:`monai_dvpt.utils.labels_of_values`). Both are 0 there, so that a Dice score is that of the other voxels, and
    NaN for a class of which nothing was drawn. A truth says in its metadata which classes have such voxels;
    :class:`monai_dvpt.metrics.HausdorffDistanceMm` leaves these out, since the end of what was drawn is no surface.

    Args:
        keys: keys of the predictions, one mask per class, of shape ``(C, *spatial)``.
        labels: names of the ``C`` classes, background first.
        label_sets: sets of names; the value ``C + i`` in a label map stands for ``label_sets[i]``.
        label_key: key of the label map, of shape ``(1, *spatial)``.

    Raises:
        ValueError: as :func:`monai_dvpt.utils.labels_of_values` does, or if a prediction has another shape.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Sequence[str],
        label_sets: Sequence[Sequence[str]] = (),
        label_key: str = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.possible = labels_of_values(labels, label_sets)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        label = d[self.label_key]
        values = torch.as_tensor(label)[0].long()
        possible = self.possible.to(values.device)[values].movedim(-1, 0)  # (C, *spatial)
        unknown = possible & (possible.sum(dim=0) > 1)
        truth = convert_to_dst_type((possible & ~unknown).float(), label, dtype=torch.float32)[0]
        if isinstance(truth, MetaTensor):
            truth.meta[UNKNOWN] = unknown.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
        d[self.label_key] = truth
        for key in self.key_iterator(d):
            if d[key].shape != unknown.shape:
                raise ValueError(f"{key} must have the shape {tuple(unknown.shape)}, got {tuple(d[key].shape)}.")
            d[key] = d[key] * ~unknown.to(d[key].device)
        return d
