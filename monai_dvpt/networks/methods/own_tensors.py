# SPDX-License-Identifier: Apache-2.0
"""Methods that add nothing and train none, some or all of the encoder's own tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn as nn

from monai_dvpt.networks.encoders import Encoder

from .method import Method

__all__ = ["BitFit", "Full", "Linear"]


@dataclass(frozen=True)
class Linear(Method):
    """Linear probe: the encoder is frozen. A segmentation network also trains its decoder."""

    name = "linear"
    description = "linear probe: a frozen encoder"

    def merge(self, encoder: Encoder) -> None:
        """Does nothing: the trained tensors are the encoder's own already."""


@dataclass(frozen=True)
class Full(Linear):
    """Full fine-tuning: trains the whole encoder."""

    name = "full"
    description = "full fine-tuning"

    def trains(self, encoder: Encoder) -> list[str]:
        fixed = set(encoder.never_trained)
        return [name for name, _ in encoder.named_parameters() if name not in fixed and encoder.is_own(name)]


@dataclass(frozen=True)
class BitFit(Linear):
    """
    Trains all biases of the encoder, including those of layer normalisations and patch embedding, based on:
    "Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models
    <https://arxiv.org/abs/2106.10199>". Swin's relative position tables do not count as biases.
    """

    name = "bitfit"
    description = "the biases of the encoder"
    paper = "https://arxiv.org/abs/2106.10199"

    def trains(self, encoder: Encoder) -> list[str]:
        biases = (getattr(module, "bias", None) for module in encoder.used_modules())
        own = {id(bias) for bias in biases if isinstance(bias, nn.Parameter)}
        return [name for name, parameter in encoder.named_parameters() if id(parameter) in own]
