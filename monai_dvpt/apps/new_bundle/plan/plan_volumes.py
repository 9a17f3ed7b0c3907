# SPDX-License-Identifier: Apache-2.0
"""Plans the segmentation of volumes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .planning import (
    Data,
    Plan,
    choose_backbone,
    choose_epochs,
    choose_intensity,
    median_of,
    why_not_mirrored,
)
from .step import MAX_SECONDS, MAX_SHARE, MeasureSteps
from .window import MAX_WINDOWS, Window, fit_window

__all__ = ["plan_volumes"]

ANISOTROPIC = 3.0
"""Longest over shortest side of a voxel from which slices are kept."""
TOKENS = (256, 512, 1024, 2048)
"""Numbers of tokens that a window may have, to choose from."""
TOKENS_BY_RULE = 512
"""The number that is taken where no step was measured."""
UNETR_LAYERS = 12
PATCH = 8
SMALL_FOREGROUND = 0.1
"""Share of an image below which crops are centred on labels."""
CROPS_PER_CASE = 4
BATCH = 2


def plan_volumes(plan: Plan, data: Data, measure: MeasureSteps | None) -> None:
    """Adds all choices for the segmentation of volumes, see :func:`make_plan`."""
    choose_backbone(plan, data)
    _choose_network(plan, data)
    plan.choose("batch_size", BATCH, "as in the bundles tuned by hand.")
    _choose_window(plan, data, measure)
    _choose_intensity(plan, data)
    _choose_crops(plan, data)
    _choose_augmentation(plan, data)
    plan.choose("method", _method(data), "DVPT as tuned by hand for weights of this kind.")
    rates = {"method": 1e-3, "decoder": 4e-3, "head": 4e-3}
    plan.choose("learning_rates", rates, "of the trained parts, as tuned by hand for the hippocampus.")
    plan.choose("weight_decay", 0.01, "as tuned by hand.")
    crops = plan["crops"].get("per_case", 1)
    choose_epochs(plan, len(data.training) * crops, BATCH, least=5, most=250)


def _choose_intensity(plan: Plan, data: Data) -> None:
    """Of an image with several channels, a rule for each; its modality is what its name says."""
    names = data.collection.channels
    if len(names) < 2:
        choose_intensity(plan, data)
        return
    choices = {}
    for number, name in enumerate(names):
        alone = Plan()
        choose_intensity(alone, data.of_channel(number))
        choices[name] = alone.choices["intensity"]
    reasons = " ".join(f"{name}: {choice.reason}" for name, choice in choices.items())
    value = {"rule": "by channel", "channels": {name: choice.value for name, choice in choices.items()}}
    plan.choose("intensity", value, reasons)


def _method(data: Data) -> dict[str, Any]:
    if data.backbone is None:
        return {"name": "dvpt", "bottleneck_size": 32, "num_prompts": 10, "share_every": 3}
    return {"name": "dvpt", "bottleneck_size": 8, "num_prompts": 10, "share_every": 1}


def _choose_network(plan: Plan, data: Data) -> None:
    layers = data.vit.num_layers
    if layers == UNETR_LAYERS:
        plan.choose("network", "DVPTUNETR", f"a UNETR, whose transformer has {UNETR_LAYERS} layers like the weights.")
    else:
        reason = f"a transformer of {layers} layers with a convolutional decoder; a UNETR must have {UNETR_LAYERS}."
        plan.choose("network", "DVPTViTSegmenter", reason)
    plan.choose("patch_size", PATCH, "voxels; the smallest token, for the finest result.")


def _choose_window(plan: Plan, data: Data, measure: MeasureSteps | None) -> None:
    spacing = median_of([each.spacing_mm for each in data.measured if each.spacing_mm is not None])
    extent = median_of(
        [np.multiply(each.size, each.spacing_mm).tolist() for each in data.measured if each.spacing_mm is not None]
    )
    windows: list[Window] = []
    for tokens in TOKENS:
        window = fit_window(extent, spacing, [PATCH] * 3, tokens)
        if window not in windows:
            windows.append(window)
    steps = measure(plan["network"], [_arguments(plan, data, window) for window in windows], BATCH) if measure else []
    fitting = [window for window, step in zip(windows, steps, strict=False) if step.fits]
    if fitting:
        window, step = fitting[-1], steps[len(fitting) - 1]
        why = f"measured: a training step takes {step.seconds:.1f} s and {step.share:.0%} of the memory ({step.device})"
        why += _next_larger(windows, steps, len(fitting))
    elif steps:
        window, why = windows[0], f"the smallest, though a training step takes {steps[0].seconds:.1f} s"
    else:
        allowed = [window for window in windows if window.tokens <= TOKENS_BY_RULE]
        window, why = allowed[-1], f"at most {TOKENS_BY_RULE} tokens by rule, since no step was measured"
    plan.choose("spacing_mm", list(window.spacing_mm), _spacing_reason(spacing, window))
    covers = "covers a median image" if window.windows == 1 else f"{window.windows} windows cover a median image"
    plan.choose("roi_size", list(window.roi_size), f"voxels; {covers}; {why}.")
    plan.choose("sw_batch_size", 4 if window.tokens <= TOKENS[0] else 1, "windows at a time, by their size.")


def _next_larger(windows: list[Window], steps: list[Any], fitting: int) -> str:
    if fitting == len(windows):
        return ""
    if fitting == len(steps):
        return "; the next larger window could not be measured"
    limit = f"at most {MAX_SECONDS:g} s and {MAX_SHARE:.0%}"
    step = steps[fitting]
    return f"; the next larger takes {step.seconds:.1f} s and {step.share:.0%}, {limit} is allowed"


def _arguments(plan: Plan, data: Data, window: Window) -> dict[str, Any]:
    """Of the network, as the template writes them."""
    vit = data.vit
    arguments = {
        "in_channels": max(1, len(data.collection.channels)),
        "out_channels": len(data.collection.labels) + 1,
        "img_size": list(window.roi_size),
        "patch_size": PATCH,
        "hidden_size": vit.hidden_size,
        "mlp_dim": vit.mlp_dim,
        "num_heads": vit.num_heads,
        "method": _method(data),
    }
    if plan["network"] == "DVPTUNETR":
        return {**arguments, "feature_size": 8}
    return {**arguments, "num_layers": vit.num_layers, "decoder": "conv"}


def _spacing_reason(spacing: list[float], window: Window) -> str:
    median = " × ".join(f"{side:g}" for side in spacing)
    same = all(math.isclose(a, b, abs_tol=0.01) for a, b in zip(spacing, window.spacing_mm, strict=True))
    text = "the median of the images" if same else f"coarser than the median of the images, {median}"
    if not same:
        text += f", so that at most {MAX_WINDOWS} windows cover one"
    if max(spacing) > ANISOTROPIC * min(spacing):
        text += "; the slices are far apart and kept, not interpolated"
    return text + "."


def _choose_crops(plan: Plan, data: Data) -> None:
    shares = [
        sum(each.voxels.get(name, 0) for name in data.collection.labels) / math.prod(each.size)
        for each in data.measured
    ]
    share, roi, spacing = float(np.median(shares)), plan["roi_size"], plan["spacing_mm"]
    whole = [
        all(
            size * old <= side * new
            for size, old, side, new in zip(each.size, each.spacing_mm, roi, spacing, strict=True)
        )
        for each in data.measured
        if each.spacing_mm is not None
    ]
    labels = f"labels fill {share:.1%} of a median image"
    if 2 * sum(whole) >= len(whole):
        plan.choose("crops", {"rule": "random"}, f"the window holds most images as a whole; {labels}.")
    elif share < SMALL_FOREGROUND:
        reason = f"centred on each label equally often, since {labels}, which is larger than the window."
        plan.choose("crops", {"rule": "by label", "per_case": CROPS_PER_CASE}, reason)
    else:
        plan.choose("crops", {"rule": "random"}, f"anywhere, since {labels}.")


def _choose_augmentation(plan: Plan, data: Data) -> None:
    if why_not := why_not_mirrored(data, 0):
        plan.choose("flips", [], f"none: {why_not}.")
    else:
        plan.choose("flips", [0], "left and right, since no label is named by side.")
    strong = {"rotate": [0.2, 0.2, 0.2], "scale": [0.15, 0.15, 0.15], "intensity": 0.2}
    weak = {"rotate": [0.1, 0.1, 0.1], "scale": [0.1, 0.1, 0.1], "intensity": 0.1}
    spacing = plan["spacing_mm"]
    if max(spacing) > ANISOTROPIC * min(spacing):
        thick = spacing.index(max(spacing))
        turns = [0.2 if axis == thick else 0.0 for axis in range(3)]
        plan.choose("augmentation", {**strong, "rotate": turns}, "turned within the slices alone, which are far apart.")
    elif plan["intensity"]["rule"] == "range":
        plan.choose("augmentation", weak, "a little, as tuned by hand for CT, whose values have a unit.")
    else:
        plan.choose("augmentation", strong, "turned, scaled and shifted in intensity, as tuned by hand for MR.")
