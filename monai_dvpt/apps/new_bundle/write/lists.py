# SPDX-License-Identifier: Apache-2.0
"""The lists of cases of a bundle, whose images stay in the folder of data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from monai_dvpt.data.channels import is_volume_list
from monai_dvpt.data.folders import walk_files
from monai_dvpt.utils import InputError, atomic_path, to_json, write_csv

from ..model import Case, Collection

__all__ = ["write_grade_list", "write_mask_list", "write_volume_list"]

Parts = Mapping[str, Sequence[int]]


def write_volume_list(configs: Path, collection: Collection, parts: Parts, labels: Mapping[int, str]) -> None:
    """``datalist.json``, see :func:`monai_dvpt.data.load_datalist`; ``labels`` are the files of the label maps."""
    sections = {
        part: [{"image": _image(collection, collection.cases[i]), "label": labels[i]} for i in indices]
        for part, indices in parts.items()
        if indices
    }
    with atomic_path(configs / "datalist.json") as path:
        path.write_text(to_json(sections) + "\n", encoding="utf-8")


def write_mask_list(configs: Path, collection: Collection, parts: Parts, labels: Mapping[int, str]) -> None:
    """``datalist.csv``, see :func:`monai_dvpt.data.load_masklist`."""
    rows = [
        {"image": _image(collection, case), "mask": labels[index], "patient": case.patient, "split": part}
        for index, case, part in _cases(collection, parts)
    ]
    write_csv(configs / "datalist.csv", ["image", "mask", "patient", "split"], rows)


def write_grade_list(configs: Path, collection: Collection, parts: Parts) -> None:
    """
    ``datalist.csv``, see :func:`monai_dvpt.data.load_gradelist`.

    Raises:
        InputError: if a DICOM series shares its folder with other files.
    """
    rows = []
    for _, case, part in _cases(collection, parts):
        image = _image(collection, case)
        if isinstance(image, list):
            rule = "every DICOM series that is graded must have a folder of its own"
            raise InputError(f"{case.name}: {rule}, shares {os.path.dirname(image[0]) or '.'} with other files.")
        grades = {output: case.grades.get(output, "") for output in collection.outputs}
        rows.append({"image": image, **grades, "patient": case.patient, "split": part})
    write_csv(configs / "datalist.csv", ["image", *collection.outputs, "patient", "split"], rows)


def _cases(collection: Collection, parts: Parts) -> Iterator[tuple[int, Case, str]]:
    part_of = {index: part for part, indices in parts.items() for index in indices}
    for index in sorted(part_of):
        yield index, collection.cases[index], part_of[index]


def _image(collection: Collection, case: Case) -> str | list[str]:
    """
    The path below the folder of data: of a file, of the folder that holds a DICOM series and nothing else, or the list
    of the files of a series, or of the channels in their order.
    """
    root = os.path.abspath(collection.root)
    if isinstance(case.image, str):
        return os.path.relpath(os.path.abspath(case.image), root)
    if is_volume_list(case.image):
        return [os.path.relpath(os.path.abspath(path), root) for path in case.image]
    files = sorted(map(os.path.abspath, case.image))
    folder = os.path.commonpath(list(map(os.path.dirname, files)))
    if sorted(os.path.abspath(path) for path in walk_files(Path(folder))) == files and folder != root:
        return os.path.relpath(folder, root)
    return [os.path.relpath(path, root) for path in files]
