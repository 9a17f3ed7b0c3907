# SPDX-License-Identifier: Apache-2.0
"""Images with grades or classes: from a table, or from a folder for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from monai_dvpt.data.gradelist import PART_OF
from monai_dvpt.utils import InputError

from .columns import Columns, find_image_column, find_mask_column, is_empty, part_of, read_columns
from .images import FoundImage, ImageIndex, Patients, find_images, has_mask_word, some, words_of
from .model import Case, Collection, Finding, Options
from .table_files import SPLIT, Row, Table, find_tables
from .values import Values, few_cases, read_values

__all__ = ["collect_table"]

CLASS = "class"
"""The output of a folder for each class."""
IMAGE_WORDS = frozenset("image images img imgs picture pictures data".split())
"""Names of folders that hold images of any class."""
MOST_CLASSES = 20
PLACEHOLDER = ("grading", 2)
"""Task and dimensions of a collection without cases, in which errors are told."""


@dataclass
class _Entry:
    """What a row, or the place of a file, says about an image."""

    index: int
    place: str
    cells: Mapping[str, str]
    patient: str = ""
    part: str = ""


@dataclass
class _Listed:
    """What a table, or the folders, say about all images."""

    where: str
    outputs: list[str]
    entries: list[_Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def note(self, rule: str, message: str, error: bool = False) -> None:
        self.findings.append(Finding(rule, self.where, message, error))


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
    images = find_images(root)
    if not images:
        return None
    shown = [image for image in images if not _in_folder_of_masks(image, root)] or images
    index = ImageIndex(root, shown)
    tables, unread = find_tables(root, options)
    found = [(table, column) for table in tables if (column := _image_column(table, index, options))]
    read = [(table, read_columns(table, root, column, options)) for table, column in _with_parts(found)]
    ready = [each for each in read if each[1].outputs or any(finding.error for finding in each[1].findings)]
    if len(ready) > 1:
        names = some(table.path.relative_to(root) for table, _ in ready)
        message = f"the table must be clear, could be {names}; pass --table."
        return _unclear(root, [*unread, Finding("several tables", "", message, error=True)])
    if ready:
        table, columns = ready[0]
        listed = _listed_by_table(table, columns, index)
        others = [replace(finding, error=False) for finding in unread]
        listed.findings = [*others, *table.findings, *columns.findings, *listed.findings]
    elif read:
        return _without_outputs(read, root, options)
    elif options.table and not unread:
        message = f"a column must name images below the folder, got the columns {some(tables[0].columns)}."
        return _unclear(root, [Finding("no image column", tables[0].path.name, message, error=True)])
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


def _in_folder_of_masks(image: FoundImage, root: Path) -> bool:
    return any(has_mask_word(part) for part in Path(os.path.relpath(image.path, root)).parts[:-1])


def _image_column(table: Table, index: ImageIndex, options: Options) -> str:
    """As :func:`find_image_column`; where tables are searched, the user's columns need not be in each of them."""
    try:
        return find_image_column(table, index, options)
    except InputError:
        if options.table:
            raise
        return ""


def _with_parts(found: Sequence[tuple[Table, str]]) -> list[tuple[Table, str]]:
    """Tables in one folder, one for each part, such as train.csv and test.csv, become one."""
    parts = [PART_OF.get(table.path.stem.lower(), "") for table, _ in found]
    first = found[0] if found else None
    alike = first and all(
        column == first[1] and table.columns == first[0].columns and table.path.parent == first[0].path.parent
        for table, column in found
    )
    if len(found) < 2 or not alike or not all(parts) or len(set(parts)) < len(parts) or SPLIT in found[0][0].columns:
        return list(found)
    rows = [
        Row(f"{row.place} of {table.path.name}", {**row.cells, SPLIT: part})
        for (table, _), part in zip(found, parts, strict=True)
        for row in table.rows
    ]
    findings = [finding for table, _ in found for finding in table.findings]
    table = found[0][0]
    return [(Table(table.path, [*table.columns, SPLIT], rows, findings), found[0][1])]


def _without_outputs(read: Sequence[tuple[Table, Columns]], root: Path, options: Options) -> Collection | None:
    """Tables that name images but grade nothing: they may be lists of masks, or of patients."""
    if options.task not in ("grading", "classification"):
        try:
            if any(find_mask_column(table, root, columns.image, options) for table, columns in read):
                return None
        except InputError:
            return None
    findings = []
    for table, columns in read:
        message = f"a column must hold grades or classes; none of {some(table.columns)} looks like it; pass --outputs."
        findings += [*columns.findings, Finding("nothing is graded", table.path.name, message, error=True)]
    return _unclear(root, findings)


