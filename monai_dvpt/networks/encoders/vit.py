# SPDX-License-Identifier: Apache-2.0
"""MONAI's ViT as an encoder, with settings that MONAI fixes and pretrained weights vary."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from monai.networks.blocks import TransformerBlock
from monai.networks.nets import ViT
from monai.utils import ensure_tuple_rep

from monai_dvpt.utils import check_counts

from .encoder import Encoder
from .vit_layout import ViTLayout

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
    "silu": nn.SiLU,
}


def check_arithmetic(layer_norm_eps: float, activation: str) -> None:
    """
    Raises:
        ValueError: if ``activation`` is not one of ``ACTIVATIONS`` or ``layer_norm_eps`` not positive.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation}.")
    if not layer_norm_eps > 0:
        raise ValueError(f"layer_norm_eps must be positive, got {layer_norm_eps}.")


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
    """
    MONAI's :class:`monai.networks.nets.ViT` without its head, under the same parameter names, and what its layout adds.

    Attributes:
        first_token: index of the image's first token, after class and register tokens.
        layout: what the encoder has beyond MONAI's ViT.
        layout_id: of a layout other than MONAI's the number, a buffer, so that a state dict tells layouts apart.
    """

    __jit_ignored_attributes__ = (*Encoder.__jit_ignored_attributes__, "layout")  # type: ignore[assignment]

    if TYPE_CHECKING:
        img_size: list[int]
        patch_size: list[int]
        grid: list[int]
        tokens: list[int]
        first_token: int
        layout: ViTLayout
        register_tokens: nn.Parameter
        pool_norm: bool

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
        layout: Mapping[str, Any] | ViTLayout | None,
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
            layer_norm_eps, activation, pre_norm, layout: see :meth:`set_arithmetic`.
            use_checkpoint: whether layers recompute their activations in the backward pass.
            skips: layers whose tokens the network uses besides those of the last one.
        """
        if not isinstance(vit, cls):
            vit.__class__ = cls
        encoder: Any = vit
        encoder.img_size, encoder.patch_size = list(img_size), list(patch_size)
        encoder.grid = [side // patch for side, patch in zip(img_size, patch_size, strict=True)]
        encoder.open_slot([*skips, len(vit.blocks) - 1], use_checkpoint, num_heads=num_heads)
        encoder.set_arithmetic(layer_norm_eps, activation, pre_norm, layout)
        return encoder

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image: of shape ``(B, in_channels, *img_size)``.

        Returns:
            its tokens, of shape (B, N, C), class and register tokens first.
        """
        x = self.patch_embedding(image)
        if hasattr(self, "register_tokens"):
            x = torch.cat((self.register_tokens.expand(x.shape[0], -1, -1), x), dim=1)
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
            the last tokens, normalised, of shape (B, N, C), class and register tokens first, and the tokens after every
            layer.
        """
        layers = list(range(len(self.dvpt_of_layer)))
        states = self._run_sized(x, None, layers)
        hidden_states = [states[layer] for layer in layers]
        return self.norm(hidden_states[-1]), hidden_states

    def _run_sized(self, image: torch.Tensor, prefix: torch.Tensor | None, keep: list[int]) -> dict[int, torch.Tensor]:
        self.check_size(image)
        wanted: list[int] = []
        return self.run(image, prefix, keep, wanted)[0]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As MONAI's ViT without a head, see :meth:`forward_features`."""
        return self.forward_features(x)

    def set_arithmetic(
        self,
        layer_norm_eps: float,
        activation: str,
        pre_norm: bool,
        layout: Mapping[str, Any] | ViTLayout | None = None,
    ) -> None:
        """
        Sets what an encoder computes but the names of MONAI's weights do not tell; the slot must be empty.

        Args:
            layer_norm_eps: epsilon of its layer normalisations.
            activation: of the feed-forward layers: "gelu", "gelu_pytorch_tanh", "quick_gelu" or "silu".
            pre_norm: whether a layer normalisation follows the embedding, as in CLIP.
            layout: attributes of :class:`ViTLayout`, what the encoder has beyond MONAI's ViT.

        Raises:
            ValueError: if ``activation`` is unknown, ``layer_norm_eps`` not positive, or the encoder cannot have the
                layout.
        """
        check_arithmetic(layer_norm_eps, activation)
        width = self.norm.normalized_shape[0]
        own = ViTLayout.of(layout).in_dims(len(self.grid))
        own.check(len(self.grid), width // self.arithmetic["num_heads"])
        before = set(self.parameters())
        self._set_pre_norm(pre_norm)
        self._set_registers(own)
        tables: dict[str, Any] = {}
        for block in self.blocks:
            own.extend_attention(block.attn, self.grid, self.first_token, tables)
            own.extend_mlp(block.mlp, ACTIVATIONS[activation]())
        for parameter in set(self.parameters()) - before:
            parameter.requires_grad_(self.norm.weight.requires_grad)
        for module in set(self.modules()) - set(self.dvpt.modules()):
            if isinstance(module, nn.LayerNorm):
                module.eps = layer_norm_eps
        self.layout, self.pool_norm = own, own.pool_norm
        self.arithmetic |= {"layer_norm_eps": layer_norm_eps, "activation": activation, "pre_norm": pre_norm}
        self.arithmetic.pop("layout", None)
        self._buffers.pop("layout_id", None)
        if own.options:
            self.arithmetic["layout"] = own.options
            self.register_buffer("layout_id", torch.tensor(own.number(), device=self.norm.weight.device))

    def _set_pre_norm(self, pre_norm: bool) -> None:
        """Sets whether a normalisation follows the embedding."""
        embedding: Any = self.patch_embedding
        # MONAI's embedding ends with this module; the class token joins later, with the norm folded into its weight
        plain = embedding.dropout[-1] if isinstance(embedding.dropout, nn.Sequential) else embedding.dropout
        like = self.norm.weight
        norm = nn.LayerNorm(self.norm.normalized_shape[0], device=like.device, dtype=like.dtype)
        embedding.dropout = nn.Sequential(norm, plain).train(plain.training) if pre_norm else plain

    def _set_registers(self, layout: ViTLayout) -> None:
        """Sets the register tokens, and with them the number of tokens."""
        registers = layout.registers(self.norm.weight.detach())
        if hasattr(self, "register_tokens"):
            del self.register_tokens
        if registers is not None:
            self.register_tokens = registers
        self.first_token = hasattr(self, "cls_token") + layout.num_registers
        self.tokens = [math.prod(self.grid) + self.first_token, self.norm.normalized_shape[0]]

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
