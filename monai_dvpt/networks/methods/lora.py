# SPDX-License-Identifier: Apache-2.0
"""LoRA: low-rank changes of the query and value projections."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_dvpt.networks.encoders import Encoder
from monai_dvpt.utils import check_counts

from .method import Inserted, Method, check_positive

__all__ = ["LoRA", "LoRALinear"]


class LoRALinear(Inserted, nn.Linear):
    """
    The fused projection to query, key and value, with a change ``s B A x`` of rank ``r`` added to query and value. Only
    :meth:`merge` computes ``B A``, so that no gradient has the size of the weight.
    """

    if TYPE_CHECKING:  # TorchScript would try to compile it
        scaling: float

    def add_factors(self, rank: int, scaling: float) -> None:
        """Adds ``A`` and ``B`` of rank ``r``, their product scaled by ``s``."""
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
        """Adds the change to the weight, which leaves a plain linear layer."""
        weight = self.weight.detach().clone()  # another network may use this one
        query, _, value = weight.chunk(3)  # views of (C, C)
        query += self.scaling * self.lora_b[0] @ self.lora_a[0]
        value += self.scaling * self.lora_b[1] @ self.lora_a[1]
        self.give_back()
        self.weight = nn.Parameter(weight, requires_grad=False)


@dataclass(frozen=True)
class LoRA(Method):
    """
    Low-rank changes of the query and value projections of every attention, based on: "Hu et al., LoRA: Low-Rank
    Adaptation of Large Language Models <https://arxiv.org/abs/2106.09685>". ``B`` starts at zero, so that training
    starts from the frozen network; ``A`` starts uniform as in the authors' code, not normal as in the paper.

    Args:
        rank: the rank ``r``.
        alpha: the change is scaled by ``alpha / rank``; by default ``rank``.

    Raises:
        ValueError: if ``rank`` is below 1 or ``alpha`` not positive.
    """

    rank: int = 8
    alpha: float | None = None

    name = "lora"
    description = "low-rank changes of query and value"
    paper = "https://arxiv.org/abs/2106.09685"

    def __post_init__(self) -> None:
        check_counts(rank=self.rank)
        check_positive(alpha=self.rank if self.alpha is None else self.alpha)

    def attach(self, encoder: Encoder) -> None:
        alpha = self.rank if self.alpha is None else self.alpha
        for module in encoder.attentions():
            LoRALinear.take(module.qkv).add_factors(self.rank, alpha / self.rank)

    def merge(self, encoder: Encoder) -> None:
        for module in encoder.attentions():
            module.qkv.merge()
