# SPDX-License-Identifier: Apache-2.0
"""What MONAI's ViT leaves fixed and pretrained weights need otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from monai.utils import ensure_tuple_rep

from monai_dvpt.networks.adapter import TunableNetwork, disable_adapter
from monai_dvpt.utils import check_counts

__all__ = ["ACTIVATIONS", "DVPTViTEncoder", "check_vit_sizes"]


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


def check_vit_sizes(hidden_size: int, mlp_dim: int, num_heads: int) -> None:
    """
    Raises:
        ValueError: if a size is not a whole number of at least 1, or ``num_heads`` does not divide ``hidden_size``.
    """
    check_counts(hidden_size=hidden_size, mlp_dim=mlp_dim, num_heads=num_heads)
    if hidden_size % num_heads:
        raise ValueError(f"num_heads must divide hidden_size={hidden_size}, got {num_heads}.")


class DVPTViTEncoder(TunableNetwork):
    """Base of the networks around MONAI's :class:`monai.networks.nets.ViT`."""

    if TYPE_CHECKING:

        def encode(
            self, image: torch.Tensor, prefix: torch.Tensor | None = None, num_layers: int | None = None
        ) -> dict[int, torch.Tensor]: ...

    @torch.jit.unused
    @torch.no_grad()
    def frozen_states(self, image: torch.Tensor, layers: Sequence[int]) -> dict[int, torch.Tensor]:
        self.check_frozen()
        self.train(self.training)  # so that frozen dropout is off
        with disable_adapter(self):
            return self.encode(image, None, max(layers) + 1)

    @torch.jit.unused
    def pack_prefix(self, states: Mapping[int, torch.Tensor]) -> torch.Tensor:
        return torch.stack([states[layer] for layer in self.prefix_layers], dim=1)  # (B, K, N, C)

    def unpack_prefix(self, prefix: torch.Tensor | None, batch: int) -> dict[int, torch.Tensor]:
        """Frozen tokens by layer, of shape (B, N, C) each, of what :meth:`forward_prefix` gave, if anything."""
        frozen: dict[int, torch.Tensor] = {}
        if prefix is not None:
            if prefix.dim() != 4 or prefix.shape[0] != batch or prefix.shape[1] != len(self.prefix_layers):
                raise ValueError(
                    f"prefix must hold the tokens of {batch} images after the layers {self.prefix_layers}, of shape "
                    f"(B, K, N, C), got {list(prefix.shape)}."
                )
            for index, layer in enumerate(self.prefix_layers):
                frozen[layer] = prefix[:, index]
        return frozen

    def set_arithmetic(self, layer_norm_eps: float, activation: str, pre_norm: bool) -> None:
        """
        Sets what the weights of an encoder do not say.

        Args:
            layer_norm_eps: epsilon of its layer normalisations.
            activation: "gelu", "gelu_pytorch_tanh" or "quick_gelu", of the feed-forward layers.
            pre_norm: whether a layer normalisation follows the embedding, as in CLIP.

        Raises:
            ValueError: if ``activation`` is unknown or ``layer_norm_eps`` not positive.
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation}.")
        if not layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps must be positive, got {layer_norm_eps}.")
        vit = self.encoder()
        embedding = vit.patch_embedding
        # MONAI's embedding ends with this module; the class token is joined after it, its norm folded into its weight
        plain = embedding.dropout[-1] if isinstance(embedding.dropout, nn.Sequential) else embedding.dropout
        norm = nn.LayerNorm(vit.norm.normalized_shape[0], device=vit.norm.weight.device)
        norm.requires_grad_(vit.norm.weight.requires_grad)
        embedding.dropout = nn.Sequential(norm, plain).train(plain.training) if pre_norm else plain
        for module in vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = layer_norm_eps
        for block in vit.blocks:
            block.mlp.fn = ACTIVATIONS[activation]().train(block.training)
        changes = {"layer_norm_eps": layer_norm_eps, "activation": activation, "pre_norm": pre_norm}
        self.arguments = {**getattr(self, "arguments", {}), **changes}

    def token_size(self, layer: int) -> list[int]:
        """Sides, in voxels of the image, of what a token stands for after a layer; here the same for all layers."""
        arguments: Any = self.arguments
        return list(ensure_tuple_rep(arguments["patch_size"], arguments["spatial_dims"]))
