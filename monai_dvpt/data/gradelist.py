# SPDX-License-Identifier: Apache-2.0
"""Lists of images with grades, or with classes without an order."""

from __future__ import annotations

import csv
import logging
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

__all__ = [
    "IMAGE_COLUMNS",
    "PART_OF",
    "CaseParts",
    "as_number",
    "check_parts",
    "draw_validation",
    "load_gradelist",
    "match_patient",
    "path_of",
    "patient_regex",
    "read_tables",
    "select_part",
]

logger = logging.getLogger(__name__)

PARTS = ("training", "validation", "calibration", "test")
PART_OF = {"train": "training", "valid": "validation", "val": "validation", **{part: part for part in PARTS}}
"""Parts by the names that lists in a folder, and the cells of a column "split", may have."""
TABLES = (".csv", ".txt")
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
    columns: Mapping[str, str] | None = None,
    image_path: str | None = None,
    exclude: Mapping[str, Any] | None = None,
    volumes: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """
    Images with one grade, or one for each of several outputs, from a CSV, a text or a JSON file. What is said of
    grades holds for classes without an order too.

    A CSV file has the column "image" (or "filename"), a column for each output and, optionally, "patient" and "split"
    ("training" or "train", "validation", "valid" or "val", "calibration", "test"). A JSON file has some of the lists
    "training", "validation", "calibration" and "test", of ``{"image": …, "label": …, "patient": …}``, where "patient"
    is optional and "label" is an object of grades by output, a list of grades in the order of ``outputs``, or, for one
    output, its grade. Other columns and keys are ignored, unless their name is like "patient" or "split". Case matters
    only in the names of outputs. A text file has no header: every line is an image and its grade, or the grades of all
    outputs in their order, between spaces. A folder has one CSV or text file for each part, such as ``train.txt``,
    ``valid.txt`` and ``test.txt``.

    A grade is given by its name or, if no name is a number, by its index. An empty cell, null, -1, or an output that an
    object leaves out is not graded. A grade that a part does not have is logged as a warning.

    Args:
        dataset_dir: folder that the paths of the images are relative to.
        datalist: the file, ``.csv``, ``.txt`` or ``.json``, or a folder of lists.
        outputs: names of the outputs.
        grades: names of the grades, the same for all outputs, in their order, or of the classes.
        validation_fraction: share of the training images, drawn with a fixed seed and patient by patient, for
            validation if the list has no such part; in (0, 1).
        patient_pattern: regular expression for lists without patients, searched in the name of an image's file: its
            first group that is not empty, else the whole match, is the patient. By default, and if that is empty, every
            image is a patient of its own.
        columns: for CSV and JSON files with other names, the file's name of "image", "patient" or, in CSV, "split" or
            an output. Keys of JSON are as optional as without ``columns``; columns of CSV must be there.
        image_path: where an image lies below ``dataset_dir``: "{image}" is its name in the list, "{list}" the name of
            the list's file without suffix, as in "{image}.png" or "{list}/{image}". By default "{image}".
        exclude: values, by name of an output or another column of a CSV or text file, one or a list; a row with one of
            them is left out. The log says how many are.

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
    pattern = patient_regex(patient_pattern)
    root, file = Path(dataset_dir), Path(datalist)
    if not root.is_dir():
        raise InputError(f"{root}: dataset_dir must be an existing folder.")
    if image_path and "{image}" not in image_path:
        raise InputError(f"image_path must contain {{image}}, got {image_path!r}.")
    with naming(file):
        if file.suffix.lower() == ".json" and file.is_file():
            if exclude:
                raise InputError("exclude must be for .csv or .txt lists; this one is JSON.")
            sections = _read_json(file, _theirs(columns, outputs))
        else:
            sections = read_tables(file, outputs, columns, exclude)
        entries = [
            (p, entry, _image_path(root, entry, image_path, volumes))
            for p, section in sections.items()
            for entry in section
        ]
        if not entries:
            raise InputError("holds no images.")
        paths = sorted({path for *_, path in entries})
        name_of = dict(zip(paths, unique_names(Path(os.path.abspath(root)), paths), strict=True))
        cases = CaseParts()
        for part, entry, path in entries:
            label, group = _label(entry["image"], entry.get("label"), outputs, grades), _patient(entry, path, pattern)
            case = {"image": str(path), "name": name_of[path], "label": label, "group": group}
            cases.setdefault(part, []).append(case)
        check_parts(cases)
        if "training" in cases and "validation" not in cases:
            cases["training"], cases["validation"] = draw_validation(cases["training"], validation_fraction)
        for part, section in cases.items():
            for index, output in enumerate(outputs):
                if all(case["label"][index] < 0 for case in section):
                    raise InputError(f"every part must have a grade of every output, {part} has none of {output}.")
            found = {index for case in section for index in case["label"]}
            if absent := [grade for index, grade in enumerate(grades) if index not in found]:
                logger.warning(f"{file}: {part} has no image of {', '.join(absent)}.")
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


class CaseParts(dict[str, list[dict[str, Any]]]):
    """Cases by part; asking for a part without cases is bad input."""

    def __missing__(self, part: str) -> list[dict[str, Any]]:
        return select_part(self, part)


def _theirs(columns: Mapping[str, str] | None, outputs: list[str]) -> dict[str, str]:
    """Our names of columns by those of a file."""
    columns, own = columns or {}, ("image", "patient", "split", *outputs)
    fits = isinstance(columns, Mapping) and all(isinstance(name, str) for name in columns.values())
    if not fits or len(set(columns.values())) < len(columns) or not set(columns) <= set(own):
        raise InputError(f"columns must give different names of a list's columns for some of {own}, got {columns!r}.")
    return {theirs: name for name, theirs in columns.items()}


def read_tables(
    file: Path,
    outputs: list[str],
    columns: Mapping[str, str] | None = None,
    exclude: Mapping[str, Any] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """
    The cases of a CSV or text file, or of a folder with one for each part: by part the texts "image", "label", by
    output, and "patient", empty if there is none. See :func:`load_gradelist` for ``columns`` and ``exclude``.
    """
    renamed, exclude = _theirs(columns, outputs), exclude or {}
    if not isinstance(exclude, Mapping):
        raise InputError(f"exclude must give the values to leave out by the name of their column, got {exclude!r}.")
    if not file.is_dir():
        if not file.is_file():
            raise InputError("datalist must be an existing file, or a folder of lists.")
        if file.suffix.lower() not in TABLES:
            raise InputError("datalist must be a .csv, a .txt or a .json file, or a folder of lists.")
        return _read_table(file, outputs, renamed, exclude)
    lists = sorted(path for path in file.iterdir() if path.suffix.lower() in TABLES and path.stem.lower() in PART_OF)
    parts = [PART_OF[path.stem.lower()] for path in lists]
    if not lists or len(set(parts)) < len(parts):
        found = [path.name for path in lists]
        raise InputError(f"a folder of lists must hold one list for each part, such as train.txt, got {found}.")
    sections = {}
    for path, part in zip(lists, parts, strict=True):
        with naming(path):
            sections[part] = _read_table(path, outputs, renamed, exclude, part)[part]
    return {part: sections[part] for part in PARTS if part in sections}


def _read_table(
    file: Path, outputs: list[str], renamed: Mapping[str, str], exclude: Mapping[str, Any], part: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The cases of one file; ``part`` is that of all, by default as the file's column "split" says."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            if file.suffix.lower() == ".csv":
                reader = csv.reader(stream)
                rows = [(reader.line_num, row) for row in reader if any(row)]
            else:
                rows = [(number, line.split()) for number, line in enumerate(stream, 1) if line.strip()]
                rows.insert(0, (0, ["image", *outputs]))
    except (ValueError, csv.Error) as error:
        raise InputError(f"is not a valid {file.suffix[1:].upper()} file: {error}.") from error
    (_, header), *rows = rows or [(1, [])]
    header = [name.strip() for name in header]
    missing = [name for name in renamed if name not in header]
    header = _names("", [renamed.get(name, name) for name in header], outputs, (*IMAGE_COLUMNS, "patient", "split"))
    image = next((name for name in IMAGE_COLUMNS if name in header), None)
    wanted = dict.fromkeys([image or "image", *outputs, *exclude])
    missing += [name for name in wanted if name not in (*header, *renamed.values())]
    if missing or len(set(header)) < len(header):
        theirs = {name: theirs for theirs, name in renamed.items()}
        first, *others = (theirs.get(name, name) for name in ("image", *outputs))
        why = f"columns {', '.join(missing)} are missing" if missing else "a column is there twice"
        raise InputError(f"must have the columns {first} and {', '.join(others)}, once each; {why}.")
    if part is not None and "split" in header:
        raise InputError(f"a list of the part {part} must have no column split.")
    sections: dict[str, list[dict[str, Any]]] = {part: []} if part else {}
    left_out: Counter[str] = Counter()
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"line {line} must have {len(header)} cells, got {len(cells)}.")
        row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        if reasons := [f"{name} {row[name]}" for name, values in exclude.items() if _is_one_of(row[name], values)]:
            left_out[reasons[0]] += 1
            continue
        split = part or row.get("split", "training")
        split = PART_OF.get(split, split)
        if split not in PARTS:
            raise InputError(f"split must be one of {tuple(PART_OF)}, got {split!r} in line {line}.")
        entry = {"image": row[image or ""], "label": {output: row[output] for output in outputs}, "list": file.stem}
        sections.setdefault(split, []).append({**entry, "patient": row.get("patient", "")})
    for why, count in left_out.items():
        logger.info(f"{file}: {count} of {len(rows)} images are left out, with {why}.")
    return sections


def _is_one_of(cell: str, values: Any) -> bool:
    """Whether a cell is a value, or one of several; 2.0 is 2."""
    texts = [str(value) for value in (values if isinstance(values, list) else [values])]
    return cell in texts or (as_number(cell) is not None and as_number(cell) in map(as_number, texts))


def _read_json(file: Path, renamed: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
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
            keys = [renamed.get(key.strip(), key) for key in entry]
            names = _names(f'"{part}": ', keys, (), ("image", "label", "patient"))
            if len(set(names)) < len(names):
                raise InputError(f'every key must be there once, got {given!r} in "{part}".')
            entry = dict(zip(names, entry.values(), strict=True))
            if not isinstance(entry.get("image"), str) or "label" not in entry:
                raise InputError(f'every case must have an "image" and a "label", got {given!r} in "{part}".')
            sections[part].append({**entry, "list": file.stem})
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


def _image_path(root: Path, entry: Mapping[str, Any], image_path: str | None, volumes: bool) -> Path:
    name = (image_path or "{image}").replace("{list}", entry["list"]).replace("{image}", entry["image"])
    return path_of(root, name if entry["image"] else "", folders=volumes)


def path_of(root: Path, name: str, kind: str = "image", folders: bool = False) -> Path:
    """
    The absolute path of an existing file below ``root``, or of a folder where ``folders`` may be; otherwise an
    InputError says what ``kind`` it is.
    """
    path = Path(os.path.abspath(root / name))
    if not name or not (is_regular(path) or folders and path.is_dir()):
        raise InputError(f"every {kind} must be an existing file{' or folder' * folders}, got {name!r} in {root}.")
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
    number = as_number(text)
    if text == "" or number == -1:
        return -1
    numbers = [as_number(grade) for grade in grades]
    if number is not None and number in numbers:  # 2.0 for 2
        return numbers.index(number)
    by_index = numbers == [None] * len(grades)
    if number is None or not by_index or number not in range(len(grades)):
        raise InputError(f"{where} must be one of {grades}" + " or its index" * by_index + f", got {value!r}.")
    return int(number)


def as_number(text: str) -> float | None:
    """The number that a cell holds, so that 2.0 is 2; None where it holds something else."""
    try:
        return float(text)
    except ValueError:
        return None


def _patient(entry: Mapping[str, Any], path: Path, pattern: re.Pattern[str]) -> str:
    patient = entry.get("patient")
    if patient not in (None, ""):
        return str(patient)
    return match_patient(pattern, path.name) or str(path)


def patient_regex(text: str | None) -> re.Pattern[str]:
    """An expression that finds patients in names of files; an InputError if it is not regular."""
    try:
        return re.compile(text or "")
    except re.error as error:
        raise InputError(f"patient_pattern must be a regular expression, got {text!r}: {error}.") from error


def match_patient(pattern: re.Pattern[str], name: str) -> str:
    """The first group of a match that is not empty, else the whole match; "" without one."""
    match = pattern.search(name)
    return next(filter(None, (*match.groups(), match[0]) if match else ()), "")


def check_parts(cases: Mapping[str, list[dict[str, Any]]]) -> None:
    """Raises an InputError if an image is listed twice, or a "group" is in two parts."""
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


def draw_validation(cases: list[dict[str, Any]], fraction: float) -> tuple[list, list]:
    """The cases split by groups into the rest and about a fraction of all."""
    sizes = Counter(case["group"] for case in cases)
    if len(sizes) < 2:
        raise InputError("one patient cannot both train and validate; list images of at least 2 patients.")
    left = draw_count(fraction, len(cases))
    drawn: set[str] = set()
    for group in random.Random(0).sample(list(sizes), len(sizes)):
        if sizes[group] <= left:
            drawn.add(group)
            left -= sizes[group]
    drawn = drawn or {min(sizes, key=lambda group: sizes[group])}
    return [case for case in cases if case["group"] not in drawn], [case for case in cases if case["group"] in drawn]
