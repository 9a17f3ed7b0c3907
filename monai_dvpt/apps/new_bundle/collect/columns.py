# SPDX-License-Identifier: Apache-2.0
"""What the columns of a table mean."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from monai_dvpt.data.gradelist import IMAGE_COLUMNS, PART_OF, as_number
from monai_dvpt.utils import InputError

from ..model import Finding, Options
from .images import ImageIndex, has_mask_word, some, words_of
from .table_files import Table

__all__ = [
    "ROLES",
    "Columns",
    "find_image_column",
    "find_mask_column",
    "is_empty",
    "is_output",
    "is_pattern",
    "names_files",
    "part_of",
    "read_columns",
]

ROLES = ("image", "patient", "split", "mask")
"""What ``Options.columns`` may name."""
PATIENT_WORDS = ("patient", "subject", "participant", "case")
SPLIT_WORDS = ("split", "set", "subset", "part", "partition", "fold", "usage")
OTHER_WORDS = frozenset(
    "side laterality eye age sex gender date birth birthdate dob year time timepoint visit view projection position "
    "site centre center hospital scanner device manufacturer vendor modality localization localisation location "
    "weight height bmi ethnicity race reader rater observer comment comments note notes remark remarks path file "
    "filename folder url source study series accession uid id pid mrn index width rows columns spacing".split()
)
"""Words in the names of columns that say something about an image, but are not graded."""
NUMBER_WORDS = frozenset("study series accession uid id pid mrn index".split())
"""Those of them that do not say what else than the patient it is, beside a word for patients."""
EMPTY = frozenset({"", "-1", "na", "n/a", "#n/a", "nan", "null", "-", "?"})
"""Cells, in lower case, of what was not graded."""
LONGEST_PATH = 1024
MOST_VALUES = 20
"""Different values up to which a column may hold grades or classes."""
MOST_SHARE = 0.5
"""Different values for each row up to which a column may hold grades or classes."""


@dataclass
class Columns:
    """
    What the columns of a table mean.

    Attributes:
        image, patient, split: names of columns, "" without one.
        outputs: columns with what is graded; empty where that is not clear.
        findings: what is not clear.
    """

    image: str
    patient: str = ""
    split: str = ""
    outputs: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def others(self, table: Table) -> list[str]:
        """The columns of a table but the images'."""
        return [name for name in table.columns if name != self.image]


def is_empty(cell: str) -> bool:
    """Whether a cell says that an output was not graded."""
    return cell.lower() in EMPTY or as_number(cell) == -1


def part_of(cell: str) -> str | None:
    """The part that a cell names, "" for an empty one, None for another text."""
    return PART_OF.get(cell.lower()) if cell else ""


def _stated(table: Table, options: Options, role: str) -> str:
    """The column that the user names for a role, if any; an InputError if the table does not have it."""
    name = options.columns.get(role, "")
    if name and name not in table.columns:
        raise InputError(f"column {role} must be one of the table's, {some(table.columns)}, got {name!r}.")
    return name


def find_image_column(table: Table, index: ImageIndex, options: Options) -> str:
    """
    The column whose cells name the most images: at least half of its cells, or, in a column with a name such as
    "image", at least one. "" without such a column.

    Raises:
        InputError: if the user names a column that the table does not have.
    """
    if name := _stated(table, options, "image"):
        return name
    best = ("", (0, False, False))
    for name in table.columns:
        cells = set(table.values(name))
        named = sum(len(index.find(cell, table.path.parent)) > 0 for cell in cells)
        told = not {*words_of(name), name.lower()}.isdisjoint(IMAGE_COLUMNS)
        if named >= (1 if told else max(1, len(cells) / 2)):
            score = (named, told, not has_mask_word(name))
            best = max(best, (name, score), key=lambda each: each[1])
    return best[0]


def is_pattern(text: str) -> bool:
    """Whether a user's choice of masks is a pattern of file names, and no column."""
    return not {"*", "?"}.isdisjoint(text)


def find_mask_column(table: Table, root: Path, image: str, masks: ImageIndex, options: Options) -> str:
    """
    The column that names masks, at least half of its cells: by its files, or by its own name; "" without one.

    Raises:
        InputError: if the user names a column that the table does not have, or several columns name files.
    """
    if (name := options.columns.get("mask", "")) and not is_pattern(name):
        return _stated(table, options, "mask")
    found = [name for name in table.columns if name != image and names_files(table, root, name)]
    found += [name for name in table.columns if name not in (image, *found) and _names_masks(table, name, masks)]
    told = [name for name in found if has_mask_word(name)] or found
    if len(told) > 1:
        raise InputError(f"the column of masks must be clear, could be {some(told)}; pass --columns mask=NAME.")
    return told[0] if told else ""


def names_files(table: Table, root: Path, name: str) -> bool:
    """Whether at least half of a column's cells are paths of files."""
    cells = table.values(name)
    places = (root, table.path.parent)
    files = sum(any((place / cell).is_file() for place in places) for cell in cells if len(cell) < LONGEST_PATH)
    return files > 0 and 2 * files >= len(cells)


