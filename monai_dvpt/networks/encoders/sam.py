# SPDX-License-Identifier: Apache-2.0
"""The image encoder of SAM, in 2D, and of SAM-Med3D."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
from monai.networks.blocks import MLPBlock, PatchEmbeddingBlock
from monai.networks.layers.factories import Conv

from monai_dvpt.networks.blocks import RelativeSABlock
from monai_dvpt.utils import check_counts

from .encoder import Encoder
from .vit import ACTIVATIONS, check_arithmetic, check_vit_image, check_vit_sizes
from .windows import join_windows, split_windows

__all__ = ["SAMEncoder"]

NECK_EPS = 1e-6


class SAMBlock(nn.Module):
    """
    A transformer layer on a grid of tokens, whose attention sees all tokens or those of a window.

    Args:
        hidden_size: token width ``C``.
        mlp_dim: width of the feed-forward part.
        num_heads: number of attention heads.
        grid: number of tokens along each axis.
        window_size: tokens of a window along each axis; 0 for attention to all tokens.
        qkv_bias: whether query, key and value have a bias.
    """

    def __init__(
        self, hidden_size: int, mlp_dim: int, num_heads: int, grid: Sequence[int], window_size: int, qkv_bias: bool
    ) -> None:
        super().__init__()
        self.grid, self.window_size = list(grid), window_size
        seen = [window_size] * len(self.grid) if window_size else self.grid
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attn = RelativeSABlock(hidden_size, num_heads, seen, qkv_bias)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = MLPBlock(hidden_size, mlp_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: tokens of shape (B, \\*grid, C).

        Returns:
            tokens of the same shape.
        """
        tokens = self.norm1(x)
        if self.window_size > 0:
            windows = self.attn(split_windows(tokens, self.window_size))
            x = x + join_windows(windows, self.window_size, self.grid)
        else:
            x = x + self.attn(tokens.flatten(1, -2)).reshape(x.shape)
        return x + self.mlp(self.norm2(x))


def set_plain_arithmetic(encoder: Encoder, layer_norm_eps: float, activation: str, pre_norm: bool) -> None:
    """
    Sets what an encoder computes but its weights do not tell.

    Args:
        encoder: with layers of MONAI's names.
        layer_norm_eps: epsilon of the layers' normalisations.
        activation: of the feed-forward layers: "gelu", "gelu_pytorch_tanh", "quick_gelu" or "silu".
        pre_norm: must be False, as these encoders have no normalisation after the embedding.

    Raises:
        ValueError: if ``activation`` is unknown, ``layer_norm_eps`` not positive or ``pre_norm`` not False.
    """
    check_arithmetic(layer_norm_eps, activation)
    if pre_norm:
        raise ValueError("pre_norm must be False, as the encoder has none, got True.")
    for block in encoder.blocks:
        block.norm1.eps = block.norm2.eps = layer_norm_eps
        block.mlp.fn = ACTIVATIONS[activation]().train(block.training)
    encoder.arithmetic |= {"layer_norm_eps": layer_norm_eps, "activation": activation}


