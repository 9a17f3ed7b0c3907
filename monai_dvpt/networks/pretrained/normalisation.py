# SPDX-License-Identifier: Apache-2.0
"""How the images of a pretrained backbone were normalised: as a file beside it says, else as its family was trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monai_dvpt.utils import InputError, is_number, naming

from .weight_files import CONFIG, PREPROCESSOR, read_json

__all__ = ["Normalisation", "family_of", "read_normalisation"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAMILIES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "DINOv2": IMAGENET,
    "DINOv3": IMAGENET,
    "MAE": IMAGENET,
    "SigLIP": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "Google ViT": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""
Mean and standard deviation of red, green and blue, of images in [0, 1], by family: "Oquab et al., DINOv2
<https://arxiv.org/abs/2304.07193>", "Siméoni et al., DINOv3 <https://arxiv.org/abs/2508.10104>", "Zhai et al., SigLIP
<https://arxiv.org/abs/2303.15343>", "He et al., Masked Autoencoders <https://arxiv.org/abs/2111.06377>", "Radford et
al., CLIP <https://arxiv.org/abs/2103.00020>" and "Steiner et al., How to train your ViT
<https://arxiv.org/abs/2106.10270>", each as in its released code.
"""
GOOGLE_CLASSES = 21843  # of ImageNet-21k, as only Google's releases count them
DINOV2_PATCH = 14
MAX_CHANNELS = 64


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel of images in [0, 1], and where they are from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str


def family_of(kind: str, names: Iterable[str], classifier: torch.Tensor | None, patch: int, config: Mapping) -> str:
    """
    The family of a ViT, if its file proves it: a key of ``FAMILIES``, else "".

    Args:
        kind: the layout of the file.
        names: of all its tensors.
        classifier: weight of its classifier, if it has one.
        patch: side of a patch, in pixels.
        config: its ``config.json``, or empty.
    """

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    names = list(names)
    for family in ("DINOv3", "SigLIP"):
        if kind.startswith(family):
            return family
    if kind.startswith("CLIP") or has(r"(^|\.)norm_pre\.weight$"):
        return "CLIP"
    if has(r"(^|\.)decoder_embed\.weight$") or config.get("model_type") == "vit_mae":
        return "MAE"
    # DeiT III has a layer scale and such patches too, but never without its classifier
    scaled = has(r"\.ls1\.gamma$") and patch == DINOV2_PATCH and (classifier is None or has(r"(^|\.)mask_token$"))
    if kind.startswith("DINOv2") or scaled:
        return "DINOv2"
    if kind == "Google ViT" or (classifier is not None and len(classifier) == GOOGLE_CLASSES):
        return "Google ViT"
    return ""


def read_normalisation(path: Path, config: Mapping[str, Any], family: str) -> Normalisation | None:
    """
    The normalisation of a backbone's images, None if it is not known.

    Args:
        path: the weight file; Hugging Face's ``preprocessor_config.json`` may lie beside it.
        config: the ``config.json`` beside it, or empty; timm's has the normalisation.
        family: see :func:`family_of`.

    Raises:
        InputError: if a file beside the weights cannot be read or states impossible numbers.
    """
    file = path.parent / PREPROCESSOR
    if file.exists():
        said = _stated(read_json(file))
        with naming(file):
            if not said.get("do_normalize", True):
                said = {**said, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
            if "image_mean" in said and "image_std" in said:
                factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1
                if not is_number(factor) or not factor > 0:
                    raise InputError(f"rescale_factor must be a number above 0, got {repr(factor)[:50]}.")
                return _checked(said, "image_mean", "image_std", 255 * factor, PREPROCESSOR)
    said = config.get("pretrained_cfg", config)
    said = _stated(said) if isinstance(said, dict) else {}
    if "mean" in said and "std" in said:
        with naming(path.parent / CONFIG):
            return _checked(said, "mean", "std", 1, CONFIG)
    if family:
        mean, std = FAMILIES[family]
        return Normalisation(mean, std, f"as {family} was trained; the file does not say it")
    return None


def _stated(said: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have a value; null is none."""
    return {name: value for name, value in said.items() if value is not None}


def _checked(said: Mapping[str, Any], mean: str, std: str, scale: float, origin: str) -> Normalisation:
    """The normalisation of images in [0, 1], from numbers for images in [0, ``scale``]."""
    for name in (mean, std):
        values = said[name]
        if not isinstance(values, list) or not 0 < len(values) <= MAX_CHANNELS or not all(map(is_number, values)):
            raise InputError(f"{name} must be a list of numbers, one for each channel, got {repr(values)[:50]}.")
    if len(said[mean]) != len(said[std]) or min(said[std]) <= 0:
        raise InputError(f"{std} must have a number above 0 for each of {mean}, got {repr(said[std])[:50]}.")
    first, second = (tuple(value / scale for value in said[name]) for name in (mean, std))
    return Normalisation(first, second, origin)
