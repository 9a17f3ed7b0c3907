# SPDX-License-Identifier: Apache-2.0
"""What the methods share: an encoder frozen without DVPT, and modules that take the place of MONAI's."""

from __future__ import annotations

import math
from typing import Any, cast

import torch.nn as nn
from monai.networks.blocks import TransformerBlock
from typing_extensions import Self

from monai_dvpt.networks.adapter import TunableNetwork, count_parameters, freeze_backbone

__all__ = ["Inserted", "check_positive", "encoder_modules", "freeze_encoder", "parts_after_encoder", "remove_dvpt"]


class Inserted(nn.Module):
    """
    Base of what a method puts in the place of a module. A subclass also derives from the class of that module and adds
    tensors to it, so that all other names, and so the keys of pretrained weights, stay MONAI's own.
    """

    plain: type[nn.Module]

    @classmethod
    def take(cls, module: nn.Module) -> Self:
        """Turns ``module`` into one of this class; its tensors, settings and hooks stay."""
        plain = type(module)
        module.__class__ = cls
        taken = cast(Self, module)
        taken.plain = plain
        return taken

    def give_back(self) -> None:
        """Turns the module into what it was before; what was added must be gone by then."""
        plain = self.plain
        del self.plain
        self.__class__ = plain  # type: ignore[assignment]


def remove_dvpt(net: TunableNetwork) -> None:
    """Empties the list of DVPT blocks."""
    del net.dvpt[:]
    net.dvpt.block_of_layer = [-1] * len(net.dvpt_of_layer)
    net.use_dvpt(net.dvpt)
    net.dvpt_enabled = False


def parts_after_encoder(net: TunableNetwork) -> list[str]:
    """Of "decoder" and "head" the parts that the network has."""
    counts = count_parameters(net)
    return [part for part in ("decoder", "head") if counts[part]["total"]]


def freeze_encoder(net: TunableNetwork) -> None:
    """Removes DVPT and leaves only decoder and head to train, where there are any."""
    remove_dvpt(net)
    if parts := parts_after_encoder(net):
        freeze_backbone(net, parts)
    else:
        net.requires_grad_(False)


def encoder_modules(net: TunableNetwork) -> list[nn.Module]:
    """All modules of the encoder, at any depth, that its forward pass uses."""
    blocks = [module for module in net.modules() if isinstance(module, TransformerBlock)]
    unused = {block.norm_cross_attn for block in blocks if not block.with_cross_attention}
    return [
        module
        for name, module in net.named_modules()
        if name.startswith(net.ENCODER) and not f"{name}.".startswith(net.HEAD) and module not in unused
    ]


def check_positive(**values: Any) -> None:
    """
    Raises:
        ValueError: if a value, an argument by name, is not a positive finite number.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value}.")
