# SPDX-License-Identifier: Apache-2.0
"""SSF: a scale and a shift of every channel after every operation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

from monai_dvpt.networks.adapter import TunableNetwork

from .insert import Inserted, encoder_modules, freeze_encoder

__all__ = ["ScaleShift", "ssf"]


class ScaleShift(Inserted):
    """A linear layer, layer normalisation or convolution whose output channels are scaled and shifted."""

    weight: Any
    bias: Any

    def add_scale_shift(self) -> None:
        """Adds both, at 1 and 0."""
        channels = self.weight.shape[0]
        self.ssf_scale = nn.Parameter(self.weight.new_ones(channels))
        self.ssf_shift = nn.Parameter(self.weight.new_zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        trailing = [1] * (self.weight.ndim - 2)  # a convolution's channels come before its grid
        return super().forward(x) * self.ssf_scale.view(-1, *trailing) + self.ssf_shift.view(-1, *trailing)

    @torch.no_grad()
    def merge(self) -> None:
        """Puts scale and shift into weight and bias and leaves the plain module, with a bias also if it had none."""
        self.weight *= self.ssf_scale.view(-1, *[1] * (self.weight.ndim - 1))
        if self.bias is None:
            self.bias = nn.Parameter(self.ssf_shift.detach().clone(), requires_grad=False)
        else:
            self.bias *= self.ssf_scale
            self.bias += self.ssf_shift
        del self.ssf_scale, self.ssf_shift
        self.give_back()


class ScaleShiftLinear(ScaleShift, nn.Linear):
    """See :class:`ScaleShift`."""


class ScaleShiftLayerNorm(ScaleShift, nn.LayerNorm):
    """See :class:`ScaleShift`."""


class ScaleShiftConv2d(ScaleShift, nn.Conv2d):
    """See :class:`ScaleShift`."""


class ScaleShiftConv3d(ScaleShift, nn.Conv3d):
    """See :class:`ScaleShift`."""


KINDS: dict[type[nn.Module], type[ScaleShift]] = {
    nn.Linear: ScaleShiftLinear,
    nn.LayerNorm: ScaleShiftLayerNorm,
    nn.Conv2d: ScaleShiftConv2d,
    nn.Conv3d: ScaleShiftConv3d,
}


def ssf(net: TunableNetwork) -> None:
    """
    A scale and a shift of every channel after the patch embedding and every linear layer and layer normalisation, based
    on: "Lian et al., Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning
    <https://arxiv.org/abs/2210.08823>". They start at 1 and 0, so that the start is the frozen network; the paper draws
    them around 1 and 0 with a standard deviation of 0.02. The residual convolutions of ``use_v2``, which the paper does
    not know, stay as they are, and so do normalisations without parameters.

    Args:
        net: the network.
    """
    freeze_encoder(net)
    encoder = net.encoder()
    embedding = encoder.patch_embed if hasattr(encoder, "patch_embed") else encoder.patch_embedding
    residual = {m for m in encoder_modules(net) if isinstance(m, (nn.Conv2d, nn.Conv3d))} - set(embedding.modules())
    for module in encoder_modules(net):
        if type(module) in KINDS and module not in residual:
            KINDS[type(module)].take(module).add_scale_shift()
