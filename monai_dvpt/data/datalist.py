# SPDX-License-Identifier: Apache-2.0
"""Lists of training and validation cases."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

from monai.apps import DecathlonDataset

from monai_dvpt.utils import InputError, fingerprint, naming

from .kinds import VOLUMES, file_ids, image_kind, image_problem, is_regular

__all__ = [
    "CHECK",
    "describe_cases",
    "draw_count",
    "images_sha256",
    "list_sha256",
    "load_datalist",
    "read_list_file",
]

PARTS = ("training", "validation", "calibration", "test")

CHECK = "check.json"
"""Beside a list that the command ``new`` wrote: what it found in the data."""

Datalist = dict[str, list[dict[str, Any]]]


def describe_cases(
    training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
) -> dict[str, str | int]:
    """
    The data of a run, without names.

    Args:
        training: cases with an "image", each as often as it is used in an epoch.
        validation: such cases, or none.

    Returns:
        the numbers of different images, "training" and "validation", and "sha256" of both lists, which does not change
        when the data move to another folder.
    """
    lists = {"training": [dict(case) for case in training], "validation": [dict(case) for case in validation]}
    counts = {name: len({str(case["image"]) for case in part}) for name, part in lists.items()}
    cases = [case for part in lists.values() for case in part]
    for key in dict.fromkeys(key for case in cases for key in case):  # images and labels may lie in different folders
        texts = [text for case in cases if key in case for text in _paths(case[key]) if isinstance(text, str)]
        folders = [os.path.dirname(text) for text in texts if os.path.isabs(text)]
        folder = os.path.commonpath(folders) if folders else ""
        for case in cases:
            if folder and key in case:
                below = [str(text).removeprefix(folder) for text in _paths(case[key])]
                case[key] = below if isinstance(case[key], list) else below[0]
    return {"sha256": fingerprint(lists), **counts}


def images_sha256(cases: Sequence[Mapping[str, Any]]) -> str | None:
    """
    Tells whether two parts of a list have the same images, in the same order, wherever their folder is.

    Args:
        cases: with an "image" each.

    Returns:
        a SHA-256 in hexadecimal; None without cases, or where the images are not given by their paths.
    """
    images = [case.get("image") if isinstance(case, Mapping) else None for case in cases]
    paths = [path for image in images for path in (image if isinstance(image, list) else [image])]
    if not paths or not all(isinstance(path, (str, os.PathLike)) for path in paths):
        return None
    return str(describe_cases([], [{"image": image} for image in images])["sha256"])


def list_sha256(datalist: str | os.PathLike) -> str | None:
    """
    Tells whether two runs had the same list of cases.

    Args:
        datalist: file, or folder of lists, for each part one.

    Returns:
        for a list that the command ``new`` wrote the SHA-256 of the images, labels and parts of its cases, which stays
        when it is written again for the same data; for another one that of its bytes, both in hexadecimal; None
        without a file, such as for "auto".
    """
    path = Path(datalist)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if not any(map(is_regular, files)):
        return None
    found = hashlib.sha256()
    for file in filter(is_regular, files):
        found.update(file.read_bytes())
    facts = None
    if is_regular(check := path.parent / CHECK):
        with suppress(InputError):  # damaged: it says nothing
            content = read_list_file(check)
            facts = content.get("list") if isinstance(content, dict) else None
    if isinstance(facts, dict) and facts.get("file_sha256") == found.hexdigest():
        return str(facts.get("sha256"))
    return found.hexdigest()


def load_datalist(
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike = "auto",
    validation_fraction: float = 0.2,
    msd_task: str | None = None,
    labels_dir: str | os.PathLike | None = None,
) -> Datalist:
    """
    Cases with labels, in the layout of the Medical Segmentation Decathlon.

    Args:
        dataset_dir: folder that the paths of the list are relative to.
        datalist: JSON file with the lists "training" and, optionally, "validation", "calibration" and "test" of
            ``{"image": …, "label": …}``. An image is a file, a folder with one DICOM series, the list of the files
            of a series, or the list of the files of its channels. A list "test" of images alone, as the Decathlon has
            it, is ignored.
            "auto" takes ``datalist.json`` or ``dataset.json`` of ``dataset_dir``, whichever is found first; without
            either, the images of ``imagesTr`` and ``labelsTr`` are paired by file name.
        validation_fraction: share of the training cases, drawn with a fixed seed, for validation if the list has no
            such part; in (0, 1).
        msd_task: Decathlon task, such as "Task04_Hippocampus". If ``dataset_dir`` has that name and does not exist,
            the task is downloaded to it.
        labels_dir: folder that the labels of the list are relative to; by default ``dataset_dir``.

    Returns:
        the lists "training", "validation" and, if they have cases, "calibration" and "test", with absolute paths.

    Raises:
        InputError: if a folder or file is missing, a download fails, a list is empty or not readable, an image has no
            label or a label no image, or a case is in two parts, even through links; names the files.
        ValueError: if ``validation_fraction`` is outside (0, 1).
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in (0, 1), got {validation_fraction}.")
    root = Path(dataset_dir)
    if not root.exists() and msd_task is not None and root.name == msd_task:
        root.parent.mkdir(parents=True, exist_ok=True)
        try:
            DecathlonDataset(str(root.parent), task=msd_task, section="training", download=True, cache_num=0)
        except Exception as error:  # MONAI raises no narrower kind
            why = f"does not exist, and {msd_task} cannot be downloaded; pass another dataset_dir. {error}"
            raise InputError(f"{root}: {why}") from error
    if not root.is_dir():
        raise InputError(f"{root}: dataset_dir must be an existing folder.")
    labels = root if labels_dir is None else Path(labels_dir)
    if not labels.is_dir():
        raise InputError(f"{labels}: labels_dir must be an existing folder.")
    auto = str(datalist) == "auto"
    files = [root / "datalist.json", root / "dataset.json"] if auto else [Path(datalist)]
    file = next((candidate for candidate in files if candidate.is_file()), None)
    if file is None and not auto:
        raise InputError(f"{datalist}: datalist must be an existing file.")
    with naming(file or root):
        sections = _read(file) if file is not None else {"training": _pair_by_name(root)}
        cases = {name: _checked(sections.get(name, []), root, labels, file or root) for name in PARTS}
        if not cases["training"]:
            raise InputError("holds no training cases.")
        for part, other in combinations(PARTS, 2):
            if shared := _shared(cases[part], cases[other]):
                raise InputError(f"a case must not be in {part} and {other}; listed twice: {_some(shared)}.")
        others = {name: cases.pop(name) for name in ("calibration", "test")}
        if not cases["validation"]:
            if len(cases["training"]) < 2:
                raise InputError("one case cannot both train and validate; list at least 2 cases.")
            shuffled = random.Random(0).sample(cases["training"], len(cases["training"]))
            count = draw_count(validation_fraction, len(shuffled))
            cases = {"training": shuffled[count:], "validation": shuffled[:count]}
            if shared := _shared(cases["training"], cases["validation"]):
                rule = "where validation cases are drawn, every file must be there once"
                raise InputError(f"{rule}; listed or linked twice: {_some(shared)}.")
    return {**cases, **{name: section for name, section in others.items() if section}}


