# SPDX-License-Identifier: Apache-2.0
"""Reconstruction loss of masked autoencoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
from einops import rearrange

__all__ = ["MaskedPatchLoss"]

PATTERNS = {
    2: "b c (h p1) (w p2) -> b (h w) (p1 p2 c)",
    3: "b c (h p1) (w p2) (d p3) -> b (h w d) (p1 p2 p3 c)",
}


class MaskedPatchLoss(nn.Module):
    """
    Mean squared error over the masked patches, each patch of the target normalised to zero mean and unit variance,
    based on: "He et al., Masked Autoencoders Are Scalable Vision Learners <https://arxiv.org/abs/2111.06377>".
    It takes the output of :class:`monai.networks.nets.MaskedAutoEncoderViT`.

    Args:
        patch_size: sides of a patch in voxels, one per spatial dimension (2 or 3 of them).
        variance_floor: added to a patch's variance, in squared image units; keeps flat patches flat.
    """

    def __init__(self, patch_size: Sequence[int], variance_floor: float = 1e-2) -> None:
        super().__init__()
        if len(patch_size) not in PATTERNS:
            raise ValueError(f"patch_size must have 2 or 3 sides, got {patch_size}.")
        self.sides = {f"p{axis + 1}": int(side) for axis, side in enumerate(patch_size)}
        self.variance_floor = variance_floor

    def forward(self, y_pred: tuple[torch.Tensor, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        """
        Args:
            y_pred: predicted patches (B, N, patch volume x channels) and mask (B, N), 1 where a patch was hidden.
            y: the image, ``(B, channels, *spatial)``.
        """
        patches, mask = y_pred
        target = rearrange(y, PATTERNS[len(self.sides)], **self.sides)
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True, correction=0)
        target = (target - mean) / (variance + self.variance_floor).sqrt()
        return ((patches - target).square().mean(dim=-1) * mask).sum() / mask.sum()
