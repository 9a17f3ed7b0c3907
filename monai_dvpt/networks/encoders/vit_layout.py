# SPDX-License-Identifier: Apache-2.0
"""What a vision transformer has beyond MONAI's, and how MONAI's is extended by it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn as nn
from monai.networks.blocks import MLPBlock
from typing_extensions import Self

from monai_dvpt.networks.blocks import FusedSABlock, GatedActivation, ViTAttention, rotary_tables
from monai_dvpt.utils import check_counts, is_number, to_json

__all__ = ["ViTLayout"]

FLAGS = ("gated_mlp", "mlp_norm", "qk_norm", "out_norm", "pool_norm", "rope_neighbours")


@dataclass(frozen=True)
class ViTLayout:
    """
    What a vision transformer has beyond MONAI's; by default nothing.

    Attributes:
        num_registers: number of register tokens, between the class token and the image's, based on: "Darcet et al.,
            Vision Transformers Need Registers <https://arxiv.org/abs/2309.16588>".
        gated_mlp: whether the first linear layer of the feed-forward part makes gates, then values, each ``mlp_dim``
            wide; with the activation "silu" this is SwiGLU.
        mlp_norm: whether a layer normalisation precedes the second linear layer of the feed-forward part.
        qk_norm: whether queries and keys are normalised in every head.
        out_norm: whether a layer normalisation precedes the output projection of the attention.
        pool_norm: whether the final layer normalisation follows the pooling of a classifier instead of preceding it,
            as timm's ``fc_norm`` does.
        rope_theta: base of the frequencies of rotary positions, see
            :func:`monai_dvpt.networks.blocks.rotary_tables`; None for no rotary positions.
        rope_axes: the axes along which tokens turn; by default all.
        rope_reference: the grid of tokens of the training along each of these axes, if tokens count in its steps.
        rope_neighbours: whether neighbouring channels turn together, instead of one of each half.
    """

    num_registers: int = 0
    gated_mlp: bool = False
    mlp_norm: bool = False
    qk_norm: bool = False
    out_norm: bool = False
    pool_norm: bool = False
    rope_theta: float | None = None
    rope_axes: tuple[int, ...] | None = None
    rope_reference: tuple[float, ...] | None = None
    rope_neighbours: bool = False

    def __post_init__(self) -> None:
        check_counts(0, num_registers=self.num_registers)
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        for name in ("rope_axes", "rope_reference"):
            given = getattr(self, name)
            if given is not None and (not isinstance(given, Sequence) or not all(map(is_number, given))):
                raise ValueError(f"{name} must be a list of numbers, got {given!r}.")
            object.__setattr__(self, name, None if given is None else tuple(given))
        if self.rope_reference is not None:
            object.__setattr__(self, "rope_reference", tuple(map(float, self.rope_reference)))
        if self.rope_axes is not None and not (self.rope_axes and all(type(axis) is int for axis in self.rope_axes)):
            raise ValueError(f"rope_axes must be whole numbers, one or more, got {list(self.rope_axes)}.")
        if self.rope_theta is None:
            if self.rope_axes or self.rope_reference or self.rope_neighbours:
                raise ValueError("rope_theta must be given with rope_axes, rope_reference or rope_neighbours.")
        elif not is_number(self.rope_theta) or not 1 < self.rope_theta < math.inf:
            raise ValueError(f"rope_theta must be a number above 1, got {self.rope_theta!r}.")
        else:
            object.__setattr__(self, "rope_theta", float(self.rope_theta))
        if self.rope_reference is not None and min(self.rope_reference, default=0) <= 0:
            raise ValueError(f"rope_reference must have numbers above 0, got {self.rope_reference}.")

    @classmethod
    def of(cls, layout: Mapping[str, Any] | ViTLayout | None) -> Self:
        """
        The layout of a mapping of some attributes, or of None.

        Raises:
            ValueError: if an attribute is unknown or has an impossible value.
        """
        if isinstance(layout, cls):
            return layout
        given = layout or {}
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or not given.keys() <= set(known):
            raise ValueError(f"layout must be a mapping of some of {known}, got {layout!r}.")
        return cls(**given)

    @property
    def options(self) -> dict[str, Any]:
        """The attributes that differ from MONAI's ViT, by name; empty for MONAI's ViT."""
        pairs = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value, own in pairs if value != own}

    def number(self) -> int:
        """A number below 2 ** 56 that equal layouts share, of the SHA-256 of ``options``."""
        return int.from_bytes(hashlib.sha256(to_json(self.options).encode()).digest()[:7], "big")

    def in_dims(self, spatial_dims: int) -> Self:
        """The same layout without what is as by default in an encoder with ``spatial_dims`` axes."""
        all_axes = self.rope_axes == tuple(range(spatial_dims))
        return replace(self, rope_axes=None) if all_axes else self

    def axes(self, spatial_dims: int) -> tuple[int, ...]:
        """The axes along which tokens turn; none without rotary positions."""
        if self.rope_theta is None:
            return ()
        return tuple(range(spatial_dims)) if self.rope_axes is None else self.rope_axes

    def check(self, spatial_dims: int, head_width: int) -> None:
        """
        Raises:
            ValueError: if an encoder with ``spatial_dims`` axes and heads of width ``head_width`` cannot have this
                layout.
        """
        axes = self.axes(spatial_dims)
        if any(axis not in range(spatial_dims) for axis in axes) or len(set(axes)) < len(axes):
            raise ValueError(f"rope_axes must be different axes below {spatial_dims}, got {list(axes)}.")
        if axes and head_width % (2 * len(axes)):
            raise ValueError(
                f"hidden_size / num_heads must be a multiple of {2 * len(axes)} with rotary positions along "
                f"{len(axes)} axes, got {head_width}."
            )
        if self.rope_reference is not None and len(self.rope_reference) != len(axes):
            raise ValueError(f"rope_reference must have {len(axes)} numbers, got {list(self.rope_reference)}.")

    def extend_attention(self, attention: Any, grid: Sequence[int], first_token: int, tables: dict[str, Any]) -> None:
        """
        Turns an attention into one of this layout.

        Args:
            attention: MONAI's, fused.
            grid: number of tokens along each axis.
            first_token: index of the image's first token.
            tables: where the result of :func:`rotary_tables` is kept for the next attention.

        Raises:
            ValueError: if the attention is one that cannot be extended.
        """
        if isinstance(attention, ViTAttention):
            attention.plain()
        if not (self.qk_norm or self.out_norm or self.rope_theta is not None):
            return
        if not isinstance(attention, FusedSABlock):
            raise ValueError("save_attn must be False with a layout beyond MONAI's attention.")
        extended: Any = ViTAttention.extend(attention, first_token, self.qk_norm, self.out_norm)
        if self.rope_theta is not None:
            if not tables:
                width = extended.out_proj.weight.shape[0] // extended.num_heads
                axes = self.axes(len(grid))
                how = self.rope_theta, self.rope_reference, self.rope_neighbours
                tables["rope"] = rotary_tables(grid, axes, width, *how)
            cos, sin = tables["rope"]
            extended.turn(cos, sin, self.rope_neighbours)

    def extend_mlp(self, mlp: MLPBlock, activation: nn.Module) -> None:
        """Turns MONAI's feed-forward part into one of this layout, with an activation."""
        old = mlp.linear1
        width = mlp.linear2.in_features * (2 if self.gated_mlp else 1)
        like: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
        if old.out_features != width:
            mlp.linear1 = nn.Linear(old.in_features, width, **like)
            nn.init.trunc_normal_(mlp.linear1.weight, std=0.02)
            nn.init.zeros_(mlp.linear1.bias)
        if self.gated_mlp or self.mlp_norm:
            norm = nn.LayerNorm(mlp.linear2.in_features, **like) if self.mlp_norm else nn.Identity()
            activation = GatedActivation(activation, self.gated_mlp, norm)
        mlp.fn = activation.train(mlp.training)

    def registers(self, like: torch.Tensor) -> nn.Parameter | None:
        """New register tokens, of shape (1, registers, C), for a class of tokens like ``like``, of shape (C,)."""
        if not self.num_registers:
            return None
        return nn.Parameter(nn.init.trunc_normal_(like.new_empty(1, self.num_registers, len(like)), std=0.02))
