# SPDX-License-Identifier: Apache-2.0
"""TinyViT as LiteMedSAM has it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.blocks import MLPBlock

from monai_dvpt.networks.blocks import OffsetSABlock
from monai_dvpt.utils import check_counts

from .encoder import Encoder
from .sam import SAMNeck, set_plain_arithmetic
from .vit import check_vit_image
from .windows import join_windows, split_windows

__all__ = ["TinyViTEncoder"]

CELL = 4  # pixels of the side of the last stage's tokens


class Expansion(nn.Module):
    """Convolutions 1x1, 3x3 on each channel alone, and 1x1, as between stages; the 3x3 one may have a stride of 2."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, kernel_size=1)
        self.conv2 = nn.Conv2d(inner, inner, kernel_size=3, stride=stride, padding=1, groups=inner)
        self.conv3 = nn.Conv2d(inner, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of shape (B, out_channels, height, width)."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class TinyViTStem(nn.Module):
    """
    The first stage: 1x1 convolutions of every pixel, inverted bottlenecks, and a halved grid.

    Args:
        in_channels: number of image channels.
        widths: channels of the first two stages.
        depth: number of bottlenecks, each four times as wide inside.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        first, second = widths
        self.embed = nn.Sequential(nn.Conv2d(in_channels, first // 2, 1), nn.GELU(), nn.Conv2d(first // 2, first, 1))
        self.bottlenecks = nn.ModuleList(Expansion(first, 4 * first, first, stride=1) for _ in range(depth))
        self.merge = Expansion(first, second, second, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of shape (B, C, height / 2, width / 2)."""
        x = self.embed(x)
        for bottleneck in self.bottlenecks:
            x = F.gelu(x + bottleneck(x))
        return self.merge(x)


class TinyViTBlock(nn.Module):
    """
    A layer: attention inside windows, a 3x3 convolution on each channel alone, and a feed-forward part.

    Args:
        hidden_size: token width ``C``.
        num_heads: number of attention heads.
        grid: number of tokens along each axis.
        window_size: tokens of a window along each axis.
        qkv_bias: whether query, key and value have a bias.
    """

    def __init__(self, hidden_size: int, num_heads: int, grid: Sequence[int], window_size: int, qkv_bias: bool) -> None:
        super().__init__()
        self.grid, self.window_size = list(grid), window_size
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attn = OffsetSABlock(hidden_size, num_heads, window_size, qkv_bias)
        self.local_conv = nn.Conv2d(hidden_size, hidden_size, kernel_size=3, padding=1, groups=hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = MLPBlock(hidden_size, 4 * hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: tokens of shape (B, \\*grid, C).

        Returns:
            tokens of the same shape.
        """
        windows = self.attn(self.norm1(split_windows(x, self.window_size)))  # tokens of zeros are normalised too
        x = x + join_windows(windows, self.window_size, self.grid)
        x = self.local_conv(x.movedim(-1, 1)).movedim(1, -1).contiguous()
        return x + self.mlp(self.norm2(x))


class TinyViTEncoder(Encoder):
    """
    The image encoder of LiteMedSAM <https://github.com/bowang-lab/MedSAM>, based on "Wu et al.,
    TinyViT <https://arxiv.org/abs/2207.10666>", with SAM's neck: a stage of convolutions on every pixel, which here is
    the embedding, then three stages of layers. The grid is halved after the first and second stage, not after the
    third. Batch normalisations are folded into the convolutions before them, so none changes in training.

    Args:
        in_channels: number of image channels.
        img_size: spatial size; each side a multiple of 4.
        embed_dims: token width of each of 4 stages; the first is even.
        depths: number of layers of each stage.
        num_heads: number of attention heads of the stages with attention, the last three.
        window_sizes: tokens of a window along each axis, of these stages.
        neck_size: channels of the neck's output.
        qkv_bias: whether query, key and value have a bias.
        layer_norm_eps: epsilon of the layers' normalisations; the neck's is 1e-6.
        activation: of the feed-forward layers: "gelu", "gelu_pytorch_tanh", "quick_gelu" or "silu".
        use_checkpoint: whether layers recompute their activations in the backward pass.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule above.
    """

    if TYPE_CHECKING:
        img_size: list[int]
        grid: list[int]

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int] | int,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_sizes: Sequence[int],
        neck_size: int,
        qkv_bias: bool,
        layer_norm_eps: float,
        activation: str,
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, neck_size=neck_size, embed_dims=embed_dims, depths=depths)
        check_counts(num_heads=num_heads, window_sizes=window_sizes)
        for name, given, count in (
            ("embed_dims", embed_dims, 4),
            ("depths", depths, 4),
            ("num_heads", num_heads, 3),
            ("window_sizes", window_sizes, 3),
        ):
            if len(given) != count:
                raise ValueError(f"{name} must have {count} entries, got {list(given)}.")
        if embed_dims[0] % 2:
            raise ValueError(f"embed_dims must start with an even number, got {list(embed_dims)}.")
        if any(width % heads for width, heads in zip(embed_dims[1:], num_heads, strict=True)):
            raise ValueError(f"num_heads must divide the widths {list(embed_dims[1:])}, got {list(num_heads)}.")
        sides, _ = check_vit_image(2, img_size, CELL)
        self.img_size, self.grid = list(sides), [side // CELL for side in sides]
        grids = [[side // 2 for side in sides], self.grid, self.grid]
        self.stages = [stage for stage, depth in enumerate(depths[1:]) for _ in range(depth)]
        self.shapes = [[*grids[stage], embed_dims[1 + stage]] for stage in range(3)]
        self.ends = [end - 1 for end in itertools.accumulate(depths[1:])]
        self.stem = TinyViTStem(in_channels, embed_dims[:2], depths[0])
        self.blocks = nn.ModuleList(
            TinyViTBlock(embed_dims[1 + stage], num_heads[stage], grids[stage], window_sizes[stage], qkv_bias)
            for stage in self.stages
        )
        self.merges = nn.ModuleList(
            Expansion(embed_dims[stage], embed_dims[1 + stage], embed_dims[1 + stage], stride=3 - stage)
            for stage in (1, 2)
        )
        self.neck = SAMNeck(2, embed_dims[3], neck_size)
        facts = {"num_heads": list(num_heads), "window_sizes": list(window_sizes)}
        self.open_slot([len(self.blocks) - 1], use_checkpoint, **facts)
        self.set_arithmetic(layer_norm_eps, activation)

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        return self.stem(image).movedim(1, -1).contiguous()  # (B, *grid, C)

    def leave(
        self, x: torch.Tensor, side: torch.Tensor, adapted: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        for stage, merge in enumerate(self.merges):
            if layer == self.ends[stage]:
                out = merge(x.movedim(-1, 1)).movedim(1, -1).contiguous()
                if self.side_path and self.dvpt_of_layer[layer] >= 0:
                    side = merge((x + side).movedim(-1, 1)).movedim(1, -1).contiguous() - out
                    return out, side, out + side
                return out, side, out
        return x, side, adapted

    def forward(self, image: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            image: of shape ``(B, in_channels, *img_size)``.
            prefix: the result of :meth:`prefix_of` for it; the frozen layers that it replaces do not run.

        Returns:
            the neck's features, of shape ``(B, neck_size, *grid)``.
        """
        self.check_size(image)
        wanted: list[int] = []
        states, _ = self.run(image, prefix, self.outputs, wanted)
        return self.neck(states[len(self.blocks) - 1])

    def set_arithmetic(self, layer_norm_eps: float, activation: str, pre_norm: bool = False) -> None:
        """See :func:`monai_dvpt.networks.encoders.sam.set_plain_arithmetic`."""
        set_plain_arithmetic(self, layer_norm_eps, activation, pre_norm)

    def embedding(self) -> nn.Module:
        return self.stem

    def token_size(self, layer: int) -> list[int]:
        return [CELL, CELL] if layer >= 0 and self.stages[layer] > 0 else [2, 2]

    def token_shape(self, sides: list[int], layer: int, left: bool) -> list[int]:
        stage = 0 if layer < 0 else self.stages[layer]
        merged = left and stage < 2 and layer == self.ends[stage]
        return self.shapes[stage + 1] if merged else self.shapes[stage]

    def frozen_layers(self, name: str) -> int:
        found = re.match(r"(blocks|merges)\.(\d+)\.", name)
        if not found:
            return len(self.blocks) - 1 if name.startswith("neck.") else -2
        return int(found[2]) - 1 if found[1] == "blocks" else self.ends[int(found[2])]
