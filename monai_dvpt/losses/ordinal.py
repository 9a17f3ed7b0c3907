# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy that knows the order of the grades."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_dvpt.utils import check_counts

__all__ = ["OrdinalCrossEntropy"]


class OrdinalCrossEntropy(nn.Module):
    """
    Cross-entropy with soft labels, in which a grade shares its probability with its neighbours, based on: "Díaz and
    Marathe, Soft Labels for Ordinal Regression, CVPR 2019
    <https://openaccess.thecvf.com/content_CVPR_2019/html/Diaz_Soft_Labels_for_Ordinal_Regression_CVPR_2019_paper.html>".
    The target of grade ``y`` is ``softmax(-sharpness (i - y)^2)`` over the grades ``i``. The loss is the mean over all
    graded outputs of a batch, 0 if there are none.

    Args:
        num_grades: number ``K`` of grades of each output.
        sharpness: larger is closer to one-hot labels; None for plain cross-entropy.

    Raises:
        ValueError: if ``num_grades`` is below 2, ``sharpness`` not positive, or the shapes do not fit.

    Examples::

        >>> loss = OrdinalCrossEntropy(num_grades=3, sharpness=1.0)
        >>> loss(torch.zeros(1, 6), torch.tensor([[2, -1]]))  # two outputs, the first one graded
        tensor(1.0986)

    """

    def __init__(self, num_grades: int, sharpness: float | None = None) -> None:
        super().__init__()
        check_counts(2, num_grades=num_grades)
        if sharpness is not None and not sharpness > 0:
            raise ValueError(f"sharpness must be positive or None, got {sharpness}.")
        self.num_grades = num_grades
        self.sharpness = sharpness

    def forward(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """
        Args:
            y_pred: logits of shape (B, O * K), the grades of the first output first.
            y: grades of shape (B, O), whole numbers in [0, K), or -1 if missing.
        """
        if y.ndim != 2 or y_pred.shape != (len(y), y.shape[1] * self.num_grades):
            raise ValueError(
                f"y_pred must have the shape (B, O * {self.num_grades}) for y of the shape (B, O), "
                f"got {tuple(y_pred.shape)} for {tuple(y.shape)}."
            )
        graded = y >= 0
        logits = y_pred.unflatten(1, (-1, self.num_grades))[graded]  # (graded, K)
        target = y[graded].long()  # (graded,)
        if self.sharpness is not None:
            grades = torch.arange(self.num_grades, device=y.device)
            distance = (grades - target[:, None]).square()  # (graded, K)
            target = torch.softmax(-self.sharpness * distance.to(logits.dtype), dim=1)
        return F.cross_entropy(logits, target, reduction="sum") / max(1, len(logits))
