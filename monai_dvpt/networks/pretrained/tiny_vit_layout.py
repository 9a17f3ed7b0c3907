# SPDX-License-Identifier: Apache-2.0
"""Renames the weights of LiteMedSAM's image encoder, a TinyViT, and folds its batch normalisations."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from monai_dvpt.networks.encoders import TinyViTEncoder
from monai_dvpt.utils import MAX_TENSORS, InputError, check_type

from .shapes import shapes_of, times

__all__ = ["STEM", "TINY_VIT", "read_tiny_vit"]

State = dict[str, torch.Tensor]
KIND = "LiteMedSAM"
TINY_VIT = "layers.1.blocks.0.attn.attention_biases"
"""A name that only this layout has, after any root."""
STEM = "stem.embed.0.weight"
"""The convolution of the image's channels."""
EPS = 1e-5  # of layer and batch normalisations, as TinyViT's code has it
COUNTER = "num_batches_tracked"
_CONV, _NORM = r"(weight|bias)", r"(weight|bias|running_mean|running_var)"
_RENAMES = (
    (rf"patch_embed\.seq\.([02])\.{_CONV}", r"stem.embed.\1.\2"),
    (rf"layers\.0\.blocks\.(\d+)\.(conv[123])\.{_CONV}", r"stem.bottlenecks.\1.\2.\3"),
    (rf"layers\.0\.downsample\.(conv[123])\.{_CONV}", r"stem.merge.\1.\2"),
    (rf"blocks\.(\d+)\.attn\.norm\.{_CONV}", r"blocks.\1.norm1.\2"),
    (r"(blocks\.\d+\.attn\.qkv\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.attn\.attention_biases)", r"\1"),
    (rf"(blocks\.\d+)\.attn\.proj\.{_CONV}", r"\1.attn.out_proj.\2"),
    (rf"(blocks\.\d+\.local_conv\.{_CONV})", r"\1"),
    (rf"(blocks\.\d+)\.mlp\.norm\.{_CONV}", r"\1.norm2.\2"),
    (rf"(blocks\.\d+)\.mlp\.fc([12])\.{_CONV}", r"\1.mlp.linear\2.\3"),
    (rf"(merges\.[01]\.conv[123]\.{_CONV})", r"\1"),
    (rf"(neck\.(?:[02]\.weight|[13]\.{_CONV}))", r"\1"),
)


def read_tiny_vit(root: str, tensors: State) -> dict[str, Any]:
    """
    Args:
        root: what comes before the names of the image encoder.
        tensors: of a file; those elsewhere, such as the mask decoder's, are not used.

    Returns:
        fields of :class:`monai_dvpt.networks.pretrained.recognise.PretrainedWeights`.

    Raises:
        InputError: if the encoder is not LiteMedSAM's or not whole.
    """
    unused = [name for name in tensors if not name.startswith(root) or name.endswith(COUNTER)]
    inner = {name.removeprefix(root): tensor for name, tensor in tensors.items() if name not in unused}
    for name, tensor in inner.items():
        check_type(name, tensor, torch.float32)
    encoder: State = {}
    converted: dict[str, str] = {}
    depths = _depths(inner)
    with shapes_of(KIND):
        for name, (tensor, is_folded) in _folded(inner).items():
            new = _rename(name, depths)
            encoder[new] = tensor.float()
            if is_folded:
                converted[new] = "with its batch normalisation"
        for name in [name for name in encoder if ".attn.qkv." in name]:
            heads = len(encoder[name.split("qkv")[0] + "attention_biases"])
            parts = encoder[name].unflatten(0, (heads, 3, -1))  # of every head its query, key and value
            encoder[name] = parts.transpose(0, 1).flatten(0, 2).contiguous()
            converted[name] = "in the order of query, key and value"
        stated = _stated(encoder, depths)
        if max(encoder[STEM].shape[2:]) > 1:
            raise InputError(
                f"must have a first convolution of 1x1, as LiteMedSAM, got {times(encoder[STEM].shape[2:])}."
            )
    return {
        "kind": KIND,
        "encoder": encoder,
        "converted": converted,
        "unused": unused,
        "encoder_type": TinyViTEncoder,
        "layer_norm_eps": EPS,
        "activation": "gelu",
        "stated": stated,
    }


def _depths(state: State) -> list[int]:
    """Number of layers of each of 4 stages."""
    found = [match for match in (re.match(r"layers\.(\d)\.blocks\.(\d{1,5})\.", name) for name in state) if match]
    depths = [1 + max((int(one[2]) for one in found if int(one[1]) == stage), default=-1) for stage in range(4)]
    if min(depths) < 1 or max(depths) > MAX_TENSORS:
        raise InputError(f"must have 4 stages of at least one layer, got {depths}.")
    return depths


def _rename(name: str, depths: list[int]) -> str:
    row = name
    if match := re.fullmatch(r"layers\.([123])\.blocks\.(\d+)\.(.*)", name):  # counted through these stages
        row = f"blocks.{sum(depths[1 : int(match[1])]) + int(match[2])}.{match[3]}"
    elif match := re.fullmatch(r"layers\.([12])\.downsample\.(.*)", name):
        row = f"merges.{int(match[1]) - 1}.{match[2]}"
    for pattern, replacement in _RENAMES:
        if re.fullmatch(pattern, row):
            return re.sub(pattern, replacement, row)
    raise InputError(f"has {name}, which LiteMedSAM's image encoder cannot represent.")


def _folded(state: State) -> dict[str, tuple[torch.Tensor, bool]]:
    """Tensors, and whether they are a convolution with the scale and shift of the batch normalisation after it."""
    out: dict[str, tuple[torch.Tensor, bool]] = {}
    for name, tensor in state.items():
        root = name.removesuffix(".c.weight")
        if root != name:
            kinds = ("weight", "bias", "running_mean", "running_var")
            weight, bias, mean, variance = (state[f"{root}.bn.{kind}"].double() for kind in kinds)
            scale = weight / (variance + EPS).sqrt()
            out[f"{root}.weight"] = tensor.double() * scale.reshape(-1, *[1] * (tensor.ndim - 1)), True
            out[f"{root}.bias"] = bias - mean * scale, True
        elif not (match := re.fullmatch(rf"(.*)\.bn\.{_NORM}", name)) or f"{match[1]}.c.weight" not in state:
            out[name] = tensor, False
    return out


def _stated(encoder: State, depths: list[int]) -> dict[str, Any]:
    """Arguments of the network that the tensors tell."""
    firsts = [f"blocks.{sum(depths[1:stage])}." for stage in (1, 2, 3)]
    tables = [encoder[f"{first}attn.attention_biases"] for first in firsts]
    return {
        "embed_dims": [
            len(encoder["stem.embed.2.weight"]),
            *(len(encoder[f"{first}norm1.weight"]) for first in firsts),
        ],
        "depths": depths,
        "num_heads": [len(table) for table in tables],
        "window_sizes": [math.isqrt(table.shape[1]) for table in tables],
    }
