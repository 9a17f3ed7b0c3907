# SPDX-License-Identifier: Apache-2.0
"""Vision transformer tuned by a method, with a light decoder that segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from monai.networks.nets import ViT

from monai_dvpt.networks.encoders import ViTEncoder, check_vit_image, check_vit_sizes
from monai_dvpt.networks.methods import Method
from monai_dvpt.networks.parts import TunableNetwork, check_decoder_tuning
from monai_dvpt.utils import check_counts

from .light_decoder import INTERPOLATION, chosen_layers, light_decoder

__all__ = ["DVPTViTSegmenter"]


class DVPTViTSegmenter(TunableNetwork):
    """
    MONAI's ViT, tuned by a method, by default DVPT, with a light decoder, for any patch size, in 2D and 3D. The tokens
    of one or several layers, each normalised by the ViT's last normalisation, are concatenated on the token grid.

    - ``decoder="linear"``: a 1x1 convolution makes the logits, which are interpolated to the image; the linear
      evaluation of "Oquab et al., DINOv2 <https://arxiv.org/abs/2304.07193>", section 7.4, without its batch
      normalisation.
    - ``decoder="conv"``: a 1x1 convolution to ``feature_size`` channels, then twice a linear up-sampling by 2 and
      MONAI's block of two 3x3 convolutions, then as above. An axis along which a token is less than 2 voxels long is
      not up-sampled.

    Args:
        in_channels: number of image channels.
        out_channels: number of classes, background included.
        img_size: spatial size; each side a multiple of the side of ``patch_size``.
        patch_size: size of a token; the sides may differ, such as ``(14, 14, 1)`` for thick slices.
        hidden_size: token width ``C``.
        mlp_dim: width of the feed-forward layers.
        num_layers: number of transformer layers.
        num_heads: number of attention heads.
        proj_type: "conv" or "perceptron" patch embedding.
        pos_embed_type: "learnable", "sincos", "fourier" or "none".
        outputs: indices of the layers whose tokens the decoder reads, ascending, the last layer among them; by default
            the last alone.
        decoder: "linear" or "conv".
        feature_size: channels of a convolutional decoder.
        norm_name: normalisation of a convolutional decoder.
        decoder_tuning: trainable part of the decoder: "all"; "norm", its normalisation layers; or "none". The rest
            belongs to the frozen backbone.
        dropout_rate: dropout of the transformer; off while the transformer is frozen.
        spatial_dims: 2 or 3.
        qkv_bias: whether query, key and value have a bias.
        save_attn: whether to keep the attention matrices.
        class_token: whether there is a class token, which the decoder does not read.
        layer_norm_eps: epsilon of the layer normalisations.
        activation: "gelu", "gelu_pytorch_tanh", "quick_gelu" or "silu".
        pre_norm: whether a layer normalisation follows the embedding, as in CLIP.
        layout: what else the transformer has beyond MONAI's, by the names of
            :class:`monai_dvpt.networks.encoders.ViTLayout`, such as ``{"num_registers": 4}``.
        use_checkpoint: whether layers recompute their activations in the backward pass, to save memory.
        method: tuning method, see :func:`monai_dvpt.networks.methods.as_method`.
        options: options of the method, such as ``num_prompts``.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule above.

    Examples::

        >>> net = DVPTViTSegmenter(3, 2, (42, 56), 14, hidden_size=48, mlp_dim=96, num_heads=3, spatial_dims=2)
        >>> net(torch.zeros(1, 3, 42, 56)).shape
        torch.Size([1, 2, 42, 56])

    """

    ENCODER = "vit."
    HEAD = "out."
    DECODER_ARGUMENTS = frozenset({"decoder", "feature_size", "norm_name"})
    ADAPTER_ARGUMENTS = DECODER_ARGUMENTS | {"out_channels"}

    if TYPE_CHECKING:
        vit: ViTEncoder

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
        proj_type: str = "conv",
        pos_embed_type: str = "learnable",
        outputs: Sequence[int] | None = None,
        decoder: str = "linear",
        feature_size: int = 64,
        norm_name: tuple | str = "instance",
        decoder_tuning: str = "all",
        dropout_rate: float = 0.0,
        spatial_dims: int = 3,
        qkv_bias: bool = True,
        save_attn: bool = False,
        class_token: bool = True,
        layer_norm_eps: float = 1e-5,
        activation: str = "gelu",
        pre_norm: bool = False,
        layout: Mapping[str, Any] | None = None,
        use_checkpoint: bool = False,
        method: str | Mapping[str, Any] | Method = "dvpt",
        **options: Any,
    ) -> None:
        super().__init__()
        check_vit_sizes(spatial_dims, hidden_size, mlp_dim, num_heads)
        check_counts(in_channels=in_channels, out_channels=out_channels, num_layers=num_layers)
        check_counts(feature_size=feature_size)
        sides, patches = check_vit_image(spatial_dims, img_size, patch_size)
        layers = chosen_layers(outputs, num_layers)
        vit = ViT(
            in_channels=in_channels,
            img_size=sides,
            patch_size=patches,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            proj_type=proj_type,
            pos_embed_type=pos_embed_type,
            classification=class_token,
            num_classes=1,
            dropout_rate=dropout_rate,
            spatial_dims=spatial_dims,
            qkv_bias=qkv_bias,
            save_attn=save_attn,
        )
        if class_token:
            nn.init.trunc_normal_(vit.cls_token, std=0.02)  # MONAI leaves it at 0
            del vit.classification_head
        arithmetic = (layer_norm_eps, activation, pre_norm, layout)
        self.vit = ViTEncoder.of(vit, sides, patches, num_heads, *arithmetic, use_checkpoint, layers[:-1])
        self.interpolation = INTERPOLATION[spatial_dims]
        width = hidden_size * len(layers)
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
        states = self.vit.encode(x, prefix)
        tokens = torch.cat([self.vit.norm(states[layer]) for layer in self.vit.outputs], dim=2)
        features = tokens[:, self.vit.first_token :].transpose(1, 2)  # (B, C, N)
        features = features.reshape([features.shape[0], features.shape[1]] + self.vit.grid)  # (B, C, *grid)
        logits = self.out(self.decoder(features))
        return F.interpolate(logits, size=self.vit.img_size, mode=self.interpolation, align_corners=False)
