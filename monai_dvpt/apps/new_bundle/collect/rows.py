# SPDX-License-Identifier: Apache-2.0
"""What the rows of a table say about images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_dvpt.data.gradelist import IMAGE_COLUMNS, PART_OF
from monai_dvpt.utils import InputError

from ..model import Finding, Options
from .columns import Columns, find_image_column, part_of
from .images import ImageIndex, some
from .table_files import SPLIT, Row, Table, find_tables

__all__ = ["Entry", "Listed", "find_lists", "read_rows"]

MOST_SHOWN = 5
"""Different values of parts up to which they are shown; more may be of a column that names patients."""


@dataclass
class Entry:
    """What a row, or the place of a file, says about an image."""

    index: int
    place: str
    cells: Mapping[str, str]
    patient: str = ""
    part: str = ""


@dataclass
class Listed:
    """What a table, or the folders, say about all images."""

    where: str
    outputs: list[str]
    entries: list[Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def note(self, rule: str, message: str, error: bool = False) -> None:
        self.findings.append(Finding(rule, self.where, message, error))


def find_lists(root: Path, index: ImageIndex, options: Options) -> tuple[list[tuple[Table, str]], list[Finding]]:
    """
    The tables of a folder that name images.

    Returns:
        each with its column of images, tables for each part in one folder, such as train.csv and test.csv, as one; and
        findings, which are errors, of files that cannot be read.

    Raises:
        InputError: if the user names a table or a column that is not there.
    """
    tables, unread = find_tables(root, options)
    found, errors = [], []
    for table in tables:
        if why := _no_header(table, index, options):
            message = f"the first row must name the columns, but looks like data: {why}."
            unread.append(Finding("table cannot be read", table.path.name, message, error=True))
            continue
        try:
            if column := find_image_column(table, index, options):
                found.append((table, column))
        except InputError as error:
            errors.append(error)
    if errors and not found:
        raise errors[0]
    return _with_parts(found), unread


def _no_header(table: Table, index: ImageIndex, options: Options) -> str:
    """Why the first row of a table that the user names, or whose cells name images, looks like data; "" if not."""
    if options.columns.get("image") in table.columns:
        return ""

    def names_image(cell: str) -> bool:
        return bool(index.find(cell, table.path.parent))

    of_images = [name for name in table.columns if any(map(names_image, table.values(name)))]
    if first := [name for name in of_images if name.lower() not in IMAGE_COLUMNS and names_image(name)]:
        return f"column {table.columns.index(first[0]) + 1} is named by an image"
    return table.data_in_header() if of_images or options.table else ""


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


def read_rows(table: Table, columns: Columns, index: ImageIndex) -> Listed:
    """The images that the rows of a table name, with the cells of its outputs; and what is odd about the rows."""
    listed = Listed(table.path.name, columns.outputs)
    missing: list[str] = []
    unnamed: list[str] = []
    several: list[str] = []
    stray = Counter[str]()
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
            listed.entries.append(Entry(found[0], row.place, cells, patient, part or ""))
    if missing:
        message = f"{len(missing)} rows name no image below the folder, and are left out: {some(missing)}."
        listed.note("image missing", message, error=not listed.entries)
    if unnamed:
        listed.note("no image named", f"{len(unnamed)} rows name no image at all, and are left out: {some(unnamed)}.")
    if several:
        message = (
            f"every row must name one image; {len(several)} could mean several: {some(several)}; write their paths."
        )
        listed.note("several images", message, error=True)
    if stray:
        got = some(map(repr, stray)) if len(stray) <= MOST_SHOWN else f"{len(stray)} other values"
        message = f"column {columns.split} must hold some of {', '.join(PART_OF)}, got {got} in {stray.total()} rows."
        listed.note("unknown part", message, error=True)
    if columns.patient and (empty := [entry.place for entry in listed.entries if not entry.patient]):
        message = f"{len(empty)} rows have no patient, and count as a patient each: {some(empty)}."
        listed.note("patient missing", message)
    return listed
