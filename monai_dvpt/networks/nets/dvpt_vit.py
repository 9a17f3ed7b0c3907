# SPDX-License-Identifier: Apache-2.0
"""Vision transformer tuned by a method, as a classifier or a feature encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn

from monai_dvpt.networks.blocks import PromptHead
from monai_dvpt.networks.encoders import ViTEncoder, check_vit_image, check_vit_sizes
from monai_dvpt.networks.methods import Method
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import check_counts

__all__ = ["DVPTViT"]

POOLING = ("cls", "mean", "both", "prompts")
PROMPTS = {"num_prompts": 8, "bottleneck_size": 16, "every": 3}
"""Options of the pooling "prompts"."""


class DVPTViT(TunableNetwork, ViTEncoder):
    """
    MONAI's ViT, based on "Dosovitskiy et al., An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>", tuned
    by a method, by default DVPT. Parameter names are MONAI's own. Without the method (see
    :func:`monai_dvpt.networks.adapter.disable_adapter`) and with ``pooling="cls"`` the logits equal those of MONAI's
    ViT without ``post_activation``.

    Args:
        in_channels: number of image channels; this and the arguments up to ``save_attn`` are those of MONAI's ViT.
        img_size: spatial size; each side a multiple of the side of ``patch_size``.
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
        pooling: input of the head: "cls", the class token; "mean", of the image's tokens; "both", concatenated; or
            "prompts", both and what dynamic prompts read from the layers, see
            :class:`monai_dvpt.networks.blocks.PromptHead`. With options as MONAI's ``norm_name`` has them, these
            are the defaults: ``("prompts", {"num_prompts": 8, "bottleneck_size": 16, "every": 3})``, which reads from
            every third layer, up to the last.
        class_token: whether there is a class token; the poolings "cls" and "both" need it.
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

        >>> net = DVPTViT(3, 64, 16, hidden_size=48, mlp_dim=96, num_heads=3, spatial_dims=2, num_classes=5)
        >>> net(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 5])

    """

    HEAD = "classification_head."
    ADAPTER_ARGUMENTS = frozenset({"num_classes"})

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
        pooling: tuple | str = "cls",
        class_token: bool = True,
        layer_norm_eps: float = 1e-5,
        activation: str = "gelu",
        pre_norm: bool = False,
        layout: Mapping[str, Any] | None = None,
        use_checkpoint: bool = False,
        method: str | Mapping[str, Any] | Method = "dvpt",
        **options: Any,
    ) -> None:
        check_vit_sizes(spatial_dims, hidden_size, mlp_dim, num_heads)
        check_counts(in_channels=in_channels, num_layers=num_layers)
        check_counts(0, num_classes=num_classes)
        sides, patches = check_vit_image(spatial_dims, img_size, patch_size)
        name, reading = _pooling(pooling)
        if name in ("cls", "both") and not class_token:
            raise ValueError(f'class_token must be True with pooling "cls" or "both", got pooling {name}.')
        if name == "prompts" and not num_classes:
            raise ValueError('num_classes must be at least 1 with pooling "prompts", got 0.')
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
        self.pooling = name
        if class_token:
            nn.init.trunc_normal_(self.cls_token, std=0.02)  # MONAI leaves it at 0
        features = hidden_size * (2 if class_token and name in ("both", "prompts") else 1)
        every = reading.pop("every", num_layers)
        read = list(range(num_layers - 1, -1, -every))[::-1]
        head: nn.Module = nn.Linear(features, num_classes) if num_classes else nn.Identity()
        if name == "prompts":
            head = PromptHead(features, num_classes, [hidden_size] * len(read), **reading)
        self.classification_head = head  # type: ignore[assignment]
        arithmetic = (layer_norm_eps, activation, pre_norm, layout)
        ViTEncoder.of(self, sides, patches, num_heads, *arithmetic, use_checkpoint, read[:-1])
        self.start(method, options)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, prefix: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            x: image of shape ``(B, in_channels, *img_size)``.
            prefix: the result of :meth:`forward_prefix` for ``x``; the frozen layers that it replaces do not run.

        Returns:
            logits of shape ``(B, num_classes)``; without a head the pooled tokens of shape (B, C), or (B, 2 C) with
            ``pooling="both"``.
        """
        states = self.encode(x, prefix)
        tokens = states[len(self.blocks) - 1]
        if not self.pool_norm:
            tokens = self.norm(tokens)
        mean = tokens[:, self.first_token :].mean(dim=1)
        parts: list[torch.Tensor] = []
        if hasattr(self, "cls_token") and self.pooling != "mean":
            parts.append(tokens[:, 0])
        if self.pooling != "cls":
            parts.append(mean)
        if self.pool_norm:
            parts = [self.norm(part) for part in parts]
        pooled = torch.cat(parts, dim=1)
        if hasattr(self.classification_head, "readers"):
            return self.classification_head(pooled, [states[layer] for layer in self.outputs])
        return self.classification_head(pooled)


def _pooling(pooling: tuple | str) -> tuple[str, dict[str, int]]:
    """Name and options of a pooling."""
    pair = (pooling, {}) if isinstance(pooling, str) else pooling
    if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[1], Mapping):
        raise ValueError(f"pooling must be a name, or a name and an object of options, got {pooling}.")
    name, given = pair
    known = PROMPTS if name == "prompts" else {}
    if name not in POOLING:
        raise ValueError(f"pooling must be one of {POOLING}, got {pooling}.")
    if not given.keys() <= known.keys():
        raise ValueError(f'pooling must have options of {list(PROMPTS)}, with "prompts", got {pooling}.')
    check_counts(every={**PROMPTS, **given}["every"])
    return name, {**known, **given}
