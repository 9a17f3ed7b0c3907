# SPDX-License-Identifier: Apache-2.0
"""Classifier on the Swin transformer of SwinUNETR, tuned by a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.utils import ensure_tuple_rep

from monai_dvpt.networks.encoders import SwinEncoder, check_swin_sizes
from monai_dvpt.networks.methods import Method
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import check_counts

__all__ = ["DVPTSwinClassifier"]


class DVPTSwinClassifier(TunableNetwork):
    """
    The Swin transformer of MONAI's SwinUNETR, tuned by a method, by default DVPT, with a linear head on the mean of its
    last, normalised features. Names are those of SwinUNETR, so it takes the same pretrained weights. Arguments not
    listed here are those of :class:`DVPTSwinUNETR`.

    Args:
        num_classes: number of logits; 0 for a feature encoder without a head.
        feature_size: token width ``C`` of the first stage, divisible by its number of heads; every stage doubles it.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule there.

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
        method: str | Mapping[str, Any] | Method = "dvpt",
        **options: Any,
    ) -> None:
        super().__init__()
        check_swin_sizes(spatial_dims, in_channels, patch_size, depths, num_heads, window_size, feature_size)
        check_counts(0, num_classes=num_classes)
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
            downsample=downsample,
            use_v2=use_v2,
        )
        self.swinViT = SwinEncoder.of(swin, depths, num_heads, downsample, use_checkpoint)
        self.classification_head = nn.Linear(16 * feature_size, num_classes) if num_classes else nn.Identity()
        self.start(method, options)

    def forward(self, x: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x: image of shape ``(B, in_channels, *spatial)``.
            prefix: the result of :meth:`forward_prefix` for ``x``; the frozen layers that it replaces do not run.

        Returns:
            logits of shape ``(B, num_classes)``; without a head the features of shape ``(B, 16 C)``.
        """
        sides = list(x.shape[2:])
        if len(sides) != self.spatial_dims or any(side % self.patch_size**5 for side in sides):
            raise ValueError(
                f"input must have {self.spatial_dims} sides that are multiples of {self.patch_size**5}, got {sides}."
            )
        features = self.swinViT.proj_out(self.swinViT.encode(x, prefix)[4], normalize=True)  # (B, 16 C, *grid)
        return self.classification_head(features.flatten(2).mean(dim=2))
