# SPDX-License-Identifier: Apache-2.0
"""Images with grades or classes: from a table, or from a folder for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from monai_dvpt.data.folders import walk_files

from .columns import Columns, is_empty, names_files, part_of, read_columns
from .images import (
    IMAGE_WORDS,
    FoundImage,
    ImageIndex,
    Patients,
    find_images,
    has_mask_word,
    some,
    without_masks,
    words_of,
)
from .model import Case, Collection, Finding, Options
from .rows import Entry, Listed, find_lists, read_rows
from .table_files import SUFFIXES, Table
from .values import Values, few_cases, read_values

__all__ = ["collect_table"]

CLASS = "class"
"""The output of a folder for each class."""
MOST_CLASSES = 20
PLACEHOLDER = ("grading", 2)
"""Task and dimensions of a collection without cases, in which errors are told."""


def collect_table(root: Path, options: Options) -> Collection | None:
    """
    The cases of a folder of images with a table of grades or classes, or with a folder for each class.

    The image column of a table is the one whose cells name images below ``root``, by path, by name with or without
    suffix, or by a DICOM identifier. What is graded are ``options.outputs``, or the only column whose values look like
    grades or classes. Values that are consecutive whole numbers from 0 or 1 are grades, others classes, unless
    ``options.task`` says so. An image without a row, and a row without an image or without a grade, is left out.

    Args:
        root: folder of data.
        options: what the user says about it.

    Returns:
        None without a table that names images, and without folders of classes. Where what is meant is not clear, a
        collection without cases whose findings say why.

    Raises:
        InputError: if ``options`` name a table or column that is not there, or a pattern that is no regular expression.
    """
    shown = without_masks(find_images(root), root)
    if not shown:
        return None
    index = ImageIndex(root, shown)
    found, unread = find_lists(root, index, options)
    read = [(table, read_columns(table, root, column, options)) for table, column in found]
    ready = [each for each in read if each[1].outputs or any(finding.error for finding in each[1].findings)]
    if len(ready) > 1:
        names = some(table.path.relative_to(root) for table, _ in ready)
        message = f"the table must be clear, could be {names}; pass --table."
        return _unclear(root, [*unread, Finding("several tables", "", message, error=True)])
    if ready:
        table, columns = ready[0]
        listed = read_rows(table, columns, index)
        others = [replace(finding, error=False) for finding in unread]
        listed.findings = [*others, *table.findings, *columns.findings, *listed.findings]
    elif read:
        return _without_outputs(read, root, options)
    elif options.table and not unread:
        message = "a column must name images below the folder, none does; pass --columns image=NAME."
        return _unclear(root, [Finding("no image column", options.table, message, error=True)])
    elif not options.table and (by_folder := _listed_by_folder(shown, root)):
        listed = by_folder
        listed.findings = [*(replace(finding, error=False) for finding in unread), *listed.findings]
    else:
        return _unclear(root, unread) if unread else None
    if any(finding.error and finding.rule in ("outputs not clear", "no such output") for finding in listed.findings):
        return _unclear(root, listed.findings)
    return _collection(root, shown, listed, options)


def _unclear(root: Path, findings: list[Finding]) -> Collection:
    task, dims = PLACEHOLDER
    return Collection(task, dims, root, [], [], [], findings)


def _without_outputs(read: Sequence[tuple[Table, Columns]], root: Path, options: Options) -> Collection | None:
    """Tables that name images but grade nothing: of masks, or of patients beside masks, unless a task is named."""
    if options.task not in ("grading", "classification"):
        lists_files = any(names_files(table, root, name) for table, columns in read for name in columns.others(table))
        images = (path for path in walk_files(root) if path.suffix.lower() not in SUFFIXES)
        if lists_files or any(has_mask_word(name) for path in images for name in _names(path, root)):
            return None
    findings = []
    for table, columns in read:
        message = f"a column must hold grades or classes; none of {some(table.columns)} looks like it; pass --outputs."
        findings += [*columns.findings, Finding("nothing is graded", table.path.name, message, error=True)]
    return _unclear(root, findings)


def _names(path: Path, root: Path) -> tuple[str, ...]:
    """Of the folders and the file of a path below ``root``."""
    return Path(os.path.relpath(path, root)).parts


def _listed_by_folder(images: Sequence[FoundImage], root: Path) -> Listed | None:
    """The classes by the names of folders, if these do not look like patients or kinds of files."""
    listed, outside = Listed("", [CLASS]), []
    for index, image in enumerate(images):
        parts = Path(os.path.relpath(image.path, root)).parts
        folders = parts[:-1] if isinstance(image.image, str) else parts
        part = next(filter(None, map(part_of, folders)), "") or ""
        kept = [each for each in folders if not part_of(each) and IMAGE_WORDS.isdisjoint(words_of(each))]
        if kept:
            listed.entries.append(Entry(index, image.name, {CLASS: kept[0]}, part=part))
        else:
            outside.append(image.name)
    counts = Counter(entry.cells[CLASS] for entry in listed.entries)
    named_like_patients = sum(sum(letter.isdigit() for letter in name) >= 3 for name in counts) * 2 > len(counts)
    if not 2 <= len(counts) <= MOST_CLASSES or min(counts.values()) < 2 or named_like_patients:
        return None
    if len(outside) > len(listed.entries):
        return None
    if outside:
        listed.note(
            "no class", f"{len(outside)} images lie in no folder of a class, and are left out: {some(outside)}."
        )
    listed.note("classes by folder", f"the folders {some(sorted(counts))} are taken as classes.")
    return listed


def _collection(root: Path, images: Sequence[FoundImage], listed: Listed, options: Options) -> Collection:
    dims = sorted({images[entry.index].spatial_dims for entry in listed.entries})
    if len(dims) > 1:
        counts = Counter(images[index].spatial_dims for index in {entry.index for entry in listed.entries})
        message = f"all images must be pictures, or all volumes; got {counts[2]} pictures and {counts[3]} volumes."
        listed.note("pictures and volumes", message, error=True)
    if len(dims) != 1:
        return _unclear(root, listed.findings)
    cells = {output: [entry.cells[output] for entry in listed.entries] for output in listed.outputs}
    values = read_values(cells, options, listed.where)
    listed.findings += values.findings
    patients = Patients(root, options)
    by_image: dict[int, list[Entry]] = {}
    for entry in listed.entries:
        by_image.setdefault(entry.index, []).append(entry)
    cases = []
    for index, entries in sorted(by_image.items()):
        grades = _grades_of(images[index], entries, values, listed)
        if grades:
            image, entry = images[index], entries[0]
            patient = patients.of(image, entry.patient)
            case = Case(image.name, image.image, grades=grades, patient=patient, part=entry.part)
            case.modality = image.modality
            cases.append(case)
    listed.findings += [*patients.findings(), *_empty(listed, values)]
    if rowless := [image.name for index, image in enumerate(images) if index not in by_image and listed.where]:
        message = f"{len(rowless)} images have no row, and are left out: {some(rowless)}."
        listed.note("no row", message)
    given = {output: [case.grades[output] for case in cases if output in case.grades] for output in listed.outputs}
    listed.findings += few_cases(given, values.labels, listed.where)
    return Collection(values.task, dims[0], root, cases, values.labels, listed.outputs, listed.findings)


def _grades_of(image: FoundImage, entries: Sequence[Entry], values: Values, listed: Listed) -> dict[str, str]:
    """The grades of an image; findings where its rows differ, or a cell holds something else."""
    read = []
    for entry in entries:
        names = {output: values.name(cell) for output, cell in entry.cells.items()}
        for output, name in names.items():
            if name is None:
                why = values.why(entry.cells[output])
                message = f"{entry.place}: {output} {why}, got {entry.cells[output]!r}."
                listed.findings.append(Finding("unknown grade", image.name, message, error=True))
        read.append({output: name for output, name in names.items() if name})
    if len(entries) > 1:
        places = some(entry.place for entry in entries)
        texts = [tuple(sorted(grades.items())) for grades in read]
        facts = {(grades, entry.patient, entry.part) for grades, entry in zip(texts, entries, strict=True)}
        if len({grades for grades, *_ in facts}) > 1:
            message = f"an image must have one grade, got different ones in {places}; keep one of the rows."
            listed.findings.append(Finding("listed with different grades", image.name, message, error=True))
        elif len(facts) > 1:
            message = f"an image must be of one patient and in one part, {places} differ; keep one of the rows."
            listed.findings.append(Finding("listed twice", image.name, message, error=True))
        else:
            listed.findings.append(Finding("listed twice", image.name, f"is in {places} alike; counts once."))
    return read[0]


def _empty(listed: Listed, values: Values) -> Iterable[Finding]:
    """Cells of what was not graded."""
    for output in listed.outputs:
        empty = [entry for entry in listed.entries if values.name(entry.cells[output]) == ""]
        if not empty:
            continue
        texts = sorted({entry.cells[output] for entry in empty if is_empty(entry.cells[output])} - {""})
        read = f" ({some(texts)} read as empty)" if texts else ""
        message = f"{len(empty)} rows have no {output}{read}: {some(entry.place for entry in empty)}; not graded."
        yield Finding("not graded", listed.where, message)
