# SPDX-License-Identifier: Apache-2.0
"""A network that is quick to run, and no two of whose sizes are equal."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

from monai_dvpt.networks.nets import DVPTUNETR

UNETR_SIZES = {"in_channels": 2, "out_channels": 3, "feature_size": 4, "hidden_size": 24, "mlp_dim": 20, "num_heads": 6}
DVPT_SIZES = {"bottleneck_size": 5, "num_prompts": 7}
IMG_SIZE = {2: (32, 48), 3: (16, 32, 48)}


def small_unetr(seed: int = 0, spatial_dims: int = 2, **arguments: Any) -> DVPTUNETR:
    """A network with random weights everywhere, so also in its DVPT blocks."""
    defaults = {**UNETR_SIZES, **DVPT_SIZES, "img_size": IMG_SIZE[spatial_dims], "spatial_dims": spatial_dims}
    return randomise(DVPTUNETR(**{**defaults, **arguments}), seed)


def small_image(net: DVPTUNETR, batch: int = 1) -> torch.Tensor:
    """Noise of the size that ``net`` takes."""
    return torch.randn(batch, UNETR_SIZES["in_channels"], *net.img_size, generator=torch.Generator().manual_seed(99))


def randomise(module: nn.Module, seed: int = 0) -> Any:
    """Fills all parameters with small random numbers; returns ``module``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return module


def copy_of_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state of ``module`` as it is now."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    """Names of the tensors of ``module`` that differ from those in ``before``."""
    after = module.state_dict()
    if before.keys() != after.keys():
        raise ValueError("the names changed.")
    return {name for name in before if not torch.equal(before[name], after[name])}
