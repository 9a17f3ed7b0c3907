# SPDX-License-Identifier: Apache-2.0
"""Dice score that says nothing where there is nothing to score."""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import DiceMetric

__all__ = ["DiceOfLabels", "NanOfNothing"]


class NanOfNothing:
    """
    Put before a metric of MONAI that leaves NaN out of its means: where nothing is left, the mean is NaN. MONAI has 0
    there, which for a Dice score means that all was missed.
    """

    get_not_nans: bool

    def aggregate(self, reduction: Any = None) -> Any:
        """
        Args:
            reduction: as MONAI's, by default that of the metric.

        Returns:
            the reduced values, and with ``get_not_nans`` of how many values each is the mean.
        """
        include, self.get_not_nans = self.get_not_nans, True
        try:
            value, count = super().aggregate(reduction)  # type: ignore[misc]
        finally:
            self.get_not_nans = include
        value = torch.where(count > 0, value, torch.full_like(value, torch.nan))
        return (value, count) if include else value


class DiceOfLabels(NanOfNothing, DiceMetric):
    """
    :class:`monai.metrics.DiceMetric` whose reduced score is NaN where no case has the class. Arguments are MONAI's; a
    case whose label map lacks a class is left out of the class's mean.
    """
