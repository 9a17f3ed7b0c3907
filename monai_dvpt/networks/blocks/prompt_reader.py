# SPDX-License-Identifier: Apache-2.0
"""Prompts that read the tokens of a transformer, and a head that sees what they read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_dvpt.utils import check_counts

__all__ = ["PromptHead", "PromptReader"]

NORMS = ("plain", "affine", "none")


class PromptReader(nn.Module):
    """
    Prompts as queries over the tokens of a sample, in a bottleneck. With tokens ``X`` of shape (B, N, C), prompts ``P``
    of shape (M, R) and ``norm`` a layer normalisation::

        Z = gelu(norm(X) W_down + b_down)       (B, N, R)  bottleneck
        D = softmax(P Z^T / sqrt(R)) Z          (B, M, R)  prompts read the sample

    Args:
        hidden_size: token width ``C``, at least 2.
        bottleneck_size: width ``R``, in ``[1, C)``.
        num_prompts: number ``M`` of prompts, at least 0.
        norm: layer normalisation before the bottleneck: "plain", without parameters; "affine", with a trained scale
            and shift; or "none".

    Raises:
        ValueError: if an argument is unknown or outside its range.
    """

    def __init__(self, hidden_size: int, bottleneck_size: int, num_prompts: int, norm: str = "plain") -> None:
        super().__init__()
        check_counts(2, hidden_size=hidden_size)
        check_counts(0, num_prompts=num_prompts)
        check_counts(bottleneck_size=bottleneck_size)
        if bottleneck_size >= hidden_size:
            raise ValueError(f"bottleneck_size must be in [1, hidden_size={hidden_size}), got {bottleneck_size}.")
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {norm}.")
        self.hidden_size = hidden_size
        self.num_prompts = num_prompts
        self.scale = 1.0 / math.sqrt(bottleneck_size)
        self.norm = nn.Identity() if norm == "none" else nn.LayerNorm(hidden_size, elementwise_affine=norm == "affine")
        self.down = nn.Linear(hidden_size, bottleneck_size)
        self.prompts = nn.Parameter(torch.randn(num_prompts, bottleneck_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the prompts read from tokens of shape (B, N, C), of shape (B, M, R)."""
        z = self.bottleneck(x)
        return torch.matmul(self.read(z), z)

    def bottleneck(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens of shape (B, N, C) in the bottleneck, of shape (B, N, R)."""
        return F.gelu(self.down(self.norm(x)))

    def read(self, z: torch.Tensor) -> torch.Tensor:
        """Attention of the prompts over tokens ``z`` in the bottleneck, of shape (B, M, N); each row sums to 1."""
        return (torch.matmul(self.prompts, z.transpose(1, 2)) * self.scale).softmax(dim=-1)


class PromptHead(nn.Linear):
    """
    A linear head that sees, beside pooled features, what prompts read from the tokens of several layers. Prompts that
    read frozen tokens need no backward pass through the transformer, and its outputs can be kept. Based on "Tu et al.,
    Visual Query Tuning <https://arxiv.org/abs/2212.03220>"; the prompts are those of :class:`PromptReader`. The pooled
    features of a sample, and what each prompt has read, are normalised to mean 0 and variance 1, because backbones
    differ in the scale of their tokens.

    Args:
        features: number ``F`` of pooled features.
        num_classes: number of logits.
        hidden_sizes: token width ``C`` of each layer that is read.
        num_prompts: number ``M`` of prompts of each layer; 0 leaves a linear head on normalised features.
        bottleneck_size: width ``R`` of what each prompt reads, at least 2.

    Raises:
        ValueError: if an argument is outside its range.

    Examples::

        >>> head = PromptHead(96, 5, [48, 48, 48])
        >>> head(torch.zeros(2, 96), [torch.zeros(2, 17, 48)] * 3).shape
        torch.Size([2, 5])

    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        hidden_sizes: Sequence[int],
        num_prompts: int = 8,
        bottleneck_size: int = 16,
    ) -> None:
        check_counts(0, num_prompts=num_prompts)
        check_counts(2, bottleneck_size=bottleneck_size)
        super().__init__(features + len(hidden_sizes) * num_prompts * bottleneck_size, num_classes)
        sizes = hidden_sizes if num_prompts else ()
        self.readers = nn.ModuleList(PromptReader(size, bottleneck_size, num_prompts) for size in sizes)

    def forward(self, pooled: torch.Tensor, tokens: list[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """
        Args:
            pooled: features of shape (B, F).
            tokens: of each layer that is read, of shape (B, N, C).

        Returns:
            logits of shape (B, ``num_classes``).
        """
        seen = [F.layer_norm(pooled, pooled.shape[-1:])]
        for index, reader in enumerate(self.readers):
            read = reader(tokens[index])
            seen.append(F.layer_norm(read, read.shape[-1:]).flatten(1))
        return F.linear(torch.cat(seen, dim=1), self.weight, self.bias)
