# SPDX-License-Identifier: Apache-2.0
"""The networks, and the ways to tune them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn as nn
from monai.networks.blocks import TransformerBlock
from monai.networks.nets import UNETR, SwinUNETR, ViT
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.utils import optional_import

from monai_dvpt.networks.methods import METHODS
from monai_dvpt.networks.nets import DVPTUNETR, DVPTSwinClassifier, DVPTSwinUNETR, DVPTViT
from monai_dvpt.networks.parts import TunableNetwork, freeze_backbone, tune

__all__ = ["NETWORKS", "REFERENCE", "VARIANTS", "Network", "Variant", "build_variant"]

Net = TypeVar("Net", bound=nn.Module)

REFERENCE = "monai_full"
"""The variant with which all others are compared."""


@dataclass(frozen=True)
class Network:
    """
    A network to measure, and its input.

    Attributes:
        plain: builds MONAI's own network.
        dvpt: builds this package's network; takes ``start_layer``, ``side_path`` and ``use_checkpoint``.
        input_size: channels and sides of an image.
        num_classes: number of classes.
        batch: images of a step.
        segmentation: whether each voxel has a class.
    """

    plain: Callable[[], nn.Module]
    dvpt: Callable[..., TunableNetwork]
    input_size: tuple[int, ...]
    num_classes: int
    batch: int
    segmentation: bool = False


def _vit(hidden_size: int, batch: int, size: int = 224) -> Network:
    sizes: dict[str, Any] = {"hidden_size": hidden_size, "mlp_dim": 4 * hidden_size, "num_heads": hidden_size // 64}
    sizes |= {"spatial_dims": 2, "num_classes": 5}
    plain = partial(ViT, 3, size, 16, classification=True, post_activation="none", qkv_bias=True, **sizes)
    return Network(plain, partial(DVPTViT, 3, size, 16, **sizes), (3, size, size), 5, batch)


def _unetr(size: int = 96) -> Network:
    sides = (size, size, size)
    return Network(partial(UNETR, 1, 3, sides), partial(DVPTUNETR, 1, 3, sides), (1, *sides), 3, 1, True)


def _swin_unetr(size: int = 96) -> Network:
    plain, dvpt = partial(SwinUNETR, 1, 3, feature_size=48), partial(DVPTSwinUNETR, 1, 3, feature_size=48)
    return Network(plain, dvpt, (1, size, size, size), 3, 1, True)


class _SwinClassifier(nn.Module):
    """MONAI's Swin transformer with a head, under the names of ``DVPTSwinClassifier``."""

    def __init__(self, feature_size: int, num_classes: int) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24), "spatial_dims": 3}
        self.swinViT = SwinTransformer(1, feature_size, (7, 7, 7), (2, 2, 2), **sizes)
        self.classification_head = nn.Linear(16 * feature_size, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classification_head(self.swinViT(x)[4].flatten(2).mean(2))


def _swin_encoder(size: int = 96) -> Network:
    dvpt = partial(DVPTSwinClassifier, 1, 3, feature_size=48)
    return Network(partial(_SwinClassifier, 48, 3), dvpt, (1, size, size, size), 3, 1)


NETWORKS: dict[str, Callable[..., Network]] = {
    "vit_b16": partial(_vit, 768, 8),
    "vit_ti16": partial(_vit, 192, 16),
    "unetr_b": _unetr,
    "swin_unetr_48": _swin_unetr,
    "swin_encoder_48": _swin_encoder,
}
"""ViT-B/16 and ViT-Ti/16 at 224, UNETR around ViT-B and SwinUNETR with ``feature_size=48`` at 96, and
its encoder alone with a linear head; each takes ``size``."""


@dataclass(frozen=True)
class Variant:
    """
    A way to tune a network.

    Attributes:
        build: makes and freezes the network from a network and a template, whose tensors it uses where names and shapes
            are the same.
        description: in one line.
        all_kept: whether a task keeps the whole network.
        cached: whether the prefix comes from a cache.
        infers: whether inference is measured.
    """

    build: Callable[[Network, TunableNetwork], nn.Module]
    description: str
    all_kept: bool = False
    cached: bool = False
    infers: bool = True


def _plain(network: Network, template: TunableNetwork) -> nn.Module:
    net = _share(network.plain(), template)
    for module in net.modules():
        if isinstance(module, TransformerBlock) and not module.with_cross_attention:
            module.norm_cross_attn.requires_grad_(False)  # never used
    return net


def _dvpt(
    network: Network,
    template: TunableNetwork,
    half: bool = False,
    side_path: bool = False,
    keeps_output: bool = True,
    **arguments: Any,
) -> nn.Module:
    start_layer = len(template.encoder().blocks) // 2 if half else 0
    net = freeze_backbone(_share(network.dvpt(start_layer=start_layer, side_path=side_path, **arguments), template))
    if not keeps_output:
        for block in net.encoder().dvpt:
            vars(block)["_keeps_output"] = lambda x: False
    return net


def _baseline(network: Network, template: TunableNetwork, method: str) -> nn.Module:
    return _share(tune(_share(network.dvpt(), template), method), template)  # also what it trains copies of


def _peft_lora(network: Network, template: TunableNetwork) -> nn.Module:
    peft, has_peft = optional_import("peft")
    if not has_peft:
        raise ValueError("the package peft must be installed.")
    config = peft.LoraConfig(r=8, target_modules=["qkv"])
    net = peft.inject_adapter_in_model(config, _share(network.plain(), template))
    for name, parameter in net.named_parameters():
        if template.part_of(name) != "backbone":
            parameter.requires_grad_(True)
    return net


BASELINES = ("linear", "bitfit", "lora", "adaptformer", "ssf", "vpt_shallow", "vpt_deep")
VARIANTS: dict[str, Variant] = {
    REFERENCE: Variant(_plain, "MONAI's own network, all of it trained", all_kept=True),
    "full": Variant(partial(_baseline, method="full"), "the network of this package, all of it trained", all_kept=True),
    "dvpt": Variant(_dvpt, "DVPT after all layers"),
    "dvpt_checkpointed": Variant(partial(_dvpt, use_checkpoint=True), "with activation checkpointing", infers=False),
    "dvpt_half": Variant(partial(_dvpt, half=True), "DVPT after the second half of the layers"),
    "dvpt_half_cached": Variant(
        partial(_dvpt, half=True), "the first half of the layers from a cache", cached=True, infers=False
    ),
    "dvpt_side": Variant(partial(_dvpt, side_path=True), "DVPT on a path beside the frozen layers"),
    "dvpt_side_cached": Variant(
        partial(_dvpt, side_path=True), "the frozen layers from a cache", cached=True, infers=False
    ),
    "dvpt_plain": Variant(partial(_dvpt, keeps_output=False), "the blocks keep what autograd does, not their output"),
    **{name: Variant(partial(_baseline, method=name), METHODS[name].description) for name in BASELINES},
    "peft_lora": Variant(_peft_lora, "LoRA of Hugging Face peft, rank 8, on MONAI's own network"),
}
"""All variants by name."""


def build_variant(name: str, network: Network, template: TunableNetwork) -> nn.Module:
    """
    Builds a variant, by its name in ``VARIANTS``, on the device of ``template``: ``network.dvpt()``, whose tensors all
    variants use, so that they fit into memory.

    Raises:
        ValueError: if the variant does not fit the network, or a package is missing.
    """
    logger = logging.getLogger(freeze_backbone.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)  # the results say how much is trained
    try:
        return VARIANTS[name].build(network, template).to(next(template.parameters()).device).train()
    finally:
        logger.setLevel(level)


def _share(net: Net, template: TunableNetwork) -> Net:
    """Makes a network use the template's tensors, in its own parameters and so with its own gradients."""
    given = template.state_dict()
    net.to(next(template.parameters()).device)
    for name, tensor in net.state_dict(keep_vars=True).items():
        if name in given and tensor.shape == given[name].shape:
            tensor.data = given[name]
    return net
