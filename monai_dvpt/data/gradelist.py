# SPDX-License-Identifier: Apache-2.0
"""Lists of images with ordered grades."""

from __future__ import annotations

import csv
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai_dvpt.utils import InputError, naming

from .cases import unique_names
from .datalist import draw_count, read_list_file
from .kinds import file_ids, is_regular

__all__ = ["load_gradelist", "select_part"]

PARTS = ("training", "validation", "calibration", "test")
IMAGE_COLUMNS = ("image", "filename")
LIKE_RESERVED = ("patient", "subject", "split", "set", "fold", "part")
"""A column with a name like these may mean the patient or the part, and must not be ignored."""


def load_gradelist(
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike,
    outputs: Sequence[str],
    grades: Sequence[str],
    validation_fraction: float = 0.2,
    patient_pattern: str | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """
    Images with one grade, or one for each of several outputs, from a CSV or a JSON file.

    A CSV file has the column "image" (or "filename"), a column for each output and, optionally, "patient" and "split"
    ("training", "validation", "calibration" or "test"). A JSON file has some of these lists, of ``{"image": …, "label":
    …, "patient": …}``, where "patient" is optional and "label" is an object of grades by output, a list of grades in
    the order of ``outputs``, or, for one output, its grade. Other columns and keys are ignored, unless their name is
    like "patient" or "split". Case matters only in the names of outputs.

    A grade is given by its name or, if no name is a number, by its index. An empty cell, null, -1, or an output that an
    object leaves out is not graded.

    Args:
        dataset_dir: folder that the paths of the images are relative to.
        datalist: the file, ``.csv`` or ``.json``.
        outputs: names of the outputs.
        grades: names of the grades, the same for all outputs, in their order.
        validation_fraction: share of the training images, drawn with a fixed seed and patient by patient, for
            validation if the list has no such part; in (0, 1).
        patient_pattern: regular expression for lists without patients, searched in the name of an image's file: its
            first group that is not empty, else the whole match, is the patient. By default, and if that is empty, every
            image is a patient of its own.

    Returns:
        the lists "training", "validation", "calibration" and "test" that have cases, each with the absolute path
        "image", a unique "name", the "label" as indices of grades, one for each output, -1 if it is not graded, and the
        "group", which is the same for all images of a patient. Another list than these is an :class:`InputError`.

    Raises:
        InputError: if an argument is outside its range, a file is missing or not readable, a column or a label is
            missing or has a misleading name, a grade is unknown, an image is not graded at all or listed twice, a
            patient is in two parts, or a part has no grade of an output; names the rule and the value.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction must be in (0, 1), got {validation_fraction}.")
    for kind, names, least in (("outputs", outputs, 1), ("grades", grades, 2)):
        several = not isinstance(names, str) and isinstance(names, Sequence)
        if not several or len(set(map(str, names))) < max(least, len(names)):
            raise InputError(f"{kind} must be a list of at least {least} different names, got {names!r}.")
    outputs, grades = ([str(name) for name in names] for names in (outputs, grades))
    try:
        pattern = re.compile(patient_pattern or "")
    except re.error as error:
        raise InputError(f"patient_pattern must be a regular expression, got {patient_pattern!r}: {error}.") from error
    root, file = Path(dataset_dir), Path(datalist)
    if not root.is_dir():
        raise InputError(f"{root}: dataset_dir must be an existing folder.")
    with naming(file):
        if not file.is_file():
            raise InputError("datalist must be an existing file.")
        if file.suffix.lower() not in (".csv", ".json"):
            raise InputError("datalist must be a .csv or a .json file.")
        sections = (_read_csv if file.suffix.lower() == ".csv" else _read_json)(file, outputs)
        entries = [(part, entry, _path(root, entry)) for part, section in sections.items() for entry in section]
        if not entries:
            raise InputError("holds no images.")
        paths = sorted({path for *_, path in entries})
        name_of = dict(zip(paths, unique_names(Path(os.path.abspath(root)), paths), strict=True))
        cases = _Parts()
        for part, entry, path in entries:
            label, group = _label(entry["image"], entry.get("label"), outputs, grades), _patient(entry, path, pattern)
            case = {"image": str(path), "name": name_of[path], "label": label, "group": group}
            cases.setdefault(part, []).append(case)
        _check(cases)
        if "training" in cases and "validation" not in cases:
            cases["training"], cases["validation"] = _draw(cases["training"], validation_fraction)
        for part, section in cases.items():
            for index, output in enumerate(outputs):
                if all(case["label"][index] < 0 for case in section):
                    raise InputError(f"every part must have a grade of every output, {part} has none of {output}.")
    return cases


def select_part(cases: Mapping[str, list[dict[str, Any]]], part: str) -> list[dict[str, Any]]:
    """
    One part of a list from :func:`load_gradelist`.

    Raises:
        InputError: if the list has no such part.
    """
    if not cases.get(part):
        names = [name for name in cases if cases[name]]
        raise InputError(f"part must be one of {names}, got {part!r}, of which the list has no images.")
    return cases[part]


class _Parts(dict[str, list[dict[str, Any]]]):
    """Cases by part; asking for a part without cases is bad input."""

    def __missing__(self, part: str) -> list[dict[str, Any]]:
        return select_part(self, part)


def _read_csv(file: Path, outputs: list[str]) -> dict[str, list[dict[str, Any]]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            (_, header), *rows = [(reader.line_num, row) for row in reader if any(row)] or [(1, [])]
    except (ValueError, csv.Error) as error:
        raise InputError(f"is not a valid CSV file: {error}.") from error
    header = _names("", header, outputs, (*IMAGE_COLUMNS, "patient", "split"))
    image = next((name for name in IMAGE_COLUMNS if name in header), None)
    missing = ([] if image else ["image"]) + [output for output in outputs if output not in header]
    if missing or len(set(header)) < len(header):
        wanted = f"columns {', '.join(missing)} are missing" if missing else "a column is there twice"
        raise InputError(f"must have the columns image and {', '.join(outputs)}, once each; {wanted}.")
    sections: dict[str, list[dict[str, Any]]] = {}
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"line {line} must have {len(header)} cells, got {len(cells)}.")
        row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        part = row.get("split", "training")
        if part not in PARTS:
            raise InputError(f"split must be one of {PARTS}, got {part!r} in line {line}.")
        entry = {"image": row[image or ""], "label": {output: row[output] for output in outputs}}
        sections.setdefault(part, []).append({**entry, "patient": row.get("patient", "")})
    return sections


def _read_json(file: Path, outputs: list[str]) -> dict[str, list[dict[str, Any]]]:
    content = read_list_file(file)
    if not isinstance(content, dict):
        raise InputError('must be an object with a list "training".')
    sections: dict[str, list[dict[str, Any]]] = {}
    for part, section in content.items():
        if part not in PARTS and not isinstance(section, list):
            continue  # a fact about the list
        if part not in PARTS or not isinstance(section, list):
            raise InputError(f'"{part}" must be a list and one of {PARTS}.')
        sections[part] = []
        for given in section:
            entry = given if isinstance(given, dict) else {}
            names = _names(f'"{part}": ', entry, (), ("image", "label", "patient"))
            entry = dict(zip(names, entry.values(), strict=True))
            if not isinstance(entry.get("image"), str) or "label" not in entry:
                raise InputError(f'every case must have an "image" and a "label", got {given!r} in "{part}".')
            sections[part].append(entry)
    return sections


def _names(where: str, given: Iterable[str], outputs: Sequence[str], reserved: Sequence[str]) -> list[str]:
    """Names of columns or keys, the reserved ones in lower case."""
    names = [name.strip() for name in given]
    names = [name if name in outputs or name.lower() not in reserved else name.lower() for name in names]
    for name in names:
        word = re.sub(r"[\W_]|id$", "", name.lower())
        if name not in (*outputs, *reserved) and get_close_matches(word, LIKE_RESERVED, cutoff=0.85):
            raise InputError(f"{where}what is not among {reserved} must not be like patient or split, got {name!r}.")
    return names


def _path(root: Path, entry: Mapping[str, Any]) -> Path:
    path = Path(os.path.abspath(root / entry["image"]))
    if not entry["image"] or not is_regular(path):
        raise InputError(f"every image must be an existing file, got {entry['image']!r} in {root}.")
    return path


def _label(where: str, given: Any, outputs: list[str], grades: list[str]) -> list[int]:
    """The index of every output's grade, -1 if it has none."""
    if isinstance(given, Mapping):
        if unknown := sorted(given.keys() - set(outputs)):
            raise InputError(f"{where}: label must name outputs of {outputs}, got {unknown[0]!r}.")
        given = [given.get(output) for output in outputs]
    values = given if isinstance(given, list) else [given]
    if len(values) != len(outputs):
        raise InputError(f"{where}: label must have a grade for each of {outputs}, got {given!r}.")
    label = [_grade(f"{where}: {output}", value, grades) for output, value in zip(outputs, values, strict=True)]
    if max(label) < 0:
        raise InputError(f"{where}: label must have a grade for at least one of {outputs}, got none.")
    return label


def _grade(where: str, value: Any, grades: list[str]) -> int:
    text = "" if value is None else str(value).strip()
    if text in grades:
        return grades.index(text)
    number = _number(text)
    if text == "" or number == -1:
        return -1
    numbers = [_number(grade) for grade in grades]
    if number is not None and number in numbers:  # 2.0 for 2
        return numbers.index(number)
    by_index = numbers == [None] * len(grades)
    if number is None or not by_index or number not in range(len(grades)):
        raise InputError(f"{where} must be one of {grades}" + " or its index" * by_index + f", got {value!r}.")
    return int(number)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _patient(entry: Mapping[str, Any], path: Path, pattern: re.Pattern[str]) -> str:
    patient = entry.get("patient")
    if patient not in (None, ""):
        return str(patient)
    match = pattern.search(path.name)
    return next(filter(None, (*match.groups(), match[0]) if match else ()), str(path))


def _check(cases: Mapping[str, list[dict[str, Any]]]) -> None:
    seen: dict[tuple[int, int], str] = {}
    part_of: dict[str, str] = {}
    for part, section in cases.items():
        for case in section:
            ids = file_ids(case["image"])
            if other := next((seen[each] for each in ids if each in seen), None):
                raise InputError(f"every image must be listed once, got {case['image']} in {other} and {part}.")
            seen |= dict.fromkeys(ids, part)
            if part_of.setdefault(case["group"], part) != part:
                raise InputError(
                    f"all images of a patient must be in one part, got {case['group']} in "
                    f"{part_of[case['group']]} and {part}."
                )


def _draw(cases: list[dict[str, Any]], fraction: float) -> tuple[list, list]:
    """The cases split by groups into the rest and about a fraction of all."""
    sizes = Counter(case["group"] for case in cases)
    if len(sizes) < 2:
        raise InputError("one patient cannot both train and validate; list images of at least 2 patients.")
    wanted = draw_count(fraction, len(cases))
    drawn: set[str] = set()
    for group in random.Random(0).sample(list(sizes), len(sizes)):
        if sum(sizes[other] for other in drawn) + sizes[group] <= wanted:
            drawn.add(group)
    drawn = drawn or {min(sizes, key=lambda group: sizes[group])}
    return [case for case in cases if case["group"] not in drawn], [case for case in cases if case["group"] in drawn]
