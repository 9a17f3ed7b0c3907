# SPDX-License-Identifier: Apache-2.0
"""Methods that add nothing and train some of what is there."""

from __future__ import annotations

import torch.nn as nn

from monai_dvpt.networks.adapter import TunableNetwork, freeze_backbone

from .insert import encoder_modules, freeze_encoder, parts_after_encoder, remove_dvpt

__all__ = ["bitfit", "full", "linear"]


def full(net: TunableNetwork) -> None:
    """
    Full fine-tuning: all of the network is trained, without DVPT.

    Args:
        net: the network.
    """
    remove_dvpt(net)
    freeze_backbone(net, ["backbone", *parts_after_encoder(net)])


def linear(net: TunableNetwork) -> None:
    """
    Linear probe: the encoder is frozen, without DVPT. In a segmentation network the decoder is trained too.

    Args:
        net: the network.

    Raises:
        ValueError: if there is no head and no decoder.
    """
    if not parts_after_encoder(net):
        raise ValueError('net must have a head or a decoder for the method "linear", got one without.')
    freeze_encoder(net)


def bitfit(net: TunableNetwork) -> None:
    """
    All biases of the encoder are trained, those of layer normalisations and patch embedding included, based on:
    "Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models
    <https://arxiv.org/abs/2106.10199>". Swin's tables of relative positions are not counted as biases.

    Args:
        net: the network.
    """
    freeze_encoder(net)
    for module in encoder_modules(net):
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.requires_grad_(True)
