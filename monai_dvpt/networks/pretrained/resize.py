# SPDX-License-Identifier: Apache-2.0
"""
Adapts patch and position embeddings to another image size, other channels or a third dimension.

Called in double precision and rounded once, so that every machine gets the same tensors and the same SHA-256.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding

__all__ = [
    "adapt_channels",
    "inflate_kernel",
    "resize_kernel",
    "resize_positions",
    "resize_table",
    "sincos_grid",
    "token_grid",
]

MOST_COMPARED = 10**9
"""The most numbers of fixed embeddings that are computed to find their grid."""
HALF_PRECISION = 1e-3
"""Largest error of a number from -1 to 1 that was stored in half precision, with a margin of 2."""


def adapt_channels(kernel: torch.Tensor, in_channels: int) -> torch.Tensor:
    """
    A patch kernel for another number of input channels. For one channel the kernel is summed, which equals repeating
    the image in every channel. For more, the channels are repeated in turn and scaled by old over new number; if all
    are repeated equally often, equal channels give the source's output for equal channels.

    Args:
        kernel: of shape (C, channels, \\*patch).
        in_channels: number of channels of the new kernel.
    """
    channels = kernel.shape[1]
    if in_channels == channels:
        return kernel
    if in_channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    rounds = math.ceil(in_channels / channels)
    return torch.cat([kernel] * rounds, dim=1)[:, :in_channels] * (channels / in_channels)


def resize_kernel(kernel: torch.Tensor, patch_size: Sequence[int]) -> torch.Tensor:
    """
    A patch kernel for another patch size, by the pseudo-inverse of linear resizing, so that a resized patch gives the
    same token: "Beyer et al., FlexiViT <https://arxiv.org/abs/2212.08013>", section 3.4.

    Args:
        kernel: of shape (C, channels, \\*patch).
        patch_size: the new size.
    """
    fitted = kernel.double()
    for axis, size in enumerate(patch_size, start=2):  # the resizing is separable, and so is its pseudo-inverse
        if size != kernel.shape[axis]:
            basis = torch.eye(kernel.shape[axis], dtype=torch.float64)[:, None]  # (old, 1, old)
            resized = F.interpolate(basis, size=size, mode="linear", align_corners=False)[:, 0]  # (old, new)
            solve = torch.linalg.pinv(resized)  # (new, old)
            fitted = torch.tensordot(fitted, solve, dims=([axis], [1])).movedim(-1, axis)
    return fitted.to(kernel.dtype)


def inflate_kernel(kernel: torch.Tensor, depth: int, axis: int) -> torch.Tensor:
    """
    A 3D patch kernel from a 2D one, repeated along a new axis and divided by its length, so that a volume constant
    along this axis gives the tokens of its slice: "Carreira and Zisserman, Quo Vadis, Action Recognition?
    <https://arxiv.org/abs/1705.07750>", section 2.4.

    Args:
        kernel: of shape (C, channels, height, width).
        depth: patch size along the new axis.
        axis: the new spatial axis, 0, 1 or 2.
    """
    return torch.stack([kernel / depth] * depth, dim=2 + axis)


def resize_positions(
    positions: torch.Tensor, source_grid: Sequence[int], grid: Sequence[int], axis: int, antialias: bool = True
) -> torch.Tensor:
    """
    Position embeddings for another grid of tokens, by bicubic (2D) or trilinear interpolation. From 2D to 3D they are
    interpolated in the plane and repeated along the new axis: "Arnab et al., ViViT <https://arxiv.org/abs/2103.15691>",
    section 3.4.

    Args:
        positions: of shape (1, N, C), without a class token's.
        source_grid: number of tokens along each axis.
        grid: the new numbers.
        axis: the new spatial axis, if ``grid`` has one more.
        antialias: whether the bicubic interpolation is antialiased, which also changes its kernel.
    """
    plane = list(grid)
    if len(grid) > len(source_grid):
        del plane[axis]
    image = positions.reshape(*source_grid, -1).movedim(-1, 0)[None]  # (1, C, *source_grid)
    if list(source_grid) != plane:
        options = {"mode": "bicubic", "antialias": antialias} if len(plane) == 2 else {"mode": "trilinear"}
        image = F.interpolate(image, size=tuple(plane), align_corners=False, **options)
    if len(grid) > len(source_grid):
        image = torch.stack([image] * grid[axis], dim=2 + axis)
    return image.flatten(2).transpose(1, 2)  # (1, N, C)


def resize_table(table: torch.Tensor, length: int) -> torch.Tensor:
    """
    Relative positions for another number of distances, by linear interpolation as in SAM: "Kirillov et al., Segment
    Anything <https://arxiv.org/abs/2304.02643>", in its code.

    Args:
        table: of shape (distances, width).
        length: the new number of distances.
    """
    return F.interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T


def token_grid(tokens: int, dims: int) -> list[int] | None:
    """The grid of equal sides with a number of tokens, or None."""
    side = round(tokens ** (1 / dims))
    return [side] * dims if side**dims == tokens else None


def sincos_grid(positions: torch.Tensor, dims: int) -> list[int] | None:
    """
    The grid whose sine-cosine embeddings, as MONAI computes them, are these, or None if there is none: fixed
    embeddings tell their grid, also one of unequal sides.

    Args:
        positions: of shape (1, N, C), without a class token's.
        dims: number of axes of the grid.
    """
    tokens, width = positions.shape[1:]
    first = positions[0, :1].round()  # sines and cosines of 0
    if width % (2 * dims) or not torch.allclose(first, positions[0, :1], rtol=0, atol=HALF_PRECISION):
        return None
    grids = _factors(tokens, dims)
    if len(grids) * positions.numel() > MOST_COMPARED:
        return None
    for grid in grids:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI calls torch.meshgrid without the order of its axes
            made = build_sincos_position_embedding(grid, width, dims)
        if torch.allclose(made.data.to(positions), positions, rtol=0, atol=HALF_PRECISION):
            return grid
    return None


def _factors(number: int, parts: int) -> list[list[int]]:
    """All ways to write a number as a product of ``parts`` numbers, in every order."""
    if parts == 1:
        return [[number]]
    sides = [side for side in range(1, number + 1) if number % side == 0]
    return [[side, *others] for side in sides for others in _factors(number // side, parts - 1)]
