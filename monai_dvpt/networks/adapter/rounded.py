# SPDX-License-Identifier: Apache-2.0
"""A frozen backbone in half the memory."""

from __future__ import annotations

import torch
import torch.nn as nn
from torch.nn.modules.conv import _ConvNd

from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.networks.wrapped import on_network

from .file import backbone_sha256

__all__ = ["round_backbone"]


@on_network
def round_backbone(net: TunableNetwork, dtype: torch.dtype = torch.bfloat16) -> TunableNetwork:
    """
    Stores the backbone's frozen linear layers and convolutions in a shorter type. Under autocast to that type, as in
    bundles with ``amp``, outputs stay bit-equal, as autocast rounds these weights at every use; without autocast the
    network no longer runs. A shared backbone is copied. Adapters still belong to the unrounded backbone.

    Args:
        net: the network with its pretrained weights and a frozen backbone.
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Returns:
        ``net``.

    Raises:
        ValueError: if ``dtype`` is another type, a parameter of the backbone is trained, or the method has
            copies of parameters.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be torch.bfloat16 or torch.float16, got {dtype}.")
    trained = [n for n, p in net.named_parameters() if p.requires_grad and net.part_of(n) == "backbone"]
    if trained:
        raise ValueError(f"net must have a frozen backbone to be rounded, {trained[:3]} are trained.")
    if net.encoder().originals:
        raise ValueError(f'net must not have copies of its backbone to be rounded, the method "{net.method.name}" has.')
    before = backbone_sha256(net)
    for name, module in net.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(module, (nn.Linear, _ConvNd)) and net.part_of(f"{name}.{key}") == "backbone":
                # a new parameter, as another network may use this one
                setattr(module, key, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    net.rounding = backbone_sha256(net), before
    return net
