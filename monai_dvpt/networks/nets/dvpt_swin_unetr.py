# SPDX-License-Identifier: Apache-2.0
"""SwinUNETR with its frozen Swin transformer tuned by a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.networks.nets import SwinUNETR

from monai_dvpt.networks.encoders import MERGINGS, SwinEncoder, check_swin_sizes
from monai_dvpt.networks.methods import Method
from monai_dvpt.networks.parts import TunableNetwork, check_decoder_tuning
from monai_dvpt.utils import check_counts

__all__ = ["DVPTSwinUNETR"]


class DVPTSwinUNETR(TunableNetwork, SwinUNETR):
    """
    MONAI's SwinUNETR, based on "Hatamizadeh et al., Swin UNETR <https://arxiv.org/abs/2201.01266>", whose transformer
    ``swinViT`` is tuned by a method, by default DVPT. Parameter names are MONAI's own. Without the method (see
    :func:`monai_dvpt.networks.adapter.disable_adapter`) the output equals that of MONAI's SwinUNETR.

    Most of SwinUNETR is its decoder: of the 62.2 million parameters at ``feature_size=48`` the encoder has 8.1.
    ``decoder_tuning`` keeps a pretrained decoder frozen. MONAI's Hyena layers are not available.

    Args:
        in_channels: number of image channels; this and the arguments up to ``use_v2`` are those of MONAI's SwinUNETR.
        out_channels: number of classes, background included.
        patch_size: side of a token, 2; each side of an input must be a multiple of its fifth power.
        depths: number of layers of each of the four stages.
        num_heads: number of attention heads of each stage.
        window_size: side of an attention window, in tokens.
        qkv_bias: whether query, key and value have a bias.
        mlp_ratio: width of the feed-forward layers as a multiple of the token width.
        feature_size: token width of the first stage, a multiple of 12; every stage doubles it.
        norm_name: normalisation of the decoder.
        drop_rate: dropout; like the next two, off while the transformer is frozen.
        attn_drop_rate: dropout of the attention.
        dropout_path_rate: stochastic depth.
        normalize: whether the decoder gets normalised features.
        patch_norm: whether a normalisation follows the patch embedding.
        use_checkpoint: whether layers recompute their activations in the backward pass, to save memory.
        spatial_dims: 2 or 3.
        downsample: "merging" or "mergingv2", as in MONAI; or "merging_before_1_5", as MONAI's "merging" computed until
            MONAI 1.4, in 3D another function of the same weights, so most released 3D weights need it.
        use_v2: whether every stage starts with a residual convolution block, as in SwinUNETR-V2.
        decoder_tuning: trainable part of the decoder: "all"; "norm", its normalisation layers; or "none". The rest
            belongs to the frozen backbone.
        method: tuning method, see :func:`monai_dvpt.networks.methods.as_method`.
        options: options of the method, such as ``num_prompts``.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule above.

    Examples::

        >>> net = DVPTSwinUNETR(1, 3, feature_size=12, bottleneck_size=8)
        >>> net(torch.zeros(1, 1, 64, 32, 32)).shape
        torch.Size([1, 3, 64, 32, 32])

    """

    ENCODER = "swinViT."
    HEAD = "out."
    DECODER_ARGUMENTS = frozenset({"norm_name"})
    ADAPTER_ARGUMENTS = DECODER_ARGUMENTS | {"out_channels"}
    TRAINING_ARGUMENTS = frozenset({"drop_rate", "attn_drop_rate", "dropout_path_rate", "use_checkpoint"})

    if TYPE_CHECKING:
        swinViT: SwinEncoder

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: int = 2,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: Sequence[int] | int = 7,
        qkv_bias: bool = True,
        mlp_ratio: float = 4.0,
        feature_size: int = 24,
        norm_name: tuple | str = "instance",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dropout_path_rate: float = 0.0,
        normalize: bool = True,
        patch_norm: bool = False,
        use_checkpoint: bool = False,
        spatial_dims: int = 3,
        downsample: str = "merging",
        use_v2: bool = False,
        decoder_tuning: str = "all",
        method: str | Mapping[str, Any] | Method = "dvpt",
        **options: Any,
    ) -> None:
        check_swin_sizes(spatial_dims, in_channels, patch_size, depths, num_heads, window_size, feature_size)
        check_counts(out_channels=out_channels)
        if feature_size % 12:
            raise ValueError(f"feature_size must be a multiple of 12, got {feature_size}.")
        if patch_size != 2:
            raise ValueError(f"patch_size must be 2, as the decoder doubles the first tokens once, got {patch_size}.")
        merging: Any = MERGINGS.get(downsample, downsample)
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            patch_size=patch_size,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            qkv_bias=qkv_bias,
            mlp_ratio=mlp_ratio,
            feature_size=feature_size,
            norm_name=norm_name,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            dropout_path_rate=dropout_path_rate,
            normalize=normalize,
            patch_norm=patch_norm,
            spatial_dims=spatial_dims,
            downsample=merging,
            use_v2=use_v2,
        )
        check_decoder_tuning(decoder_tuning, [self.encoder1, self.decoder1])
        SwinEncoder.of(self.swinViT, depths, num_heads, downsample, use_checkpoint)
        self.start(method, options)

    def forward(self, x_in: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x_in: image of shape ``(B, in_channels, *spatial)``.
            prefix: the result of :meth:`forward_prefix` for ``x_in``; the frozen layers that it replaces do not run.

        Returns:
            logits of shape ``(B, out_channels, *spatial)``.
        """
        self._check_input_size(x_in.shape[2:])
        features = self.swinViT(x_in, self.normalize, prefix)
        x = self.decoder5(self.encoder10(features[4]), features[3])
        x = self.decoder4(x, self.encoder4(features[2]))
        x = self.decoder3(x, self.encoder3(features[1]))
        x = self.decoder2(x, self.encoder2(features[0]))
        return self.out(self.decoder1(x, self.encoder1(x_in)))
