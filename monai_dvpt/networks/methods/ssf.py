# SPDX-License-Identifier: Apache-2.0
"""SSF: a scale and a shift of every channel after every operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn

from monai_dvpt.networks.encoders import Encoder

from .method import Inserted, Method

__all__ = ["SSF", "ScaleShift"]


class ScaleShift(Inserted):
    """A linear layer, layer normalisation or convolution whose output channels are scaled and shifted."""

    if TYPE_CHECKING:  # TorchScript would try to compile it
        weight: Any
        bias: Any

    def add_scale_shift(self) -> None:
        """Adds a scale of 1 and a shift of 0."""
        channels = self.weight.shape[0]
        self.ssf_scale = nn.Parameter(self.weight.new_ones(channels))
        self.ssf_shift = nn.Parameter(self.weight.new_zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        trailing = [1] * (self.weight.ndim - 2)  # a convolution's channels come before its grid
        return super().forward(x) * self.ssf_scale.view(-1, *trailing) + self.ssf_shift.view(-1, *trailing)

    @torch.no_grad()
    def merge(self) -> None:
        """Merges scale and shift into weight and bias, which leaves a plain module that has a bias."""
        # a new weight, as another network may use this one
        weight = self.weight * self.ssf_scale.view(-1, *[1] * (self.weight.ndim - 1))
        bias = self.ssf_shift.clone() if self.bias is None else self.bias * self.ssf_scale + self.ssf_shift
        self.give_back()
        self.weight, self.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))


class ScaleShiftLinear(ScaleShift, nn.Linear): ...


class ScaleShiftLayerNorm(ScaleShift, nn.LayerNorm): ...


class ScaleShiftConv2d(ScaleShift, nn.Conv2d): ...


class ScaleShiftConv3d(ScaleShift, nn.Conv3d): ...


KINDS: dict[type[nn.Module], type[ScaleShift]] = {
    **{nn.Linear: ScaleShiftLinear, nn.LayerNorm: ScaleShiftLayerNorm},
    **{nn.Conv2d: ScaleShiftConv2d, nn.Conv3d: ScaleShiftConv3d},
}


@dataclass(frozen=True)
class SSF(Method):
    """
    A scale and a shift of every channel after the patch embedding and every linear layer and layer normalisation, based
    on: "Lian et al., Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning
    <https://arxiv.org/abs/2210.08823>". They start at 1 and 0, so that training starts from the frozen network; the
    paper draws them around 1 and 0 with a standard deviation of 0.02. The residual convolutions of ``use_v2`` and
    those of SAM's neck, unknown to the paper, and normalisations without parameters get none.
    """

    name = "ssf"
    description = "scale and shift after every operation"
    paper = "https://arxiv.org/abs/2210.08823"

    def attach(self, encoder: Encoder) -> None:
        embedding = set(encoder.embedding().modules())
        for module in encoder.used_modules():
            residual = isinstance(module, (nn.Conv2d, nn.Conv3d)) and module not in embedding
            if type(module) in KINDS and not residual:
                KINDS[type(module)].take(module).add_scale_shift()

    def merge(self, encoder: Encoder) -> None:
        for module in encoder.used_modules():
            if isinstance(module, ScaleShift):
                module.merge()
