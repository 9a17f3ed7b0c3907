# SPDX-License-Identifier: Apache-2.0
"""Renames the weights of SAM's image encoder, as SAM, MedSAM, SAM-Med3D and Hugging Face store them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from monai_dvpt.networks.blocks import AXES
from monai_dvpt.networks.encoders import SAMEncoder
from monai_dvpt.utils import MAX_TENSORS, InputError, check_type

from .choose_network import depth

__all__ = ["SAM_LAYOUTS", "SAMLayout", "read_sam"]

State = dict[str, torch.Tensor]
KERNEL, POSITIONS = "patch_embedding.patch_embeddings.weight", "patch_embedding.position_embeddings"
EPS = 1e-6  # of the layers, as SAM's code has it


@dataclass(frozen=True)
class SAMLayout:
    """A layout, and how its names become those of :class:`monai_dvpt.networks.encoders.SAMEncoder`."""

    kind: str
    signature: str  # a name that only this layout has, after any root
    renames: tuple[tuple[str, str], ...]  # regular expressions; one matches every name of the encoder


_SAME = r"blocks\.\d+\.(?:attn\.(?:qkv\.(?:weight|bias)|rel_pos_[dhw]))"
SAM_LAYOUTS = (
    SAMLayout(
        "SAM",
        "blocks.0.attn.rel_pos_h",
        (
            (r"pos_embed", POSITIONS),
            (r"patch_embed\.proj\.(weight|bias)", r"patch_embedding.patch_embeddings.\1"),
            (rf"({_SAME})", r"\1"),
            (r"(blocks\.\d+\.norm[12]\.(?:weight|bias))", r"\1"),
            (r"(blocks\.\d+)\.attn\.proj\.(weight|bias)", r"\1.attn.out_proj.\2"),
            (r"(blocks\.\d+)\.mlp\.lin([12])\.(weight|bias)", r"\1.mlp.linear\2.\3"),
            (r"(neck\.(?:[02]\.weight|[13]\.(?:weight|bias)))", r"\1"),
        ),
    ),
    SAMLayout(
        "SAM (Hugging Face)",
        "layers.0.attn.rel_pos_h",
        (
            (r"pos_embed", POSITIONS),
            (r"patch_embed\.projection\.(weight|bias)", r"patch_embedding.patch_embeddings.\1"),
            (rf"({_SAME.replace('blocks', 'layers')})", r"\1"),
            (r"(layers\.\d+)\.layer_norm([12])\.(weight|bias)", r"\1.norm\2.\3"),
            (r"(layers\.\d+)\.attn\.proj\.(weight|bias)", r"\1.attn.out_proj.\2"),
            (r"(layers\.\d+)\.mlp\.lin([12])\.(weight|bias)", r"\1.mlp.linear\2.\3"),
            (r"neck\.conv1\.weight", "neck.0.weight"),
            (r"neck\.layer_norm1\.(weight|bias)", r"neck.1.\1"),
            (r"neck\.conv2\.weight", "neck.2.weight"),
            (r"neck\.layer_norm2\.(weight|bias)", r"neck.3.\1"),
        ),
    ),
)


def read_sam(layout: SAMLayout, root: str, tensors: State, config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Args:
        layout: one of ``SAM_LAYOUTS``.
        root: what comes before the names of the image encoder.
        tensors: of a file; those elsewhere, such as the mask decoder's, are not used.
        config: its ``config.json`` in Hugging Face's format, or empty.

    Returns:
        fields of :class:`monai_dvpt.networks.pretrained.recognise.PretrainedWeights`.

    Raises:
        InputError: if the encoder is not SAM's, is not whole, or does not agree with its ``config.json``.
    """
    encoder: State = {}
    unused = [name for name in tensors if not name.startswith(root)]
    for name in [name for name in tensors if name.startswith(root)]:
        inner = _rename(name.removeprefix(root), layout)
        if inner is None:
            raise InputError(f"has {name}, which SAM's image encoder cannot represent.")
        check_type(name, tensors[name], torch.float32)
        encoder[inner] = tensors[name].float()
    for needed in (KERNEL, POSITIONS, "neck.0.weight", "blocks.0.norm1.weight"):
        if needed not in encoder:
            raise InputError(f"must have {needed}, under its name in {layout.kind}.")
    positions, dims = encoder[POSITIONS], encoder[KERNEL].ndim - 2
    sides = list(positions.shape[1:-1])
    if positions.ndim != dims + 2 or len(set(sides)) != 1 or len(positions) != 1:
        raise InputError(
            f"must have positions of shape (1, side, ..., side, width), with a side for each of {dims} axes, got "
            f"{tuple(positions.shape)}."
        )
    encoder[POSITIONS] = positions.flatten(1, -2)
    return {
        "kind": "SAM-Med3D" if dims == 3 else layout.kind,
        "encoder": encoder,
        "unused": unused,
        "encoder_type": SAMEncoder,
        "layer_norm_eps": config.get("layer_norm_eps", EPS),
        "activation": config.get("hidden_act", "gelu"),
        "num_heads": _heads(encoder, config),
        "stated": _windows(encoder, dims, sides[0], config),
        "square": True,
    }


