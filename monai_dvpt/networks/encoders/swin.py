# SPDX-License-Identifier: Apache-2.0
"""The Swin transformer of MONAI's SwinUNETR as an encoder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlock,
    get_window_size,
    window_partition,
    window_reverse,
)

from monai_dvpt.networks.blocks import group_windows
from monai_dvpt.utils import check_counts

from .encoder import Encoder

__all__ = ["MERGINGS", "WINDOW_SHIFTS", "SwinEncoder", "check_swin_sizes"]


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


WINDOW_SHIFTS = ("monai", "original", "timm")
"""
How layers shift their windows. With "original", as in the original code and Hugging Face's, no axis is shifted if one
window spans any; with "monai" and "timm" only such an axis is not. With "timm" tokens move before the grid is padded to
whole windows, with the others afterwards. A square grid of whole windows does not show any of this.
"""


class EarlierMerging(PatchMergingV2):
    """
    MONAI's ``PatchMerging`` as it was until MONAI 1.4. In 3D it read two of the eight neighbours twice and two never:
    `issue 8284 <https://github.com/Project-MONAI/MONAI/issues/8284>`_. In 2D it had no such fault.
    """

    NEIGHBOURS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: tokens of shape (B, \\*grid, C).

        Returns:
            tokens of shape (B, \\*half_grid, 2 C).
        """
        if x.ndim == 4:
            return super().forward(x)
        depth, height, width = x.shape[1:4]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        x = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.NEIGHBOURS], dim=-1)  # (B, *half_grid, 8 C)
        return self.reduction(self.norm(x))


MERGINGS = {"merging_before_1_5": EarlierMerging}
"""Ways to merge tokens that MONAI's Swin transformer does not have, by the name of ``downsample``."""


class _Layer(SwinTransformerBlock):
    """MONAI's layer, but it computes the mask of its shifted windows itself, and shifts as ``window_shift`` says."""

    window_shift = WINDOW_SHIFTS[0]

    def forward(self, x: torch.Tensor, mask_matrix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x: tokens of shape (B, \\*grid, C).
            mask_matrix: not used.
        """
        return super().forward(x, None)

    def forward_part1(self, x: torch.Tensor, mask_matrix: torch.Tensor | None) -> torch.Tensor:
        grid = x.shape[1:-1]
        axes = list(range(1, x.ndim - 1))
        window, shift = get_window_size(grid, self.window_size, self.shift_size)
        if self.window_shift == "original" and 0 in shift:
            shift = (0,) * len(shift)
        padded = tuple(-(-side // step) * step for side, step in zip(grid, window, strict=True))
        ends = [end for side, whole in zip(grid[::-1], padded[::-1], strict=True) for end in (0, whole - side)]
        moves_first, moves = self.window_shift == "timm", any(shift)
        y = self.norm1(x)
        if moves and moves_first:
            y = torch.roll(y, [-step for step in shift], axes)
        y = F.pad(y, [0, 0, *ends])
        if moves and not moves_first:
            y = torch.roll(y, [-step for step in shift], axes)
        groups = group_windows(padded, window, shift, x.device) if moves else None
        y = self.attn(window_partition(y, window), groups)
        y = window_reverse(y.unflatten(1, window), window, [x.shape[0], *padded])
        if moves and not moves_first:
            y = torch.roll(y, list(shift), axes)
        for axis, side in zip(axes, grid, strict=True):
            y = y.narrow(axis, 0, side)
        return torch.roll(y, list(shift), axes) if moves and moves_first else y


class SwinEncoder(Encoder, SwinTransformer):
    """
    The Swin transformer of MONAI's :class:`monai.networks.nets.SwinUNETR`, under the same parameter names, or with a
    final ``norm`` that of "Liu et al., Swin Transformer <https://arxiv.org/abs/2103.14030>".
    """

    if TYPE_CHECKING:
        depths: list[int]
        ends: list[int]
        norm: nn.LayerNorm | None

    @classmethod
    def of(
        cls,
        swin: SwinTransformer,
        depths: Sequence[int],
        num_heads: Sequence[int],
        downsample: str,
        use_checkpoint: bool,
        final_norm: bool = False,
        window_shift: str = WINDOW_SHIFTS[0],
    ) -> SwinEncoder:
        """
        Turns MONAI's Swin transformer into an encoder in place; its tensors and their names stay.

        Args:
            swin: the transformer.
            depths: number of layers of each stage.
            num_heads: number of attention heads of each stage.
            downsample: how tokens are merged between stages.
            use_checkpoint: whether layers recompute their activations in the backward pass.
            final_norm: whether the encoder ends as the original, with a normalisation ``norm`` in place of the merging
                after the last stage.
            window_shift: one of ``WINDOW_SHIFTS``.
        """
        if not isinstance(swin, cls):
            swin.__class__ = cls
        encoder: Any = swin
        encoder.depths, encoder.ends = list(depths), [end - 1 for end in itertools.accumulate(depths)]
        for layer in encoder.blocks:
            layer.__class__ = _Layer
        encoder.norm = None
        if final_norm:
            encoder.norm = nn.LayerNorm(swin.num_features)
            encoder._stage(len(depths) - 1).downsample = None
        facts = {"num_heads": list(num_heads), "window_size": list(swin.window_size), "downsample": downsample}
        encoder.open_slot([-1, *encoder.ends], use_checkpoint, **facts)
        encoder.set_window_shift(window_shift)
        return encoder

    def set_window_shift(self, window_shift: str) -> None:
        """Sets how all layers shift their windows, one of ``WINDOW_SHIFTS``."""
        for layer in self.blocks:
            layer.window_shift = window_shift
        if self.norm is not None:  # MONAI's own has but one way
            self.arithmetic |= {"window_shift": window_shift}

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
            the embedding and the output of every stage, of shapes (B, C, \\*grid), merged and not normalised.
        """
        states, _ = self.run(image, prefix, self.outputs, [])
        return [states[layer].movedim(-1, 1) for layer in self.outputs]

    def forward(
        self, x: torch.Tensor, normalize: bool = True, prefix: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """As MONAI's, with a prefix as in :meth:`encode`."""
        return [self.proj_out(features, normalize) for features in self.encode(x, prefix)]

    def last(self, x: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """The last, normalised features of shape (B, C, \\*grid); the arguments are those of :meth:`encode`."""
        features = self.encode(x, prefix)[-1]
        if self.norm is None:
            return self.proj_out(features, normalize=True)
        return self.norm(features.movedim(1, -1)).movedim(-1, 1)

    def embedding(self) -> nn.Module:
        return self.patch_embed

    def stage_of(self, layer: int) -> int:
        """Index of the stage of a layer."""
        return next(stage for stage, end in enumerate(self.ends) if layer <= end)

    def token_size(self, layer: int) -> list[int]:
        return [side * 2 ** self.stage_of(layer) for side in self.patch_size]

    def token_shape(self, sides: list[int], layer: int, left: bool) -> list[int]:
        merged = left and layer in self.ends and self._stage(self.stage_of(layer)).downsample is not None
        stage = self.stage_of(layer) + merged
        spans = [patch * 2**stage for patch in self.patch_size]
        return [*(-(-side // span) for side, span in zip(sides, spans, strict=True)), self.embed_dim * 2**stage]

    def frozen_layers(self, name: str) -> int:
        if name.startswith("norm."):
            return len(self.blocks) - 1
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
