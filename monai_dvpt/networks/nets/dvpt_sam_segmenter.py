# SPDX-License-Identifier: Apache-2.0
"""SAM's image encoder tuned by a method, with a light decoder that segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv

from monai_dvpt.networks.encoders import SAMEncoder
from monai_dvpt.networks.methods import Method
from monai_dvpt.networks.parts import TunableNetwork, check_decoder_tuning
from monai_dvpt.utils import check_counts

from .light_decoder import INTERPOLATION, chosen_layers, light_decoder

__all__ = ["DVPTSAMSegmenter"]


class DVPTSAMSegmenter(TunableNetwork):
    """
    SAM's image encoder (:class:`monai_dvpt.networks.encoders.SAMEncoder`), tuned by a method, by default DVPT, with a
    light decoder that needs no clicks and no boxes. Sizes default to those of SAM and MedSAM ViT-B, with images of any
    size.

    The decoder reads the neck's features, or the tokens of one or several layers, concatenated, not normalised, as the
    transformer ends without a normalisation; then there is no neck. Decoders are those of :class:`DVPTViTSegmenter`.

    Args:
        in_channels: number of image channels.
        out_channels: number of classes, background included.
        img_size: spatial size; each side a multiple of the side of ``patch_size``.
        patch_size: size of a token.
        hidden_size: token width ``C``.
        mlp_dim: width of the feed-forward layers.
        num_layers: number of transformer layers.
        num_heads: number of attention heads.
        window_size: number of tokens of a window along each axis.
        global_layers: indices of the layers that attend to all tokens, ascending; the others attend inside windows.
        neck_size: number of channels of the neck's features; 384 in SAM-Med3D.
        outputs: indices of the layers whose tokens the decoder reads, ascending, the last layer among them; by default
            the decoder reads the neck's features.
        decoder: "linear" or "conv".
        feature_size: channels of a convolutional decoder.
        norm_name: normalisation of a convolutional decoder.
        decoder_tuning: trainable part of the decoder: "all"; "norm", its normalisation layers; or "none". The rest
            belongs to the frozen backbone.
        spatial_dims: 2, or 3 as in SAM-Med3D.
        qkv_bias: whether query, key and value have a bias.
        layer_norm_eps: epsilon of the layer normalisations; the neck's is 1e-6.
        activation: "gelu", "gelu_pytorch_tanh", "quick_gelu" or "silu".
        use_checkpoint: whether layers recompute their activations in the backward pass, to save memory.
        method: tuning method, see :func:`monai_dvpt.networks.methods.as_method`.
        options: options of the method, such as ``num_prompts``.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule above.

    Examples::

        >>> net = DVPTSAMSegmenter(3, 2, 64, hidden_size=48, mlp_dim=96, num_heads=3, neck_size=8)
        >>> net(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 2, 64, 64])

    """

    ENCODER = "image_encoder."
    HEAD = "out."
    DECODER_ARGUMENTS = frozenset({"decoder", "feature_size", "norm_name"})
    ADAPTER_ARGUMENTS = DECODER_ARGUMENTS | {"out_channels"}

    if TYPE_CHECKING:
        image_encoder: SAMEncoder

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        window_size: int = 14,
        global_layers: Sequence[int] = (2, 5, 8, 11),
        neck_size: int = 256,
        outputs: Sequence[int] | None = None,
        decoder: str = "linear",
        feature_size: int = 64,
        norm_name: tuple | str = "instance",
        decoder_tuning: str = "all",
        spatial_dims: int = 2,
        qkv_bias: bool = True,
        layer_norm_eps: float = 1e-6,
        activation: str = "gelu",
        use_checkpoint: bool = False,
        method: str | Mapping[str, Any] | Method = "dvpt",
        **options: Any,
    ) -> None:
        super().__init__()
        check_counts(out_channels=out_channels, num_layers=num_layers, neck_size=neck_size, feature_size=feature_size)
        layers = chosen_layers(outputs, num_layers)
        self.reads_neck = outputs is None
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
            neck_size=neck_size if self.reads_neck else 0,
            spatial_dims=spatial_dims,
            qkv_bias=qkv_bias,
            layer_norm_eps=layer_norm_eps,
            activation=activation,
            outputs=layers,
            use_checkpoint=use_checkpoint,
        )
        self.interpolation = INTERPOLATION[spatial_dims]
        width = neck_size if self.reads_neck else hidden_size * len(layers)
        patches = self.image_encoder.patch_size
        self.decoder, width = light_decoder(decoder, spatial_dims, width, feature_size, patches, norm_name)
        check_decoder_tuning(decoder_tuning, [self.decoder])
        self.out = Conv[Conv.CONV, spatial_dims](width, out_channels, kernel_size=1)
        self.start(method, options)

    def forward(self, x: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x: image of shape ``(B, in_channels, *img_size)``.
            prefix: the result of :meth:`forward_prefix` for ``x``; the frozen layers that it replaces do not run.

        Returns:
            logits of shape ``(B, out_channels, *img_size)``.
        """
        if self.reads_neck:
            features = self.image_encoder(x, prefix)
        else:
            states = self.image_encoder.encode(x, prefix)
            tokens = torch.cat([states[layer] for layer in self.image_encoder.outputs], dim=-1)
            features = tokens.movedim(-1, 1)  # (B, C, *grid)
        logits = self.out(self.decoder(features))
        size = self.image_encoder.img_size
        return F.interpolate(logits, size=size, mode=self.interpolation, align_corners=False)
