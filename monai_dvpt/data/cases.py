# SPDX-License-Identifier: Apache-2.0
"""The inputs in a folder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_dvpt.utils import InputError, reason

from .channels import files_beside, group_channels, unnamed_problem
from .dicom import DicomSeries, DicomSeriesReader, find_series
from .dicom.privacy import names_patient
from .dicom.series import VOLUMES
from .folders import walk_files
from .kinds import image_problem, image_stem, is_regular, looks_like_dicom, pair_header

__all__ = ["NO_SERIES", "find_cases", "names_of_files", "unique_names"]

MAX_NAME_BYTES = 180  # file systems take 255, and results add a suffix
NO_SERIES = (
    "channels must be NIfTI, NRRD or MetaImage files, as case/t1.nii.gz or in the layout of nnU-Net; no DICOM series "
    "says for certain which channel it is"
)
SUMMARY = "summary.csv"
"""In a folder of results, see :func:`monai_dvpt.engines.run_cases`."""


def find_cases(
    dataset_dir: str | os.PathLike,
    exclude: str | os.PathLike | None = None,
    pictures: bool = False,
    dicom_reader: DicomSeriesReader | None = None,
    channels: Sequence[str] = (),
    file_channels: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """
    Lists the images at a path, at any depth: every NIfTI (a pair by its header), NRRD or MetaImage file, recognised by
    its content and not by its name, and the series that the reader chooses from every DICOM study. Hidden files and
    folders, and folders with a name that begins with "labels" (as for the Decathlon's masks), are ignored.

    Args:
        dataset_dir: a folder, or one file.
        exclude: folder to ignore, such as that of the results.
        pictures: whether the images are 2D: PNG and JPEG files are then listed too, and every DICOM image by itself,
            also a file that is DICOM by its name alone (".dcm").
        dicom_reader: chooses what is read of a study; by default its only volume.
        channels: names of the channels of a volume, in their order, where it has several or a name says which file to
            take: the files of a case are then found by :func:`monai_dvpt.data.channels.group_channels`.
        file_channels: names of all channels that the files may have, see there; by default ``channels``.

    Returns:
        for each input its path, or the paths of the files of a series or of its channels, as "image", and a unique
        "name", in order of the paths. The name is made of the path below ``dataset_dir``, and a part of the hash of the
        Study Instance UID if several studies lie in one folder; if it would name the patient, it is "study" and that
        part of the hash (for a picture: of its path). A case with any path that would name the patient is "private". A
        study without a readable series, a case without all channels, an image in another format, and a file that only
        has the name of an image, have the reason as "refused".

    Raises:
        InputError: if the path does not exist, contains no input, or is that of the results.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise InputError(f"{root}: dataset_dir must be an existing file or folder.")
    if exclude is not None and root.resolve() == Path(exclude).resolve():
        raise InputError(f"{root}: output_dir must be another folder than dataset_dir.")
    if root.is_file():
        root = pair_header(root) or root
    entries, dicom = [], []
    for path in [root] if root.is_file() else walk_files(root, lambda folder: _is_left_out(folder, exclude)):
        problem = image_problem(path, pictures)
        if problem != "" and looks_like_dicom(path):
            dicom.append(path)
        elif problem is not None:
            entries.append(_Entry(path, {"image": str(path), **({"refused": problem} if problem else {})}))
    if root.is_file() and not entries:
        dicom = [root]
    if channels:
        entries = _with_channels(entries, channels, file_channels or channels)
    if dicom:
        series = find_series(root if root.is_file() and not pictures else dicom, progress=True)
        reader = dicom_reader or DicomSeriesReader()
        found = _pictures(series) if pictures else _studies(series, reader, root if root.is_file() else None)
        if channels:
            for entry in found:
                entry.case["refused"] = f"{NO_SERIES}: {', '.join(channels)}."
        entries += found
    if not entries:
        kinds = f"NIfTI, NRRD, MetaImage{', PNG, JPEG' if pictures else ''} or DICOM files"
        raise InputError(f"{root}: dataset_dir must hold {kinds}, found none.")
    entries.sort(key=lambda entry: (entry.path, entry.suffix))
    names = unique_names(root.parent if root.is_file() else root, [entry.path for entry in entries])
    shared = Counter(entry.path for entry in entries)
    for entry, name in zip(entries, names, strict=True):
        if entry.alias:
            name = f"study_{entry.suffix}"
        elif entry.suffix and shared[entry.path] > 1:
            name = f"{unique_names(root, [entry.path])[0]}_{entry.suffix}"
        entry.case["name"] = name
    return [entry.case for entry in entries]


def unique_names(root: Path, paths: Sequence[Path]) -> list[str]:
    """
    A unique name for each path, in their order, made of its parts below ``root``, or of the last part of a path
    elsewhere. Characters that cannot be printed become "_"; a name that is too long for a file ends in a hash.
    """
    names: dict[str, None] = {}
    for path in paths:
        inside = path.relative_to(root).parts if path.is_relative_to(root) else path.parts[-1:]
        parts = inside or (root.resolve().name,)
        base = "_".join([*parts[:-1], parts[-1] if os.path.isdir(path) else image_stem(parts[-1])])
        base = name = _printable(base)
        count = 1
        while name in names:  # scan.nii beside scan.nii.gz
            count += 1
            name = f"{base}_{count}"
        names[name] = None
    return list(names)


def names_of_files(paths: Sequence[str]) -> list[str]:
    """A unique name for each file, in their order, made of its path below the folder that all lie in."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    root = Path(os.path.commonpath(folders)) if folders else Path()
    return unique_names(root, [Path(os.path.abspath(path)) for path in paths])


def _with_channels(entries: Sequence[_Entry], channels: Sequence[str], file_channels: Sequence[str]) -> list[_Entry]:
    """Cases of the files of each, and of files with all channels; a file beside them that is no channel is left out."""
    readable = [entry.path for entry in entries if "refused" not in entry.case]
    groups = group_channels(readable, file_channels)
    found = []
    for group in groups:
        files = list(group.files.values())
        case: dict[str, Any] = {"image": [str(path) for path in files]}
        try:
            case["image"] = [str(path) for path in group.paths_of(channels)]
        except InputError as error:
            case["refused"] = f"{group.place}: {reason(error)}"
        found.append(_Entry(group.place, case))
    done = {path for group in groups for path in (*group.files.values(), *group.unclear)}
    done |= files_beside(groups, readable)
    for entry in entries:
        if entry.path in done:
            continue
        if "refused" not in entry.case and (problem := unnamed_problem(entry.path, file_channels)):
            entry.case["refused"] = f"{entry.path}: {problem}"
        found.append(entry)
    return found


@dataclass
class _Entry:
    """A case before it has a name."""

    path: Path  # it is named after
    case: dict[str, Any]
    suffix: str = ""  # part of a hash that tells it from others with this path
    alias: bool = False  # its name must not be made of the path


def _is_left_out(folder: Path, exclude: str | os.PathLike | None) -> bool:
    """Whether a folder is of labels or results."""
    with suppress(OSError):  # one of them cannot be reached
        if folder.name.startswith("labels") or exclude is not None and os.path.samefile(folder, exclude):
            return True
    with suppress(OSError):
        if is_regular(folder / SUMMARY):
            with open(folder / SUMMARY, "rb") as file:
                return file.read(19) == b"name,status,reason,"
    return False


def _pictures(found: Sequence[DicomSeries]) -> list[_Entry]:
    """A case for every DICOM file except results and reports."""
    entries = []
    for series in found:
        for path in series.files if series.is_image or not series.headers else ():
            private = names_patient(str(path), series.identifiers)
            case: dict[str, Any] = {"image": str(path), **({"private": True} if private else {})}
            if not is_regular(path):  # never to be opened
                case["refused"] = series.reason
            entries.append(_Entry(path, case, _hash(str(path)), private))
    return entries


def _studies(found: Sequence[DicomSeries], reader: DicomSeriesReader, file: Path | None) -> list[_Entry]:
    """A case for every study; a series that names no study belongs to one in the same folder."""
    study_in = {path.parent: series.study_uid for series in found for path in series.files if series.study_uid}
    studies: dict[str, list[DicomSeries]] = {}
    for series in found:
        folder = series.files[0].parent
        studies.setdefault(series.study_uid or study_in.get(folder, str(folder)), []).append(series)
    entries = []
    for uid, group in studies.items():
        volumes = [series for series in group if series.verdict in VOLUMES] or group
        folder = Path(os.path.commonpath([path.parent for series in volumes for path in series.files]))
        try:
            series = reader.choose(group)
            case: dict[str, Any] = {"image": sorted(map(str, series.files)), "series_uid": series.series_uid}
        except InputError as error:
            case = {"image": str(folder), "refused": str(error)}
        identifiers = frozenset().union(*(series.identifiers for series in group))
        place = file or folder
        paths = [place, *(path for series in group for path in series.files)]
        if names_patient("\n".join(map(str, paths)), identifiers):
            case["private"] = True
        entries.append(_Entry(place, case, _hash(uid), names_patient(str(place), identifiers)))
    return entries


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def _printable(name: str) -> str:
    """A name that a file may have, in UTF-8."""
    shown = "".join(letter if letter.isprintable() else "_" for letter in name)
    if len(shown.encode()) <= MAX_NAME_BYTES:
        return shown
    return f"{shown.encode()[: MAX_NAME_BYTES - 13].decode(errors='ignore')}_{_hash(name)}"
