# SPDX-License-Identifier: Apache-2.0
"""Hausdorff distance in millimetres on any grid."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import HausdorffDistanceMetric

from monai_dvpt.utils.label_sets import UNKNOWN

from .dice import NanOfNothing

__all__ = ["HausdorffDistanceMm"]


class HausdorffDistanceMm(NanOfNothing, HausdorffDistanceMetric):
    """
    :class:`monai.metrics.HausdorffDistanceMetric` that takes the voxel spacing from each label map, since
    :class:`monai.handlers.IgniteMetricHandler` passes none. Arguments are MONAI's. If one mask is empty, the distance
    is the diagonal of the image, so that finding nothing never scores better than a bad result; if both are empty, the
    case is left out, and a class without cases is NaN (MONAI: 0). A class with voxels of which
    :class:`monai_dvpt.transforms.LabelSetsd` says that they are unknown is left out too. A label map of
    :class:`monai_dvpt.transforms.LoadImage2D` has its distance in pixels of the file.
    """

    def __call__(
        self,
        y_pred: torch.Tensor | Sequence[torch.Tensor],
        y: torch.Tensor | Sequence[torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            y_pred: one-hot predictions, a list of (C, *spatial) or a batch.
            y: one-hot label maps alike, each a :class:`monai.data.MetaTensor` with its affine in millimetres.

        Raises:
            TypeError: if a label map has no affine.
        """
        label_maps = [] if y is None else list(y)
        if not label_maps or not all(isinstance(item, MetaTensor) for item in label_maps):
            raise TypeError(
                f"y must be label maps with an affine (MetaTensor), got {[type(item) for item in label_maps]}."
            )
        spacing = [[float(side) for side in item.pixdim[: item.ndim - 1]] for item in label_maps]
        return super().__call__(y_pred, y, spacing=spacing, **kwargs)

    def _compute_list(self, y_pred: Any, y: Any = None, *, spacing: Any = None, **kwargs: Any) -> torch.Tensor:
        # MONAI passes the spacings of the whole list to each item
        distances = [
            self._compute_tensor(pred.detach().unsqueeze(0), label_map.detach().unsqueeze(0), spacing=[sides], **kwargs)
            for pred, label_map, sides in zip(y_pred, y, spacing, strict=True)
        ]
        for distance, label_map in zip(distances, y, strict=True):  # (1, classes)
            first = len(label_map) - distance.shape[1]
            distance[:, [number - first for number in label_map.meta.get(UNKNOWN, ()) if number >= first]] = torch.nan
        return torch.cat(distances)

    def _compute_tensor(  # type: ignore[override]
        self, y_pred: torch.Tensor, y: torch.Tensor, *, spacing: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*nan/inf distance.*")  # both are handled below
            distance = super()._compute_tensor(y_pred, y, spacing=spacing, **kwargs)  # (B, classes)
        sides_mm = torch.as_tensor(spacing) * torch.as_tensor(y.shape[2:])  # (B, spatial dimensions)
        filled = [mask.flatten(2).any(dim=2)[:, -distance.shape[1] :] for mask in (y_pred, y)]
        one_empty = (filled[0] != filled[1]).to(distance.device)
        both_empty = ~(filled[0] | filled[1]).to(distance.device)
        diagonal = sides_mm.norm(dim=1, keepdim=True).to(distance).expand_as(distance)
        return torch.where(one_empty, diagonal, distance.masked_fill(both_empty, torch.nan))
