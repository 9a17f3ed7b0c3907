# SPDX-License-Identifier: Apache-2.0
"""Lists of pictures with masks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_dvpt.utils import InputError, naming

from .cases import unique_names
from .gradelist import CaseParts, check_parts, draw_validation, path_of, read_tables
from .kinds import file_ids

__all__ = ["load_masklist"]

MASK = "mask"


def load_masklist(
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike,
    columns: Mapping[str, str] | None = None,
    validation_fraction: float = 0.2,
    labels_dir: str | os.PathLike | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """
    Pictures with masks, from a list as :func:`load_gradelist` reads it: a CSV file with the columns "image" (or
    "filename"), "mask" and, optionally, "patient" and "split" ("training", "validation", "calibration" or "test"); a
    text file with an image and its mask in each line; or a folder with one of these for each part, such as
    ``train.txt``.

    Args:
        dataset_dir: folder that the paths of the list are relative to.
        datalist: the file or folder.
        columns: names of the list's own columns, such as ``{"patient": "lesion_id"}``. Pictures with the same patient
            stay in one part; without such a column, or where its cell is empty, a picture is a patient of its own.
        validation_fraction: share of the training pictures, drawn with a fixed seed and patient by patient, for
            validation if the list has no such part; in (0, 1).
        labels_dir: folder that the masks of the list are relative to; by default ``dataset_dir``.

    Returns:
        the lists "training", "validation", "calibration" and "test" that have cases, each with the absolute paths
        "image" and "label", the mask's, a unique "name", and the "group", which is the same for all pictures of a
        patient. Another list than these is an :class:`InputError`.

    Raises:
        InputError: if an argument is outside its range, a file or a column is missing, a picture is listed twice, a
            mask is its picture, or a patient is in two parts; names the rule and the value.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction must be in (0, 1), got {validation_fraction}.")
    root, file = Path(dataset_dir), Path(datalist)
    if not root.is_dir():
        raise InputError(f"{root}: dataset_dir must be an existing folder.")
    masks = root if labels_dir is None else Path(labels_dir)
    if not masks.is_dir():
        raise InputError(f"{masks}: labels_dir must be an existing folder.")
    with naming(file):
        if file.suffix.lower() == ".json":
            raise InputError("datalist must be a .csv or .txt file, or a folder of lists; a list of masks is no JSON.")
        sections = read_tables(file, [MASK], columns)
        entries = [(part, entry) for part, section in sections.items() for entry in section]
        if not entries:
            raise InputError("holds no images.")
        images = [path_of(root, entry["image"]) for _, entry in entries]
        names = unique_names(Path(os.path.abspath(root)), images)
        cases = CaseParts()
        for (part, entry), image, name in zip(entries, images, names, strict=True):
            mask = path_of(masks, entry["label"][MASK], MASK)
            if not file_ids(image).isdisjoint(file_ids(mask)):
                raise InputError(f"every mask must be another file than its image, got {mask}.")
            group = entry["patient"] or str(image)
            case = {"image": str(image), "label": str(mask), "name": name, "group": group}
            cases.setdefault(part, []).append(case)
        check_parts(cases)
        if "training" in cases and "validation" not in cases:
            cases["training"], cases["validation"] = draw_validation(cases["training"], validation_fraction)
    return cases
