# SPDX-License-Identifier: Apache-2.0
"""AdaptFormer: a bottleneck parallel to every feed-forward layer."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.blocks import MLPBlock

from monai_dvpt.networks.adapter import TunableNetwork
from monai_dvpt.utils import check_counts

from .insert import Inserted, check_positive, encoder_modules, freeze_encoder

__all__ = ["AdaptMLP", "adaptformer"]


class AdaptMLP(Inserted, MLPBlock):
    """A feed-forward layer with a bottleneck beside it: ``MLP(x) + s (relu(x W_down + b_down) W_up + b_up)``."""

    adapter_scale: float

    def add_branch(self, bottleneck_size: int, scale: float) -> None:
        """
        Args:
            bottleneck_size: width of the bottleneck.
            scale: the factor ``s``.
        """
        weight = self.linear1.weight
        self.adapter_down = nn.Linear(weight.shape[1], bottleneck_size, device=weight.device, dtype=weight.dtype)
        self.adapter_up = nn.Linear(bottleneck_size, weight.shape[1], device=weight.device, dtype=weight.dtype)
        nn.init.kaiming_uniform_(self.adapter_down.weight, a=math.sqrt(5))
        for tensor in (self.adapter_down.bias, self.adapter_up.weight, self.adapter_up.bias):
            nn.init.zeros_(tensor)
        self.adapter_scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.adapter_scale * self.adapter_up(F.relu(self.adapter_down(x)))


def adaptformer(net: TunableNetwork, bottleneck_size: int = 64, scale: float = 0.1) -> None:
    """
    A bottleneck parallel to every feed-forward layer, based on: "Chen et al., AdaptFormer: Adapting Vision Transformers
    for Scalable Visual Recognition <https://arxiv.org/abs/2205.13535>". As in the paper's equations both branches see
    the normalised tokens; the authors' code gives the bottleneck those before the normalisation, and has dropout in it.
    The up-projection starts at zero, so that the start is the frozen network.

    Args:
        net: the network.
        bottleneck_size: width of the bottleneck.
        scale: factor of the bottleneck's output.

    Raises:
        ValueError: if ``bottleneck_size`` is below 1 or ``scale`` not positive.
    """
    check_counts(bottleneck_size=bottleneck_size)
    check_positive(scale=scale)
    freeze_encoder(net)
    for module in encoder_modules(net):
        if isinstance(module, MLPBlock):
            AdaptMLP.take(module).add_branch(bottleneck_size, scale)
