# SPDX-License-Identifier: Apache-2.0
"""The DICOM series of a folder, whether each is a volume, and the choice of one."""

from __future__ import annotations

import filecmp
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid as uids

from monai_dvpt.data.folders import walk_files
from monai_dvpt.data.kinds import looks_like_dicom
from monai_dvpt.utils import InputError
from monai_dvpt.utils import progress as with_progress

from .geometry import GridError
from .headers import DicomFile, Frame, quiet_pydicom, read_header
from .privacy import names_patient
from .volumes import DicomVolume, Slice, find_stacks, orientation_of, places_of, volumes_of

__all__ = ["VOLUMES", "DicomSeries", "choose_series", "find_series"]

RESULTS = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "FID")
"""Modalities of objects that are no images, though they may have rows and columns."""
SECTIONAL = ("CT", "MR", "PT", "NM", "OPT")
"""Modalities whose images must have a position; other images without one are pictures."""
VOLUMES = ("ok", "tilted", "choose", "refused")
"""Verdicts of series that are meant to be volumes."""
MAX_LISTED = 10  # series in an error


@dataclass(frozen=True, kw_only=True)
class DicomSeries:
    """
    A series, or the part of one in a folder. No attribute names a patient.

    Attributes:
        series_uid: Series Instance UID.
        study_uid: Study Instance UID.
        modality: such as "CT".
        description: Series Description.
        size: columns, rows and slices of a volume.
        spacing_mm: distance between columns, rows, and planes of slices; None without a volume.
        orientation: "axial", "coronal" or "sagittal", after "oblique" if it is more than 5 degrees off.
        num_slices: number of frames of all files.
        time_points: number of volumes at the same place.
        stacks: number of volumes at different places, of different sizes or of different acquisitions.
        tilt_degrees: of the gantry.
        verdict: "ok": read as it is; "tilted": read with ``tilt="resample"``; "choose": read with a ``time_point`` or
            ``stack``; "refused": a volume that cannot be placed right; "localizer", "single" (one slice), "no volume".
        reason: why it is not "ok".
        headers: of the files that can be read, in no order.
        files: paths, in no order.
        volumes: those that can be read, by stack and time point, each from 1.
        set_aside: files, or files with frames, that are in no volume of the series: a label that names no patient, and
            the reason.
    """

    series_uid: str
    study_uid: str
    modality: str
    description: str
    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str = ""
    num_slices: int
    time_points: int = 1
    stacks: int = 1
    tilt_degrees: float = 0.0
    verdict: str
    reason: str
    headers: tuple[DicomFile, ...] = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    volumes: dict[tuple[int, int], DicomVolume] = field(repr=False, hash=False, default_factory=dict)
    set_aside: tuple[tuple[str, str], ...] = ()

    @property
    def is_image(self) -> bool:
        """Whether it consists of images, and not of results or reports."""
        return self.size[0] > 0 and self.modality not in RESULTS

    @cached_property
    def identifiers(self) -> frozenset[tuple[str, bool]]:
        """Words that would name the patient, see :func:`monai_dvpt.data.dicom.privacy.identifiers_of`."""
        return frozenset().union(*(file.identifiers for file in self.headers))

    @property
    def lossy(self) -> bool:
        """Whether pixels were compressed with loss."""
        return any(file.lossy for file in self.headers)

    def facts(self) -> dict[str, Any]:
        """A description of the series for JSON, which names no patient."""
        names = ("modality", "description", "size", "spacing_mm", "orientation", "num_slices", "time_points", "stacks")
        facts = {name: getattr(self, name) for name in ("series_uid", "study_uid", *names)}
        facts |= {"tilt_degrees": self.tilt_degrees, "lossy": self.lossy}
        set_aside = [{"file": name, "reason": reason} for name, reason in self.set_aside]
        return {**facts, "verdict": self.verdict, "reason": self.reason, "set_aside": set_aside}

    def __str__(self) -> str:
        if not self.headers:
            return self.reason
        size = "x".join(map(str, self.size))
        why = f": {self.reason}" if self.reason else ""
        return f"{self.modality or '?'} '{self.description}' {size}, UID {self.series_uid or '?'} ({self.verdict}{why})"


