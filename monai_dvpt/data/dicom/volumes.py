# SPDX-License-Identifier: Apache-2.0
"""Sorting of the slices of a series into volumes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from .geometry import TOLERANCE_MM, Grid, GridError, corners_lps, in_plane, lay_out, order_along_normal
from .headers import TIME_KEYS, VARYING, DicomFile, Frame
from .terms import IMAGE_TYPES, term

__all__ = ["DicomVolume", "Slice", "find_stacks", "orientation_of", "places_of", "volumes_of"]

Slice = tuple[DicomFile, Frame]
"""A frame and the file that holds it."""


@dataclass(frozen=True)
class DicomVolume:
    """The slices of one volume, in the order along their normal, and their grid."""

    slices: tuple[Slice, ...]
    grid: Grid

    @property
    def size(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        columns, rows = self.slices[0][0].size or (0, 0)
        return columns, rows, len(self.slices)


def find_stacks(slices: Sequence[Slice], merge_acquisitions: bool) -> dict[str, list[Slice]]:
    """
    Parts of a series, each of one size, spacing and orientation, by a text that tells them apart. Slices that all have
    different places are also told apart by what should be the same in one volume (see ``VARYING``), so that an echo or
    time point with missing slices is not filled up with slices of another.

    Args:
        slices: with position, orientation and spacing.
        merge_acquisitions: do not tell them apart by the AcquisitionNumber.
    """
    kinds: list[tuple[Any, list[Slice]]] = []
    for file, frame in slices:
        edges = corners_lps(replace(frame, position_lps=(0.0, 0.0, 0.0)), file.size or (1, 1))
        for (size, stack, others), members in kinds:
            if size == file.size and stack == frame.stack and np.abs(others - edges).max() <= TOLERANCE_MM / 2:
                members.append((file, frame))
                break
        else:
            kinds.append(((file.size, frame.stack, edges), [(file, frame)]))
    found: dict[str, list[Slice]] = {}
    for (size, _, _), members in sorted(kinds, key=lambda kind: (*kind[0][:2], *kind[0][2].round(3).ravel())):
        step = np.linalg.norm(in_plane(members[0][1])[:, 0])
        for what, part in _told_apart(members, merge_acquisitions).items():
            name = f"{len(part)} slices {orientation_of(part[0][1])}, {size[0]}x{size[1]} of {step:g} mm{what}"
            found[name if name not in found else f"{name} ({len(found) + 1})"] = part
    return found


def _told_apart(members: list[Slice], merge_acquisitions: bool) -> dict[str, list[Slice]]:
    """
    Slices at different places, by the first key with several values. An AcquisitionNumber of its own for each slice, as
    in a CT that moves between rotations, tells nothing apart; repeated places are sorted into time points later.
    """
    if len(places_of(members)) < len(members):
        return {"": members}
    for key in (*(key for key in TIME_KEYS if key not in VARYING), "AcquisitionNumber"):
        parts: dict[Any, list[Slice]] = {}
        for member in members:
            parts.setdefault(member[1].times.get(key), []).append(member)
        if key == "AcquisitionNumber" and (merge_acquisitions or len(parts) == len(members)):
            continue
        if len(parts) > 1:
            return {
                f", {key} {_shown(key, value)}{more}": few
                for value, part in sorted(parts.items(), key=lambda entry: _rank(entry[0]))
                for more, few in _told_apart(part, merge_acquisitions).items()
            }
    return {"": members}


def _rank(value: Any) -> tuple[str, Any]:
    """Sort key for values of different types."""
    return type(value).__name__, "" if value is None else value


def _shown(key: str, value: Any) -> str:
    """Numbers, such as a time, and defined terms; other values could name a patient."""
    if value is None or isinstance(value, float):
        return "none" if value is None else f"{value:g}"
    texts = value if isinstance(value, tuple) else (value,)
    number = key != "ImageType" and all(re.fullmatch(r"[-+\d.: ]*", text) for text in texts)
    return "/".join(text if number else term(text, IMAGE_TYPES) for text in texts)


def places_of(slices: Sequence[Slice]) -> list[list[int]]:
    """Indices of the slices at each place along the normal; those closer than a tenth of the tolerance share one."""
    order, along = order_along_normal([frame for _, frame in slices])
    breaks = np.flatnonzero(np.diff(along) > TOLERANCE_MM / 10) + 1
    return [part.tolist() for part in np.split(order, breaks)]


def volumes_of(stacks: Mapping[str, list[Slice]]) -> dict[tuple[int, int], DicomVolume]:
    """
    The volumes that can be read, by stack of :func:`find_stacks` and time point, from 1.

    Raises:
        GridError: if there is none.
    """
    volumes, errors = {}, []
    for stack, slices in enumerate(stacks.values(), 1):
        try:
            for time, points in enumerate(_time_points(slices), 1):
                volumes[stack, time] = _volume(points)
        except GridError as error:
            errors.append(error)
    if errors and len(stacks) == 1:
        raise errors[0]
    if not volumes:
        raise GridError(f"its slices must be alike, are of {len(stacks)} kinds: {'; '.join(stacks)}")
    return volumes


def _time_points(slices: list[Slice]) -> list[list[Slice]]:
    """
    Volumes at one place, each with every slice once, sorted by the first of ``TIME_KEYS`` that puts all slices of one
    volume before all slices of the next.
    """
    frames = [frame for _, frame in slices]
    places = places_of(slices)
    count = len(places[0])
    if all(len(place) == 1 for place in places):
        return [slices]
    if any(len(place) != count for place in places):
        repeated = sum(len(place) > 1 for place in places)
        raise GridError(f"positions must be different, {repeated} of {len(places)} are there more than once")
    for key in TIME_KEYS:
        if any(key not in frame.times for frame in frames):
            continue
        ranks = [_rank(frame.times[key]) for frame in frames]
        ranked = [sorted(place, key=ranks.__getitem__) for place in places]
        values = [[ranks[row[time]] for row in ranked] for time in range(count)]
        alike = key in VARYING or all(len(set(row)) == 1 for row in values)
        if alike and all(max(before) < min(after) for before, after in pairwise(values)):
            volumes = [[slices[row[time]] for row in ranked] for time in range(count)]
            for volume in volumes:
                if len(mixed := _told_apart(volume, merge_acquisitions=True)) > 1:
                    raise GridError(f"each time point must be of one kind, one is of {len(mixed)}: {'; '.join(mixed)}")
            return volumes
    raise GridError(
        f"positions must be different, each of the {len(places)} is there {count} times, "
        "and nothing tells which belong together"
    )


def _volume(slices: Sequence[Slice]) -> DicomVolume:
    if len(slices) == 1:
        raise GridError("a stack must have at least 2 slices, has 1")
    for name, keyword in (("slope", "RescaleSlope"), ("intercept", "RescaleIntercept")):
        without = sum(getattr(frame, name) is None for _, frame in slices)
        if 0 < without < len(slices):
            raise GridError(f"all of its slices must have a {keyword}, or none; {without} of {len(slices)} have none")
    order, _ = order_along_normal([frame for _, frame in slices])
    ordered = tuple(slices[index] for index in order)
    size = ordered[0][0].size or (0, 0)
    return DicomVolume(ordered, lay_out([frame for _, frame in ordered], size))


def orientation_of(frame: Frame) -> str:
    """The plane of a slice: "axial", "coronal" or "sagittal", after "oblique" from 5 degrees off."""
    normal = np.abs(np.cross(*np.array(frame.orientation_lps)))
    name = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    return name if normal.max() >= np.cos(np.radians(5)) else f"oblique {name}"
