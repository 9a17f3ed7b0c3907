# SPDX-License-Identifier: Apache-2.0
"""Vision transformer whose frozen layers are adapted by DVPT blocks, as a classifier or a feature encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
from monai.networks.nets import ViT
from monai.utils import ensure_tuple_rep
from torch.utils.checkpoint import checkpoint

from monai_dvpt.networks.blocks import DVPTList, fuse_attention
from monai_dvpt.utils import check_counts

from .vit_encoder import DVPTViTEncoder, check_vit_sizes

__all__ = ["DVPTViT"]

POOLING = ("cls", "mean", "both")


class DVPTViT(DVPTViTEncoder, ViT):
    """
    MONAI's ViT, based on "Dosovitskiy et al., An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>", with
    DVPT blocks (see :class:`monai_dvpt.networks.blocks.DVPTBlock`) after its layers. Parameter names are MONAI's own;
    the DVPT blocks live once in the list ``dvpt``. With ``dvpt_enabled = False`` and ``pooling="cls"`` the logits are
    those of MONAI's ViT without ``post_activation``.

    Args:
        in_channels: see :class:`monai.networks.nets.ViT`, as for all arguments up to ``save_attn``.
        img_size: spatial size; each side a multiple of that of ``patch_size``.
        patch_size: size of a token.
        hidden_size: token width ``C``.
        mlp_dim: width of the feed-forward layers.
        num_layers: number of transformer layers.
        num_heads: number of attention heads.
        proj_type: "conv" or "perceptron" patch embedding.
        pos_embed_type: "learnable", "sincos", "fourier" or "none".
        num_classes: number of logits; 0 for a feature encoder without a head, which returns the pooled tokens.
        dropout_rate: dropout of the transformer; off while the transformer is frozen.
        spatial_dims: 2 or 3.
        qkv_bias: whether query, key and value have a bias.
        save_attn: whether to keep the attention matrices.
        pooling: what the head sees: "cls", the class token; "mean" of the image's tokens; "both", one after the other.
        class_token: whether there is a class token; only "mean" can do without.
        layer_norm_eps: epsilon of the layer normalisations.
        activation: "gelu", "gelu_pytorch_tanh" or "quick_gelu".
        pre_norm: whether a layer normalisation follows the embedding, as in CLIP.
        use_checkpoint: whether layers compute their activations again in the backward pass, to save memory.
        bottleneck_size: width ``R`` of a DVPT block, in ``[1, hidden_size)``.
        num_prompts: prompts of a DVPT block; 0 for a plain bottleneck adapter.
        share_every: consecutive layers served by one DVPT block.
        start_layer: first layer that is followed by a DVPT block.
        side_path: whether DVPT only reads the frozen layers, which then need no backward pass; what it adds reaches the
            head beside them. A variant of the method.

    Raises:
        ValueError: if an argument, or the size of an input, breaks a rule above.

    Examples::

        >>> net = DVPTViT(3, 64, 16, hidden_size=48, mlp_dim=96, num_heads=3, spatial_dims=2, num_classes=5)
        >>> net(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 5])

    """

    HEAD = "classification_head."
    ADAPTER_ARGUMENTS = DVPTViTEncoder.ADAPTER_ARGUMENTS | {"num_classes"}

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        proj_type: str = "conv",
        pos_embed_type: str = "learnable",
        num_classes: int = 2,
        dropout_rate: float = 0.0,
        spatial_dims: int = 3,
        qkv_bias: bool = True,
        save_attn: bool = False,
        pooling: str = "cls",
        class_token: bool = True,
        layer_norm_eps: float = 1e-5,
        activation: str = "gelu",
        pre_norm: bool = False,
        use_checkpoint: bool = False,
        bottleneck_size: int = 32,
        num_prompts: int = 10,
        share_every: int = 3,
        start_layer: int = 0,
        side_path: bool = False,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        check_counts(in_channels=in_channels, num_layers=num_layers, patch_size=patch_size)
        check_counts(0, num_classes=num_classes)
        check_vit_sizes(hidden_size, mlp_dim, num_heads)
        sides, patches = ensure_tuple_rep(img_size, spatial_dims), ensure_tuple_rep(patch_size, spatial_dims)
        if any(side < patch or side % patch for side, patch in zip(sides, patches, strict=True)):
            raise ValueError(f"img_size must be positive multiples of patch_size={patches}, got {sides}.")
        if pooling not in POOLING:
            raise ValueError(f"pooling must be one of {POOLING}, got {pooling}.")
        if pooling != "mean" and not class_token:
            raise ValueError(f'class_token must be True unless pooling is "mean", got pooling {pooling}.')
        super().__init__(
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
            num_classes=max(num_classes, 1),
            dropout_rate=dropout_rate,
            spatial_dims=spatial_dims,
            post_activation="none",
            qkv_bias=qkv_bias,
            save_attn=save_attn,
        )
        self.img_size = list(sides)
        self.grid = [side // patch for side, patch in zip(sides, patches, strict=True)]
        self.pooling = pooling
        self.use_checkpoint = use_checkpoint
        if class_token:
            nn.init.trunc_normal_(self.cls_token, std=0.02)  # MONAI leaves it at 0
        features = hidden_size * (2 if pooling == "both" else 1)
        head = nn.Linear(features, num_classes) if num_classes else nn.Identity()
        self.classification_head = head  # type: ignore[assignment]
        fuse_attention(self)
        self.set_arithmetic(layer_norm_eps, activation, pre_norm)
        dvpt = DVPTList([hidden_size] * num_layers, bottleneck_size, num_prompts, share_every, start_layer)
        self.use_dvpt(dvpt, side_path)
        self.dvpt_enabled = True

    def encode(
        self, image: torch.Tensor, prefix: torch.Tensor | None = None, num_layers: int | None = None
    ) -> dict[int, torch.Tensor]:
        """
        Args:
            image: of shape ``(B, in_channels, *img_size)``.
            prefix: what :meth:`forward_prefix` gave for it; the frozen layers it stands for are then left out.
            num_layers: number of layers to run, by default all.

        Returns:
            the adapted tokens, of shape (B, N, C), after every layer that was not left out.
        """
        if list(image.shape[2:]) != self.img_size:
            raise ValueError(f"input must have the spatial size img_size={self.img_size}, got {list(image.shape[2:])}.")
        frozen = self.unpack_prefix(prefix, image.shape[0])
        if prefix is None:
            x = self.patch_embedding(image)  # (B, N, C)
            if hasattr(self, "cls_token"):
                x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        else:
            x = prefix[:, 0]
        first = 0 if prefix is None else self.prefix_layers[-1] + 1
        stop = len(self.blocks) if num_layers is None else num_layers
        side = torch.zeros([1], device=x.device, dtype=x.dtype)
        states: dict[int, torch.Tensor] = {}
        for layer, block in enumerate(self.blocks):
            if layer in frozen or first <= layer < stop:
                if layer in frozen:
                    x = frozen[layer]
                elif not torch.jit.is_scripting() and not torch.jit.is_tracing() and self.use_checkpoint:
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
                x, side, states[layer] = self.adapt(x, side, layer)
        return states

    def forward_features(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            x: image of shape ``(B, in_channels, *img_size)``.

        Returns:
            the last tokens, normalised, of shape (B, N, C), the class token first where there is one, and the tokens
            after every layer.
        """
        hidden_states = list(self.encode(x).values())
        return self.norm(hidden_states[-1]), hidden_states

    def forward(self, x: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            x: image of shape ``(B, in_channels, *img_size)``.
            prefix: what :meth:`forward_prefix` gave for ``x``, to leave out the frozen layers that it stands for.

        Returns:
            logits of shape ``(B, num_classes)``; without a head the pooled tokens of shape (B, C), or (B, 2 C) with
            ``pooling="both"``.
        """
        tokens = self.norm(self.encode(x, prefix)[len(self.blocks) - 1])
        if self.pooling == "cls":
            return self.classification_head(tokens[:, 0])
        mean = tokens[:, 1:].mean(dim=1) if hasattr(self, "cls_token") else tokens.mean(dim=1)
        return self.classification_head(mean if self.pooling == "mean" else torch.cat((tokens[:, 0], mean), dim=1))
