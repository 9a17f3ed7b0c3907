# SPDX-License-Identifier: Apache-2.0
"""MONAI's attentions with PyTorch's fused kernel, which never stores the attention matrix."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.blocks import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch._guards import detect_fake_mode

__all__ = ["FusedSABlock", "FusedWindowAttention", "WindowGroups", "fuse_attention", "group_windows"]


class FusedSABlock(SABlock):
    """MONAI's ``SABlock`` with one linear layer for query, key and value; see :func:`fuse_attention`."""

    def forward(self, x: torch.Tensor, attn_mask: Optional[torch.Tensor] = None) -> torch.Tensor:  # noqa: UP045
        """
        Args:
            x: tokens of shape (B, N, C).
            attn_mask: 0 for tokens to ignore, of shape (B, N).

        Returns:
            tokens of shape (B, N, C).
        """
        if attn_mask is not None:
            attn_mask = attn_mask[:, None, None] != 0  # (B, 1, 1, N)
        dropout = self.drop_weights.p if self.training else 0.0
        return self.drop_output(self.out_proj(_attend(self.qkv(x), self.num_heads, attn_mask, dropout, self.scale)))


def _attend(qkv: torch.Tensor, num_heads: int, mask: torch.Tensor | None, dropout: float, scale: float) -> torch.Tensor:
    """Attention of shape (B, N, C) from ``qkv`` of shape (B, N, 3 C) and a mask that broadcasts to (B, heads, N, N)."""
    q, k, v = qkv.unflatten(2, (3, num_heads, -1)).unbind(2)  # (B, N, heads, d) each
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)  # (B, heads, N, d)
    return y.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class WindowGroups:
    """
    Which of the ``W`` windows of a shifted grid share an attention mask.

    Attributes:
        order: indices of the windows, group after group, of shape (W,).
        inverse: where each window is in ``order``, of shape (W,).
        sizes: number of windows in each of the ``G`` groups.
        masks: the terms 0 or -100 that each group adds to its logits, of shape (G, N, N) with ``N`` tokens in a window.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    sizes: tuple[int, ...]
    masks: torch.Tensor

    def mask_of_windows(self) -> torch.Tensor:
        """MONAI's mask of every window, of shape (W, N, N)."""
        sizes = torch.tensor(self.sizes, device=self.masks.device)
        return self.masks.repeat_interleave(sizes, dim=0)[self.inverse]


def group_windows(
    grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], device: torch.device
) -> WindowGroups:
    """
    The masks of MONAI's ``compute_mask``. Along each axis only the last window contains tokens that the shift moved
    there from the other side, so any number of windows has at most ``2 ** spatial_dims`` masks.

    Args:
        grid: number of tokens along each axis, multiples of ``window``.
        window: number of tokens of a window along each axis.
        shift: tokens by which the windows are shifted, 0 for an axis that one window spans.
        device: of the tensors.

    Returns:
        the groups, cached by argument.
    """
    if torch.compiler.is_compiling() or detect_fake_mode() is not None:  # fake tensors must not be cached
        return _new_groups(grid, window, shift, device)
    return _kept_groups(grid, window, shift, device)


@torch.inference_mode(False)  # cached tensors must serve training too
def _new_groups(
    grid: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], device: torch.device
) -> WindowGroups:
    counts = [side // size for side, size in zip(grid, window, strict=True)]
    # for every window the axes along which it is the last; for every token those along which it comes from elsewhere
    kinds = _marks([[step > 0 and i == n - 1 for i in range(n)] for n, step in zip(counts, shift, strict=True)])
    moved = _marks([[i >= n - step for i in range(n)] for n, step in zip(window, shift, strict=True)])
    order = sorted(range(len(kinds)), key=kinds.__getitem__)
    sizes = Counter(kinds[index] for index in order)
    regions = torch.tensor([[kind & mark for mark in moved] for kind in sizes], device=device)  # (G, N)
    return WindowGroups(
        torch.tensor(order, device=device),
        torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=device),
        tuple(sizes.values()),
        (regions[:, :, None] != regions[:, None, :]) * -100.0,
    )


_kept_groups = functools.lru_cache(maxsize=64)(_new_groups)


def _marks(axes: Sequence[Sequence[bool]]) -> list[int]:
    """For every point of a grid, the axes along which it is marked, as bits."""
    return [sum(mark << axis for axis, mark in enumerate(place)) for place in itertools.product(*axes)]


class FusedWindowAttention(WindowAttention):
    """MONAI's ``WindowAttention``, but windows with the same mask share one bias; see :func:`fuse_attention`."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | WindowGroups | None) -> torch.Tensor:
        """
        Args:
            x: tokens of all windows, the batch outermost, of shape (B W, N, C).
            mask: masks of shifted windows; MONAI's own layers pass a tensor.

        Returns:
            tokens of shape (B W, N, C).
        """
        trained = self.relative_position_bias_table.requires_grad and torch.is_grad_enabled()
        if trained or isinstance(mask, torch.Tensor):  # fused kernels allow no gradient of the bias
            return super().forward(x, mask.mask_of_windows() if isinstance(mask, WindowGroups) else mask)
        index = self.relative_position_index[: x.shape[1], : x.shape[1]]  # type: ignore[index]
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)  # (heads, N, N)
        if mask is None:
            y = self._attend(self.qkv(x), bias[None])
        else:
            x = x.unflatten(0, (-1, len(mask.order))).transpose(0, 1)  # (W, B, N, C)
            batch = x.shape[1]
            x = x.index_select(0, mask.order).flatten(0, 1)  # (W B, N, C), group after group
            parts = self.qkv(x).split([size * batch for size in mask.sizes])
            biases = bias + mask.masks[:, None, None]  # (G, 1, heads, N, N)
            y = torch.cat([self._attend(part, bias) for part, bias in zip(parts, biases, strict=True)])
            y = y.unflatten(0, (-1, batch)).transpose(0, 1)  # (B, W, N, C)
            y = y.index_select(1, mask.inverse).flatten(0, 1)
        return self.proj_drop(self.proj(y))

    def _attend(self, qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        dropout = self.attn_drop.p if self.training else 0.0
        return _attend(qkv, self.num_heads, bias.to(qkv.dtype), dropout, self.scale)


def fuse_attention(module: nn.Module) -> None:
    """
    Turns MONAI's attentions inside ``module`` into fused ones with the same results up to rounding; tensors, names,
    settings and hooks stay. An ``SABlock`` with options beyond plain attention stays as it is.
    """
    for part in module.modules():
        if type(part) is WindowAttention:
            part.__class__ = FusedWindowAttention
        elif type(part) is SABlock and part.use_combined_linear and part.rel_positional_embedding is None:
            if not part.save_attn and not part.causal and part.attention_dtype is None:
                part.__class__ = FusedSABlock
