# SPDX-License-Identifier: Apache-2.0
"""The light decoders of segmenters on a plain grid of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn as nn
from monai.networks.blocks import UnetBasicBlock
from monai.networks.layers.factories import Conv

__all__ = ["INTERPOLATION", "chosen_layers", "light_decoder"]

DECODERS = ("linear", "conv")
INTERPOLATION = {2: "bilinear", 3: "trilinear"}
"""How logits are interpolated to the image, by the number of its axes."""
DOUBLINGS = 2  # of the token grid in a convolutional decoder


def chosen_layers(outputs: Sequence[int] | None, num_layers: int) -> list[int]:
    """
    The layers whose tokens a decoder reads, by default the last alone.

    Raises:
        ValueError: if they are not ascending layers up to the last.
    """
    layers = [num_layers - 1] if outputs is None else list(outputs)
    if layers[-1:] != [num_layers - 1] or layers != sorted(set(layers)) or layers[0] < 0:
        raise ValueError(f"outputs must be ascending layers up to the last, {num_layers - 1}, got {layers}.")
    return layers


def light_decoder(
    decoder: str,
    spatial_dims: int,
    in_channels: int,
    channels: int,
    patch_size: Sequence[int],
    norm_name: tuple | str,
) -> tuple[nn.Sequential, int]:
    """
    Makes what comes between the tokens and the 1x1 convolution to logits.

    Args:
        decoder: "linear", nothing; or "conv", a 1x1 convolution to ``channels`` channels, then twice a linear
            up-sampling by 2 and MONAI's block of two 3x3 convolutions. An axis along which a token is less than 2
            voxels long is not up-sampled.
        spatial_dims: 2 or 3.
        in_channels: number of channels of the tokens.
        channels: of a convolutional decoder.
        patch_size: size of a token.
        norm_name: normalisation of a convolutional decoder.

    Returns:
        the decoder and its number of channels.

    Raises:
        ValueError: if ``decoder`` is unknown.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {DECODERS}, got {decoder}.")
    if decoder == "linear":
        return nn.Sequential(), in_channels
    layers: list[nn.Module] = [Conv[Conv.CONV, spatial_dims](in_channels, channels, kernel_size=1)]
    token = [float(side) for side in patch_size]
    for _ in range(DOUBLINGS):
        factors = [2.0 if side >= 2 else 1.0 for side in token]
        token = [side / factor for side, factor in zip(token, factors, strict=True)]
        layers.append(nn.Upsample(scale_factor=tuple(factors), mode=INTERPOLATION[spatial_dims], align_corners=False))
        layers.append(UnetBasicBlock(spatial_dims, channels, channels, kernel_size=3, stride=1, norm_name=norm_name))
    return nn.Sequential(*layers), channels
