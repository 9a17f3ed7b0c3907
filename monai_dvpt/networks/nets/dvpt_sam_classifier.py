# SPDX-License-Identifier: Apache-2.0
"""Classifier on SAM's image encoder, tuned by a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn

from monai_dvpt.networks.encoders import SAMEncoder
from monai_dvpt.networks.methods import Method
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import check_counts

__all__ = ["DVPTSAMClassifier"]


class DVPTSAMClassifier(TunableNetwork):
    """
    SAM's image encoder (:class:`monai_dvpt.networks.encoders.SAMEncoder`), tuned by a method, by default DVPT, with a
    linear head on the mean of the neck's features. Arguments not listed here are those of :class:`DVPTSAMSegmenter`.

    Args:
        num_classes: number of logits; 0 for a feature encoder without a head.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule there.

    Examples::

        >>> net = DVPTSAMClassifier(3, 5, 64, hidden_size=48, mlp_dim=96, num_heads=3, neck_size=8)
        >>> net(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 5])

    """

    ENCODER = "image_encoder."
    HEAD = "classification_head."
    ADAPTER_ARGUMENTS = frozenset({"num_classes"})

    if TYPE_CHECKING:
        image_encoder: SAMEncoder

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        window_size: int = 14,
        global_layers: Sequence[int] = (2, 5, 8, 11),
        neck_size: int = 256,
        spatial_dims: int = 2,
        qkv_bias: bool = True,
        layer_norm_eps: float = 1e-6,
        activation: str = "gelu",
        use_checkpoint: bool = False,
        method: str | Mapping[str, Any] | Method = "dvpt",
        **options: Any,
    ) -> None:
        super().__init__()
        check_counts(0, num_classes=num_classes)
        check_counts(neck_size=neck_size)
        self.image_encoder = SAMEncoder(
            in_channels=in_channels,
            img_size=img_size,
            patch_size=patch_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            window_size=window_size,
            global_layers=global_layers,
            neck_size=neck_size,
            spatial_dims=spatial_dims,
            qkv_bias=qkv_bias,
            layer_norm_eps=layer_norm_eps,
            activation=activation,
            outputs=[num_layers - 1],
            use_checkpoint=use_checkpoint,
        )
        self.classification_head = nn.Linear(neck_size, num_classes) if num_classes else nn.Identity()
        self.start(method, options)

    def forward(self, x: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x: image of shape ``(B, in_channels, *img_size)``.
            prefix: the result of :meth:`forward_prefix` for ``x``; the frozen layers that it replaces do not run.

        Returns:
            logits of shape ``(B, num_classes)``; without a head the features of shape ``(B, neck_size)``.
        """
        features = self.image_encoder(x, prefix)  # (B, neck_size, *grid)
        return self.classification_head(features.flatten(2).mean(dim=2))
