# SPDX-License-Identifier: Apache-2.0
"""Dice score that says nothing where there is nothing to score."""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import DiceMetric

__all__ = ["DiceOfLabels", "nan_where_nothing"]


class DiceOfLabels(DiceMetric):
    """
    :class:`monai.metrics.DiceMetric` whose reduced score is NaN where no case has the class (MONAI: 0, as if all of it
    had been missed). Arguments are MONAI's; a case whose label map lacks a class is left out of the class's mean.
    """

    def aggregate(self, reduction: Any = None) -> Any:
        """
        Returns:
            the reduced scores, each in [0, 1] or NaN.
        """
        include, self.get_not_nans = self.get_not_nans, True
        try:
            score, count = super().aggregate(reduction)
        finally:
            self.get_not_nans = include
        score = nan_where_nothing(score, count)
        return (score, count) if include else score


def nan_where_nothing(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """
    Args:
        values: reduced values of a metric.
        count: how many values that are not NaN each stands for, of the same shape.

    Returns:
        ``values``, with NaN where there was none; MONAI has 0 there.
    """
    return torch.where(count > 0, values, torch.full_like(values, torch.nan))
