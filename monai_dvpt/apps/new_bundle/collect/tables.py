# SPDX-License-Identifier: Apache-2.0
"""Images with grades or classes: from a table, or from a folder for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from pathlib import Path

from monai_dvpt.data.folders import walk_files
from monai_dvpt.data.gradelist import IMAGE_COLUMNS

from ..model import Case, Collection, Finding, Options
from .columns import Columns, is_empty, is_output, names_files, part_of, read_columns
from .images import (
    FoundImage,
    ImageIndex,
    Patients,
    find_images,
    has_mask_word,
    in_mask_folder,
    is_named_like_mask,
    some,
    without_masks,
    words_of,
)
from .rows import Entry, Listed, find_lists, read_rows
from .table_files import SUFFIXES, Table, find_tables, table_paths
from .values import Values, read_values
from .words import IMAGE_WORDS

__all__ = ["collect_table"]

CLASS = "class"
"""The output of a folder for each class."""
MOST_CLASSES = 20
MOST_LIKE_MASKS = 0.2
"""Share of the images up to which names like those of masks mean nothing."""
PLACEHOLDER = ("grading", 2)
"""Task and dimensions of a collection without cases, in which errors are told."""


def collect_table(root: Path, options: Options) -> Collection | None:
    """
    The cases of a folder of images with a table of grades or classes, or with a folder for each class.

    The image column of a table is the one whose cells name images below ``root``, by path, by name with or without
    suffix, or by a DICOM identifier. What is graded are ``options.outputs``, or the only column whose values look like
    grades or classes. Values that are consecutive whole numbers from 0 or 1 are grades, others classes, unless
    ``options.task`` says so. A row without an image is left out; an image without a row is a case without grades.

    Args:
        root: folder of data.
        options: what the user says about it.

    Returns:
        None without a table that names images, and without folders of classes. Where what is meant is not clear, a
        collection without cases whose findings say why.

    Raises:
        InputError: if ``options`` name a table or column that is not there, or a pattern that is no regular expression.
    """
    if not table_paths(root, options) and not _may_be_classes(root):
        return None  # without a look into every file
    images = find_images(root)
    if not images:
        return None
    shown = without_masks(images, root)
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
    elif not options.table and _few_masks(images, root, options) and (by_folder := _listed_by_folder(shown, root)):
        listed = by_folder
        listed.findings = [*(replace(finding, error=False) for finding in unread), *listed.findings]
    else:
        unread += [finding for table in find_tables(root, options)[0] for finding in _names_nothing(table)]
        return _unclear(root, unread) if unread else None
    if any(finding.error and finding.rule in ("outputs not clear", "no such output") for finding in listed.findings):
        return _unclear(root, listed.findings)
    if len(shown) < len(images):
        listed.note("masks", f"{len(images) - len(shown)} images lie in folders of masks, and are not graded.")
    return _collection(root, shown, listed, options)


def _unclear(root: Path, findings: list[Finding]) -> Collection:
    task, dims = PLACEHOLDER
    return Collection(task, dims, root, [], [], [], findings)


def _names_nothing(table: Table) -> list[Finding]:
    """A finding if a table would grade images, had its column of images named any."""
    column = next((name for name in table.columns if name.lower() in IMAGE_COLUMNS), "")
    if not column or not any(is_output(table, name) for name in table.columns if name != column):
        return []
    message = f"cells of the column {column} must name images below the folder, none does."
    return [Finding("no image column", table.path.name, message, error=True)]


def _without_outputs(read: Sequence[tuple[Table, Columns]], root: Path, options: Options) -> Collection | None:
    """Tables that name images but grade nothing: of masks, or of patients beside masks, unless a task is named."""
    if options.task not in ("grading", "classification"):
        lists_files = any(names_files(table, root, name) for table, columns in read for name in columns.others(table))
        images = (path for path in walk_files(root) if path.suffix.lower() not in SUFFIXES)
        if lists_files or any(has_mask_word(name) for path in images for name in path.relative_to(root).parts):
            return None
    findings = []
    for table, columns in read:
        rule = "a column must hold grades or classes, two of them or more"
        message = f"{rule}; none of {some(table.columns)} looks like it; pass --outputs."
        findings += [*columns.findings, Finding("nothing is graded", table.path.name, message, error=True)]
    return _unclear(root, findings)


def _few_masks(images: Sequence[FoundImage], root: Path, options: Options) -> bool:
    """Whether the images have no masks beside them, or the user says that classes are meant."""
    masks = sum(in_mask_folder(image.path, root) or is_named_like_mask(image) for image in images)
    return bool(options.task) or masks <= MOST_LIKE_MASKS * len(images)


def _class_of(folders: Sequence[str]) -> str:
    """The first of the folders of an image that says more than its part, or that it holds images; "" without one."""
    return next((each for each in folders if not part_of(each) and IMAGE_WORDS.isdisjoint(words_of(each))), "")


def _are_classes(names: Set[str]) -> bool:
    """Whether the names of folders may be of classes, and not of patients."""
    like_patients = sum(sum(letter.isdigit() for letter in name) >= 3 for name in names) * 2 > len(names)
    return 2 <= len(names) <= MOST_CLASSES and not like_patients


def _may_be_classes(root: Path) -> bool:
    """Whether there may be a folder for each class, by the names of folders alone."""
    folders = {path.parent for path in walk_files(root)}
    return _are_classes({_class_of(folder.relative_to(root).parts) for folder in folders} - {""})


def _listed_by_folder(images: Sequence[FoundImage], root: Path) -> Listed | None:
    """The classes by the names of folders, if these do not look like patients or kinds of files."""
    listed, outside = Listed("", [CLASS]), []
    for index, image in enumerate(images):
        parts = Path(os.path.relpath(image.path, root)).parts
        folders = parts[:-1] if isinstance(image.image, str) else parts
        part = next(filter(None, map(part_of, folders)), "") or ""
        if name := _class_of(folders):
            listed.entries.append(Entry(index, image.name, {CLASS: name}, part=part))
        else:
            outside.append(image.name)
    counts = Counter(entry.cells[CLASS] for entry in listed.entries)
    if not _are_classes(counts.keys()) or min(counts.values()) < 2 or len(outside) > len(listed.entries):
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
    for index, image in enumerate(images):
        case = Case(image.name, image.image, modality=image.modality)
        if entries := by_image.get(index):
            case.grades = _grades_of(image, entries, values, listed)
            case.patient, case.part = patients.of(image, entries[0].patient), entries[0].part
        elif image.spatial_dims != dims[0] or is_named_like_mask(image):
            continue
        cases.append(case)
    listed.findings += [*patients.findings(), *_empty(listed, values)]
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