def _rename(name: str, layout: SAMLayout) -> str | None:
    for pattern, replacement in layout.renames:
        if re.fullmatch(pattern, name):
            return re.sub(r"^layers\.", "blocks.", re.sub(pattern, replacement, name))
    return None


def _heads(encoder: State, config: Mapping[str, Any]) -> int:
    """The number of heads, which the width of the tables tells."""
    width, table = len(encoder["blocks.0.norm1.weight"]), encoder["blocks.0.attn.rel_pos_h"]
    part = table.shape[-1]
    if table.ndim != 2 or not part or width % part:
        raise InputError(f"blocks.0.attn.rel_pos_h must be as wide as a head, of {width}, got {tuple(table.shape)}.")
    heads = width // part
    if config.get("num_attention_heads", heads) != heads:
        raise InputError(f"config.json must state {heads} heads, as {part} of {width} are in one, got another number.")
    return heads


def _windows(encoder: State, dims: int, grid: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Which layers attend inside windows and how large these are: their tables have another length than those of layers
    that see the whole grid, unless a window is as large as the grid; then only ``config.json`` tells, else it is None.
    """
    sides = []
    for layer in range(depth(encoder)):
        names = [f"blocks.{layer}.attn.rel_pos_{axis}" for axis in AXES[-dims:]]
        lengths = {len(encoder[name]) if name in encoder else 0 for name in names}
        if len(lengths) != 1 or min(lengths) % 2 == 0:
            raise InputError(f"must have {names} of one odd length, got {sorted(lengths)}.")
        sides.append((min(lengths) + 1) // 2)
    found: dict[str, Any] = {"window_size": None, "global_layers": None}
    if others := set(sides) - {grid}:
        if len(others) > 1:
            raise InputError(
                f"must have relative positions for a window or the grid of {grid} tokens a side, got those for "
                f"{sorted(set(sides))}."
            )
        found = {"window_size": others.pop(), "global_layers": [i for i, side in enumerate(sides) if side == grid]}
    for name, value in _stated(config, len(sides)).items():
        if found[name] not in (None, value):
            raise InputError(f"config.json must state {name} {found[name]}, as the tensors have it, got {value}.")
        found[name] = value
    return found


def _stated(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """What a ``config.json`` states of windows."""
    window, layers = config.get("window_size"), config.get("global_attn_indexes")
    if window is None or layers is None:
        return {}
    numbers = [window, *layers] if isinstance(layers, list) else [None]
    if any(type(number) is not int or not 0 <= number < MAX_TENSORS for number in numbers):
        raise InputError(
            f"window_size and global_attn_indexes must be a number and a list of numbers, got {window!r:.50} and "
            f"{layers!r:.50}."
        )
    return (
        {"window_size": window, "global_layers": sorted(layers)} if window else {"global_layers": [*range(num_layers)]}
    )
