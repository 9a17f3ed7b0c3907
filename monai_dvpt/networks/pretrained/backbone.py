# SPDX-License-Identifier: Apache-2.0
"""What a file of a pretrained ViT tells of the network and of the images that it was trained on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from monai_dvpt.networks.encoders import SAMEncoder, SwinEncoder, TinyViTEncoder, ViTEncoder
from monai_dvpt.utils import InputError, naming

from .archives import opened_weights
from .choose_network import depth
from .normalisation import Normalisation, read_normalisation
from .recognise import PretrainedWeights, recognise
from .resize import token_grid
from .shapes import one_or_each, times
from .weight_files import LARGE, read_config, read_weights

__all__ = [
    "KERNELS",
    "POSITIONS",
    "Backbone",
    "backbone_of",
    "encoder_sizes",
    "named_backbone",
    "patch_kernel",
    "read_backbone",
    "usual_heads",
]

KERNELS = ("patch_embedding.patch_embeddings.weight", "patch_embed.proj.weight")
POSITIONS = "patch_embedding.position_embeddings"
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
HEADS |= {396: 6, 792: 12, 864: 12, 1056: 16, 1152: 16}
DINOV3_HEADS = {1280: 20, 4096: 32}
"""Number of heads by token width, as in the published ViTs from Ti to G, Primus and SigLIP, and in DINOv3."""


@dataclass(frozen=True)
class Backbone:
    """
    A pretrained ViT. The sizes have the names of the arguments of :class:`monai_dvpt.networks.nets.DVPTViT`.

    Attributes:
        source: the file.
        kind: the layout of its weights.
        family: "DINOv2", "MAE", "CLIP" or "Google ViT" if the file proves it, else "".
        spatial_dims, in_channels: of its images.
        patch_size: of a token, in pixels: one number, or one a side if they differ.
        img_size: of its images in training, in pixels, in the same way; None if their tokens form no square.
        hidden_size, mlp_dim, num_layers: of the network.
        is_vit: whether it is a ViT that sees all tokens at once, and not SAM's.
        stated_heads: number of heads if the file or its ``config.json`` states it, else None.
        config: its ``config.json``, or empty.
    """

    source: str
    kind: str
    family: str
    spatial_dims: int
    in_channels: int
    patch_size: int | tuple[int, ...]
    img_size: int | tuple[int, ...] | None
    hidden_size: int
    mlp_dim: int
    num_layers: int
    is_vit: bool
    stated_heads: int | None
    config: Mapping[str, Any] = field(repr=False, compare=False)

    @cached_property
    def normalisation(self) -> Normalisation | None:
        """
        Mean and standard deviation of its images, None if they are not known; read when they are asked for.

        Raises:
            InputError: if a file beside the weights cannot be read or states impossible numbers.
        """
        return read_normalisation(Path(self.source), self.config, self.family)

    @property
    def num_heads(self) -> int:
        """
        Number of heads, where the file does not state it that of the published ViTs of its width.

        Raises:
            InputError: if there are none.
        """
        heads = self.stated_heads or usual_heads(self.hidden_size, self.family)
        if heads is None:
            raise InputError(
                f"{self.source}: does not state its number of heads, and no published ViT is {self.hidden_size} wide, "
                "so num_heads must be given (in a bundle, --network_def#num_heads)."
            )
        return heads

    @property
    def image_mean(self) -> list[float]:
        """
        Mean of each channel of the images, which are in [0, 1].

        Raises:
            InputError: if it is not known, or as ``normalisation`` does.
        """
        return list(self._known().mean)

    @property
    def image_std(self) -> list[float]:
        """
        Standard deviation of each channel of the images, which are in [0, 1].

        Raises:
            InputError: if it is not known, or as ``normalisation`` does.
        """
        return list(self._known().std)

    def _known(self) -> Normalisation:
        if self.normalisation is None:
            raise InputError(
                f"{self.source}: neither says how its images were normalised (preprocessor_config.json or timm's "
                "config.json beside it), nor is of a known family, so image_mean and image_std must be given; 0.5 and "
                "0.5 for most ViTs of timm."
            )
        return self.normalisation

    def __str__(self) -> str:
        size = f"images of {times(self.img_size)} pixels in" if self.img_size else "images in"
        text = f"{size} patches of {times(self.patch_size)}"
        try:
            known = self.normalisation
        except InputError as error:  # nothing else needs it
            return f"{text}; how they were normalised is not known: {error}"
        if known is None:
            return f"{text}; the file does not say how they were normalised"
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (known.mean, known.std))
        return f"{text}, mean {mean}, standard deviation {std} ({known.origin})"


def read_backbone(source: str | os.PathLike) -> Backbone:
    """
    Reads what a pretrained ViT tells of its network and its images.

    Args:
        source: see :func:`monai_dvpt.networks.pretrained.load_pretrained`. Hugging Face's ``config.json`` and
            ``preprocessor_config.json``, or timm's ``config.json``, may lie beside it.

    Raises:
        InputError: if the file cannot be read or contains no ViT with a convolution as patch embedding.
    """
    with opened_weights(source) as path, naming(path):
        config = read_config(path)
        found = backbone_of(path, recognise(read_weights(path), config), config)
        if found is None:
            raise InputError("must hold a ViT with a convolution as patch embedding.")
        return named_backbone(found, source)


def named_backbone(backbone: Backbone, source: str | os.PathLike) -> Backbone:
    """``backbone``, or, if it comes from an archive that will be closed, one that needs nothing of it any more."""
    if not Path(source).is_file() or Path(source) == Path(backbone.source):
        return backbone
    named = replace(backbone, source=str(source))
    vars(named)["normalisation"] = backbone.normalisation
    return named


def backbone_of(path: Path, found: PretrainedWeights, config: Mapping[str, Any]) -> Backbone | None:
    """What recognised weights tell; None for a Swin transformer, or a patch embedding that is no convolution."""
    kernel, positions, sizes = patch_kernel(found), found.encoder.get(POSITIONS), encoder_sizes(found)
    whole = all(sizes.get(name) for name in ("hidden_size", "mlp_dim", "num_layers"))
    if found.encoder_type is SwinEncoder or kernel is None or kernel.ndim not in (4, 5) or not whole:
        return None
    if positions is None and not (found.layout or {}).get("rope_theta"):
        return None
    patch, dims = kernel.shape[2:], kernel.ndim - 2
    grid = token_grid(positions.shape[1], dims) if found.square and positions is not None else None
    size = config.get("image_size")
    if positions is None and isinstance(size, int) and 0 < size < LARGE:  # of the training; any size fits
        grid = [size // side for side in patch]
    return Backbone(
        source=str(path),
        kind=found.kind,
        family=found.family,
        spatial_dims=dims,
        in_channels=kernel.shape[1],
        patch_size=one_or_each(patch),
        img_size=one_or_each([tokens * side for tokens, side in zip(grid, patch, strict=True)]) if grid else None,
        hidden_size=sizes["hidden_size"],
        mlp_dim=sizes["mlp_dim"],
        num_layers=sizes["num_layers"],
        is_vit=found.encoder_type is ViTEncoder,
        stated_heads=found.num_heads,
        config=config,
    )


def usual_heads(width: int | None, family: str) -> int | None:
    """Number of heads of the published ViTs of a token width, if there are any."""
    known = HEADS | (DINOV3_HEADS if family == "DINOv3" else {})
    return known.get(width or 0)


def patch_kernel(found: PretrainedWeights) -> torch.Tensor | None:
    """The convolution that embeds patches, of shape (C, channels, *patch)."""
    return next((found.encoder[name] for name in KERNELS if name in found.encoder), None)


def encoder_sizes(found: PretrainedWeights) -> dict[str, Any]:
    """Sizes of an encoder by the names of arguments; None for what its tensors do not tell."""
    if found.encoder_type is TinyViTEncoder:
        return dict(found.stated)
    second = found.encoder.get("blocks.0.mlp.linear2.weight")  # the first may make gates too
    norm = "blocks.0.norm1.weight" if found.encoder_type is SAMEncoder else "norm.weight"
    return {
        "hidden_size": found.encoder[norm].numel() if norm in found.encoder else None,
        "mlp_dim": second.shape[-1] if second is not None and second.ndim else None,
        "num_layers": depth(found.encoder),
        "num_heads": found.num_heads,
        **found.stated,
    }
