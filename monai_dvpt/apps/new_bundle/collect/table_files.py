# SPDX-License-Identifier: Apache-2.0
"""Tables as people keep them: CSV with any separator, Excel, JSON."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from monai_dvpt.data.datalist import read_list_file
from monai_dvpt.data.folders import walk_files
from monai_dvpt.data.gradelist import IMAGE_COLUMNS, as_number
from monai_dvpt.data.kinds import check_regular, image_stem
from monai_dvpt.utils import InputError, check_bytes

from ..model import Finding, Options
from .images import some

__all__ = ["SUFFIXES", "Row", "Table", "find_tables", "read_table", "table_paths"]

SEPARATORS = (",", ";", "\t")
TEXT = (".csv", ".tsv", ".tab", ".txt")
EXCEL = (".xlsx", ".xlsm")
SUFFIXES = (*TEXT[:3], *EXCEL, ".xls", ".ods", ".json")
"""Of files that are searched for tables; a text file must be named with ``Options.table``."""
SPLIT = "split"
"""The column that the lists of a JSON file, such as "training", become."""


@dataclass(frozen=True)
class Row:
    """
    A row.

    Attributes:
        place: where it is, such as "line 7".
        cells: text by the name of the column, without spaces around it; "" of an empty cell.
    """

    place: str
    cells: Mapping[str, str]


@dataclass
class Table:
    """
    A table.

    Attributes:
        path: the file.
        columns: names, each there once.
        rows: without empty ones.
        findings: what was odd about the file.
    """

    path: Path
    columns: list[str]
    rows: list[Row]
    findings: list[Finding] = field(default_factory=list)

    def values(self, column: str) -> list[str]:
        """The cells of a column that are not empty."""
        return [row.cells[column] for row in self.rows if row.cells[column]]

    def data_in_header(self) -> str:
        """
        Why the first row looks like data and not like names, without its cells: one of them is a number, ends like the
        file of an image, or stands in its own column again, and none is a usual name of the column of images. "" if it
        does not; JSON has no such row.
        """
        if self.path.suffix.lower() == ".json" or not {name.lower() for name in self.columns}.isdisjoint(IMAGE_COLUMNS):
            return ""
        for number, name in enumerate(self.columns, 1):
            if as_number(name) is not None:
                return f"column {number} is named by a number"
            if image_stem(name) != name:
                return f"column {number} is named by the file of an image"
            if name in self.values(name):
                return f"column {number} has its name as a value below"
        return ""


def table_paths(root: Path, options: Options) -> list[Path]:
    """The file that the user names, or all below the folder of data that have the suffix of a table."""
    if not options.table:
        return [path for path in walk_files(root) if path.suffix.lower() in SUFFIXES]
    beside, given = root / options.table, Path(options.table)
    if not beside.is_file() and not given.is_file():
        raise InputError(f"{options.table}: table must be an existing file, or one below {root}.")
    return [beside if beside.is_file() else given]


def find_tables(root: Path, options: Options) -> tuple[list[Table], list[Finding]]:
    """
    Returns:
        the tables that can be read, and a finding, an error, for each of the others; a JSON file that is no table is
        passed over, unless the user names it.

    Raises:
        InputError: if the table that the user names does not exist.
    """
    tables, unread = [], []
    for path in table_paths(root, options):
        try:
            tables.append(read_table(path))
        except InputError as error:
            if options.table or path.suffix.lower() != ".json":
                name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
                unread.append(Finding("table cannot be read", name, str(error), error=True))
    for table in tables:
        name = table.path.relative_to(root).as_posix() if table.path.is_relative_to(root) else table.path.name
        table.findings = [Finding(each.rule, name, each.message, each.error) for each in table.findings]
    return tables, unread


def read_table(path: Path) -> Table:
    """
    Reads a table. Its first row names the columns. CSV may be separated by commas, semicolons or tabs, and be in
    UTF-8, UTF-16 with a byte order mark, or, with a finding, Latin-1. An Excel file must have one sheet with data. JSON
    is a list of objects, or lists of such by part: "training", "validation" and so on.

    Raises:
        InputError: without the name of the file, if it cannot be read or has no plain header.
    """
    check_regular(path)
    check_bytes("the table", 8 * os.path.getsize(path))
    suffix = path.suffix.lower()
    table = Table(path, [], [])
    if suffix == ".json":
        records = [(place, _flat(place, record)) for place, record in _records(read_list_file(path))]
        names = dict.fromkeys(name for _, record in records for name in record)
        rows = [(place, [record.get(name, "") for name in names]) for place, record in records]
        return _with_rows(table, list(names), rows)
    if suffix in (".xls", ".ods"):
        raise InputError("must be .xlsx, .csv or .json; save it as one of these.")
    lines = _excel(path) if suffix in EXCEL else _text(path, table)
    lines = [(place, cells) for place, cells in lines if any(cells)]
    if not lines:
        raise InputError("must have a header and rows, is empty.")
    (place, header), *rows = lines
    width = max((index + 1 for _, cells in lines for index, cell in enumerate(cells) if cell), default=0)
    header = header[:width]  # columns without a cell at the right do not count
    if unnamed := [index + 1 for index, name in enumerate(header) if not name]:
        raise InputError(
            f"{place} must name every column, the columns {some(unnamed)} have no name; "
            "leave out merged cells and titles above the header."
        )
    return _with_rows(table, header, rows)


def _with_rows(table: Table, names: list[str], rows: Iterable[tuple[str, list[str]]]) -> Table:
    if len(set(names)) < len(names):
        twice = [index + 1 for index, name in enumerate(names) if names.count(name) > 1]  # without names: may be data
        raise InputError(f"must name every column once, the columns {some(twice)} share a name.")
    for place, cells in rows:
        if any(cells[len(names) :]) or len(cells) < len(names):
            raise InputError(f"{place} must have {len(names)} cells, as the header, got {len(cells)}.")
        table.rows.append(Row(place, dict(zip(names, cells, strict=False))))
    table.columns = names
    return table


def _text(path: Path, table: Table) -> list[tuple[str, list[str]]]:
    text = _decoded(path.read_bytes(), table)
    if "\0" in text:
        raise InputError("cannot be read: is no text.")
    read = {separator: _split(text, separator) for separator in SEPARATORS}
    rows = max(read.values(), key=_likely)
    for place, cells in rows:
        if any("\n" in cell for cell in cells):  # a quote that is not closed takes the rows after it into its cell
            raise InputError(f"every cell must be on one line; one that ends in {place} is not: is a quote missing?")
    return rows


def _split(text: str, separator: str) -> list[tuple[str, list[str]]]:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        return [(f"line {reader.line_num}", [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error:
        return []


def _likely(rows: Sequence[tuple[str, list[str]]]) -> tuple[float, int]:
    """How well a separator fits: it makes columns, as many in each row as in the header."""
    if not rows or (width := len(rows[0][1])) < 2:
        return 0, 0
    return sum(len(cells) == width for _, cells in rows) / len(rows), width


def _decoded(data: bytes, table: Table) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise InputError(f"cannot be read as UTF-16: {error}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        message = "is not in UTF-8; it is read as Latin-1. Letters with accents may be wrong; save it as UTF-8."
        table.findings.append(Finding("not in UTF-8", table.path.name, message))
        return data.decode("latin-1")


def _excel(path: Path) -> list[tuple[str, list[str]]]:
    openpyxl, installed = optional_import("openpyxl")
    if not installed:
        raise InputError("Excel files are read with openpyxl: pip install 'monai_dvpt[excel]'; or save it as CSV.")
    try:
        with zipfile.ZipFile(path) as archive:  # what it inflates to
            check_bytes("the table", 8 * sum(entry.file_size for entry in archive.infolist()))
        book = openpyxl.load_workbook(path, data_only=True)
        sheets = [sheet for sheet in book.worksheets if any(any(row) for row in sheet.iter_rows(values_only=True))]
        if len(sheets) != 1:
            names = some(sheet.title for sheet in sheets) or "none"
            raise InputError(f"must have one sheet with data, got {names}; save the one to use as a file of its own.")
        if merged := sorted(str(each) for each in sheets[0].merged_cells.ranges):
            raise InputError(f"must have no merged cells, got {some(merged)}.")
        rows = sheets[0].iter_rows(values_only=True)
        return [(f"row {number}", [_cell(value) for value in row]) for number, row in enumerate(rows, 1)]
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises whatever its bytes lead to
        raise InputError(f"cannot be read: {type(error).__name__}.") from None  # its message may quote a cell


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _records(content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records of a JSON file, those in lists by part with the name of their part."""
    sections = content if isinstance(content, Mapping) else {"": content}
    lists = {part: records for part, records in sections.items() if isinstance(records, list) and records}
    if isinstance(content, Mapping):
        lists = {part: records for part, records in lists.items() if all(isinstance(each, Mapping) for each in records)}
    if not lists:
        raise InputError("must be a list of objects, or lists of such by part, such as training.")
    for part, records in lists.items():
        for number, record in enumerate(records, 1):
            place = f"entry {number}" + (f" of {part}" if part else "")
            if not isinstance(record, Mapping):
                raise InputError(f"{place} must be an object of values by column.")
            yield place, {SPLIT: part, **record} if part else record


def _flat(place: str, record: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a record; an object of grades by output becomes a column for each."""
    cells: dict[str, str] = {}
    for key, value in record.items():
        inner = value.items() if isinstance(value, Mapping) else [(key, value)]
        for name, each in inner:
            if isinstance(each, (list, Mapping)):
                raise InputError(f"{place} must hold texts and numbers, got a list or an object for {name}.")
            cells[str(name).strip()] = _cell(each)
    return cells
