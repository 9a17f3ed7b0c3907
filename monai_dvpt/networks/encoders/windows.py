# SPDX-License-Identifier: Apache-2.0
"""Windows of a grid of tokens, in 2D and 3D; zeros fill the last ones, and count as tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["join_windows", "split_windows"]


def split_windows(tokens: torch.Tensor, window: int) -> torch.Tensor:
    """
    Args:
        tokens: of shape (B, \\*grid, C).
        window: number of tokens of a window along each axis.

    Returns:
        the tokens of the ``W`` windows, the batch outermost, of shape (B W, N, C).
    """
    dims = tokens.ndim - 2
    parts, padding = [tokens.shape[0]], [0, 0]
    for axis in range(dims):
        side, last = tokens.shape[1 + axis], tokens.shape[dims - axis]
        parts += [(side + window - 1) // window, window]
        padding += [0, (last + window - 1) // window * window - last]  # that of the last axis comes first
    apart = [0] + [1 + 2 * axis for axis in range(dims)] + [2 + 2 * axis for axis in range(dims)] + [1 + 2 * dims]
    windows = F.pad(tokens, padding).reshape(parts + [tokens.shape[-1]]).permute(apart)  # (B, *counts, *windows, C)
    return windows.flatten(1 + dims, 2 * dims).flatten(0, dims)


def join_windows(windows: torch.Tensor, window: int, grid: list[int]) -> torch.Tensor:
    """
    The inverse of :func:`split_windows`.

    Args:
        windows: of shape (B W, N, C).
        window: number of tokens of a window along each axis.
        grid: number of tokens along each axis.

    Returns:
        tokens of shape (B, \\*grid, C).
    """
    dims, channels = len(grid), windows.shape[-1]
    counts = [(side + window - 1) // window for side in grid]
    together = [0]
    for axis in range(dims):
        together += [1 + axis, 1 + dims + axis]
    tokens = windows.reshape([-1] + counts + [window for _ in grid] + [channels]).permute(together + [1 + 2 * dims])
    tokens = tokens.reshape([-1] + [count * window for count in counts] + [channels])
    for axis in range(dims):
        tokens = tokens.narrow(1 + axis, 0, grid[axis])
    return tokens
