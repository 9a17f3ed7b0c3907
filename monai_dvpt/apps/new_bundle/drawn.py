# SPDX-License-Identifier: Apache-2.0
"""What of the label maps was drawn; the rest is not known, and is no background."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np

from monai_dvpt.utils import InputError

from .model import IGNORED, Collection, Finding, LabelReader, Measurement
from .write.labels import BACKGROUND

__all__ = ["DRAWN", "PLANES", "as_drawn", "ask_what_is_drawn", "mark_labels"]

PLANES = ("sagittal", "coronal", "axial")
"""Planes across the axes of RAS, in their order."""
DRAWN = ("all", "labels", "voxels", *PLANES)
ALONE = 0.9
"""Share of the planes with labels that have none beside them, from which only some planes may be drawn."""
SHOWN = 5


@dataclass(frozen=True)
class _DrawnReader:
    """Reads a label map, with voxels that were not drawn as :data:`IGNORED`."""

    read: LabelReader
    rules: Sequence[str]

    def __call__(self, image: Any) -> tuple[np.ndarray, dict[int, str]]:
        given, names = self.read(image)
        drawn = np.isin(given, [value for value, name in names.items() if name != IGNORED])
        unknown = np.zeros(given.shape, bool)
        for plane in set(PLANES) & set(self.rules):
            unknown |= ~_planes(drawn, plane, image)
        label = given.astype(np.int32)
        if "voxels" in self.rules:
            unknown |= given == 0
            background = [value for value, name in names.items() if _is_background(name)]
            label[np.isin(given, background)] = 0
            names = {value: name for value, name in names.items() if value not in background}
        number = max([*names, int(given.max())]) + 1
        label[unknown] = number
        return label, {**names, number: IGNORED}


def _is_background(name: str) -> bool:
    return name.casefold() == BACKGROUND


def _planes(drawn: np.ndarray, plane: str, image: Any) -> np.ndarray:
    """Where the planes of a volume lie that have a drawn voxel; oblique ones count by the nearest axis."""
    axes = nib.orientations.io_orientation(image.affine.numpy())[:, 0].astype(int).tolist()
    others = tuple(axis for axis, of in enumerate(axes) if of != PLANES.index(plane))
    return np.broadcast_to(drawn.any(axis=others, keepdims=True), drawn.shape)


def as_drawn(collection: Collection, rules: Sequence[str]) -> Collection:
    """
    Args:
        collection: the cases.
        rules: what was drawn of the label maps, some of :data:`DRAWN`. "sagittal", "coronal", "axial": the planes with
            a label; the others train nothing. "voxels": the voxels with a label, as in scribbles, of which one is
            called background. "labels": see :func:`mark_labels`.

    Returns:
        the collection, whose label maps are read by these rules.

    Raises:
        InputError: if a rule is unknown, does not fit another, or needs volumes.
    """
    if unknown := [rule for rule in rules if rule not in DRAWN]:
        raise InputError(f"--drawn must be of {', '.join(DRAWN)}, got {', '.join(unknown)}.")
    if "all" in rules and len(rules) > 1:
        raise InputError(f"--drawn all must stand alone, got {', '.join(rules)}.")
    if collection.task != "segmentation":
        if rules:
            raise InputError(f"--drawn is about label maps, which the data of {collection.task} do not have.")
        return collection
    if collection.spatial_dims == 2 and set(PLANES) & set(rules):
        raise InputError(f"--drawn must be all, labels or voxels for pictures, got {', '.join(rules)}.")
    if not set(rules) & {"voxels", *PLANES}:
        return collection
    cases = [
        case if case.read_label is None else replace(case, read_label=_DrawnReader(case.read_label, tuple(rules)))
        for case in collection.cases
    ]
    kept = [name for name in collection.labels if "voxels" not in rules or not _is_background(name)]
    return replace(collection, cases=cases, labels=kept)


def mark_labels(collection: Collection, measured: Sequence[Measurement | None], rules: Sequence[str]) -> None:
    """
    With the rule "labels", only labels that a case has were drawn in it, where its files do not say so themselves: a
    voxel outside them may be of any other.
    """
    if "labels" not in rules:
        return
    for case, each in zip(collection.cases, measured, strict=True):
        if case.read_label is not None and case.labelled is None and each is not None:
            case.labelled = [name for name in collection.labels if each.voxels.get(name)]


def ask_what_is_drawn(
    collection: Collection, measured: Sequence[Measurement | None], rules: Sequence[str], ignored: Sequence[str]
) -> Iterator[Finding]:
    """Findings about labels that may be drawn in part, and about what the user said of them."""
    pairs = [
        (case, each)
        for case, each in zip(collection.cases, measured, strict=True)
        if each is not None and case.read_label is not None
    ]
    if collection.task != "segmentation" or not pairs:
        return
    if ignored and None not in measured and not any(each.voxels.get(IGNORED) for _, each in pairs):
        message = f"no case has a voxel of what --ignore names, {', '.join(ignored)}"
        hint = "; voxels of 0 that were not drawn are --drawn voxels" if "0" in ignored else ""
        yield Finding("nothing ignored", "", f"{message}{hint}.", error=True)
    if "voxels" in rules and all(sum(each.voxels.values()) == np.prod(each.size) for _, each in pairs):
        message = "with --drawn voxels some of the background must be drawn too, and be named, as by --label-names "
        yield Finding("no background", "", f"{message}5={BACKGROUND}.", error=True)
    for case, each in pairs:
        if case.labelled is not None and not any(map(each.voxels.get, [*case.labelled, IGNORED])) and "labels" in rules:
            yield Finding("nothing drawn", case.name, "no voxel has a label, so the case trains nothing.", error=True)
    for name in collection.labels:
        undrawn = [case.name for case, _ in pairs if case.labelled is not None and name not in case.labelled]
        if undrawn and (collection.spatial_dims == 3 or "labels" in rules):  # else the search for pictures says so
            more = f" and {len(undrawn) - SHOWN} more" if len(undrawn) > SHOWN else ""
            message = f"counts as not drawn, and not as absent, in {len(undrawn)} cases: {', '.join(undrawn[:SHOWN])}"
            yield Finding("label not drawn", name, f"{message}{more}.")
    if rules:
        return
    for name in collection.labels:
        without = sum(case.labelled is None and not each.voxels.get(name) for case, each in pairs)
        if without and without < len(pairs):
            message = f"counts as absent in {without} of {len(pairs)} cases, which have no voxel of it; pass --drawn "
            yield Finding("label not in all cases", name, f"{message}labels if it was not drawn there.")
    yield from _ask_for_planes([each for _, each in pairs])


def _ask_for_planes(measured: Sequence[Measurement]) -> Iterator[Finding]:
    """Where most cases have labels in planes that all stand alone: no structure lies in every second plane."""
    counts: Counter[int] = Counter()
    for each in measured:
        alone = [axis for axis, share in enumerate(each.alone) if share >= ALONE]
        counts.update(alone if len(alone) == 1 else [])
    labelled = sum(any(each.voxels.values()) for each in measured)
    for axis, count in counts.items():
        if 2 * count > labelled:
            plane = PLANES[axis]
            message = f"in {count} of {labelled} cases no two {plane} planes beside each other have a label; pass "
            message += f"--drawn {plane} if the planes between were not drawn, or --drawn all if they have none."
            yield Finding("planes not drawn", "", message, error=True)