class SAMNeck(nn.Sequential):
    """
    Features of fewer channels from tokens: 1x1 convolution, normalisation, 3x3 convolution, normalisation.

    Args:
        spatial_dims: 2 or 3.
        hidden_size: token width ``C``.
        channels: number of channels of the features.
    """

    def __init__(self, spatial_dims: int, hidden_size: int, channels: int) -> None:
        convolution = Conv[Conv.CONV, spatial_dims]
        super().__init__(
            convolution(hidden_size, channels, kernel_size=1, bias=False),
            nn.LayerNorm(channels, eps=NECK_EPS),
            convolution(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.LayerNorm(channels, eps=NECK_EPS),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of shape (B, channels, \\*grid) from tokens of shape (B, \\*grid, C)."""
        for index, part in enumerate(self):
            # convolutions take channels first, normalisations last
            x = part(x.movedim(-1, 1)).movedim(1, -1) if index % 2 == 0 else part(x)
        return x.movedim(-1, 1)


class SAMEncoder(Encoder):
    """
    The image encoder of "Kirillov et al., Segment Anything <https://arxiv.org/abs/2304.02643>", in 3D that of "Wang et
    al., SAM-Med3D <https://arxiv.org/abs/2310.15161>": a transformer of "Li et al., Exploring Plain Vision Transformer
    Backbones for Object Detection <https://arxiv.org/abs/2203.16527>" without a class token, most of whose layers
    attend inside windows, then a neck. Names are MONAI's where its ViT has the layer, else SAM's.

    Args:
        in_channels: number of image channels.
        img_size: spatial size; each side a multiple of the side of ``patch_size``.
        patch_size: size of a token.
        hidden_size: token width ``C``.
        mlp_dim: width of the feed-forward layers.
        num_layers: number of layers.
        num_heads: number of attention heads.
        window_size: number of tokens of a window along each axis.
        global_layers: indices of the layers that attend to all tokens, ascending.
        neck_size: channels of the neck's output; 0 for no neck.
        spatial_dims: 2 or 3.
        qkv_bias: whether query, key and value have a bias.
        layer_norm_eps: epsilon of the layers' normalisations; the neck's is 1e-6.
        activation: "gelu", "gelu_pytorch_tanh", "quick_gelu" or "silu".
        outputs: layers whose tokens the network uses, the last among them.
        use_checkpoint: whether layers recompute their activations in the backward pass.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule above.
    """

    if TYPE_CHECKING:
        img_size: list[int]
        patch_size: list[int]
        grid: list[int]

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int,
        hidden_size: int,
        mlp_dim: int,
        num_layers: int,
        num_heads: int,
        window_size: int,
        global_layers: Sequence[int],
        neck_size: int,
        spatial_dims: int,
        qkv_bias: bool,
        layer_norm_eps: float,
        activation: str,
        outputs: Sequence[int],
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        check_vit_sizes(spatial_dims, hidden_size, mlp_dim, num_heads)
        check_counts(in_channels=in_channels, num_layers=num_layers, window_size=window_size)
        check_counts(0, neck_size=neck_size, global_layers=global_layers)
        sides, patches = check_vit_image(spatial_dims, img_size, patch_size)
        chosen = list(global_layers)
        if chosen != sorted(set(chosen)) or any(layer >= num_layers for layer in chosen):
            raise ValueError(f"global_layers must be ascending layers below num_layers={num_layers}, got {chosen}.")
        self.img_size, self.patch_size, self.width = list(sides), list(patches), hidden_size
        self.grid = [side // patch for side, patch in zip(sides, patches, strict=True)]
        self.patch_embedding = PatchEmbeddingBlock(
            in_channels, sides, patches, hidden_size, num_heads, proj_type="conv", spatial_dims=spatial_dims
        )
        self.blocks = nn.ModuleList(
            SAMBlock(hidden_size, mlp_dim, num_heads, self.grid, 0 if layer in chosen else window_size, qkv_bias)
            for layer in range(num_layers)
        )
        if neck_size:
            self.neck = SAMNeck(spatial_dims, hidden_size, neck_size)
        facts = {"num_heads": num_heads, "window_size": window_size, "global_layers": chosen}
        self.open_slot(outputs, use_checkpoint, **facts)
        self.set_arithmetic(layer_norm_eps, activation)

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        return self.patch_embedding(image).unflatten(1, self.grid).contiguous()  # (B, *grid, C)

    def encode(self, image: torch.Tensor, prefix: torch.Tensor | None = None) -> dict[int, torch.Tensor]:
        """
        Args:
            image: of shape ``(B, in_channels, *img_size)``.
            prefix: the result of :meth:`prefix_of` for it; the frozen layers that it replaces do not run.

        Returns:
            by layer of ``outputs`` the adapted tokens, of shape (B, \\*grid, C).
        """
        self.check_size(image)
        wanted: list[int] = []
        return self.run(image, prefix, self.outputs, wanted)[0]

    def forward(self, image: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            image, prefix: see :meth:`encode`.

        Returns:
            the neck's features, of shape ``(B, neck_size, *grid)``; without a neck the last tokens, of shape
            (B, C, \\*grid).
        """
        tokens = self.encode(image, prefix)[len(self.blocks) - 1]
        if hasattr(self, "neck"):
            return self.neck(tokens)
        return tokens.movedim(-1, 1)

    def set_arithmetic(self, layer_norm_eps: float, activation: str, pre_norm: bool = False) -> None:
        """See :func:`set_plain_arithmetic`."""
        set_plain_arithmetic(self, layer_norm_eps, activation, pre_norm)

    def embedding(self) -> nn.Module:
        return self.patch_embedding

    def token_size(self, layer: int) -> list[int]:
        return list(self.patch_size)

    def token_shape(self, sides: list[int], layer: int, left: bool) -> list[int]:
        return self.grid + [self.width]

    def frozen_layers(self, name: str) -> int:
        found = re.match(r"blocks\.(\d+)\.", name)
        if found:
            return int(found[1]) - 1
        return len(self.blocks) - 1 if name.startswith("neck.") else -2
