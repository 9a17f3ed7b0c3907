# SPDX-License-Identifier: Apache-2.0
"""UNETR with its frozen transformer tuned by a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.networks.blocks import PatchEmbeddingBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.nets import UNETR
from monai.utils import ensure_tuple_rep

from monai_dvpt.networks.encoders import ViTEncoder, check_vit_sizes
from monai_dvpt.networks.methods import Method
from monai_dvpt.networks.parts import TunableNetwork, check_decoder_tuning
from monai_dvpt.utils import check_counts

__all__ = ["DVPTUNETR"]

PATCH_SIZES = (8, 16)
SKIPS = (3, 6, 9)  # layers whose tokens UNETR passes to its decoder


class DVPTUNETR(TunableNetwork, UNETR):
    """
    MONAI's UNETR, based on "Hatamizadeh et al., UNETR <https://arxiv.org/abs/2103.10504>", whose transformer ``vit`` is
    tuned by a method, by default DVPT. Parameter names are MONAI's own. Without the method (see
    :func:`monai_dvpt.networks.adapter.disable_adapter`) the output equals that of MONAI's UNETR.

    ``patch_size=8`` departs from UNETR, for structures of a few centimetres: it has eight times as many tokens (3D),
    and a decoder whose deepest level stays on the token grid, so that three up-samplings instead of four reach the
    image.

    Args:
        in_channels: number of image channels; this and the arguments up to ``save_attn`` are those of MONAI's UNETR.
        out_channels: number of classes, background included.
        img_size: spatial size in voxels; each side a multiple of ``patch_size``.
        feature_size: channels of the decoder at full resolution.
        hidden_size: token width ``C``.
        mlp_dim: width of the transformer's feed-forward layers.
        num_heads: number of attention heads.
        proj_type: "conv" or "perceptron" patch embedding.
        norm_name: normalisation of the decoder.
        conv_block: whether the projection blocks of the decoder have convolutions.
        res_block: whether the decoder's blocks are residual.
        dropout_rate: dropout of the transformer; off while the transformer is frozen.
        spatial_dims: 2 or 3.
        qkv_bias: whether query, key and value have a bias.
        save_attn: whether to keep the attention matrices.
        patch_size: side of a token in voxels, 16 (UNETR's) or 8.
        decoder_tuning: trainable part of the decoder: "all"; "norm", its normalisation layers; or "none". The rest
            belongs to the frozen backbone.
        layer_norm_eps: epsilon of the transformer's layer normalisations.
        activation: the transformer's, "gelu", "gelu_pytorch_tanh", "quick_gelu" or "silu".
        pre_norm: whether a layer normalisation follows the embedding, as in CLIP.
        layout: what else the transformer has beyond MONAI's, by the names of
            :class:`monai_dvpt.networks.encoders.ViTLayout`, such as ``{"num_registers": 4}``.
        use_checkpoint: whether transformer layers recompute their activations in the backward pass.
        method: tuning method, see :func:`monai_dvpt.networks.methods.as_method`.
        options: options of the method, such as ``num_prompts``.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule above.

    Examples::

        >>> net = DVPTUNETR(1, 3, (48, 64, 48), feature_size=8, hidden_size=192, mlp_dim=768, num_heads=3)
        >>> net(torch.zeros(1, 1, 48, 64, 48)).shape
        torch.Size([1, 3, 48, 64, 48])

    """

    ENCODER = "vit."
    HEAD = "out."
    DECODER_ARGUMENTS = frozenset({"feature_size", "norm_name", "conv_block", "res_block"})
    ADAPTER_ARGUMENTS = DECODER_ARGUMENTS | {"out_channels"}

    if TYPE_CHECKING:
        vit: ViTEncoder

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int] | int,
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        proj_type: str = "conv",
        norm_name: tuple | str = "instance",
        conv_block: bool = True,
        res_block: bool = True,
        dropout_rate: float = 0.0,
        spatial_dims: int = 3,
        qkv_bias: bool = False,
        save_attn: bool = False,
        patch_size: int = 16,
        decoder_tuning: str = "all",
        layer_norm_eps: float = 1e-5,
        activation: str = "gelu",
        pre_norm: bool = False,
        layout: Mapping[str, Any] | None = None,
        use_checkpoint: bool = False,
        method: str | Mapping[str, Any] | Method = "dvpt",
        **options: Any,
    ) -> None:
        check_vit_sizes(spatial_dims, hidden_size, mlp_dim, num_heads)
        if patch_size not in PATCH_SIZES:
            raise ValueError(f"patch_size must be one of {PATCH_SIZES}, got {patch_size}.")
        check_counts(in_channels=in_channels, out_channels=out_channels, feature_size=feature_size)
        sides = ensure_tuple_rep(img_size, spatial_dims)
        if any(not isinstance(side, int) or side < patch_size or side % patch_size for side in sides):
            raise ValueError(f"img_size must be positive multiples of patch_size={patch_size}, got {sides}.")
        # The transformer depends only on the token grid, so UNETR is built with its own 16-voxel tokens on that grid.
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            img_size=tuple(side * 16 // patch_size for side in sides),
            feature_size=feature_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_heads=num_heads,
            proj_type=proj_type,
            norm_name=norm_name,
            conv_block=conv_block,
            res_block=res_block,
            dropout_rate=dropout_rate,
            spatial_dims=spatial_dims,
            qkv_bias=qkv_bias,
            save_attn=save_attn,
        )
        if patch_size == 8:
            self.patch_size = ensure_tuple_rep(8, spatial_dims)
            self.vit.patch_embedding = PatchEmbeddingBlock(
                in_channels,
                sides,
                self.patch_size,
                hidden_size,
                num_heads,
                proj_type,
                dropout_rate=dropout_rate,
                spatial_dims=spatial_dims,
            )
            self._drop_deepest_level(feature_size, norm_name, conv_block, res_block, spatial_dims)
        check_decoder_tuning(decoder_tuning, [self.encoder1, self.decoder2])
        self.img_size = list(sides)
        patches = [patch_size] * spatial_dims
        arithmetic = (layer_norm_eps, activation, pre_norm, layout)
        ViTEncoder.of(self.vit, sides, patches, num_heads, *arithmetic, use_checkpoint, SKIPS)
        self.start(method, options)

    def _drop_deepest_level(
        self, feature_size: int, norm_name: tuple | str, conv_block: bool, res_block: bool, spatial_dims: int
    ) -> None:
        """Removes one up-sampling from every path, so that the deepest level stays on the token grid."""
        levels = (("encoder2", 2, 1, 2), ("encoder3", 4, 0, 2), ("encoder4", 8, 0, 1))
        for name, channels, num_layer, upsample in levels:
            block = UnetrPrUpBlock(
                spatial_dims=spatial_dims,
                in_channels=self.hidden_size,
                out_channels=feature_size * channels,
                num_layer=num_layer,
                kernel_size=3,
                stride=1,
                upsample_kernel_size=upsample,
                norm_name=norm_name,
                conv_block=conv_block,
                res_block=res_block,
            )
            setattr(self, name, block)
        self.decoder5 = UnetrUpBlock(
            spatial_dims=spatial_dims,
            in_channels=self.hidden_size,
            out_channels=feature_size * 8,
            kernel_size=3,
            upsample_kernel_size=1,
            norm_name=norm_name,
            res_block=res_block,
        )

    def forward(self, x_in: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x_in: image of shape ``(B, in_channels, *img_size)``.
            prefix: the result of :meth:`forward_prefix` for ``x_in``; the frozen layers that it replaces do not run.

        Returns:
            logits of shape ``(B, out_channels, *img_size)``.
        """
        first = self.vit.first_token
        states = {layer: tokens[:, first:] for layer, tokens in self.vit.encode(x_in, prefix).items()}
        x = self.decoder5(self.proj_feat(self.vit.norm(states[11])), self.encoder4(self.proj_feat(states[9])))
        x = self.decoder4(x, self.encoder3(self.proj_feat(states[6])))
        x = self.decoder3(x, self.encoder2(self.proj_feat(states[3])))
        return self.out(self.decoder2(x, self.encoder1(x_in)))
