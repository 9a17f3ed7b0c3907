# SPDX-License-Identifier: Apache-2.0
"""Dice and cross-entropy of label maps that are drawn in part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
from monai.losses import DiceCELoss, DiceLoss

from monai_dvpt.utils import labels_of_values

__all__ = ["LabelSetDiceCELoss"]


class LabelSetDiceCELoss(nn.Module):
    """
    Sum of Dice loss and cross-entropy, where a value of the label map may stand for a set of labels, of which the voxel
    has one (see :func:`monai_dvpt.utils.labels_of_values`). It follows: "Fidon et al., Label-set Loss Functions for
    Partial Supervision, MICCAI 2021 <https://arxiv.org/abs/2107.03846>", which says what such a loss is, and: "Shi et
    al., Marginal Loss and Exclusion Loss for Partially Supervised Multi-organ Segmentation, Medical Image Analysis 2021
    <https://arxiv.org/abs/2007.03868>".

    - Cross-entropy: ``-log`` of the sum of the probabilities of the set, the marginal loss; the mean over the voxels
      of which something is known. Voxels of the set of all labels are left out.
    - Dice of a class: without the voxels of which is not known whether they are of the class. A voxel whose set lacks
      the class is not of it. The mean is over the classes of the samples of which a voxel is known. (The leaf-Dice of
      Fidon et al. counts an unknown voxel as not of the class.)

    Without sets in the label map the loss is that of ``monai.losses.DiceCELoss(to_onehot_y=True, softmax=True)``. Where
    nothing is known of a whole batch it is 0, with gradients of 0.

    Args:
        labels: names of the ``C`` classes, background first, two or more.
        label_sets: sets of names; the value ``C + i`` in a label map stands for ``label_sets[i]``.

    Raises:
        ValueError: if ``labels`` has fewer than two names, or as :func:`monai_dvpt.utils.labels_of_values` does.

    Examples::

        >>> loss = LabelSetDiceCELoss(["background", "liver", "spleen"], [["background", "spleen"]])
        >>> loss(torch.zeros(1, 3, 2, 2), torch.tensor([[[[1, 1], [3, 3]]]]))
        tensor(1.6187)

    """

    possible: torch.Tensor

    def __init__(self, labels: Sequence[str], label_sets: Sequence[Sequence[str]] = ()) -> None:
        super().__init__()
        if len(labels) < 2:
            raise ValueError(f"labels must have two or more names, got {list(labels)}.")
        self.register_buffer("possible", labels_of_values(labels, label_sets), persistent=False)
        self.num_classes = len(labels)
        self.full = DiceCELoss(to_onehot_y=True, softmax=True)
        self.dice = DiceLoss(reduction="none")

    def forward(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """
        Args:
            y_pred: logits of shape ``(B, C, *spatial)``.
            y: label map of shape ``(B, 1, *spatial)``, whole numbers in [0, C + number of sets).

        Raises:
            ValueError: if the shapes do not fit.
        """
        if y_pred.shape[1] != self.num_classes or y.shape != (len(y_pred), 1, *y_pred.shape[2:]):
            raise ValueError(
                f"y_pred must have the shape (B, {self.num_classes}, *spatial) for y of the shape (B, 1, *spatial), "
                f"got {tuple(y_pred.shape)} for {tuple(y.shape)}."
            )
        if len(self.possible) == self.num_classes:
            return self.full(y_pred, y)
        possible = self.possible.to(y_pred.device)[y[:, 0].long()].movedim(-1, 1)  # (B, C, *spatial)
        return self._cross_entropy(y_pred, possible) + self._dice(y_pred, possible)

    def _cross_entropy(self, y_pred: torch.Tensor, possible: torch.Tensor) -> torch.Tensor:
        said = ~possible.all(dim=1)  # (B, *spatial)
        log_share = y_pred.log_softmax(dim=1).masked_fill(~possible, -torch.inf).logsumexp(dim=1)
        return -torch.where(said, log_share, 0).sum() / said.sum().clamp(min=1)

    def _dice(self, y_pred: torch.Tensor, possible: torch.Tensor) -> torch.Tensor:
        known = ~possible | (possible.sum(dim=1, keepdim=True) == 1)  # (B, C, *spatial)
        loss = self.dice(y_pred.softmax(dim=1) * known, (possible & known).to(y_pred.dtype))  # 0 where nothing is known
        return loss.sum() / known.flatten(2).any(dim=2).sum().clamp(min=1)
