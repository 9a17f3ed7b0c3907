# SPDX-License-Identifier: Apache-2.0
"""Finds the task that a folder of data is for, and its cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from monai_dvpt.utils import InputError

from ..model import Collection, Options
from .columns import ROLES
from .pictures import collect_pictures
from .tables import collect_table
from .volumes import collect_volumes

__all__ = ["TASKS", "collect"]

TASKS = ("segmentation", "grading", "classification")
COLLECTORS: tuple[Callable[[Path, Options], Collection | None], ...] = (
    collect_volumes,
    collect_pictures,
    collect_table,
)


def collect(root: Path, options: Options) -> Collection:
    """
    The cases of a folder of data, for the only task that its labels fit, or for ``options.task``.

    Raises:
        InputError: if the folder does not exist, holds no labels, or labels of several tasks and none is chosen; or an
            option has a value that there is not.
    """
    if not root.is_dir():
        raise InputError(f"{root}: must be an existing folder of images and labels.")
    if options.task and options.task not in TASKS:
        raise InputError(f"task must be one of {TASKS}, got {options.task!r}.")
    if unknown := sorted(set(options.columns) - set(ROLES)):
        raise InputError(f"columns must name some of {', '.join(ROLES)}, got {', '.join(unknown)}.")
    segments = options.task == "segmentation" if options.task else None
    found = []
    for collector in COLLECTORS:
        if segments is not None and segments != (collector is not collect_table):
            continue
        if (collection := collector(root, options)) is not None:
            found.append(collection)
    if not found:
        wanted = options.task or "labels"
        raise InputError(
            f"{root}: must hold images with label maps, or with a table of grades or classes; found none for {wanted}."
        )
    if len(found) > 1:
        kinds = " or ".join(f"{each.task} of {len(each.cases)} {_images(each)}" for each in found)
        hint = "pass --task" if len({each.task for each in found}) > 1 else "keep one of them in the folder"
        raise InputError(f"{root}: the task must be clear, could be {kinds}; {hint}.")
    if options.channels and not found[0].channels:
        raise InputError(
            f"--channels must be of volumes that are segmented, got {found[0].task} of {_images(found[0])}."
        )
    return found[0]


def _images(collection: Collection) -> str:
    return "volumes" if collection.spatial_dims == 3 else "pictures"
