# SPDX-License-Identifier: Apache-2.0
"""The DICOM series of a folder: what each is, and whether it is a volume."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid as uids
from tqdm import tqdm

from monai_dvpt.utils import InputError

from .geometry import TOLERANCE_MM, Grid, GridError, corners_lps, in_plane, lay_out, order_along_normal
from .headers import TIME_KEYS, DicomFile, Frame, looks_like_dicom, read_header

__all__ = ["VOLUMES", "DicomSeries", "DicomVolume", "Slice", "find_series"]

RESULTS = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "FID")
"""Modalities of objects that may have rows and columns, and are no images."""
SECTIONAL = ("CT", "MR", "PT", "NM", "OPT")
"""Modalities whose images must have a position; others without one are pictures."""
VOLUMES = ("ok", "tilted", "choose", "refused")
"""Verdicts of series that are meant to be volumes."""


Slice = tuple[DicomFile, Frame]
"""A frame and the file that holds it."""


@dataclass(frozen=True)
class DicomVolume:
    """
    The slices of one volume, in the order along their normal.

    Attributes:
        slices: file and frame of each.
        grid: where they lie.
    """

    slices: tuple[Slice, ...]
    grid: Grid

    @property
    def size(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        columns, rows = self.slices[0][0].size or (0, 0)
        return columns, rows, len(self.slices)


@dataclass(frozen=True)
class DicomSeries:
    """
    A series, or what of one lies in a folder. No attribute names a patient.

    Attributes:
        series_uid: Series Instance UID.
        study_uid: Study Instance UID.
        modality: such as "CT".
        description: Series Description.
        size: columns, rows and slices of a volume.
        spacing_mm: distance between columns, rows, and planes of slices; None where there is no volume.
        orientation: "axial", "coronal", "sagittal", with "oblique" before it where it is more than 5 degrees off.
        num_slices: frames of all files.
        time_points: volumes at the same place.
        stacks: volumes at different places, of different sizes or of different acquisitions.
        tilt_degrees: of the gantry.
        verdict: "ok": read as it is; "tilted": read with ``tilt="resample"``; "choose": read with a ``time_point`` or
            ``stack``; "refused": a volume that cannot be placed right; "localizer", "single" (one slice), "no volume".
        reason: why it is not "ok".
        headers: of the files that can be read, in no order.
        files: paths, in no order.
        volumes: what can be read, by stack and time point, each from 1.
    """

    series_uid: str
    study_uid: str
    modality: str
    description: str
    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    orientation: str
    num_slices: int
    time_points: int
    stacks: int
    tilt_degrees: float
    verdict: str
    reason: str
    headers: tuple[DicomFile, ...] = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    volumes: dict[tuple[int, int], DicomVolume] = field(repr=False, hash=False)

    @property
    def is_image(self) -> bool:
        """Whether it holds images, and not results or reports."""
        return self.size[0] > 0 and self.modality not in RESULTS

    def names_patient(self, text: str) -> bool:
        """Whether a text, such as a path, holds the name, ID, birth date or accession number of the patient."""
        return any(file.names_patient(text) for file in self.headers)

    def facts(self) -> dict[str, Any]:
        """What can be told of the series without naming a patient or a file, as for JSON."""
        names = ("modality", "description", "size", "spacing_mm", "orientation", "num_slices", "time_points", "stacks")
        facts = {name: getattr(self, name) for name in ("series_uid", "study_uid", *names)}
        return {**facts, "tilt_degrees": self.tilt_degrees, "verdict": self.verdict, "reason": self.reason}

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        why = f": {self.reason}" if self.reason else ""
        return f"{self.modality or '?'} '{self.description}' {size}, UID {self.series_uid or '?'} ({self.verdict}{why})"


def find_series(
    source: str | os.PathLike | Sequence[str | os.PathLike], merge_acquisitions: bool = False, progress: bool = False
) -> list[DicomSeries]:
    """
    Lists the series of a folder of any shape, from headers alone: files need no extension and no order; hidden ones,
    a DICOMDIR, and all that is not DICOM are passed over.

    Args:
        source: a folder, searched at any depth; a file, of which the rest of the series is looked for beside it; or
            the files to look at.
        merge_acquisitions: take slices of several acquisitions (AcquisitionNumber) as one volume.
        progress: show a bar.

    Returns:
        the series, sorted by study, number and UID. A file that cannot be read is a series of its own, and makes
        those beside it refused, since it may belong to them.

    Raises:
        InputError: if the source does not exist.
    """
    files: list[DicomFile] = []
    broken: dict[Path, str] = {}
    for path in tqdm(_paths(source), desc="DICOM headers", unit="file", disable=None if progress else True):
        try:
            files.append(read_header(path))
        except InputError as error:
            broken[path] = str(error)
    groups: dict[Any, list[DicomFile]] = {}
    for file in files:
        if file.sop_class != uids.MediaStorageDirectoryStorage:
            uid = file.series_uid or str(file.path.parent)  # without a UID, what lies together belongs together
            key = (file.study_uid, uid, file.patient, file.modality, file.size is None or file.sop_class)
            groups.setdefault(key, []).append(file)
    found = []
    for group in sorted(
        groups.values(), key=lambda group: (group[0].study_uid, group[0].series_number, group[0].series_uid)
    ):
        series = _judge(group, merge_acquisitions)
        beside = {file.path.parent for file in group} & {path.parent for path in broken}
        if beside and series.verdict in VOLUMES:
            why = next(text for path, text in broken.items() if path.parent in beside)
            series = replace(series, verdict="refused", reason=f"a file beside it may belong to it: {why}", volumes={})
        found.append(series)
    for path, why in broken.items():
        found.append(_series([], (path,), "refused", why))
    if isinstance(source, (str, os.PathLike)) and Path(source).is_file():
        return [series for series in found if Path(source) in series.files]
    return found


def _paths(source: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    if not isinstance(source, (str, os.PathLike)):
        if missing := [Path(path).name for path in source if not Path(path).is_file()]:
            raise InputError(f"{missing[0]}: must be an existing file.")
        return [Path(path) for path in source]
    root = Path(source)
    if root.is_file():
        return [
            path for path in sorted(root.parent.iterdir()) if looks_like_dicom(path) and not path.name.startswith(".")
        ]
    if not root.is_dir():
        raise InputError(f"{root}: must be an existing file or folder.")
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths = (Path(folder, name) for name in sorted(names) if not name.startswith(".") and name != "DICOMDIR")
        found += [path for path in paths if looks_like_dicom(path)]
    return found


def _series(
    group: Sequence[DicomFile], paths: tuple[Path, ...], verdict: str, reason: str, **facts: Any
) -> DicomSeries:
    first = group[0] if group else None
    size = (*first.size, sum(len(file.frames) for file in group)) if first is not None and first.size else (0, 0, 0)
    names = ("series_uid", "study_uid", "modality", "description")
    defaults: dict[str, Any] = {
        **{name: getattr(first, name, "") for name in names},
        "size": size,
        "spacing_mm": None,
        "orientation": "",
        "num_slices": size[2],
        "time_points": 1,
        "stacks": 1,
        "tilt_degrees": 0.0,
        "volumes": {},
    }
    return DicomSeries(**{**defaults, **facts}, verdict=verdict, reason=reason, headers=tuple(group), files=paths)


def _judge(group: list[DicomFile], merge_acquisitions: bool) -> DicomSeries:
    """What a series is; the rules in their order."""
    paths = tuple(file.path for file in group)
    if not (judged := _series(group, paths, "no volume", "holds no image")).is_image:
        return judged
    try:
        group = _without_copies(group)
        slices = [(file, frame) for file in group for frame in file.frames]
        if all(_is_localizer(frame) for _, frame in slices):
            return _series(group, paths, "localizer", "is a localizer")
        slices = [(file, frame) for file, frame in slices if not _is_localizer(frame)]
        if all(frame.position_lps is None for _, frame in slices) and group[0].modality not in SECTIONAL:
            return _series(group, paths, "no volume", "has no position in the patient")
        _check_files(slices)
        if len(slices) == 1:
            return _series(group, paths, "single", "has one slice, which says no distance to the next")
        stacks = _stacks(slices, merge_acquisitions)
        return _sort_out(group, paths, stacks)
    except GridError as error:
        return _series(group, paths, "refused", str(error))


def _sort_out(group: list[DicomFile], paths: tuple[Path, ...], stacks: Mapping[str, list[Slice]]) -> DicomSeries:
    volumes, errors = {}, []
    for stack, slices in enumerate(stacks.values(), 1):
        try:
            for time, points in enumerate(_time_points(slices), 1):
                volumes[stack, time] = _volume(points)
        except GridError as error:
            errors.append(error)
    if errors and (len(stacks) == 1 or not volumes):
        raise errors[0]
    first = next(iter(volumes.values()))
    times = max(time for _, time in volumes)
    tilt = max(volume.grid.tilt_degrees for volume in volumes.values())
    facts = {
        "size": first.size,
        "spacing_mm": tuple(round(side, 6) for side in first.grid.spacing_mm),
        "orientation": _orientation(first.slices[0][1]),
        "num_slices": sum(map(len, stacks.values())),
        "time_points": times,
        "stacks": len(stacks),
        "tilt_degrees": round(tilt, 3),
        "volumes": volumes,
    }
    if len(stacks) > 1:
        listed = "; ".join(f"{number}: {text}" for number, text in enumerate(stacks, 1))
        return _series(group, paths, "choose", f"has {len(stacks)} stacks ({listed}); choose one by stack", **facts)
    if times > 1:
        return _series(group, paths, "choose", f"has {times} time points; choose one by time_point", **facts)
    if tilt:
        shift = float(np.linalg.norm(first.grid.shift_pixels * first.grid.spacing_mm[:2]))
        why = f"its slices are tilted by {tilt:.2f} degrees, each {shift:.3f} mm beside the one before"
        return _series(group, paths, "tilted", why, **facts)
    return _series(group, paths, "ok", "", **facts)


def _without_copies(group: list[DicomFile]) -> list[DicomFile]:
    """Files that are the same to the byte count once."""
    kept: dict[str, DicomFile] = {}
    for file in group:
        other = kept.setdefault(file.sop_uid or str(file.path), file)
        if other is not file and other.path.read_bytes() != file.path.read_bytes():
            raise GridError(f"{other.label} and {file.label} have one SOPInstanceUID, and differ")
    return list(kept.values())


def _image_type(frame: Frame) -> tuple[str, ...]:
    value = frame.times.get("ImageType", ())
    return (value,) if isinstance(value, str) else value


def _is_localizer(frame: Frame) -> bool:
    return "LOCALIZER" in _image_type(frame)


def _check_files(slices: Sequence[Slice]) -> None:
    """What must hold for every slice alone, and what must be the same for all."""
    for file, frame in slices:
        if file.problem:
            raise GridError(f"{file.label} {file.problem}")
        if "MOSAIC" in _image_type(frame):
            raise GridError(f"{file.label} is a mosaic of slices")
        if file.samples != 1 or file.photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise GridError(
                f"{file.label} must be grey (MONOCHROME1 or MONOCHROME2, 1 sample), "
                f"is {file.photometric or 'unstated'}, {file.samples}"
            )
        names = {"position_lps": "ImagePositionPatient", "orientation_lps": "ImageOrientationPatient"}
        for name, keyword in {**names, "spacing_mm": "PixelSpacing"}.items():
            if getattr(frame, name) is None:
                raise GridError(f"{file.label} has no {keyword}")
    for name, keyword in (("photometric", "PhotometricInterpretation"), ("frame_of_reference", "FrameOfReferenceUID")):
        if len(values := {getattr(file, name) for file, _ in slices}) > 1:
            raise GridError(f"its slices must have one {keyword}, have {len(values)}")


def _stacks(slices: Sequence[Slice], merge_acquisitions: bool) -> dict[str, list[Slice]]:
    """Slices that can be one volume at each time point, by what tells them from the others."""
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
    for (size, _, _), members in kinds:
        step = np.linalg.norm(in_plane(members[0][1])[:, 0])
        text = f"{_orientation(members[0][1])}, {size[0]}x{size[1]} of {step:g} mm"
        for acquisition, part in _acquisitions(members, merge_acquisitions).items():
            name = f"{len(part)} slices {text}{acquisition}"
            found[name if name not in found else f"{name}, the {len(found) + 1}th"] = part
    return found


def _acquisitions(members: list[Slice], merge: bool) -> dict[str, list[Slice]]:
    """
    Slices at places of their own by AcquisitionNumber, unless it is one for all or another for each, as in a CT that
    moves between rotations; repeated places are left to the time points.
    """
    numbers = [frame.times.get("AcquisitionNumber") for _, frame in members]
    distinct = list(dict.fromkeys(numbers))
    if merge or len(distinct) in (1, len(members)) or len(_places([frame for _, frame in members])) < len(members):
        return {"": members}
    by_number = {number: [m for m, n in zip(members, numbers, strict=True) if n == number] for number in distinct}
    return {f", AcquisitionNumber {n:g}" if isinstance(n, float) else f", {n}": part for n, part in by_number.items()}


def _places(frames: Sequence[Frame]) -> list[list[int]]:
    """Indices of the frames at each place along the normal; slices closer than a tenth of the tolerance share one."""
    order, along = order_along_normal(frames)
    breaks = np.flatnonzero(np.diff(along) > TOLERANCE_MM / 10) + 1
    return [part.tolist() for part in np.split(order, breaks)]


def _time_points(slices: list[Slice]) -> list[list[Slice]]:
    """
    Volumes at one place, each with every slice once, in the order of what tells them apart: the first of ``TIME_KEYS``
    by which all slices of one volume come before all slices of the next.
    """
    frames = [frame for _, frame in slices]
    places = _places(frames)
    count = len(places[0])
    if all(len(place) == 1 for place in places):
        return [slices]
    if any(len(place) != count for place in places):
        repeated = sum(len(place) > 1 for place in places)
        raise GridError(f"positions must be different, {repeated} of {len(places)} are there more than once")
    for key in TIME_KEYS:
        if any(key not in frame.times for frame in frames):
            continue
        ranked = [sorted(place, key=lambda index: frames[index].times[key]) for place in places]
        values = [[frames[row[time]].times[key] for row in ranked] for time in range(count)]
        if all(max(before) < min(after) for before, after in pairwise(values)):
            return [[slices[row[time]] for row in ranked] for time in range(count)]
    raise GridError(
        f"positions must be different, each of the {len(places)} is there {count} times, "
        "and nothing tells which belong together"
    )


def _volume(slices: Sequence[Slice]) -> DicomVolume:
    if len(slices) == 1:
        raise GridError("a stack must have at least 2 slices, has 1")
    order, _ = order_along_normal([frame for _, frame in slices])
    ordered = tuple(slices[index] for index in order)
    size = ordered[0][0].size or (0, 0)
    return DicomVolume(ordered, lay_out([frame for _, frame in ordered], size))


def _orientation(frame: Frame) -> str:
    normal = np.abs(np.cross(*np.array(frame.orientation_lps)))
    name = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    return name if normal.max() >= np.cos(np.radians(5)) else f"oblique {name}"
