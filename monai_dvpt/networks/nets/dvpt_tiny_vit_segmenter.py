# SPDX-License-Identifier: Apache-2.0
"""LiteMedSAM's image encoder tuned by a method, with a light decoder that segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_dvpt.networks.encoders import TinyViTEncoder
from monai_dvpt.networks.methods import Method
from monai_dvpt.networks.parts import TunableNetwork, check_decoder_tuning
from monai_dvpt.utils import check_counts

from .light_decoder import light_decoder

__all__ = ["DVPTTinyViTSegmenter"]


class DVPTTinyViTSegmenter(TunableNetwork):
    """
    LiteMedSAM's image encoder (:class:`monai_dvpt.networks.encoders.TinyViTEncoder`), tuned by a method, by default
    DVPT, with a light decoder on the neck's features, a quarter of the image a side. It needs no boxes. Sizes default
    to LiteMedSAM's, with images of any size; decoders are those of :class:`DVPTViTSegmenter`.

    Args:
        in_channels: number of image channels.
        out_channels: number of classes, background included.
        img_size: spatial size; each side a multiple of 4; LiteMedSAM's is 256.
        embed_dims: token width of each of 4 stages.
        depths: number of layers of each stage, of convolutions in the first.
        num_heads: number of attention heads of the last three stages.
        window_sizes: tokens of a window along each axis, of these stages.
        neck_size: number of channels of the neck's features.
        decoder: "linear" or "conv".
        feature_size: channels of a convolutional decoder.
        norm_name: normalisation of a convolutional decoder.
        decoder_tuning: trainable part of the decoder: "all"; "norm", its normalisation layers; or "none". The rest
            belongs to the frozen backbone.
        spatial_dims: 2.
        qkv_bias: whether query, key and value have a bias.
        layer_norm_eps: epsilon of the layer normalisations; the neck's is 1e-6.
        activation: "gelu", "gelu_pytorch_tanh", "quick_gelu" or "silu".
        use_checkpoint: whether layers recompute their activations in the backward pass, to save memory.
        method: tuning method, see :func:`monai_dvpt.networks.methods.as_method`.
        options: options of the method, such as ``num_prompts``.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule above.

    Examples::

        >>> net = DVPTTinyViTSegmenter(3, 2, 64)
        >>> net(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 2, 64, 64])

    """

    ENCODER = "image_encoder."
    HEAD = "out."
    DECODER_ARGUMENTS = frozenset({"decoder", "feature_size", "norm_name"})
    ADAPTER_ARGUMENTS = DECODER_ARGUMENTS | {"out_channels"}

    if TYPE_CHECKING:
        image_encoder: TinyViTEncoder

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int] | int,
        embed_dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (4, 5, 10),
        window_sizes: Sequence[int] = (7, 14, 7),
        neck_size: int = 256,
        decoder: str = "linear",
        feature_size: int = 64,
        norm_name: tuple | str = "instance",
        decoder_tuning: str = "all",
        spatial_dims: int = 2,
        qkv_bias: bool = True,
        layer_norm_eps: float = 1e-5,
        activation: str = "gelu",
        use_checkpoint: bool = False,
        method: str | Mapping[str, Any] | Method = "dvpt",
        **options: Any,
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise ValueError(f"spatial_dims must be 2, got {spatial_dims}.")
        check_counts(out_channels=out_channels, feature_size=feature_size)
        self.image_encoder = TinyViTEncoder(
            in_channels=in_channels,
            img_size=img_size,
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            window_sizes=window_sizes,
            neck_size=neck_size,
            qkv_bias=qkv_bias,
            layer_norm_eps=layer_norm_eps,
            activation=activation,
            use_checkpoint=use_checkpoint,
        )
        token = self.image_encoder.token_size(len(self.image_encoder.blocks) - 1)
        self.decoder, width = light_decoder(decoder, 2, neck_size, feature_size, token, norm_name)
        check_decoder_tuning(decoder_tuning, [self.decoder])
        self.out = nn.Conv2d(width, out_channels, kernel_size=1)
        self.start(method, options)

    def forward(self, x: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x: image of shape ``(B, in_channels, *img_size)``.
            prefix: the result of :meth:`forward_prefix` for ``x``; the frozen layers that it replaces do not run.

        Returns:
            logits of shape ``(B, out_channels, *img_size)``.
        """
        logits = self.out(self.decoder(self.image_encoder(x, prefix)))
        size = self.image_encoder.img_size
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
