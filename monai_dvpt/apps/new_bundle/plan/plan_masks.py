# SPDX-License-Identifier: Apache-2.0
"""Plans the segmentation of pictures."""

from __future__ import annotations

import math

from .planning import PICTURE, Data, Plan, choose_backbone, choose_epochs, choose_picture, median_of, why_not_mirrored

__all__ = ["plan_masks"]

MOST = 8
LARGE = 1.5
"""How much longer than ``PICTURE`` the side of pictures is from which they are segmented at twice that size."""


def plan_masks(plan: Plan, data: Data) -> None:
    """Adds all choices for the segmentation of pictures, see :func:`make_plan`."""
    choose_backbone(plan, data)
    plan.choose("network", "DVPTViTSegmenter", "a vision transformer with a light decoder.")
    side = max(median_of([each.size for each in data.measured]))
    if side > LARGE * PICTURE:
        choose_picture(plan, data, 2 * PICTURE, f"twice the usual, since a median picture has a side of {side:g}")
    else:
        choose_picture(plan, data)
    plan.choose("decoder", "conv", "two up-samplings, for labels that are thinner than a token.")
    _choose_augmentation(plan, data)
    method = {"name": "dvpt", "bottleneck_size": 8, "num_prompts": 10, "share_every": 1}
    plan.choose("method", method, "DVPT, as tuned by hand for photographs.")
    rates = {"method": 1e-3, "decoder": 2e-3, "head": 2e-3}
    plan.choose("learning_rates", rates, "of the trained parts, as tried for this decoder by hand.")
    plan.choose("weight_decay", 0.01, "as tried by hand.")
    cases = len(data.training)
    batch = min(MOST, max(2, 2 ** int(math.log2(max(1, cases / 8)))))
    plan.choose("batch_size", batch, f"up to {MOST} as tuned by hand, at least 8 steps an epoch where there are cases.")
    choose_epochs(plan, cases, batch, least=10, most=100)


def _choose_augmentation(plan: Plan, data: Data) -> None:
    coloured, why_not = plan["intensity"]["rule"] == "range", why_not_mirrored(data, 1)
    upright = "" if coloured else "; not up and down, since grey pictures, such as radiographs, stand upright"
    mirrored = f"not left and right: {why_not}" if why_not else "left and right: no label is named by side"
    plan.choose("flips", [0] * coloured + [1] * (not why_not), f"{mirrored}{upright}.")
    why = "as tuned by hand for photographs" if coloured else "a grey picture, such as a radiograph, stands upright"
    plan.choose("rotation", 0.8 if coloured else 0.2, f"radians; {why}.")
