# SPDX-License-Identifier: Apache-2.0
"""The layouts of Swin transformers, and how their names become those of MONAI's SwinUNETR."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .recognise import PretrainedWeights

__all__ = ["SWIN_LAYOUTS", "SwinLayout"]

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SwinLayout:
    """A layout of a Swin transformer's weights."""

    kind: str
    signature: str  # a name that only this layout has, after any root
    convert: Callable[[PretrainedWeights, str, State], None]  # fills the weights, from the root and all tensors


def _monai(source: PretrainedWeights, root: str, tensors: State) -> None:
    for name, tensor in tensors.items():
        if name.startswith(root + "swinViT."):
            source.encoder[name.removeprefix(root + "swinViT.")] = tensor
        elif name.startswith(root):
            source.outside[name.removeprefix(root)] = tensor
        else:
            source.unused.append(name)


def _self_supervised(source: PretrainedWeights, root: str, tensors: State) -> None:
    """Released self-supervised SwinUNETR weights: an encoder, with heads of the pretext tasks."""
    for name, tensor in tensors.items():
        inner = name.removeprefix(root)
        if not name.startswith(root) or not re.match(r"patch_embed\.|layers[1-4]c?\.", inner):
            source.unused.append(name)
            continue
        inner = re.sub(r"^(layers[1-4])\.0\.0\.", r"\1.0.", inner)
        source.encoder[re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", inner)] = tensor


SWIN_LAYOUTS = (
    SwinLayout("MONAI SwinUNETR", "swinViT.patch_embed.proj.weight", _monai),
    SwinLayout("MONAI SwinUNETR, self-supervised", "layers1.0.blocks.0.norm1.weight", _self_supervised),
    SwinLayout("MONAI SwinUNETR, self-supervised", "layers1.0.0.blocks.0.norm1.weight", _self_supervised),
)