def _shared(cases: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[str]:
    """Files of the others that are files of the cases too, perhaps through links."""
    theirs = {path for case in others for value in case.values() for path in _paths(value)}
    mine = {path for case in cases if theirs for value in case.values() for path in _paths(value)}
    ids = {each for path in mine for each in file_ids(path)}
    return sorted(path for path in theirs if not ids.isdisjoint(file_ids(path)))


def _paths(value: Any) -> list[Any]:
    """A path, or those of a list."""
    return value if isinstance(value, list) else [value]


def draw_count(fraction: float, total: int) -> int:
    """The number of cases to draw for validation: a fraction of all, at least 1, but not all."""
    return min(max(1, round(fraction * total)), total - 1)


def read_list_file(file: Path) -> Any:
    """The content of a JSON file; an InputError if it is not valid."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"is not valid JSON: {error}.") from error


def _read(file: Path) -> dict:
    sections = read_list_file(file)
    if not isinstance(sections, dict) or not isinstance(sections.get("training"), list):
        raise InputError('must be an object with a list "training".')
    for part in PARTS:
        if not isinstance(sections.get(part, []), list):
            raise InputError(f'"{part}" must be a list.')
    if all(isinstance(image, str) for image in sections.get("test", [])):  # of the Decathlon
        sections.pop("test", None)
    return sections


def _pair_by_name(root: Path) -> list[dict[str, str]]:
    names = {}
    for folder in ("imagesTr", "labelsTr"):
        if not (root / folder).is_dir():
            raise InputError("must hold datalist.json, dataset.json, or the folders imagesTr and labelsTr.")
        paths = (path for path in (root / folder).iterdir() if path.name[0] != ".")
        names[folder] = {path.name for path in paths if image_problem(path) is not None}
    for kind, other in (("imagesTr", "labelsTr"), ("labelsTr", "imagesTr")):
        with naming(root / kind):
            if alone := sorted(names[kind] - names[other]):
                raise InputError(f"no file of the same name in {other} for {_some(alone)}.")
    return [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in sorted(names["imagesTr"])]


def _checked(entries: list, root: Path, labels: Path, source: Path) -> list[dict[str, Any]]:
    cases, missing = [], []
    for index, entry in enumerate(entries):
        given = entry if isinstance(entry, dict) else {}
        image, label = given.get("image"), given.get("label")
        files = image if isinstance(image, list) else [image]
        if not files or not all(isinstance(path, str) for path in (*files, label)):
            raise InputError(f'every case must name an "image" and a "label"; case {index} is {entry!r}.')
        paths = [os.path.abspath(root / str(path)) for path in files]
        if isinstance(image, list) and (kind := _other_kind(paths)):
            rule = "a list of files must be those of one DICOM series, or volumes, one for each channel"
            raise InputError(f"{rule}; case {index} lists {kind} files.")
        drawn = os.path.abspath(labels / str(label))
        case: dict[str, Any] = {"image": paths if isinstance(image, list) else paths[0], "label": drawn}
        missing += [path for path in (*paths, drawn) if not is_regular(path) and not os.path.isdir(path)]
        cases.append(case)
    if missing:
        hint = "" if source.parent == root else "; for the lists of dataset_dir itself pass --datalist auto"
        raise InputError(f"names files that do not exist or are no files: {_some(missing)}{hint}.")
    return cases


def _other_kind(paths: list[str]) -> str:
    """The kind of files that are neither those of a series nor channels; else ""."""
    if image_kind(paths[0]) in ("", "dicom"):  # the others, often hundreds, are looked at when they are read
        return ""
    kinds = {image_kind(path) or "unknown" for path in paths}
    return "" if kinds <= set(VOLUMES) else " and ".join(sorted(kinds))


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
