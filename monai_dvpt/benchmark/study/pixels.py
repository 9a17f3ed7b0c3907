# SPDX-License-Identifier: Apache-2.0
"""The pixel baseline of a study: what the mean values of the parts of an image tell, without an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn
from monai.bundle import ConfigParser
from monai.networks.layers.factories import Pool
from monai.utils import convert_to_tensor

__all__ = ["PIXELS", "PixelModel", "use_pixels"]

PIXELS = "pixels"
"""Name of the pixel baseline among the methods of a study."""
PARTS = 8
"""Parts of the image along each axis."""


class PixelModel(nn.Module):
    """
    A linear model of the means of 8 x 8 parts of an image, in 3D of 8 x 8 x 8, each standardised.

    Args:
        images: training images, each of shape (in_channels, \\*spatial), whose means and deviations standardise.
        num_classes: number of outputs.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, images: Sequence[torch.Tensor], num_classes: int) -> None:
        super().__init__()
        self.pool = Pool["adaptiveavg", images[0].ndim - 1](PARTS)
        features = torch.cat([self.pool(image[None]).flatten(1) for image in images])  # (images, means)
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("deviation", features.std(dim=0, correction=0).clamp_min(1e-6))
        self.linear = nn.Linear(features.shape[1], num_classes)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits, of shape (B, num_classes), of images of shape (B, in_channels, \\*spatial)."""
        return self.linear((self.pool(image).flatten(1) - self.mean) / self.deviation)

    def parameter_groups(self, learning_rates: Mapping[str, float]) -> list[dict[str, Any]]:
        """The parameters for an optimiser, as :func:`monai_dvpt.networks.parts.parameter_groups` makes them."""
        rate = learning_rates["head"]
        weight, bias = self.linear.weight, self.linear.bias
        return [{"params": [weight], "lr": rate}, {"params": [bias], "lr": rate, "weight_decay": 0.0}]


def use_pixels(parser: ConfigParser, cases: Sequence[Mapping[str, Any]]) -> None:
    """
    Puts the pixel baseline in the place of the network of a bundle's ``train.yaml``. It is trained as the network would
    be, but on images without augmentation.
    """
    prepare = parser.get_parsed_content("validate#preprocessing")
    images = [convert_to_tensor(prepare(dict(case))["image"], track_meta=False, dtype=torch.float32) for case in cases]
    model = PixelModel(images, parser.get_parsed_content("network_def#num_classes"))
    parser["network"] = model.to(parser.get_parsed_content("device"))
    parser["train#preprocessing"] = "@validate#preprocessing"
    parser["train#optimizer#params"] = "$@network.parameter_groups(@learning_rates)"
    if "prefix_cache" in parser:
        parser["prefix_cache"] = None  # there are no frozen layers
