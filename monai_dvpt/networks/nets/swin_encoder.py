# SPDX-License-Identifier: Apache-2.0
"""The Swin transformer of MONAI's SwinUNETR, with DVPT blocks inside its stages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets.swin_unetr import BasicLayer, SwinTransformer, compute_mask, get_window_size

from monai_dvpt.networks.adapter import TunableNetwork
from monai_dvpt.networks.blocks import DVPTList
from monai_dvpt.utils import check_counts

__all__ = ["DVPTSwinEncoder", "check_swin_sizes"]


def check_swin_sizes(
    spatial_dims: int,
    in_channels: int,
    patch_size: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: Sequence[int] | int,
    feature_size: int,
) -> None:
    """
    Raises:
        ValueError: if a size is not a whole number of at least 1, there are not four stages, or the heads of a stage do
            not divide its width.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
    if len(depths) != 4 or len(num_heads) != 4:
        raise ValueError(f"depths and num_heads must have 4 entries, got {list(depths)} and {list(num_heads)}.")
    check_counts(in_channels=in_channels, patch_size=patch_size, feature_size=feature_size, window_size=window_size)
    check_counts(depths=depths, num_heads=num_heads)
    widths = [feature_size * 2**stage for stage in range(4)]
    if any(width % heads for width, heads in zip(widths, num_heads, strict=True)):
        raise ValueError(f"num_heads must divide the widths {widths} of the stages, got {list(num_heads)}.")


class DVPTSwinEncoder(TunableNetwork):
    """Base of the networks around MONAI's ``SwinTransformer``, held as ``swinViT``."""

    ENCODER = "swinViT."
    TRAINING_ARGUMENTS = TunableNetwork.TRAINING_ARGUMENTS | {
        *("drop_rate", "attn_drop_rate", "dropout_path_rate", "use_flash_attention")
    }

    def add_dvpt(
        self,
        depths: Sequence[int],
        feature_size: int,
        bottleneck_size: int,
        num_prompts: int,
        share_every: int,
        start_layer: int,
    ) -> None:
        """Registers the DVPT blocks; a stage doubles the token width, so sharing stays inside it."""
        widths = [feature_size * 2**stage for stage, depth in enumerate(depths) for _ in range(depth)]
        self.use_dvpt(DVPTList(widths, bottleneck_size, num_prompts, share_every, start_layer))
        self.dvpt_enabled = True

    def token_size(self, layer: int) -> list[int]:
        """Sides, in voxels of the image, of what a token stands for after a layer; every stage doubles them."""
        arguments: Any = self.arguments
        ends = itertools.accumulate(arguments["depths"])
        stage = next(stage for stage, end in enumerate(ends) if layer < end)
        return [arguments["patch_size"] * 2**stage] * arguments["spatial_dims"]

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """
        Args:
            image: of shape ``(B, in_channels, *spatial)``.

        Returns:
            the embedding and the output of every stage, of shapes (B, C, \\*grid), not normalised.
        """
        vit: SwinTransformer = self.swinViT  # type: ignore[assignment]
        x = vit.pos_drop(vit.patch_embed(image))
        features, first = [x], 0
        for stage in range(1, vit.num_layers + 1):
            if vit.use_v2:
                x = getattr(vit, f"layers{stage}c")[0](x.contiguous())
            layer: BasicLayer = getattr(vit, f"layers{stage}")[0]
            x = self._run_stage(layer, x.contiguous(), first)
            features.append(x)
            first += layer.depth
        return features

    def _run_stage(self, stage: BasicLayer, x: torch.Tensor, first: int) -> torch.Tensor:
        """One stage, as MONAI's ``BasicLayer`` computes it, with DVPT; ``first`` is the index of its first layer."""
        x = x.movedim(1, -1)  # (B, *grid, C)
        grid = x.shape[1:-1]
        window, shift = get_window_size(grid, stage.window_size, stage.shift_size)
        padded = [-(-side // step) * step for side, step in zip(grid, window, strict=True)]
        shifts = stage.depth > 1 and any(shift)  # every second layer shifts its windows, unless one holds all tokens
        mask = compute_mask(padded, window, shift, x.device) if shifts else None
        for index, block in enumerate(stage.blocks):
            x = block(x, mask)
            x = self.adapt(x.flatten(1, -2), first + index).view(x.shape)
        if stage.downsample is not None:
            x = stage.downsample(x)
        return x.movedim(-1, 1)  # (B, C, *grid)
