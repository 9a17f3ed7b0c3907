# SPDX-License-Identifier: Apache-2.0
"""Visual prompt tuning: learned tokens next to those of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from monai.networks.blocks import TransformerBlock
from typing_extensions import Self

from monai_dvpt.networks.encoders import Encoder
from monai_dvpt.utils import check_counts

from .method import Inserted, Method

__all__ = ["PromptedBlock", "VPTDeep", "VPTShallow"]


class PromptedBlock(Inserted, TransformerBlock):
    """
    A transformer block that appends prompts to its input, drops the last tokens of its output, or both. Prompts have no
    position, so appending them is equivalent to the paper's place after the class token.
    """

    if TYPE_CHECKING:  # TorchScript would try to compile it
        prompts: nn.Parameter | None  # (P, C)
        num_dropped: int

    def set_prompts(self, prompts: torch.Tensor | None, num_dropped: int) -> None:
        """Sets the initial prompts, of shape (P, C) or None, and the number of tokens to drop."""
        self.register_parameter("prompts", None if prompts is None else nn.Parameter(prompts))
        self.num_dropped = num_dropped

    def forward(
        self, x: torch.Tensor, context: torch.Tensor | None = None, attn_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        prompts = self.prompts
        if prompts is not None:
            x = torch.cat((x, prompts.expand(x.shape[0], -1, -1)), dim=1)  # (B, N + P, C)
        x = x + self.attn(self.norm1(x), attn_mask=attn_mask)  # as MONAI's; TorchScript knows no super()
        x = x + self.mlp(self.norm2(x))
        return x[:, : x.shape[1] - self.num_dropped]


@dataclass(frozen=True)
class VPTDeep(Method):
    """
    Every layer has its own prompts, which replace those of the layer before, based on: "Jia et al., Visual Prompt
    Tuning <https://arxiv.org/abs/2203.12119>", VPT-deep. They start uniform as in the paper, in the Xavier range of the
    patch embedding; unlike there, prompts have no dropout.

    Args:
        num_prompts: number of prompts per layer.

    Raises:
        ValueError: if ``num_prompts`` is below 1, or the encoder attends inside windows.
    """

    num_prompts: int = 50

    name = "vpt_deep"
    description = "prompts beside the tokens of every layer"
    paper = "https://arxiv.org/abs/2203.12119"

    def __post_init__(self) -> None:
        check_counts(num_prompts=self.num_prompts)

    def for_encoder(self, encoder: Encoder) -> Self:
        if not all(isinstance(block, TransformerBlock) for block in encoder.blocks):
            raise ValueError(f'the method "{self.name}" must have an encoder whose layers see all tokens at once.')
        return self

    def attach(self, encoder: Encoder) -> None:
        for block in encoder.blocks:
            PromptedBlock.take(block).set_prompts(_new_prompts(encoder, block, self.num_prompts), self.num_prompts)


@dataclass(frozen=True)
class VPTShallow(VPTDeep):
    """
    VPT-shallow, see :class:`VPTDeep`: prompts join the tokens before the first layer and are dropped after the last, so
    that pooling does not include them.

    Args:
        num_prompts: number of prompts.

    Raises:
        ValueError: if ``num_prompts`` is below 1, the encoder attends inside windows, or the network uses tokens before
            the last layer, as the skips of a segmentation network do, which would contain the prompts.
    """

    name = "vpt_shallow"
    description = "prompts beside the tokens of the image"

    def for_encoder(self, encoder: Encoder) -> Self:
        if len(encoder.outputs) > 1:
            raise ValueError(f'the method "{self.name}" must have an encoder of which only the last layer is used.')
        return super().for_encoder(encoder)

    def attach(self, encoder: Encoder) -> None:
        first, last = encoder.blocks[0], encoder.blocks[-1]
        prompts = _new_prompts(encoder, first, self.num_prompts)
        PromptedBlock.take(first).set_prompts(prompts, self.num_prompts if first is last else 0)
        if last is not first:
            PromptedBlock.take(last).set_prompts(None, self.num_prompts)


def _new_prompts(encoder: Encoder, block: Any, num_prompts: int) -> torch.Tensor:
    width = block.norm1.normalized_shape[0]
    limit = math.sqrt(6 / (encoder.patch_values() + width))
    return encoder.like().new_empty(num_prompts, width).uniform_(-limit, limit)
