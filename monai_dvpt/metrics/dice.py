# SPDX-License-Identifier: Apache-2.0
"""Dice score that is NaN where there is nothing to score."""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import DiceMetric

__all__ = ["DiceOfLabels", "NanOfNothing"]


class NanOfNothing:
    """
    Base before a MONAI metric that leaves NaN out of its means: where nothing is left, the mean is NaN. MONAI returns 0
    there, which for a Dice score means that everything was missed.
    """

    get_not_nans: bool

    def aggregate(self, reduction: Any = None) -> Any:
        """
        Args:
            reduction: as MONAI's, by default the metric's own.

        Returns:
            the reduced values, and with ``get_not_nans`` the number of values in each.
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
    :class:`monai.metrics.DiceMetric` with a reduced score of NaN where no case has the class. Arguments are MONAI's; a
    case without a class in its label map is left out of the class's mean.
    """
