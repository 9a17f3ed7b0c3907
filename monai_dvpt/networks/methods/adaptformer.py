# SPDX-License-Identifier: Apache-2.0
"""AdaptFormer: a bottleneck parallel to every feed-forward layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.blocks import MLPBlock

from monai_dvpt.networks.encoders import Encoder
from monai_dvpt.utils import check_counts

from .method import Inserted, Method, check_positive

__all__ = ["AdaptFormer", "AdaptMLP"]


class AdaptMLP(Inserted, MLPBlock):
    """A feed-forward layer with a bottleneck beside it: ``MLP(x) + s (relu(x W_down + b_down) W_up + b_up)``."""

    if TYPE_CHECKING:  # TorchScript would try to compile it
        adapter_scale: float

    def add_branch(self, bottleneck_size: int, scale: float) -> None:
        """Adds a bottleneck of a width, its output scaled by ``s``."""
        weight = self.linear1.weight
        self.adapter_down = nn.Linear(weight.shape[1], bottleneck_size, device=weight.device, dtype=weight.dtype)
        self.adapter_up = nn.Linear(bottleneck_size, weight.shape[1], device=weight.device, dtype=weight.dtype)
        nn.init.kaiming_uniform_(self.adapter_down.weight, a=math.sqrt(5))
        for tensor in (self.adapter_down.bias, self.adapter_up.weight, self.adapter_up.bias):
            nn.init.zeros_(tensor)
        self.adapter_scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop2(self.linear2(self.drop1(self.fn(self.linear1(x)))))  # TorchScript knows no super()
        return y + self.adapter_scale * self.adapter_up(F.relu(self.adapter_down(x)))


@dataclass(frozen=True)
class AdaptFormer(Method):
    """
    A bottleneck parallel to every feed-forward layer, based on: "Chen et al., AdaptFormer: Adapting Vision Transformers
    for Scalable Visual Recognition <https://arxiv.org/abs/2205.13535>". Both branches get normalised tokens, as in the
    paper's equations; in the authors' code the bottleneck gets the tokens before normalisation, and has dropout. The
    up-projection starts at zero, so that training starts from the frozen network.

    Args:
        bottleneck_size: width of the bottleneck.
        scale: factor of the bottleneck's output.

    Raises:
        ValueError: if ``bottleneck_size`` is below 1 or ``scale`` not positive.
    """

    bottleneck_size: int = 64
    scale: float = 0.1

    name = "adaptformer"
    description = "a bottleneck parallel to every MLP"
    paper = "https://arxiv.org/abs/2205.13535"

    def __post_init__(self) -> None:
        check_counts(bottleneck_size=self.bottleneck_size)
        check_positive(scale=self.scale)

    def attach(self, encoder: Encoder) -> None:
        for module in encoder.feed_forwards():
            AdaptMLP.take(module).add_branch(self.bottleneck_size, self.scale)
