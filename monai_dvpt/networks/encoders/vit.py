# SPDX-License-Identifier: Apache-2.0
"""MONAI's ViT as an encoder, with settings that MONAI fixes and pretrained weights vary."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from monai.networks.blocks import TransformerBlock
from monai.networks.nets import ViT
from monai.utils import ensure_tuple_rep

from monai_dvpt.utils import check_counts

from .encoder import Encoder

__all__ = ["ACTIVATIONS", "ViTEncoder", "check_vit_image", "check_vit_sizes"]

HEAD = "classification_head"  # MONAI's name


class QuickGELU(nn.Module):
    """The approximation ``x sigmoid(1.702 x)`` of GELU that CLIP was trained with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


# named as in the configurations of Hugging Face models
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
}


def check_vit_sizes(spatial_dims: int, hidden_size: int, mlp_dim: int, num_heads: int) -> None:
    """
    Raises:
        ValueError: if ``spatial_dims`` is not 2 or 3, another size is not a whole number of at least 1, or
            ``num_heads`` does not divide ``hidden_size``.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
    check_counts(hidden_size=hidden_size, mlp_dim=mlp_dim, num_heads=num_heads)
    if hidden_size % num_heads:
        raise ValueError(f"num_heads must divide hidden_size={hidden_size}, got {num_heads}.")


def check_vit_image(
    spatial_dims: int, img_size: Sequence[int] | int, patch_size: Sequence[int] | int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """
    Returns:
        the sides of an image and of a token.

    Raises:
        ValueError: if a side is not a whole number of at least 1, or a side of an image no multiple of the token's.
    """
    check_counts(img_size=img_size, patch_size=patch_size)
    sides, patches = ensure_tuple_rep(img_size, spatial_dims), ensure_tuple_rep(patch_size, spatial_dims)
    if any(side < patch or side % patch for side, patch in zip(sides, patches, strict=True)):
        raise ValueError(f"img_size must be positive multiples of patch_size={patches}, got {sides}.")
    return sides, patches


class ViTEncoder(Encoder, ViT):
    """MONAI's :class:`monai.networks.nets.ViT` without its head, under the same parameter names."""

    if TYPE_CHECKING:
        img_size: list[int]
        patch_size: list[int]
        grid: list[int]
        tokens: list[int]

    @classmethod
    def of(
        cls,
        vit: ViT,
        img_size: Sequence[int],
        patch_size: Sequence[int],
        num_heads: int,
        layer_norm_eps: float,
        activation: str,
        pre_norm: bool,
        use_checkpoint: bool,
        skips: Sequence[int] = (),
    ) -> ViTEncoder:
        """
        Turns MONAI's ViT into an encoder in place; its tensors and their names stay.

        Args:
            vit: the ViT.
            img_size: spatial size of an image.
            patch_size: spatial size of a token.
            num_heads: number of attention heads.
            layer_norm_eps, activation, pre_norm: see :meth:`set_arithmetic`.
            use_checkpoint: whether layers recompute their activations in the backward pass.
            skips: layers whose tokens the network uses besides those of the last one.
        """
        if not isinstance(vit, cls):
            vit.__class__ = cls
        encoder: Any = vit
        encoder.img_size, encoder.patch_size = list(img_size), list(patch_size)
        encoder.grid = [side // patch for side, patch in zip(img_size, patch_size, strict=True)]
        encoder.tokens = [math.prod(encoder.grid) + hasattr(vit, "cls_token"), vit.norm.normalized_shape[0]]
        encoder.open_slot([*skips, len(vit.blocks) - 1], use_checkpoint, num_heads=num_heads)
        encoder.set_arithmetic(layer_norm_eps, activation, pre_norm)
        return encoder

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image: of shape ``(B, in_channels, *img_size)``.

        Returns:
            its tokens, of shape (B, N, C), a class token first.
        """
        x = self.patch_embedding(image)
        if hasattr(self, "cls_token"):
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        return x

    def encode(self, image: torch.Tensor, prefix: torch.Tensor | None = None) -> dict[int, torch.Tensor]:
        """
        Args:
            image: of shape ``(B, in_channels, *img_size)``.
            prefix: the result of :meth:`prefix_of` for it; the frozen layers that it replaces do not run.

        Returns:
            by layer of ``outputs`` the adapted tokens, of shape (B, N, C).
        """
        return self._run_sized(image, prefix, self.outputs)

    def forward_features(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            x: image of shape ``(B, in_channels, *img_size)``.

        Returns:
            the last tokens, normalised, of shape (B, N, C), a class token first, and the tokens after every layer.
        """
        layers = list(range(len(self.dvpt_of_layer)))
        states = self._run_sized(x, None, layers)
        hidden_states = [states[layer] for layer in layers]
        return self.norm(hidden_states[-1]), hidden_states

    def _run_sized(self, image: torch.Tensor, prefix: torch.Tensor | None, keep: list[int]) -> dict[int, torch.Tensor]:
        if list(image.shape[2:]) != self.img_size:
            raise ValueError(f"input must have the spatial size img_size={self.img_size}, got {list(image.shape[2:])}.")
        wanted: list[int] = []
        return self.run(image, prefix, keep, wanted)[0]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As MONAI's ViT without a head, see :meth:`forward_features`."""
        return self.forward_features(x)

    def set_arithmetic(self, layer_norm_eps: float, activation: str, pre_norm: bool) -> None:
        """
        Sets what an encoder computes but its weights do not tell.

        Args:
            layer_norm_eps: epsilon of its layer normalisations.
            activation: of the feed-forward layers: "gelu", "gelu_pytorch_tanh" or "quick_gelu".
            pre_norm: whether a layer normalisation follows the embedding, as in CLIP.

        Raises:
            ValueError: if ``activation`` is unknown or ``layer_norm_eps`` not positive.
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation}.")
        if not layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps must be positive, got {layer_norm_eps}.")
        embedding: Any = self.patch_embedding
        # MONAI's embedding ends with this module; the class token joins later, with the norm folded into its weight
        plain = embedding.dropout[-1] if isinstance(embedding.dropout, nn.Sequential) else embedding.dropout
        norm = nn.LayerNorm(self.norm.normalized_shape[0], device=self.norm.weight.device)
        norm.requires_grad_(self.norm.weight.requires_grad)
        embedding.dropout = nn.Sequential(norm, plain).train(plain.training) if pre_norm else plain
        for module in set(self.modules()) - set(self.dvpt.modules()):
            if isinstance(module, nn.LayerNorm):
                module.eps = layer_norm_eps
        for block in self.blocks:
            block.mlp.fn = ACTIVATIONS[activation]().train(block.training)
        self.arithmetic |= {"layer_norm_eps": layer_norm_eps, "activation": activation, "pre_norm": pre_norm}

    def embedding(self) -> nn.Module:
        return self.patch_embedding

    def unused_modules(self) -> set[nn.Module]:
        blocks = [module for module in self.blocks if isinstance(module, TransformerBlock)]
        unused = {block.norm_cross_attn for block in blocks if not block.with_cross_attention}
        return unused | ({getattr(self, HEAD)} if hasattr(self, HEAD) else set())

    def is_own(self, name: str) -> bool:
        return not name.startswith(HEAD + ".")

    def token_size(self, layer: int) -> list[int]:
        return list(self.patch_size)

    def token_shape(self, sides: list[int], layer: int, left: bool) -> list[int]:
        return self.tokens

    def frozen_layers(self, name: str) -> int:
        found = re.match(r"blocks\.(\d+)\.", name)
        if found:
            return int(found[1]) - 1
        return len(self.blocks) - 1 if name.startswith("norm.") else -2
