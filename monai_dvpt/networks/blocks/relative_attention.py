# SPDX-License-Identifier: Apache-2.0
"""Attentions with relative positions, in PyTorch's fused kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["AXES", "OffsetSABlock", "RelativeSABlock"]

AXES = "dhw"
"""Names of the axes in those of the tables, the last axis last."""


class RelativeSABlock(nn.Module):
    """
    Self-attention on a grid of tokens with decomposed relative positions, based on: "Li et al., MViTv2
    <https://arxiv.org/abs/2112.01526>", equation 4, as "Li et al., Exploring Plain Vision Transformer Backbones for
    Object Detection <https://arxiv.org/abs/2203.16527>" use it. For a query ``q`` at ``i`` and a key at ``j`` the logit
    gains the product of ``q``, not scaled, with the table's row for ``i - j``, along every axis.

    This term is a product too: queries are prolonged by their products with all rows, keys by ones at their own places.
    So the fused kernel computes all, and no matrix of all pairs is stored, with gradients either.

    Args:
        hidden_size: token width ``C``.
        num_heads: number of heads.
        grid: number of tokens along each of 2 or 3 axes.
        qkv_bias: whether query, key and value have a bias.
    """

    if TYPE_CHECKING:  # TorchScript would try to compile it
        rel_pos_d: nn.Parameter
        rel_pos_h: nn.Parameter
        rel_pos_w: nn.Parameter

    def __init__(self, hidden_size: int, num_heads: int, grid: Sequence[int], qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.grid = num_heads, list(grid)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        for axis, side in zip(AXES[-len(self.grid) :], self.grid, strict=True):
            table = nn.Parameter(torch.zeros(2 * side - 1, hidden_size // num_heads))
            self.register_parameter(f"rel_pos_{axis}", table)

    def tables(self) -> list[torch.Tensor]:
        """For every axis a row for each distance, from ``1 - side`` up, of shape (2 side - 1, C / heads)."""
        tables: list[torch.Tensor] = [self.rel_pos_h, self.rel_pos_w]
        if hasattr(self, "rel_pos_d"):
            tables = [self.rel_pos_d] + tables  # noqa: RUF005  # TorchScript knows no unpacking
        return tables

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: tokens of shape (B, N, C), in the order of the grid.

        Returns:
            tokens of shape (B, N, C).
        """
        q, k, v = self.qkv(x).unflatten(2, [3, self.num_heads, -1]).unbind(2)  # (B, N, heads, d) each
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, N, d)
        width = v.shape[-1]
        placed = q.unflatten(2, self.grid)  # (B, heads, *grid, d)
        longer_q, longer_k = [q / math.sqrt(width)], [k]
        for axis, table in enumerate(self.tables()):
            side = self.grid[axis]
            index = torch.arange(side, device=x.device)
            rows = table[index[:, None] - index + side - 1].to(q.dtype)  # (side, side, d), of query and key
            last = placed.movedim(2 + axis, -2)  # (B, heads, *others, side, d)
            bias = torch.einsum("...qd,qkd->...qk", last, rows).movedim(-2, 2 + axis)  # (B, heads, *grid, side)
            longer_q.append(bias.flatten(2, -2))  # (B, heads, N, side)
            place = index.reshape([-1] + [1] * (len(self.grid) - 1 - axis)).expand(self.grid).flatten()  # (N,)
            ones = F.one_hot(place, side).to(k.dtype)  # (N, side)
            longer_k.append(ones.expand(k.shape[0], k.shape[1], -1, -1))
        queries, keys = torch.cat(longer_q, dim=-1), torch.cat(longer_k, dim=-1)  # (B, heads, N, d + sides)
        values = F.pad(v, [0, keys.shape[-1] - width])  # the fused kernels want one width
        y = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :width]
        return self.out_proj(y.transpose(1, 2).flatten(2))


class OffsetSABlock(nn.Module):
    """
    Self-attention inside a square window, whose logits gain a number for each head and each distance along both axes,
    whatever its sign, based on: "Graham et al., LeViT <https://arxiv.org/abs/2104.01136>", section 4.2, as "Wu et al.,
    TinyViT <https://arxiv.org/abs/2207.10666>" use it.

    Args:
        hidden_size: token width ``C``.
        num_heads: number of heads.
        window_size: number of tokens along each axis.
        qkv_bias: whether query, key and value have a bias.
    """

    def __init__(self, hidden_size: int, num_heads: int, window_size: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.window_size = num_heads, window_size
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: tokens of all windows, of shape (B W, N, C).

        Returns:
            tokens of shape (B W, N, C).
        """
        q, k, v = self.qkv(x).unflatten(2, [3, self.num_heads, -1]).unbind(2)  # (B W, N, heads, d) each
        place = torch.arange(self.window_size, device=x.device)
        distance = (place[:, None] - place).abs()
        index = distance[:, None, :, None] * self.window_size + distance[None, :, None, :]
        bias = self.attention_biases[:, index.flatten()].reshape(1, self.num_heads, x.shape[1], x.shape[1])
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B W, heads, N, d)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.out_proj(y.transpose(1, 2).flatten(2))
