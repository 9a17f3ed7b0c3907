# SPDX-License-Identifier: Apache-2.0
"""What the plans of all tasks share: the record of choices, and the rules for images of any kind."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from monai_dvpt.networks.pretrained import MRI_VIT_TINY, Backbone, read_backbone

from ..modalities import modality_of
from ..model import Case, Collection, Measurement

__all__ = [
    "Choice",
    "Data",
    "Plan",
    "choose_backbone",
    "choose_epochs",
    "choose_intensity",
    "choose_picture",
    "has_sides",
    "median_of",
    "side_by_side",
    "why_not_mirrored",
]

STEPS = 1000
"""Optimiser steps of a training."""
AIR_HU = -500
"""Below this there is only air, in Hounsfield units; no other modality has such values as a rule."""
MANY_ZEROS = 1 / 3
PICTURE = 224
"""Side of a picture, in pixels, on which most backbones were trained."""
SWAPPED = {"l": "r", "r": "l"}
SAME_SIDE = 0.9
"""Share of the images with the same label on the same side, from which on two labels have sides."""
BESIDE = 1.5
"""How many times further two labels that lie side by side are apart along that axis than along any other."""
ALIKE = 2.0
"""How many times larger one of two organs of the two sides may be."""
SIDES = {"left", "right", "l", "r", "lt", "rt", "lh", "rh"}


@dataclass(frozen=True)
class Choice:
    """
    A setting.

    Attributes:
        value: a number, a text, a list or an object of these.
        reason: one sentence.
        details: rows of a table alike, each a mapping, for those who ask how it was found; a page folds them.
    """

    value: Any
    reason: str
    details: Sequence[Mapping[str, Any]] = ()


@dataclass
class Plan:
    """
    The settings of a bundle.

    Attributes:
        choices: by name.
        backbone: the given file of pretrained weights, absolute; None for the shipped weights.
    """

    backbone: str | None = None
    choices: dict[str, Choice] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """The value of a choice."""
        return self.choices[name].value

    def choose(self, name: str, value: Any, reason: str, details: Sequence[Mapping[str, Any]] = ()) -> None:
        self.choices[name] = Choice(value, reason, details)

    @property
    def values(self) -> dict[str, Any]:
        return {name: choice.value for name, choice in self.choices.items()}

    def lines(self) -> Iterator[str]:
        """The plan in words, a line for each choice."""
        width = max(map(len, self.choices))
        for name, choice in self.choices.items():
            yield f"{name:<{width}}  {_text(choice.value)}: {choice.reason}"

    def as_json(self) -> dict[str, Any]:
        """By name the value, the reason and perhaps the details of every choice, as plan.json has it."""
        return {
            name: {"value": choice.value, "reason": choice.reason}
            | ({"details": list(choice.details)} if choice.details else {})
            for name, choice in self.choices.items()
        }


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass
class Data:
    """
    The cases that a plan is made for.

    Attributes:
        collection: all cases.
        training: those that train, with what was measured of them.
        backbone: file of pretrained weights; None for the shipped weights.
    """

    collection: Collection
    training: list[tuple[Case, Measurement]]
    backbone: str | None

    @property
    def measured(self) -> list[Measurement]:
        return [each for _, each in self.training]

    @cached_property
    def vit(self) -> Backbone:
        """
        What the weights tell of their network.

        Raises:
            InputError: if they are no weights of a ViT.
        """
        return read_backbone(MRI_VIT_TINY if self.backbone is None else self.backbone)

    @cached_property
    def modality(self) -> str:
        """The commonest stated modality, such as "CT", or CT where most volumes have values of air; else ""."""
        stated = Counter(case.modality for case, _ in self.training if case.modality)
        if stated:
            return stated.most_common(1)[0][0]
        air = [each.range[0] <= AIR_HU for each in self.measured]
        return "CT" if self.collection.spatial_dims == 3 and 2 * sum(air) > len(air) else ""

    def of_channel(self, number: int) -> Data:
        """The same cases, as if the image were one of its channels alone."""
        modality = modality_of(self.collection.channels[number])
        training = [(replace(case, modality=modality), each.by_channel[number]) for case, each in self.training]
        return Data(self.collection, training, self.backbone)

    @property
    def says_modality(self) -> bool:
        return any(case.modality for case, _ in self.training)


def median_of(rows: Sequence[Sequence[float]]) -> list[float]:
    """The median along each axis."""
    return np.median(np.array(rows, float), axis=0).tolist()


def has_sides(names: Sequence[str]) -> bool:
    """
    Whether a name says left or right, so that a mirrored image would have another label.

    Examples::

        >>> has_sides(["liver", "kidney_L"]), has_sides(["rkidney", "lkidney"]), has_sides(["anterior", "posterior"])
        (True, True, False)

    """
    words = {word for name in names for word in re.split(r"[\W_\d]+", name.lower())} - {"bright", "upright", "cleft"}
    mirrored = {SWAPPED[name[0]] + name[1:] for name in map(str.lower, names) if name[:1] in SWAPPED}
    paired = mirrored & set(map(str.lower, names))  # as rkidney and lkidney
    sided = any(word.startswith(("left", "right")) or word.endswith(("left", "right")) for word in words)
    return bool(words & SIDES or paired or sided)


def why_not_mirrored(data: Data, axis: int) -> str:
    """Why images must not be mirrored along an axis, the one from left to right; "" if nothing speaks against it."""
    if has_sides(data.collection.labels):
        return "labels are named by side, and a mirrored image would have the other"
    if pair := side_by_side(data.measured, axis):
        return f"labels {pair[0]} and {pair[1]} are of one size and lie side by side, as left and right organs do"
    return ""


def side_by_side(measured: Sequence[Measurement], axis: int) -> tuple[str, str] | None:
    """
    Two labels that a mirrored image could exchange, whatever they are called: of about one size, and in nearly every
    image the same one on the same side of the other.

    Args:
        measured: of at least two images with both labels.
        axis: from left to right.
    """
    names = sorted({name for each in measured for name in each.centres})
    for first, second in itertools.combinations(names, 2):
        both = [each for each in measured if first in each.centres and second in each.centres]
        if len(both) < 2:
            continue
        apart = np.array([np.subtract(each.centres[first], each.centres[second]) for each in both])
        across, along = apart[:, axis], np.abs(np.delete(apart, axis, axis=1)).max(axis=1)
        ratio = np.median([each.voxels[first] / each.voxels[second] for each in both])
        same = max((across > 0).mean(), (across < 0).mean())
        if same >= SAME_SIDE and np.median(np.abs(across)) > BESIDE * np.median(along) and 1 / ALIKE <= ratio <= ALIKE:
            return first, second
    return None


def choose_intensity(plan: Plan, data: Data) -> None:
    """The rule for the values of volumes."""
    measured = data.measured
    if data.modality == "CT":
        inside = [each.foreground or each.percentiles for each in measured]
        low, _, high = (round(value) for value in median_of(inside))
        where = "inside the labels" if measured[0].foreground else "of the images"
        known = "as the data say" if data.says_modality else f"most images have values below {AIR_HU}, as air in CT"
        plan.choose(
            "intensity",
            {"rule": "range", "low": low, "high": max(high, low + 1)},
            f"CT ({known}): clipped to the 0.5 and 99.5 percentiles {where}, and scaled to 0 to 1.",
        )
        return
    zeros = float(np.median([each.zeros for each in measured]))
    dark = all(each.range[0] == 0 for each in measured)
    nonzero = zeros > MANY_ZEROS and dark
    of = "the voxels that are not 0" if nonzero else "all voxels"
    share = f"{zeros:.1%} of the voxels of a median image have its smallest value"
    plan.choose(
        "intensity",
        {"rule": "z-score", "nonzero": nonzero},
        f"no CT, so the units are not fixed: z-score over {of}, since {share}.",
    )


def choose_epochs(plan: Plan, cases: int, batch_size: int, least: int, most: int) -> None:
    """Epochs for about the same number of optimiser steps, and how often the network is validated."""
    steps = math.ceil(cases / batch_size)
    epochs = min(max(round(STEPS / steps), least), most)
    plan.choose(
        "max_epochs",
        epochs,
        f"about {STEPS:,} optimiser steps of {steps} an epoch, within {least} to {most} epochs.",
    )
    interval = max(1, round(epochs / (3 if epochs < 20 else 10)))
    plan.choose("val_interval", interval, f"scored {math.ceil(epochs / interval)} times in the training.")


def choose_backbone(plan: Plan, data: Data) -> None:
    if data.backbone is None:
        plan.choose("backbone", MRI_VIT_TINY.name, "the weights of this package, pretrained on MR without labels.")
    else:
        plan.choose("backbone", os.path.basename(data.backbone), f"given; a {data.vit.kind}.")


def choose_picture(
    plan: Plan, data: Data, pixels: int = PICTURE, why: str = "on which most weights were trained"
) -> None:
    """The size of pictures, about ``pixels``; the rule for their values; and how the weights want them normalised."""
    vit = data.vit
    side = vit.patch_size if isinstance(vit.patch_size, int) else max(vit.patch_size)
    plan.choose("img_size", pixels // side * side, f"pixels; {why}; a multiple of the tokens' side of {side}.")
    if 2 * sum(each.channels == 3 for each in data.measured) > len(data.measured):
        value = {"rule": "range", "low": 0, "high": 255}
        plan.choose("intensity", value, "most pictures have colours, which keep their meaning from 0 to 255.")
    else:
        value = {"rule": "percentiles", "lower": 1, "upper": 99}
        plan.choose(
            "intensity", value, "most pictures are grey: the 1 and 99 percentiles of each are scaled to 0 to 1."
        )
    if vit.normalisation is None:
        guess = "a guess: the weights do not say how their images were normalised, and most ViTs of timm have 0.5."
        plan.choose("image_mean", 0.5, guess)
        plan.choose("image_std", 0.5, guess)
    else:
        origin = f"of the images that the weights were trained on: {vit.normalisation.origin}."
        plan.choose("image_mean", vit.image_mean, origin)
        plan.choose("image_std", vit.image_std, origin)