def _names_masks(table: Table, name: str, masks: ImageIndex) -> bool:
    """Whether a column has a name such as "mask", and at least half of its cells name one."""
    cells = table.values(name)
    return (
        has_mask_word(name) and 2 * sum(bool(masks.find(cell, table.path.parent)) for cell in cells) >= len(cells) > 0
    )


def read_columns(table: Table, root: Path, image: str, options: Options) -> Columns:
    """
    Args:
        table: with a column of images.
        root: folder of data.
        image: that column.
        options: what the user says about the table.

    Raises:
        InputError: if the user names a column that the table does not have.
    """
    where = table.path.name
    found = Columns(image)
    free = found.others(table)
    found.patient = _stated(table, options, "patient") or next(filter(_is_patient, free), "")
    found.split = _stated(table, options, "split")
    for name in [name for name in free if _is_like(name, SPLIT_WORDS)]:
        if not found.split and any(part_of(cell) for cell in table.values(name)):
            found.split = name
        elif name != found.split and name not in options.outputs:
            message = f"column {name} is not used: its cells must be some of {', '.join(PART_OF)}."
            found.findings.append(Finding("column not used", where, message))
    if missing := [name for name in options.outputs if name not in table.columns]:
        message = f"outputs must be columns of the table, {some(table.columns)}, got {some(missing)}."
        found.findings.append(Finding("no such output", where, message, error=True))
        return found
    used = {found.patient, found.split}
    free = [name for name in free if name not in used and not names_files(table, root, name)]
    if not found.patient:
        found.findings += _proposed_patients(table, free, found.image)
    found.outputs = list(options.outputs) or [name for name in free if is_output(table, name)]
    if len(found.outputs) > 1 and not options.outputs:
        message = f"what is graded must be clear, could be {_offer(table, found.outputs)}; pass --outputs, such as "
        example = min(_groups(table, found.outputs), key=lambda names: -len(names))
        message += f"--outputs {shlex.quote(','.join(example))}."
        found.findings.append(Finding("outputs not clear", where, message, error=True))
        found.outputs = []
    return found


def _is_patient(name: str) -> bool:
    return _is_like(name, PATIENT_WORDS) and "age" not in words_of(name)


def _is_like(name: str, words: Sequence[str]) -> bool:
    """Whether the name of a column is one of several words, perhaps with "id", "number" or a slip."""
    word = re.sub(r"(id|no|number|name|key)$", "", re.sub(r"[\W_]", "", name.lower()))
    return bool(get_close_matches(word, words, cutoff=0.85))


def _proposed_patients(table: Table, free: Sequence[str], image: str) -> list[Finding]:
    """
    Columns that may keep images together: with a word such as "subject" among others in their names, which is an error
    where values come twice, or identifiers of something else than images, such as lesions.
    """
    findings = []
    for name in free:
        words, cells = words_of(name), table.values(name)
        asks = not {*PATIENT_WORDS}.isdisjoint(words) and (OTHER_WORDS - NUMBER_WORDS).isdisjoint(words)
        if not asks and words[-1:] != ["id"]:
            continue
        different = len(set(cells))
        message = f"column {name}, with {different} different values in {len(cells)} rows, may tell patients apart; "
        message += f"pass {_option(name)} to keep images with the same value in one part"
        if asks := asks and different < len(cells):
            message += f", or {_option(image)} if each image is of another patient"
        findings.append(Finding("patients not known", table.path.name, f"{message}.", error=asks))
    return findings


def _option(name: str) -> str:
    return f"--columns {shlex.quote(f'patient={name}')}"


def is_output(table: Table, name: str) -> bool:
    """Whether the cells of a column look like grades or classes."""
    if not OTHER_WORDS.isdisjoint({*words_of(name), re.sub(r"[\W_]", "", name.lower())}):
        return False
    if _is_like(name, SPLIT_WORDS) or _is_patient(name):
        return False
    cells = [cell.lower() for cell in table.values(name) if not is_empty(cell)]
    numbers = [as_number(cell) for cell in cells]  # 2.0 is 2
    different = len({cell if number is None else number for cell, number in zip(cells, numbers, strict=True)})
    return 2 <= different <= MOST_VALUES and different <= max(2, MOST_SHARE * len(cells))


def _kind(table: Table, name: str) -> str:
    """What a column holds, in words: a range of numbers, or how many texts."""
    cells = {cell for cell in table.values(name) if not is_empty(cell)}
    numbers = [number for cell in cells if (number := as_number(cell)) is not None]
    return f"{min(numbers):g} to {max(numbers):g}" if len(numbers) == len(cells) else f"{len(cells)} texts"


def _groups(table: Table, names: Sequence[str]) -> list[list[str]]:
    """Columns of the same kind whose names begin alike, such as "S-A" and "S-B"."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        start = re.match(r"(.*)[\W_]", name)
        groups.setdefault((start[1] if start else name, _kind(table, name)), []).append(name)
    return list(groups.values())


def _offer(table: Table, names: Sequence[str]) -> str:
    return "; ".join(f"{', '.join(group)} ({_kind(table, group[0])})" for group in _groups(table, names))