def find_series(
    source: str | os.PathLike | Sequence[str | os.PathLike], merge_acquisitions: bool = False, progress: bool = False
) -> list[DicomSeries]:
    """
    Lists the series of a folder from headers alone: files need no extension and no order; hidden files, a DICOMDIR, and
    files that are not DICOM are ignored.

    Args:
        source: a folder, searched at any depth; a file, whose series is completed with the files beside it; or a list
            of files.
        merge_acquisitions: join slices of several acquisitions (AcquisitionNumber) into one volume.
        progress: whether to say how far it is.

    Returns:
        the series, sorted by study, number and UID. A file that cannot be read is a series of its own, and the series
        beside it are refused, since it may belong to them.

    Raises:
        InputError: if the source does not exist.
    """
    files: list[DicomFile] = []
    broken: dict[Path, str] = {}
    paths = _paths(source)
    with quiet_pydicom():  # once, and not for each file
        for path in with_progress(paths, "DICOM headers", unit="file") if progress else paths:
            try:
                files.append(read_header(path))
            except InputError as error:
                broken[path] = str(error)
    broken |= _homeless(files)
    patients: dict[Path, set[tuple[str, bool]]] = {path.parent: set() for path in broken}
    for file in files:
        patients.get(file.path.parent, set()).update(file.identifiers)
    named = {folder: frozenset(identifiers) for folder, identifiers in patients.items()}
    why_in: dict[Path, str] = {}
    for path, why in broken.items():
        if names_patient(path.name, named[path.parent]):
            broken[path] = why.replace(path.name, "one of its files")
        why_in.setdefault(path.parent, broken[path])
    groups: dict[Any, list[DicomFile]] = {}
    for file in (file for file in files if file.path not in broken):
        if file.sop_class != uids.MediaStorageDirectoryStorage:
            uid = file.series_uid or str(file.path.parent)  # without a UID, what lies together belongs together
            key = (file.study_uid, uid, file.patient, file.modality, file.size is None or file.sop_class)
            groups.setdefault(key, []).append(file)
    in_order = sorted(
        groups.values(), key=lambda group: (group[0].study_uid, group[0].series_number, group[0].series_uid)
    )
    found = [_judge(group, merge_acquisitions) for group in in_order]
    single = {series.series_uid for series in found if series.verdict == "single"} - {""}
    for index, series in enumerate(found):
        beside = next((why_in[path.parent] for path in series.files if path.parent in why_in), "")
        why = f"a file beside it may belong to it: {beside}" if beside else ""
        if series.series_uid in single:
            why = "a slice with its SeriesInstanceUID has another patient, study, modality or kind"
        if why and series.verdict in VOLUMES:
            found[index] = replace(series, verdict="refused", reason=why, volumes={})
    found += [_series([], (path,), "refused", why) for path, why in broken.items()]
    if isinstance(source, (str, os.PathLike)) and Path(source).is_file():
        return [series for series in found if Path(source) in series.files]
    return found


