# SPDX-License-Identifier: Apache-2.0
"""Left and right images that may be of one patient, by the names of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from monai_dvpt.data.gradelist import match_patient, patient_regex
from monai_dvpt.data.kinds import image_stem

from ..model import Case, Collection, Finding

__all__ = ["sides_of_one_patient"]

MARK = re.compile(r"(?<![A-Za-z])(l|r|left|right|od|os)(?![A-Za-z])", re.IGNORECASE)
"""OD and OS: oculus dexter and oculus sinister."""
OTHER_SIDE = {"l": "r", "left": "right", "od": "os"}


class _Mark(NamedTuple):
    """A mark in the name of a file, and what its path has before and behind; no suffix."""

    text: str
    before: str
    behind: str
    case: Case


def sides_of_one_patient(collection: Collection) -> Finding | None:
    """
    A note where names of files of unknown patients differ by a side alone, such as Image_01L.jpg and Image_01R.jpg,
    with the pattern of patients that keeps them together, if a short one does.
    """
    unknown = [case for case in collection.cases if not case.patient]
    paths = {case.name: _path(case, collection) for case in unknown}
    found: dict[tuple[str, str, str], _Mark] = {}
    for case in unknown:
        path = PurePosixPath(paths[case.name])
        stem = image_stem(path.name)
        folder = str(path)[: -len(path.name)]
        for match in MARK.finditer(stem):
            mark = _Mark(match[0], folder + stem[: match.start()], stem[match.end() :], case)
            found.setdefault((mark.before, mark.behind, match[0].lower()), mark)
    pairs = [
        (mark, found[before, behind, OTHER_SIDE[side]])
        for (before, behind, side), mark in found.items()
        if OTHER_SIDE.get(side) and (before, behind, OTHER_SIDE[side]) in found
    ]
    if not pairs:
        return None
    first, second = pairs[0]
    message = f"{len(pairs)} pairs of names differ by a side alone, such as {first.case.name} and {second.case.name}; "
    message += "each counts as a patient of its own. If a pair is of one patient, keep it in one part with "
    pattern = _pattern(pairs, paths)
    message += f"--patient-pattern '{pattern}'." if pattern else "--patient-pattern."
    return Finding("sides of one patient", "", message)


def _path(case: Case, collection: Collection) -> str:
    """Of the file, or of the folder of a series, below the folder of data."""
    path = case.image if isinstance(case.image, str) else os.path.commonpath([*map(os.path.dirname, case.image)])
    return PurePosixPath(os.path.relpath(path, os.path.abspath(collection.root))).as_posix()


def _pattern(pairs: Sequence[tuple[_Mark, _Mark]], paths: dict[str, str]) -> str:
    """The first of a few patterns that finds the same in both names of a pair, and something else in other pairs."""
    texts = sorted({mark.text for pair in pairs for mark in pair})
    marks = f"[{''.join(texts)}]" if all(len(text) == 1 for text in texts) else f"(?:{'|'.join(texts)})"
    word = rf"(?<![A-Za-z]){marks}(?![A-Za-z])"
    for pattern in (rf"(.*){marks}\.", rf"(.*){word}", rf"{word}(.*)\."):
        regex = patient_regex(pattern)
        patients: dict[str, set[str]] = {}
        for pair in pairs:
            for mark in pair:
                begins = mark.before == "" or mark.before.endswith("/")  # the name of the file with the mark
                own = mark.before + mark.behind if begins else mark.before
                patients.setdefault(own, set()).add(match_patient(regex, paths[mark.case.name]))
        values = [value for each in patients.values() for value in each]
        if all(values) and len(values) == len(set(values)) == len(patients):
            return pattern
    return ""
