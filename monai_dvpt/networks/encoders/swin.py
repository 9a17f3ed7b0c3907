# SPDX-License-Identifier: Apache-2.0
"""The Swin transformer of MONAI's SwinUNETR as an encoder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from monai.networks.nets.swin_unetr import BasicLayer, SwinTransformer, SwinTransformerBlock, get_window_size

from monai_dvpt.networks.blocks import group_windows
from monai_dvpt.utils import check_counts

from .encoder import Encoder

__all__ = ["SwinEncoder", "check_swin_sizes"]


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


class _Layer(SwinTransformerBlock):
    """MONAI's layer, but it computes the mask of its shifted windows itself."""

    def forward(self, x: torch.Tensor, mask_matrix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x: tokens of shape (B, \\*grid, C).
            mask_matrix: not used.
        """
        grid = x.shape[1:-1]
        window, shift = get_window_size(grid, self.window_size, self.shift_size)
        if not any(shift):  # one window holds all tokens, or windows are not shifted
            return super().forward(x, None)
        padded = tuple(-(-side // step) * step for side, step in zip(grid, window, strict=True))
        return super().forward(x, group_windows(padded, window, shift, x.device))


class SwinEncoder(Encoder, SwinTransformer):
    """The Swin transformer of MONAI's :class:`monai.networks.nets.SwinUNETR`, under the same parameter names."""

    if TYPE_CHECKING:
        depths: list[int]
        ends: list[int]

    @classmethod
    def of(
        cls,
        swin: SwinTransformer,
        depths: Sequence[int],
        num_heads: Sequence[int],
        downsample: str,
        use_checkpoint: bool,
    ) -> SwinEncoder:
        """
        Turns MONAI's Swin transformer into an encoder in place; its tensors and their names stay.

        Args:
            swin: the transformer.
            depths: number of layers of each stage.
            num_heads: number of attention heads of each stage.
            downsample: how tokens are merged between stages.
            use_checkpoint: whether layers recompute their activations in the backward pass.
        """
        if not isinstance(swin, cls):
            swin.__class__ = cls
        encoder: Any = swin
        encoder.depths, encoder.ends = list(depths), [end - 1 for end in itertools.accumulate(depths)]
        for layer in encoder.blocks:
            layer.__class__ = _Layer
        facts = {"num_heads": list(num_heads), "window_size": list(swin.window_size), "downsample": downsample}
        encoder.open_slot([-1, *encoder.ends], use_checkpoint, **facts)
        return encoder

    @property
    def blocks(self) -> list[Any]:
        """The layers of all stages."""
        return [block for stage in range(self.num_layers) for block in self._stage(stage).blocks]

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        return self.pos_drop(self.patch_embed(image)).movedim(1, -1).contiguous()  # (B, *grid, C)

    def enter(self, x: torch.Tensor, side: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        stage = self.stage_of(layer)
        if not self.use_v2 or layer - 1 not in (-1, *self.ends):
            return x, side
        module = getattr(self, f"layers{stage + 1}c")[0]

        def convolve(tokens: torch.Tensor) -> torch.Tensor:
            return module(tokens.movedim(-1, 1).contiguous()).movedim(1, -1).contiguous()

        out = convolve(x)
        return out, convolve(x + side) - out if self._beside(layer - 1) else side

    def leave(
        self, x: torch.Tensor, side: torch.Tensor, adapted: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if layer not in self.ends:
            return x, side, adapted
        merge = self._stage(self.ends.index(layer)).downsample
        if merge is None:
            return x, side, adapted
        out = merge(x)
        if not self._beside(layer):
            return out, side, out
        side = merge(x + side) - out
        return out, side, out + side

    def encode(self, image: torch.Tensor, prefix: torch.Tensor | None = None) -> list[torch.Tensor]:
        """
        Args:
            image: of shape ``(B, in_channels, *spatial)``.
            prefix: the result of :meth:`prefix_of` for it; the frozen layers that it replaces do not run.

        Returns:
            the embedding and the output of every stage, of shapes (B, C, \\*grid), not normalised.
        """
        states, _ = self.run(image, prefix, self.outputs, [])
        return [states[layer].movedim(-1, 1) for layer in self.outputs]

    def forward(
        self, x: torch.Tensor, normalize: bool = True, prefix: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """As MONAI's, with a prefix as in :meth:`encode`."""
        return [self.proj_out(features, normalize) for features in self.encode(x, prefix)]

    def embedding(self) -> nn.Module:
        return self.patch_embed

    def stage_of(self, layer: int) -> int:
        """Index of the stage of a layer."""
        return next(stage for stage, end in enumerate(self.ends) if layer <= end)

    def token_size(self, layer: int) -> list[int]:
        return [side * 2 ** self.stage_of(layer) for side in self.patch_size]

    def token_shape(self, sides: list[int], layer: int, left: bool) -> list[int]:
        stage = self.stage_of(layer) + (left and layer in self.ends)
        grid = [side // patch for side, patch in zip(sides, self.patch_size, strict=True)]
        return [*(side // 2**stage for side in grid), self.embed_dim * 2**stage]

    def frozen_layers(self, name: str) -> int:
        found = re.match(r"layers(\d)(c?)\.0\.(?:blocks\.(\d+)|)", name)
        if not found:
            return -2
        stage = int(found[1]) - 1
        end = self.ends[stage]
        first = end + 1 - self.depths[stage]
        if found[2]:
            return first - 1
        return first + int(found[3]) - 1 if found[3] else end  # patch merging follows the last layer of its stage

    def _stage(self, stage: int) -> BasicLayer:
        return getattr(self, f"layers{stage + 1}")[0]

    def _beside(self, layer: int) -> bool:
        """Whether there is a side path after a layer."""
        return self.side_path and layer >= 0 and self.dvpt_of_layer[layer] >= 0