def _listed_by_table(table: Table, columns: Columns, index: ImageIndex) -> _Listed:
    listed = _Listed(table.path.name, columns.outputs)
    missing, unnamed, several, stray = [], [], [], Counter[str]()
    for row in table.rows:
        cell = row.cells[columns.image]
        found = index.find(cell, table.path.parent)
        part = part_of(row.cells[columns.split]) if columns.split else ""
        if part is None:
            stray[row.cells[columns.split]] += 1
        if not cell:
            unnamed.append(row.place)
        elif len(found) != 1:
            (several if found else missing).append(row.place)
        else:
            cells = {output: row.cells[output] for output in columns.outputs}
            patient = row.cells[columns.patient] if columns.patient else ""
            listed.entries.append(_Entry(found[0], row.place, cells, patient, part or ""))
    if missing:
        message = f"{len(missing)} rows name no image below the folder, and are left out: {some(missing)}."
        listed.note("image missing", message, error=not listed.entries)
    if unnamed:
        listed.note("no image named", f"{len(unnamed)} rows name no image at all, and are left out: {some(unnamed)}.")
    if several:
        message = f"every row must name one image; {len(several)} could mean several: {some(several)}; write their paths."
        listed.note("several images", message, error=True)
    for value, count in stray.items():
        message = f"column {columns.split} must hold some of {', '.join(PART_OF)}, got {value!r} in {count} rows."
        listed.note("unknown part", message, error=True)
    if columns.patient and (empty := [entry.place for entry in listed.entries if not entry.patient]):
        message = f"{len(empty)} rows have no patient, and count as a patient each: {some(empty)}."
        listed.note("patient missing", message)
    return listed


def _listed_by_folder(images: Sequence[FoundImage], root: Path) -> _Listed | None:
    """The classes by the names of folders, if these do not look like patients or kinds of files."""
    listed, outside = _Listed("", [CLASS]), []
    for index, image in enumerate(images):
        parts = Path(os.path.relpath(image.path, root)).parts
        folders = parts[:-1] if isinstance(image.image, str) else parts
        part = next(filter(None, map(part_of, folders)), "") or ""
        kept = [each for each in folders if not part_of(each) and IMAGE_WORDS.isdisjoint(words_of(each))]
        if kept:
            listed.entries.append(_Entry(index, image.name, {CLASS: kept[0]}, part=part))
        else:
            outside.append(image.name)
    counts = Counter(entry.cells[CLASS] for entry in listed.entries)
    named_like_patients = sum(sum(letter.isdigit() for letter in name) >= 3 for name in counts) * 2 > len(counts)
    if not 2 <= len(counts) <= MOST_CLASSES or min(counts.values()) < 2 or named_like_patients:
        return None
    if len(outside) > len(listed.entries):
        return None
    if outside:
        listed.note("no class", f"{len(outside)} images lie in no folder of a class, and are left out: {some(outside)}.")
    listed.note("classes by folder", f"the folders {some(sorted(counts))} are taken as classes.")
    return listed


def _collection(root: Path, images: Sequence[FoundImage], listed: _Listed, options: Options) -> Collection:
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
    by_image: dict[int, list[_Entry]] = {}
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


def _grades_of(image: FoundImage, entries: Sequence[_Entry], values: Values, listed: _Listed) -> dict[str, str]:
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
        facts = {(tuple(sorted(grades.items())), entry.patient, entry.part) for grades, entry in zip(read, entries)}
        if len({grades for grades, *_ in facts}) > 1:
            message = f"an image must have one grade, got different ones in {places}; keep one of the rows."
            listed.findings.append(Finding("listed with different grades", image.name, message, error=True))
        elif len(facts) > 1:
            message = f"an image must be of one patient and in one part, {places} differ; keep one of the rows."
            listed.findings.append(Finding("listed twice", image.name, message, error=True))
        else:
            listed.findings.append(Finding("listed twice", image.name, f"is in {places} alike; counts once."))
    return read[0]


def _empty(listed: _Listed, values: Values) -> Iterable[Finding]:
    """Cells of what was not graded."""
    for output in listed.outputs:
        empty = [entry for entry in listed.entries if values.name(entry.cells[output]) == ""]
        if not empty:
            continue
        texts = sorted({entry.cells[output] for entry in empty if is_empty(entry.cells[output])} - {""})
        read = f" ({some(texts)} read as empty)" if texts else ""
        message = f"{len(empty)} rows have no {output}{read}: {some(entry.place for entry in empty)}; not graded."
        yield Finding("not graded", listed.where, message)
