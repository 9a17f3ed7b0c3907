# SPDX-License-Identifier: Apache-2.0
"""What newer vision transformers compute inside a layer beyond MONAI's: rotary positions, gates, further norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

from .attention import FusedSABlock

__all__ = ["GatedActivation", "ViTAttention", "rotary_tables"]


def rotary_tables(
    grid: Sequence[int],
    axes: Sequence[int],
    head_width: int,
    theta: float,
    reference: Sequence[float] | None = None,
    neighbours: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cosines and sines of axial rotary position embeddings, based on: "Su et al., RoFormer
    <https://arxiv.org/abs/2104.09864>". A head's ``d`` channels turn in ``d / 2`` pairs. These have ``F = d / (2 A)``
    frequencies ``theta ** -(k / F)`` for each of the ``A`` axes, one axis after the other.

    Args:
        grid: number of tokens along each axis, ``N`` in all.
        axes: the axes along which tokens turn.
        head_width: ``d``, a multiple of ``2 A``.
        theta: base of the frequencies.
        reference: the grid of tokens of the training, along each of ``axes``: tokens count from 0, scaled to it, as in
            "Fang et al., EVA-02 <https://arxiv.org/abs/2303.11331>". None: the middles of tokens lie from -1 to 1,
            times 2 pi, as in "Siméoni et al., DINOv3 <https://arxiv.org/abs/2508.10104>".
        neighbours: whether a pair is two neighbours, instead of one channel of each half.

    Returns:
        both of shape (N, d).
    """
    bands = head_width // (2 * len(axes))
    frequencies = float(theta) ** -(torch.arange(bands, dtype=torch.float64) / bands)
    sides = [torch.arange(side, dtype=torch.float64) for side in grid]
    places = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, -2)[:, list(axes)]  # (N, A)
    own = torch.tensor([grid[axis] for axis in axes], dtype=torch.float64)
    if reference is None:
        places = 2 * math.pi * (2 * (places + 0.5) / own - 1)
    else:
        places = places / own * torch.tensor(list(reference), dtype=torch.float64)
    angles = (places[:, :, None] * frequencies).flatten(1)
    angles = angles.repeat_interleave(2, dim=1) if neighbours else angles.repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


class ViTAttention(FusedSABlock):
    """
    MONAI's attention with any of: a normalisation of queries and keys, rotary positions of the image's tokens, and a
    normalisation before the output projection. Tensors and names of MONAI's stay; see :meth:`extend`. What turns tokens
    are buffers that no state dict contains: a network that was made on the meta device must be built again.
    """

    if TYPE_CHECKING:  # TorchScript would try to compile it
        out_proj: Any
        q_norm: Any
        k_norm: Any
        out_norm: Any
        cos: torch.Tensor
        sin: torch.Tensor
        first_token: int
        neighbours: bool

    @classmethod
    def extend(cls, module: FusedSABlock, first_token: int, qk_norm: bool, out_norm: bool) -> ViTAttention:
        """
        Turns MONAI's attention into one of this class.

        Args:
            module: the attention.
            first_token: index of the image's first token.
            qk_norm: whether queries and keys are normalised, based on: "Dehghani et al., Scaling Vision Transformers
                to 22 Billion Parameters <https://arxiv.org/abs/2302.05442>".
            out_norm: whether the heads' outputs are normalised before they are projected, as in EVA-02.
        """
        module.__class__ = cls
        attention: Any = module
        like: torch.Tensor = attention.out_proj.weight
        width = like.shape[0]

        def norm(used: bool, channels: int) -> nn.Module:
            return nn.LayerNorm(channels, device=like.device, dtype=like.dtype) if used else nn.Identity()

        attention.first_token = first_token
        attention.q_norm = norm(qk_norm, width // attention.num_heads)
        attention.k_norm = norm(qk_norm, width // attention.num_heads)
        attention.out_norm = norm(out_norm, width)
        attention.turn(like.new_empty(0, 1), like.new_empty(0, 1))
        return attention

    def turn(self, cos: torch.Tensor, sin: torch.Tensor, neighbours: bool = False) -> None:
        """Sets the result of :func:`rotary_tables` and its ``neighbours``; without rows no token turns."""
        device = next(self.out_proj.parameters()).device
        self.register_buffer("cos", cos.to(device, torch.float32), persistent=False)
        self.register_buffer("sin", sin.to(device, torch.float32), persistent=False)
        self.neighbours = neighbours

    def plain(self) -> FusedSABlock:
        """Undoes :meth:`extend`."""
        for name in ("q_norm", "k_norm", "out_norm", "cos", "sin", "first_token", "neighbours"):
            delattr(self, name)
        self.__class__ = FusedSABlock  # type: ignore[assignment]
        return self

    def forward(self, x: torch.Tensor, attn_mask: Optional[torch.Tensor] = None) -> torch.Tensor:  # noqa: UP045
        if attn_mask is not None:
            attn_mask = attn_mask[:, None, None] != 0  # (B, 1, 1, N)
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).unbind(2)  # (B, N, heads, d) each
        q, k = self._rotate(self.q_norm(q.transpose(1, 2))), self._rotate(self.k_norm(k.transpose(1, 2)))
        dropout = self.drop_weights.p if self.training else 0.0
        y = F.scaled_dot_product_attention(
            q, k, v.transpose(1, 2), attn_mask=attn_mask, dropout_p=dropout, scale=self.scale
        )
        return self.drop_output(self.out_proj(self.out_norm(y.transpose(1, 2).flatten(2))))

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Turns the image's tokens among those of shape (B, heads, N, d); what a method added has no position."""
        if self.cos.shape[0] == 0:
            return x
        before, tokens, after = x.tensor_split([self.first_token, self.first_token + self.cos.shape[0]], dim=2)
        if self.neighbours:
            first, second = tokens.unflatten(3, (-1, 2)).unbind(4)
            across = torch.stack((-second, first), dim=4).flatten(3)
        else:
            first, second = tokens.chunk(2, dim=3)
            across = torch.cat((-second, first), dim=3)
        turned = tokens * self.cos + across * self.sin
        return torch.cat((before, turned.to(x.dtype), after), dim=2)


class GatedActivation(nn.Module):
    """
    The activation between the two linear layers of a feed-forward part.

    Args:
        activation: from shape ``(*, H)``.
        gated: whether the input has shape ``(*, 2 H)``, and the activation of its first half multiplies the second,
            based on: "Shazeer, GLU Variants Improve Transformer <https://arxiv.org/abs/2002.05202>".
        norm: what follows, for ``H`` channels; :class:`torch.nn.Identity` for nothing.
    """

    def __init__(self, activation: nn.Module, gated: bool, norm: nn.Module) -> None:
        super().__init__()
        self.activation, self.gated, self.norm = activation, gated, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gated:
            gate, value = x.chunk(2, dim=-1)
            return self.norm(self.activation(gate) * value)
        return self.norm(self.activation(x))
