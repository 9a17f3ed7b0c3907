# SPDX-License-Identifier: Apache-2.0
"""LoRA: low-rank changes of the query and value projections."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.blocks import SABlock
from monai.networks.nets.swin_unetr import WindowAttention

from monai_dvpt.networks.adapter import TunableNetwork
from monai_dvpt.utils import check_counts

from .insert import Inserted, check_positive, encoder_modules, freeze_encoder

__all__ = ["LoRALinear", "lora"]


class LoRALinear(Inserted, nn.Linear):
    """
    The fused projection to query, key and value, whose query and value change by ``s B A x``, of rank ``r``. Only
    :meth:`merge` forms ``B A``, so that training holds no gradient of the size of the weight.
    """

    scaling: float

    def add_factors(self, rank: int, scaling: float) -> None:
        """
        Args:
            rank: the rank ``r``.
            scaling: the factor ``s``.
        """
        width = self.in_features
        factors = [self.weight.new_empty(rank, width) for _ in range(2)]
        for factor in factors:
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        self.lora_a = nn.Parameter(torch.stack(factors))  # (2, r, C), of query and value
        self.lora_b = nn.Parameter(self.weight.new_zeros(2, self.out_features // 3, rank))  # (2, C, r)
        self.scaling = scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = F.linear(x, self.weight, self.bias).chunk(3, dim=-1)  # (B, N, C) each
        query = query + self.scaling * F.linear(F.linear(x, self.lora_a[0]), self.lora_b[0])
        value = value + self.scaling * F.linear(F.linear(x, self.lora_a[1]), self.lora_b[1])
        return torch.cat((query, key, value), dim=-1)  # (B, N, 3 C)

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the change to the weight and leaves a plain linear layer."""
        query, _, value = self.weight.chunk(3)  # views of (C, C)
        query += self.scaling * self.lora_b[0] @ self.lora_a[0]
        value += self.scaling * self.lora_b[1] @ self.lora_a[1]
        del self.lora_a, self.lora_b, self.scaling
        self.give_back()


def lora(net: TunableNetwork, rank: int = 8, alpha: float | None = None) -> None:
    """
    Low-rank changes of the query and value projections of every attention, based on: "Hu et al., LoRA: Low-Rank
    Adaptation of Large Language Models <https://arxiv.org/abs/2106.09685>". ``B`` starts at zero, so that the start is
    the frozen network; ``A`` is drawn as in the authors' code, uniform, not normal as in the paper.

    Args:
        net: the network.
        rank: the rank ``r``.
        alpha: the change is scaled by ``alpha / rank``; by default ``rank``.

    Raises:
        ValueError: if ``rank`` is below 1 or ``alpha`` not positive.
    """
    check_counts(rank=rank)
    alpha = rank if alpha is None else alpha
    check_positive(alpha=alpha)
    freeze_encoder(net)
    for module in encoder_modules(net):
        if isinstance(module, (SABlock, WindowAttention)):
            LoRALinear.take(module.qkv).add_factors(rank, alpha / rank)
