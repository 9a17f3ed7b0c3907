# SPDX-License-Identifier: Apache-2.0
"""The settings of a bundle, each with its reason, from what was measured of the data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from monai_dvpt.utils import InputError

from ..model import Collection, Measurement
from .plan_grades import plan_grades
from .plan_masks import plan_masks
from .plan_volumes import plan_volumes
from .planning import Choice, Data, Plan
from .step import MeasureSteps, measure_steps

__all__ = ["Choice", "Plan", "check_backbones", "make_plan"]


def check_backbones(collection: Collection, backbones: Sequence[str | os.PathLike | None]) -> None:
    """
    Refuses pictures without a file of weights.

    Args:
        collection: the cases.
        backbones: files of pretrained weights; None for those of the package.

    Raises:
        InputError: if there are pictures, and the weights of the package would be taken; names what to pass.
    """
    if collection.spatial_dims == 2 and None in backbones:
        raise InputError(
            "pictures need the weights of a pretrained vision transformer: pass --backbone FILE, such as "
            "dinov2_vits14_pretrain.pth of DINOv2; the package has weights for volumes alone."
        )


def make_plan(
    collection: Collection,
    measurements: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    backbone: str | os.PathLike | None = None,
    measure: MeasureSteps | None = measure_steps,
) -> Plan:
    """
    Chooses the settings of a bundle by what was measured of its training cases. They start from those of the bundles
    of this repository, which were tuned by hand.

    Args:
        collection: the cases.
        measurements: one for each case; None for a case that is in no part.
        parts: indices of the cases by part, "training" among them.
        backbone: file of pretrained weights; volumes can do without, and then get the weights of this package.
        measure: measures training steps on this machine, for the size of a window; None takes a rule instead.

    Raises:
        InputError: if pictures have no ``backbone``, or it is none that fits; names what to pass.
    """
    check_backbones(collection, [backbone])
    training = [(collection.cases[index], each) for index in parts["training"] if (each := measurements[index])]
    if not training:
        raise InputError(f"{collection.root}: there must be cases to train, got none.")
    path = None if backbone is None else os.path.abspath(backbone)
    data, plan = Data(collection, training, path), Plan(path)
    plan.choose(
        "spatial_dims",
        collection.spatial_dims,
        "the images are volumes." if collection.spatial_dims == 3 else "the images are pictures.",
    )
    if collection.task != "segmentation":
        plan_grades(plan, data)
    elif collection.spatial_dims == 3:
        plan_volumes(plan, data, measure)
    else:
        plan_masks(plan, data)
    return plan