def choose_series(
    found: Iterable[DicomSeries],
    uid: str | None = None,
    description: str | None = None,
    modality: str | None = None,
    num_slices: int | None = None,
) -> DicomSeries:
    """
    The one series that fits.

    Args:
        found: from :func:`find_series`.
        uid: Series Instance UID.
        description: pattern of the Series Description as in a shell, such as ``"*T1*"``; case does not matter.
        modality: such as "MR".
        num_slices: number of slices.

    Raises:
        InputError: if none or several fit; lists them. Localizers, single slices and pictures are only taken by their
            UID; a volume that cannot be read counts, since it may be the one that is meant.
    """
    found = list(found)
    asked = {"uid": uid, "description": description, "modality": modality, "num_slices": num_slices}
    wishes = {key: value for key, value in asked.items() if value not in (None, "")}
    rules: dict[str, Callable[[DicomSeries], bool]] = {
        "uid": lambda series: series.series_uid == str(uid),
        "description": lambda series: fnmatch.fnmatchcase(series.description.lower(), str(description).lower()),
        "modality": lambda series: series.modality.upper() == str(modality).upper(),
        "num_slices": lambda series: series.num_slices == int(num_slices or 0),
    }
    fitting = [series for series in found if all(rules[key](series) for key in wishes)]
    volumes = [series for series in fitting if series.verdict in VOLUMES]
    candidates = volumes or (fitting if uid else [])
    if len(candidates) == 1:
        return candidates[0]
    wanted = f" with {', '.join(f'{key} {value}' for key, value in wishes.items())}" if wishes else ""
    shown = candidates or found
    listed = "; ".join(f"[{number}] {series}" for number, series in enumerate(shown[:MAX_LISTED], 1)) or "nothing"
    if (more := len(shown) - MAX_LISTED) > 0:
        listed += f"; and {more} more"
    if candidates:
        how = "choose by uid, description, modality or num_slices"
        raise InputError(f"must hold one DICOM volume{wanted}, holds {len(candidates)}: {listed}; {how}.")
    raise InputError(f"must hold a DICOM volume{wanted}, holds none; there is: {listed}.")


def _homeless(files: Sequence[DicomFile]) -> dict[Path, str]:
    """Images that do not state their study, series or kind, though images beside them do."""
    names = {"study_uid": "StudyInstanceUID", "series_uid": "SeriesInstanceUID"}
    names |= {"sop_class": "SOPClassUID", "modality": "Modality"}
    images = [file for file in files if file.size is not None]
    lost = {}
    for name, keyword in names.items():
        told = {file.path.parent for file in images if getattr(file, name)}
        for file in images:
            if file.path.parent in told and not getattr(file, name):
                lost[file.path] = f"{file.label}: must have a {keyword} as the images beside it, has none."
    return lost


