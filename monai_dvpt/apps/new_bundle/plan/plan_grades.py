# SPDX-License-Identifier: Apache-2.0
"""Plans grades and classes, of pictures and of volumes."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from .planning import (
    Data,
    Plan,
    choose_backbone,
    choose_epochs,
    choose_intensity,
    choose_picture,
    has_sides,
    median_of,
)
from .window import fit_window

__all__ = ["plan_grades"]

UNBALANCED = 10
"""Commonest over rarest grade above which every grade is drawn equally often."""
TOKENS = 512
"""Of a whole volume."""
MARGIN = 1.2
"""How much longer than the window an image may be that is cropped to it."""
PATCH = 8


def plan_grades(plan: Plan, data: Data) -> None:
    """Adds all choices for grades and classes, see :func:`make_plan`."""
    choose_backbone(plan, data)
    volumes = data.collection.spatial_dims == 3
    plan.choose("network", "DVPTViT", "a vision transformer with a head for the grades or classes.")
    if volumes:
        _choose_volume(plan, data)
        choose_intensity(plan, data)
    else:
        choose_picture(plan, data)
    _choose_head(plan, data, volumes)
    names = [*data.collection.labels, *data.collection.outputs]
    if has_sides(names):
        plan.choose("flips", [], "none: an output or grade is named by side, and a mirrored image would have another.")
    else:
        plan.choose("flips", [0 if volumes else 1], "left and right, where augment is on: nothing is named by side.")
    plan.choose("brightness", 0.2, "share by which brightness and contrast vary, where augment is on.")
    _choose_sampling(plan, data)
    if data.collection.task == "grading":
        plan.choose("sharpness", None, "plain cross-entropy, as tuned by hand on radiographs of the knee.")
        plan.choose("decision", "mean", "the grade nearest to the expected one, which suits quadratic kappa.")
        plan.choose("coverage", 0.9, "of the prediction sets, which need cases of the part calibration.")
    most = 8 if volumes else 32
    cases = len(data.training)
    batch = min(most, max(4, 2 ** int(math.log2(max(1, cases / 8)))))
    plan.choose("batch_size", batch, f"up to {most} as tuned by hand, at least 8 steps an epoch where there are cases.")
    choose_epochs(plan, cases, batch, least=10, most=100)


def _choose_volume(plan: Plan, data: Data) -> None:
    """Grid and size of a whole image: what is graded must not be cut away."""
    measured = [each for each in data.measured if each.spacing_mm is not None]
    spacing = median_of([each.spacing_mm for each in measured if each.spacing_mm is not None])
    extents = [np.multiply(each.size, each.spacing_mm or 1).tolist() for each in measured]
    window = fit_window(median_of(extents), spacing, [PATCH] * 3, TOKENS, max_windows=1)
    largest = [
        max(math.ceil(MARGIN * side), math.ceil(max(extent) / step))
        for side, extent, step in zip(window.roi_size, zip(*extents, strict=True), window.spacing_mm, strict=True)
    ]
    plan.choose("patch_size", PATCH, "voxels, as the weights were trained.")
    plan.choose(
        "spacing_mm", list(window.spacing_mm), f"the finest on which a median image has at most {TOKENS} tokens."
    )
    plan.choose("roi_size", list(window.roi_size), "voxels; holds a median image; a smaller one is padded.")
    plan.choose(
        "largest_size", largest, "voxels; no training image is larger; what is larger than roi_size is cropped."
    )


def _choose_head(plan: Plan, data: Data, volumes: bool) -> None:
    if volumes:
        method = {"name": "dvpt", "bottleneck_size": 32, "num_prompts": 10, "share_every": 3}
        plan.choose("method", method, "DVPT, as tuned by hand for volumes.")
        plan.choose("pooling", "mean", "of the tokens, as tuned by hand for volumes.")
        plan.choose("augment", True, "as tuned by hand for volumes, of which there are few.")
        plan.choose("prefix_cache", None, "augmented images differ in every epoch.")
        rates = {"method": 3e-3, "head": 3e-3}
    else:
        plan.choose("method", "linear", "the encoder stays as it is, and prompts in the head read its layers.")
        plan.choose("pooling", "prompts", "dynamic prompts read the layers; the best of the tuned settings on knees.")
        plan.choose("augment", False, "so that the frozen layers run once for each image.")
        plan.choose("prefix_cache", "memory", "keeps the outputs of the frozen layers, so that an epoch takes seconds.")
        rates = {"method": 3e-3, "head": 5e-3}
    plan.choose("learning_rates", rates, "of the trained parts, as tuned by hand.")
    plan.choose("weight_decay", 0.05, "as tuned by hand.")


def _choose_sampling(plan: Plan, data: Data) -> None:
    counts = Counter(
        (o, case.grades[o]) for case, _ in data.training for o in data.collection.outputs if o in case.grades
    )
    most, least = max(counts.values(), default=1), min(counts.values(), default=1)
    ratio = f"the commonest is {most / least:.1f} times as frequent as the rarest"
    if most > UNBALANCED * least:
        reason = f"{ratio}; each is drawn equally often, and the probabilities are those of equally frequent ones."
        plan.choose("sampling", "balanced", reason)
    else:
        plan.choose("sampling", "natural", f"{ratio}, up to {UNBALANCED} times need no balance.")
