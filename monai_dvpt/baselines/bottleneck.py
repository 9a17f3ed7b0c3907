# SPDX-License-Identifier: Apache-2.0
"""DVPT itself, with and without prompts."""

from __future__ import annotations

from monai.networks.blocks import TransformerBlock
from monai.networks.nets.swin_unetr import SwinTransformerBlock

from monai_dvpt.networks.adapter import TunableNetwork, freeze_backbone
from monai_dvpt.networks.blocks import DVPTList

from .insert import encoder_modules

__all__ = ["bottleneck", "dvpt"]


def dvpt(
    net: TunableNetwork,
    bottleneck_size: int | None = None,
    num_prompts: int | None = None,
    share_every: int | None = None,
    start_layer: int | None = None,
    side_path: bool | None = None,
) -> None:
    """
    Dynamic visual prompt tuning with the DVPT blocks of the network, based on:
    "He et al., DVPT <https://arxiv.org/abs/2307.09787>". An option makes new blocks, and is recorded in
    ``net.arguments`` as if the network had been built with it; an adapter file is saved and loaded as ever.

    Args:
        net: the network.
        bottleneck_size: see :class:`monai_dvpt.networks.blocks.DVPTBlock`; by default, as for all options, that of the
            network.
        num_prompts: see :class:`monai_dvpt.networks.blocks.DVPTBlock`.
        share_every: see :class:`monai_dvpt.networks.blocks.DVPTList`.
        start_layer: see :class:`monai_dvpt.networks.blocks.DVPTList`.
        side_path: see :class:`monai_dvpt.networks.nets.DVPTViT`.

    Raises:
        ValueError: if an option is outside its range.
    """
    options = {
        "bottleneck_size": bottleneck_size,
        "num_prompts": num_prompts,
        "share_every": share_every,
        "start_layer": start_layer,
        "side_path": side_path,
    }
    changes = {name: value for name, value in options.items() if value is not None}
    if changes or not len(net.dvpt):
        blocks = [m for m in encoder_modules(net) if isinstance(m, (TransformerBlock, SwinTransformerBlock))]
        settings = {**{name: net.arguments[name] for name in options}, **changes}
        like = blocks[0].norm1.weight
        side_path = settings.pop("side_path")
        new = DVPTList([block.norm1.normalized_shape[0] for block in blocks], **settings)
        net.use_dvpt(new.to(like.device, like.dtype), side_path)
        net.arguments = {**net.arguments, **changes}
    net.dvpt_enabled = True
    freeze_backbone(net)


def bottleneck(
    net: TunableNetwork,
    bottleneck_size: int | None = None,
    share_every: int | None = None,
    start_layer: int | None = None,
) -> None:
    """
    DVPT without prompts, a bottleneck after transformer layers: what the prompts add is the difference to
    :func:`dvpt`.

    Args:
        net: the network.
        bottleneck_size: see :func:`dvpt`.
        share_every: see :func:`dvpt`.
        start_layer: see :func:`dvpt`.

    Raises:
        ValueError: if an option is outside its range.
    """
    dvpt(net, bottleneck_size, 0, share_every, start_layer)
