# SPDX-License-Identifier: Apache-2.0
"""The lists of cases of a bundle, whose images stay in the folder of data; each function returns the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from monai_dvpt.utils import InputError, atomic_path, to_json, write_csv

from ..check.rules import OWN_FOLDER
from ..listed_images import ListedImages
from ..model import Case, Collection

__all__ = ["write_grade_list", "write_mask_list", "write_volume_list"]

Parts = Mapping[str, Sequence[int]]


def write_volume_list(configs: Path, collection: Collection, parts: Parts, labels: Mapping[int, str]) -> Path:
    """``datalist.json``, see :func:`monai_dvpt.data.load_datalist`; ``labels`` are the files of the label maps."""
    images = ListedImages(collection.root)
    sections = {
        part: [{"image": images.path_of(collection.cases[i]), "label": labels[i]} for i in indices]
        for part, indices in parts.items()
        if indices
    }
    with atomic_path(file := configs / "datalist.json") as path:
        path.write_text(to_json(sections) + "\n", encoding="utf-8")
    return file


def write_mask_list(configs: Path, collection: Collection, parts: Parts, labels: Mapping[int, str]) -> Path:
    """``datalist.csv``, see :func:`monai_dvpt.data.load_masklist`."""
    images = ListedImages(collection.root)
    rows = [
        {"image": images.path_of(case), "mask": labels[index], "patient": case.patient, "split": part}
        for index, case, part in _cases(collection, parts)
    ]
    write_csv(file := configs / "datalist.csv", ["image", "mask", "patient", "split"], rows)
    return file


def write_grade_list(configs: Path, collection: Collection, parts: Parts) -> Path:
    """
    ``datalist.csv``, see :func:`monai_dvpt.data.load_gradelist`.

    Raises:
        InputError: if a DICOM series shares its folder with other files.
    """
    images, rows = ListedImages(collection.root), []
    for _, case, part in _cases(collection, parts):
        image = images.path_of(case)
        if isinstance(image, list):
            raise InputError(f"{case.name}: {OWN_FOLDER}")
        grades = {output: case.grades.get(output, "") for output in collection.outputs}
        rows.append({"image": image, **grades, "patient": case.patient, "split": part})
    write_csv(file := configs / "datalist.csv", ["image", *collection.outputs, "patient", "split"], rows)
    return file


def _cases(collection: Collection, parts: Parts) -> Iterator[tuple[int, Case, str]]:
    part_of = {index: part for part, indices in parts.items() for index in indices}
    for index in sorted(part_of):
        yield index, collection.cases[index], part_of[index]