def _paths(source: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    if not isinstance(source, (str, os.PathLike)):
        return [Path(path) for path in source]
    root = Path(source)
    if root.is_file():
        return [path for path in sorted(root.parent.iterdir()) if path == root or looks_like_dicom(path)]
    if not root.is_dir():
        raise InputError(f"{root}: must be an existing file or folder.")
    return [path for path in walk_files(root) if looks_like_dicom(path)]


def _series(
    group: Sequence[DicomFile], paths: tuple[Path, ...], verdict: str, reason: str, **facts: Any
) -> DicomSeries:
    first = group[0] if group else None
    size = (*first.size, sum(len(file.frames) for file in group)) if first is not None and first.size else (0, 0, 0)
    stated = {name: getattr(first, name, "") for name in ("series_uid", "study_uid", "modality", "description")}
    facts = {"size": size, "num_slices": size[2], **stated, **facts}
    return DicomSeries(verdict=verdict, reason=reason, headers=tuple(group), files=paths, **facts)


def _judge(group: list[DicomFile], merge_acquisitions: bool) -> DicomSeries:
    """Judges a series; the order of the rules matters."""
    paths = tuple(file.path for file in group)
    if not (judged := _series(group, paths, "no volume", "holds no image")).is_image:
        return judged
    try:
        group, copies = _without_copies(group)
        slices = [(file, frame) for file in group for frame in file.frames]
        if all(_is_localizer(frame) for _, frame in slices):
            return _series(group, paths, "localizer", "is a localizer", set_aside=copies)
        set_aside = (*copies, *_localizers(group))
        slices = [(file, frame) for file, frame in slices if not _is_localizer(frame)]
        captured = "Secondary Capture" in uids.UID(group[0].sop_class).name
        if all(frame.position_lps is None for _, frame in slices) and (captured or group[0].modality not in SECTIONAL):
            return _series(group, paths, "no volume", "has no position in the patient")
        if captured and all(file.samples > 1 for file in group):
            return _series(group, paths, "no volume", "is a picture in colour")
        _check_slices(slices)
        stacks = find_stacks(slices, merge_acquisitions)
        if len(stacks) == 1 and len(places_of(slices)) == 1:
            count = "one slice" if len(slices) == 1 else f"{len(slices)} slices at one place"
            why = f"has {count}, and no distance to a next"
            return _series(group, paths, "single", why, set_aside=set_aside)
        return replace(_sort_out(group, paths, stacks), set_aside=set_aside)
    except GridError as error:
        return _series(group, paths, "refused", str(error))


def _sort_out(group: list[DicomFile], paths: tuple[Path, ...], stacks: Mapping[str, list[Slice]]) -> DicomSeries:
    volumes = volumes_of(stacks)
    first = next(iter(volumes.values()))
    times = max(time for _, time in volumes)
    tilt = max(volume.grid.tilt_degrees for volume in volumes.values())
    verdict, why = "ok", ""
    if len(stacks) > 1:
        listed = "; ".join(f"{number}: {text}" for number, text in enumerate(stacks, 1))
        merge = ", or set merge_acquisitions" if "AcquisitionNumber" in listed else ""
        verdict, why = "choose", f"has {len(stacks)} stacks ({listed}); choose one by stack{merge}"
    elif times > 1:
        verdict, why = "choose", f"has {times} time points; choose one by time_point"
    elif tilt:
        shift = float(np.linalg.norm(first.grid.shift_pixels * first.grid.spacing_mm[:2]))
        verdict, why = (
            "tilted",
            f"its slices are tilted by {tilt:.2f} degrees, each {shift:.3f} mm beside the one before",
        )
    return _series(
        group,
        paths,
        verdict,
        why,
        size=first.size,
        spacing_mm=tuple(round(side, 6) for side in first.grid.spacing_mm),
        orientation=orientation_of(first.slices[0][1]),
        num_slices=sum(map(len, stacks.values())),
        time_points=times,
        stacks=len(stacks),
        tilt_degrees=round(tilt, 3),
        volumes=volumes,
    )


def _without_copies(group: list[DicomFile]) -> tuple[list[DicomFile], tuple[tuple[str, str], ...]]:
    """Of files that are equal byte for byte, one is kept and the others are set aside."""
    kept: dict[str, DicomFile] = {}
    copies = []
    for file in group:
        other = kept.setdefault(file.sop_uid or str(file.path), file)
        if other is file:
            continue
        if not filecmp.cmp(other.path, file.path, shallow=False):
            raise GridError(f"{other.label} and {file.label} have one SOPInstanceUID, and differ")
        copies.append((file.label, f"is a copy of {other.label}"))
    return list(kept.values()), tuple(copies)


def _localizers(group: list[DicomFile]) -> Iterator[tuple[str, str]]:
    """Files with frames that are localizers, in a series of others."""
    for file in group:
        numbers = [str(frame.number) for frame in file.frames if _is_localizer(frame)]
        if numbers:
            whole = len(numbers) == len(file.frames)
            yield file.label, "is a localizer" if whole else f"has frames that are localizers: {', '.join(numbers)}"


def _image_type(frame: Frame) -> tuple[str, ...]:
    value = frame.times.get("ImageType", ())
    return (value,) if isinstance(value, str) else value


def _is_localizer(frame: Frame) -> bool:
    return "LOCALIZER" in _image_type(frame)


def _check_slices(slices: Sequence[Slice]) -> None:
    """Checks each slice alone, and what must be the same for all."""
    needed = {
        "position_lps": "ImagePositionPatient",
        "orientation_lps": "ImageOrientationPatient",
        "spacing_mm": "PixelSpacing",
    }
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
        for name, keyword in needed.items():
            if getattr(frame, name) is None:
                raise GridError(f"{file.label} has no {keyword}")
    for name, keyword in (("photometric", "PhotometricInterpretation"), ("frame_of_reference", "FrameOfReferenceUID")):
        if len(values := {getattr(file, name) for file, _ in slices}) > 1:
            raise GridError(f"its slices must have one {keyword}, have {len(values)}")
