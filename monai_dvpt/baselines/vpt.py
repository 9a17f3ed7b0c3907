# SPDX-License-Identifier: Apache-2.0
"""Visual prompt tuning: learned tokens beside those of the image."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
from monai.networks.blocks import TransformerBlock

from monai_dvpt.networks.adapter import TunableNetwork
from monai_dvpt.networks.nets import DVPTUNETR, DVPTViT
from monai_dvpt.utils import check_counts

from .insert import Inserted, encoder_modules, freeze_encoder

__all__ = ["PromptedBlock", "vpt_deep", "vpt_shallow"]


class PromptedBlock(Inserted, TransformerBlock):
    """
    A transformer block that appends prompts to its input, drops the last tokens of its output, or both. Prompts have no
    position, so that to a transformer the end of the sequence is as good as the paper's place behind the class token.
    """

    prompts: nn.Parameter | None  # (P, C)
    num_dropped: int

    def set_prompts(self, prompts: torch.Tensor | None, num_dropped: int) -> None:
        """
        Args:
            prompts: start of the prompts, of shape (P, C); None for none.
            num_dropped: number of tokens to drop.
        """
        self.register_parameter("prompts", None if prompts is None else nn.Parameter(prompts))
        self.num_dropped = num_dropped

    def forward(
        self, x: torch.Tensor, context: torch.Tensor | None = None, attn_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.prompts is not None:
            x = torch.cat((x, self.prompts.expand(x.shape[0], -1, -1)), dim=1)  # (B, N + P, C)
        x = super().forward(x, context, attn_mask)
        return x[:, : x.shape[1] - self.num_dropped]


def vpt_shallow(net: TunableNetwork, num_prompts: int = 50) -> None:
    """
    Prompts join the tokens before the first layer and are dropped after the last, based on: "Jia et al., Visual Prompt
    Tuning <https://arxiv.org/abs/2203.12119>", VPT-shallow. A pooled feature does not see them. They start uniform as
    in the paper, in the range of Xavier for the patch embedding; its dropout of prompts is left out.

    Args:
        net: a :class:`monai_dvpt.networks.nets.DVPTViT`; the skips of a segmentation network would see the prompts.
        num_prompts: number of prompts.

    Raises:
        ValueError: if ``net`` is another network, or ``num_prompts`` below 1.
    """
    _check(net, (DVPTViT,), "vpt_shallow", num_prompts)
    freeze_encoder(net)
    blocks = _blocks(net)
    for index, block in enumerate(blocks):
        first, last = index == 0, index == len(blocks) - 1
        if first or last:
            prompts = _new_prompts(net, block, num_prompts) if first else None
            PromptedBlock.take(block).set_prompts(prompts, num_prompts if last else 0)


def vpt_deep(net: TunableNetwork, num_prompts: int = 50) -> None:
    """
    Every layer has prompts of its own, which replace those of the layer before, based on: "Jia et al., Visual Prompt
    Tuning <https://arxiv.org/abs/2203.12119>", VPT-deep. See :func:`vpt_shallow` for the rest.

    Args:
        net: a :class:`monai_dvpt.networks.nets.DVPTViT` or :class:`monai_dvpt.networks.nets.DVPTUNETR`.
        num_prompts: number of prompts of a layer.

    Raises:
        ValueError: if ``net`` is another network, or ``num_prompts`` below 1.
    """
    _check(net, (DVPTViT, DVPTUNETR), "vpt_deep", num_prompts)
    freeze_encoder(net)
    for block in _blocks(net):
        PromptedBlock.take(block).set_prompts(_new_prompts(net, block, num_prompts), num_prompts)


def _check(net: TunableNetwork, kinds: tuple[type[TunableNetwork], ...], method: str, num_prompts: int) -> None:
    if not isinstance(net, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f'net must be a {names} for the method "{method}", got {type(net).__name__}.')
    check_counts(num_prompts=num_prompts)


def _blocks(net: TunableNetwork) -> list[TransformerBlock]:
    return [module for module in encoder_modules(net) if isinstance(module, TransformerBlock)]


def _new_prompts(net: TunableNetwork, block: TransformerBlock, num_prompts: int) -> torch.Tensor:
    width = block.norm1.normalized_shape[0]
    limit = math.sqrt(6 / (net.encoder().patch_embedding.patch_dim + width))
    return block.norm1.weight.new_empty(num_prompts, width).uniform_(-limit, limit)
