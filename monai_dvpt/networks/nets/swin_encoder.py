# SPDX-License-Identifier: Apache-2.0
"""The Swin transformer of MONAI's SwinUNETR, with DVPT blocks inside its stages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn
from monai.networks.nets.swin_unetr import BasicLayer, SwinTransformer, SwinTransformerBlock, get_window_size

from monai_dvpt.networks.adapter import TunableNetwork, disable_adapter
from monai_dvpt.networks.blocks import DVPTList, fuse_attention, group_windows
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


class _CheckpointedBlock(SwinTransformerBlock):
    """MONAI's block with checkpoints, but not in a trace, where torch before 2.9 would leave calls of Python."""

    @property
    def use_checkpoint(self) -> bool:  # type: ignore[override]
        return not torch.jit.is_tracing()


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
        side_path: bool,
    ) -> None:
        """Fuses attention, keeps checkpoints out of traces, registers the blocks; sharing stays inside a stage."""
        fuse_attention(self.swinViT)  # type: ignore[arg-type]
        for module in self.swinViT.modules():  # type: ignore[union-attr]
            if type(module) is SwinTransformerBlock and module.use_checkpoint:
                del module.use_checkpoint
                module.__class__ = _CheckpointedBlock
        widths = [feature_size * 2**stage for stage, depth in enumerate(depths) for _ in range(depth)]
        self.use_dvpt(DVPTList(widths, bottleneck_size, num_prompts, share_every, start_layer), side_path)
        self.dvpt_enabled = True

    def token_size(self, layer: int) -> list[int]:
        """Sides, in voxels of the image, of what a token stands for after a layer; every stage doubles them."""
        arguments: Any = self.arguments
        stage = self._stage_of(layer)
        return [arguments["patch_size"] * 2**stage] * arguments["spatial_dims"]

    def encode(self, image: torch.Tensor, prefix: torch.Tensor | None = None) -> list[torch.Tensor]:
        """
        Args:
            image: of shape ``(B, in_channels, *spatial)``.
            prefix: what :meth:`forward_prefix` gave for it; the frozen layers it stands for are then left out.

        Returns:
            the embedding and the output of every stage, of shapes (B, C, \\*grid), not normalised.
        """
        return self._run(image, prefix)[0]

    @torch.no_grad()
    def frozen_states(
        self, image: torch.Tensor, layers: Sequence[int]
    ) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
        self.check_frozen()
        self.train(self.training)  # so that frozen dropout is off
        with disable_adapter(self):
            return self._run(image, wanted=layers)

    def pack_prefix(self, states: tuple[list[torch.Tensor], dict[int, torch.Tensor]]) -> torch.Tensor:
        features, tokens = states
        stages = self._stage_of(self.prefix_layers[0]) + 1
        kept = features[:stages] + [tokens[layer] for layer in self.prefix_layers]
        return torch.cat([tensor.flatten(1) for tensor in kept], dim=1)  # (B, numbers of all of them)

    def _unpack(self, prefix: torch.Tensor, image: torch.Tensor) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
        """The features of the stages before DVPT, of shape (B, C, \\*grid), and tokens by layer, (B, \\*grid, C)."""
        arguments: Any = self.arguments
        sides = [side // arguments["patch_size"] for side in image.shape[2:]]
        shapes = []
        for stage in range(self._stage_of(self.prefix_layers[0]) + 1):
            shapes.append([arguments["feature_size"] * 2**stage, *(side // 2**stage for side in sides)])
        for layer in self.prefix_layers:
            stage = self._stage_of(layer)
            shapes.append([*(side // 2**stage for side in sides), arguments["feature_size"] * 2**stage])
        sizes = [math.prod(shape) for shape in shapes]
        if prefix.shape != (image.shape[0], sum(sizes)):
            raise ValueError(
                f"prefix must be that of the image, of shape {[image.shape[0], sum(sizes)]}, got {list(prefix.shape)}."
            )
        tensors = [part.view(-1, *shape) for part, shape in zip(prefix.split(sizes, dim=1), shapes, strict=True)]
        count = len(shapes) - len(self.prefix_layers)
        return tensors[:count], dict(zip(self.prefix_layers, tensors[count:], strict=True))

    def _stage_of(self, layer: int) -> int:
        arguments: Any = self.arguments
        return next(stage for stage, end in enumerate(itertools.accumulate(arguments["depths"])) if layer < end)

    def _run(
        self, image: torch.Tensor, prefix: torch.Tensor | None = None, wanted: Sequence[int] = ()
    ) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
        """
        The features that :meth:`encode` returns; and what the next layer sees after each of the ``wanted`` layers, of
        shape (B, \\*grid, C), the last of which is then in the last stage to run.
        """
        vit: SwinTransformer = self.swinViT  # type: ignore[assignment]
        features, frozen = ([], {}) if prefix is None else self._unpack(prefix, image)
        if prefix is None:
            features = [vit.pos_drop(vit.patch_embed(image))]
        first = sum(self.arguments["depths"][: len(features) - 1])
        x, side, states = features[-1], features[-1].new_zeros(1), dict.fromkeys(wanted, features[-1])
        for stage in range(len(features), vit.num_layers + 1):
            if wanted and first > wanted[-1]:
                break
            layer: BasicLayer = getattr(vit, f"layers{stage}")[0]
            if vit.use_v2 and first > min(frozen, default=-1):  # where it goes on inside a stage its start is behind
                x, side = self._between(getattr(vit, f"layers{stage}c")[0], x.contiguous(), side, first - 1)
            x, side = self._run_stage(layer, x, side, first, frozen, states)
            features.append(x + side if self._beside(first + layer.depth - 1) else x)
            first += layer.depth
        return features, states

    def _beside(self, layer: int) -> bool:
        """Whether a side path has begun by the end of a layer."""
        return self.side_path and self.dvpt_enabled and layer >= 0 and self.dvpt_of_layer[layer] >= 0

    def _between(
        self, module: nn.Module, x: torch.Tensor, side: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a frozen module that follows a layer makes of its output and of what a side path adds to it."""
        out = module(x)
        return out, module(x + side) - out if self._beside(layer) else side

    def _run_stage(
        self,
        stage: BasicLayer,
        x: torch.Tensor,
        side: torch.Tensor,
        first: int,
        frozen: Mapping[int, torch.Tensor],
        states: dict[int, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        One stage, as MONAI's ``BasicLayer`` computes it, with DVPT.

        Args:
            stage: the stage.
            x: its input, of shape (B, C, \\*grid).
            side: what a side path adds to ``x``, or one zero.
            first: index of its first layer.
            frozen: by layer, what need not be computed again, of shapes (B, \\*grid, C).
            states: by layer, what is wanted, to be filled in.

        Returns:
            the output of the stage, and what a side path adds to it.
        """
        side = side.movedim(1, -1).flatten(1, -2) if self._beside(first - 1) else side  # (B, N, C)
        x = x.movedim(1, -1).contiguous()  # (B, *grid, C)
        grid = x.shape[1:-1]
        window, shift = get_window_size(grid, stage.window_size, stage.shift_size)
        padded = tuple(-(-side // step) * step for side, step in zip(grid, window, strict=True))
        shifts = stage.depth > 1 and any(shift)  # every second layer shifts its windows, unless one holds all tokens
        mask = group_windows(padded, window, shift, x.device) if shifts else None
        for index, block in enumerate(stage.blocks):
            layer = first + index
            if layer in frozen:
                x = frozen[layer]
            elif layer > max(frozen, default=-1):
                x = block(x, mask)
            seen, side, _ = self.adapt(x.flatten(1, -2), side, layer)
            x = seen.view(x.shape)
            if layer in states:
                states[layer] = x
        last = first + stage.depth - 1
        side = side.view(x.shape) if self._beside(last) else side
        if stage.downsample is not None:
            x, side = self._between(stage.downsample, x, side, last)
        return x.movedim(-1, 1), side.movedim(-1, 1) if self._beside(last) else side  # (B, C, *grid)
