# SPDX-License-Identifier: Apache-2.0
"""The settings of a new bundle, each with its reason."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .model import Collection, Measurement
from .plan_pictures import plan_pictures
from .plan_volumes import plan_volumes

__all__ = ["Choice", "Plan", "make_plan"]


@dataclass(frozen=True)
class Choice:
    """The value of a setting, and why, in a sentence; settings that every bundle of the kind shares have no reason."""

    value: Any
    reason: str = ""


@dataclass
class Plan:
    """
    What the templates of a bundle are filled with.

    Attributes:
        template: folder of the templates.
        choices: by name of the setting.
    """

    template: str
    choices: dict[str, Choice] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        return {name: choice.value for name, choice in self.choices.items()}

    def as_json(self) -> dict[str, Any]:
        return {name: {"value": each.value, "reason": each.reason} for name, each in self.choices.items()}

    def lines(self) -> Iterator[str]:
        """The choices that have a reason, in words."""
        for name, choice in self.choices.items():
            if choice.reason:
                yield from textwrap.wrap(f"{name}: {choice.value}. {choice.reason}", 118, subsequent_indent="  ")


def make_plan(
    collection: Collection,
    measured: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    backbone: str | os.PathLike | None = None,
) -> Plan:
    """
    Args:
        collection: the cases.
        measured: one entry for each case.
        parts: indices of the cases by part.
        backbone: file of pretrained weights, in 2D or 3D; None for those of the package, which are for volumes.

    Raises:
        InputError: if pictures have no backbone, or the file is none.
    """
    segments = collection.task == "segmentation"
    volumes = segments and collection.spatial_dims == 3
    template = ("volume_segmentation" if volumes else "picture_segmentation") if segments else "classification"
    used = [each for indices in parts.values() for index in indices if (each := measured[index]) is not None]
    choices = (plan_volumes if volumes else plan_pictures)(collection, used, parts, backbone)
    return Plan(template, {name: Choice(value, reason) for name, (value, reason) in choices.items()})
