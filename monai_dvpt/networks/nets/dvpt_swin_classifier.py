# SPDX-License-Identifier: Apache-2.0
"""Classifier on the Swin transformer of SwinUNETR, tuned by a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.utils import ensure_tuple_rep

from monai_dvpt.networks.encoders import MERGINGS, WINDOW_SHIFTS, SwinEncoder, check_swin_sizes
from monai_dvpt.networks.methods import Method
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import check_counts

__all__ = ["DVPTSwinClassifier"]


class DVPTSwinClassifier(TunableNetwork):
    """
    The Swin transformer of MONAI's SwinUNETR, tuned by a method, by default DVPT, with a linear head on the mean of its
    last, normalised features. Names are those of SwinUNETR, so it takes the same pretrained weights. With
    ``final_norm`` it is the classifier of "Liu et al., Swin Transformer <https://arxiv.org/abs/2103.14030>", for its
    2D weights. Arguments not listed here are those of :class:`DVPTSwinUNETR`.

    Args:
        num_classes: number of logits; 0 for a feature encoder without a head.
        patch_size: side of a token. Each side of an input must be a multiple of its fifth power; with ``final_norm``
            sides are padded, and must give the last stage at least one whole window.
        feature_size: token width ``C`` of the first stage, divisible by its number of heads; every stage doubles it.
        final_norm: whether the last features are those of the fourth stage, of width 8 C, normalised with weight and
            bias; by default they are merged once more, to a width of 16 C, and normalised without.
        window_shift: "monai", or with ``final_norm`` also "original", as the original code and Hugging Face's shift
            their windows, or "timm". A square grid of whole windows does not show it; pretrained weights set it.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule there or here.

    Examples::

        >>> net = DVPTSwinClassifier(1, 4, feature_size=12, bottleneck_size=8)
        >>> net(torch.zeros(2, 1, 64, 32, 32)).shape
        torch.Size([2, 4])

    """

    ENCODER = "swinViT."
    HEAD = "classification_head."
    ADAPTER_ARGUMENTS = frozenset({"num_classes"})
    TRAINING_ARGUMENTS = frozenset({"drop_rate", "attn_drop_rate", "dropout_path_rate", "use_checkpoint"})

    if TYPE_CHECKING:
        swinViT: SwinEncoder

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        patch_size: int = 2,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: Sequence[int] | int = 7,
        qkv_bias: bool = True,
        mlp_ratio: float = 4.0,
        feature_size: int = 24,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dropout_path_rate: float = 0.0,
        patch_norm: bool = False,
        use_checkpoint: bool = False,
        spatial_dims: int = 3,
        downsample: str = "merging",
        use_v2: bool = False,
        final_norm: bool = False,
        window_shift: str = "monai",
        method: str | Mapping[str, Any] | Method = "dvpt",
        **options: Any,
    ) -> None:
        super().__init__()
        check_swin_sizes(spatial_dims, in_channels, patch_size, depths, num_heads, window_size, feature_size)
        check_counts(0, num_classes=num_classes)
        allowed = WINDOW_SHIFTS if final_norm else WINDOW_SHIFTS[:1]
        if window_shift not in allowed:
            with_norm = "" if final_norm else " without final_norm"
            raise ValueError(f"window_shift must be one of {list(allowed)}{with_norm}, got {window_shift}.")
        self.patch_size, self.spatial_dims = patch_size, spatial_dims
        swin = SwinTransformer(
            in_chans=in_channels,
            embed_dim=feature_size,
            window_size=ensure_tuple_rep(window_size, spatial_dims),
            patch_size=ensure_tuple_rep(patch_size, spatial_dims),
            depths=depths,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=dropout_path_rate,
            patch_norm=patch_norm,
            spatial_dims=spatial_dims,
            downsample=MERGINGS.get(downsample, downsample),
            use_v2=use_v2,
        )
        self.swinViT = SwinEncoder.of(swin, depths, num_heads, downsample, use_checkpoint, final_norm, window_shift)
        width = (8 if final_norm else 16) * feature_size
        self.classification_head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.start(method, options)

    def forward(self, x: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x: image of shape ``(B, in_channels, *spatial)``.
            prefix: the result of :meth:`forward_prefix` for ``x``; the frozen layers that it replaces do not run.

        Returns:
            logits of shape ``(B, num_classes)``; without a head the features of shape ``(B, 16 C)``, with
            ``final_norm`` ``(B, 8 C)``.
        """
        self._check_sides(list(x.shape[2:]))
        features = self.swinViT.last(x, prefix)  # (B, width, *grid)
        return self.classification_head(features.flatten(2).mean(dim=2))

    def _check_sides(self, sides: list[int]) -> None:
        if len(sides) != self.spatial_dims:
            raise ValueError(f"input must have {self.spatial_dims} sides, got {sides}.")
        if self.swinViT.norm is None:
            if any(side % self.patch_size**5 for side in sides):
                raise ValueError(f"sides of an input must be multiples of {self.patch_size**5}, got {sides}.")
            return
        least = [8 * self.patch_size * (side - 1) + 1 for side in self.swinViT.window_size]
        if any(side < bound for side, bound in zip(sides, least, strict=True)):
            raise ValueError(
                f"sides of an input must be at least {least}, so that a window of {list(self.swinViT.window_size)} "
                f"tokens fits the last stage, got {sides}."
            )
