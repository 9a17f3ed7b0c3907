# SPDX-License-Identifier: Apache-2.0
"""Settings for the segmentation of volumes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_dvpt.networks.pretrained import read_backbone

from .model import Collection, Measurement

__all__ = ["plan_volumes"]

PATCH = 8
"""Side of a token, in voxels; that of the weights in the package."""
TOKENS = 512
"""The most tokens of a window."""
WINDOWS = 4
"""The most windows that the median image may need without overlap, before its grid is made coarser."""
THICK = 2.5
"""Factor from the smallest to the largest spacing from which slices count as thick."""
STEPS = 1000
EPOCHS = (12, 200)
VALIDATIONS = 6
CROPS = 4
RATES = {"method": 1.0e-3, "decoder": 4.0e-3, "head": 4.0e-3}
METHOD = {"name": "dvpt", "bottleneck_size": 32, "num_prompts": 10, "share_every": 3}
SIDED = re.compile(r"(^|[^a-z])(left|right|l|r|links|rechts)([^a-z]|$)")
AIR = -900
"""Hounsfield units below which a volume without a stated modality has air, and so is a CT."""

Choices = dict[str, tuple[Any, str]]


def plan_volumes(
    collection: Collection,
    measured: Sequence[Measurement],
    parts: Mapping[str, Sequence[int]],
    backbone: str | os.PathLike | None,
) -> Choices:
    """Value and reason of every setting of the templates "volume_segmentation"; see :func:`make_plan`."""
    spacing, spacing_reason = _spacing(measured)
    extents = np.array([np.array(each.size) * each.spacing_mm for each in measured])  # mm
    size = np.median(extents / spacing, axis=0)  # voxels of the median image on that grid
    roi, roi_reason = _window(size)
    crops, crops_reason = _crops(size, roi)
    epochs, interval, epochs_reason = epochs_for(len(parts["training"]) * crops, batch_size=2)
    intensity, modality, intensity_reason = _intensity(collection, measured)
    flip, flip_reason = _flip(collection.labels)
    thick = max(spacing) > THICK * min(spacing)
    rotate = [0.1, 0.1, 0.4] if thick else [0.2, 0.2, 0.2]
    turning = "about the axis across the thick slices most" if thick else ""
    chosen: Choices = {
        "labels": (["background", *collection.labels], ""),
        "modality": (modality, ""),
        "spacing_mm": (spacing, spacing_reason),
        "roi_size": (roi, roi_reason),
        "intensity": (intensity, intensity_reason),
        "crops_per_case": (crops, crops_reason),
        "flip": (flip, flip_reason),
        "rotate_range": (rotate, f"turned {turning}" if turning else ""),
        "batch_size": (2, ""),
        "max_epochs": (epochs, epochs_reason),
        "val_interval": (interval, ""),
        "method": (METHOD, ""),
        "learning_rates": (RATES, ""),
        "patch_size": (PATCH, ""),
        "feature_size": (8, ""),
        "backbone_path": (None, "the weights of the package, trained on MR without labels"),
    }
    if backbone is not None:
        found = read_backbone(backbone)
        reason = f"{found.kind}, {found.hidden_size} wide" + (", inflated to 3D" if found.spatial_dims == 2 else "")
        chosen["backbone_path"] = (os.path.abspath(backbone), reason)
    return chosen


def epochs_for(items: int, batch_size: int) -> tuple[int, int, str]:
    """Epochs and validation interval for about ``STEPS`` optimiser steps, and the reason."""
    per_epoch = math.ceil(items / batch_size)
    epochs = min(max(round(STEPS / per_epoch), EPOCHS[0]), EPOCHS[1])
    interval = max(1, epochs // VALIDATIONS)
    epochs = interval * math.ceil(epochs / interval)  # the last epoch is validated
    return epochs, interval, f"{per_epoch} steps an epoch, {per_epoch * epochs} in all"


def _spacing(measured: Sequence[Measurement]) -> tuple[list[float], str]:
    """The median spacing, coarser where the median image would need too many windows."""
    known = [each.spacing_mm for each in measured if each.spacing_mm is not None]
    spacing = np.median(np.array(known), axis=0)
    extent = np.median([np.array(each.size) * np.array(each.spacing_mm) for each in measured], axis=0)
    reason = "the median"
    allowed = TOKENS * WINDOWS * PATCH**3
    voxels = float(np.prod(extent / spacing))
    if voxels > allowed:
        fine = spacing <= THICK * spacing.min()  # thick slices stay as they are
        factor = (voxels / allowed) ** (1 / fine.sum())
        spacing = np.where(fine, spacing * factor, spacing)
        where = "" if fine.all() else " in the plane of the slices"
        reason = f"the median, {factor:.2f} times coarser{where}, so that an image needs at most {WINDOWS} windows"
    return [float(f"{side:.3g}") for side in spacing], reason


def _window(size: np.ndarray) -> tuple[list[int], str]:
    """The window, in voxels: the median image if its tokens fit the budget, else as much of it, in its proportions."""
    tokens = np.maximum(1, np.ceil(size / PATCH - 0.1)).astype(int)  # less than a voxel may stick out
    whole = tokens.prod() <= TOKENS
    while tokens.prod() > TOKENS:
        tokens[np.argmax(tokens)] -= 1
    tokens = np.maximum(tokens, 2)  # instance normalisation needs more than one value
    what = "the median image" if whole else f"as much of the median image as {TOKENS} tokens of {PATCH}³ voxels cover"
    return [int(side) * PATCH for side in tokens], f"{what}, {'×'.join(f'{side:.0f}' for side in size)} voxels"


def _crops(size: np.ndarray, roi: Sequence[int]) -> tuple[int, str]:
    if (np.array(roi) >= 0.8 * size).all():
        return 1, "the window covers nearly all of an image"
    return CROPS, "the window covers a part of an image; crops are centred on every label and the background in turn"


def _intensity(collection: Collection, measured: Sequence[Measurement]) -> tuple[dict[str, Any], str, str]:
    """How intensities are scaled, the modality, and the reason."""
    stated = next((case.modality for case in collection.cases if case.modality), "")
    airy = float(np.median([each.range[0] for each in measured])) <= AIR
    if stated == "CT" or (not stated and airy):
        inside = np.array([each.foreground or each.percentiles for each in measured])
        low, high = float(np.floor(inside[:, 0].min())), float(np.ceil(inside[:, 2].max()))
        reason = "CT" if stated else f"values reach {AIR} and below, as air in CT"
        reason += ": clipped to the 0.5 and 99.5 % percentiles inside the labels, over all cases"
        return {"range": [low, high], "unit": "Hounsfield units"}, "CT", reason
    return {}, stated, "mean 0 and variance 1 for every image, because its values have no unit"


def _flip(labels: Sequence[str]) -> tuple[bool, str]:
    lower = [name.lower() for name in labels]
    paired = {name for name in lower if name[:1] in ("l", "r") and {"l": "r", "r": "l"}[name[0]] + name[1:] in lower}
    sided = next((name for name in lower if name in paired or SIDED.search(name.replace("_", " "))), None)
    if sided is not None:
        return False, f"left and right are told apart, as in {sided}"
    return True, "no label is of one side"
