# SPDX-License-Identifier: Apache-2.0
"""What the command ``new`` found in a folder of data, and what it planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_dvpt.data.datalist import CHECK
from monai_dvpt.utils import is_number

from .case_list import present_list
from .files import Reader
from .model import Section, Table, Text, entries, in_words, number

__all__ = ["data_section"]

PARTS = ("training", "validation", "calibration", "test")
MAX_FINDINGS = 200


def data_section(configs: Path, reader: Reader) -> Section:
    """From ``check.json`` and ``plan.json`` of a bundle's configs; without blocks where there are none."""
    section = Section("Data")
    check = reader.json(configs / CHECK)
    if check:
        if current := present_list(check):
            section.blocks.append(Text(f"The list of cases is {current}; results below say of which list they are."))
        section.blocks += list(_findings(_objects(check.get("findings"))))
        cases = check.get("cases")
        section.blocks += _fingerprint(check, _objects(list(cases.values()) if isinstance(cases, Mapping) else []))
    plan = reader.json(configs / "plan.json")
    choices = plan.get("choices", plan)
    rows = [
        [name, in_words(choice.get("value")), str(choice.get("reason") or "")]
        for name, choice in (choices.items() if isinstance(choices, Mapping) else ())
        if isinstance(choice, Mapping)
    ]
    for folded, caption in ((False, "The plan, and why"), (True, "Settings without a reason of their own")):
        if chosen := [row if not folded else row[:2] for row in rows if bool(row[2]) != folded]:
            header = ["setting", "value"] if folded else ["setting", "value", "why"]
            section.blocks.append(Table(caption, header, chosen, folded))
    section.blocks += _details(choices)
    return section


def _details(choices: Any) -> Iterable[Table]:
    """How settings were found, such as the trials of a search."""
    for name, choice in choices.items() if isinstance(choices, Mapping) else ():
        rows = _objects(choice.get("details")) if isinstance(choice, Mapping) else []
        if rows:
            header = list(dict.fromkeys(key for row in rows for key in row))
            table = [[number, *(in_words(row.get(key)) for key in header)] for number, row in enumerate(rows, 1)]
            yield Table(f"How {name} were found", ["trial", *header], table, folded=True)


def _findings(findings: list[dict[str, Any]]) -> Iterable[Any]:
    errors = sum(bool(finding.get("error")) for finding in findings)
    if not findings:
        yield Text("Nothing odd was found in the data.")
        return
    yield Text(f"Findings: {len(findings)}; errors among them: {errors}.", warning=errors > 0)
    rules = Counter(str(finding.get("rule", "")) for finding in findings)
    keys = ("rule", "where", "message")
    rows = [["error" if f.get("error") else "note", *(str(f.get(key, "")) for key in keys)] for f in findings]
    rows.sort(key=lambda row: (row[0] != "error", -rules[row[1]], row[1]))
    left = "" if len(rows) <= MAX_FINDINGS else f" (the first {MAX_FINDINGS} of {len(rows)})"
    yield Table(f"What was odd{left}", ["kind", *keys], rows[:MAX_FINDINGS], folded=len(rows) > 20)


def _fingerprint(check: Mapping[str, Any], cases: list[dict[str, Any]]) -> list[Any]:
    """Tables of parts, labels or grades, sizes and spacings."""
    if not cases:
        return []
    found = Counter(str(case.get("part", "")) for case in cases)
    parts = [*(part for part in PARTS if part in found), *sorted(found.keys() - set(PARTS))]
    blocks: list[Any] = [Table("Cases by part", ["part", "cases"], [[part, found[part]] for part in parts])]
    labels = [str(label) for label in entries(check.get("labels"))]
    if check.get("task") == "segmentation":
        rows = []
        for label in labels:
            counts = [(case.get("part"), _voxels(case, label)) for case in cases]
            sizes = [count for _, count in counts if count]
            median = number(int(np.median(sizes))) if sizes else "–"
            rows.append([label, *(sum(count > 0 for part, count in counts if part == each) for each in parts), median])
        unit = "voxels" if check.get("spatial_dims") == 3 else "pixels"
        blocks.append(Table("Cases with each label", ["label", *parts, f"median {unit} where it is"], rows))
    for output in entries(check.get("outputs")):
        grades = Counter((_grade(case, output), str(case.get("part"))) for case in cases)
        rows = [[label, *(grades[label, part] for part in parts)] for label in labels]
        blocks.append(Table(f"Cases of each grade or class of {output}", [str(output), *parts], rows))
    for key, caption in (("size", "Size in voxels or pixels, along each axis"), ("spacing_mm", "Spacing in mm")):
        if rows := _ranges([case.get(key) for case in cases]):
            blocks.append(Table(caption, ["axis", "smallest", "median", "largest"], rows))
    return blocks


def _ranges(values: Sequence[Any]) -> list[list[Any]]:
    lists = [value for value in values if isinstance(value, list) and value and all(map(is_number, value))]
    if not lists or len(set(map(len, lists))) > 1:
        return []
    table = np.array(lists, float)
    return [
        [index + 1, *(f"{value:.4g}" for value in (axis.min(), np.median(axis), axis.max()))]
        for index, axis in enumerate(table.T)
    ]


def _grade(case: Mapping[str, Any], output: Any) -> str:
    grades = case.get("grades")
    return str(grades.get(str(output))) if isinstance(grades, Mapping) else ""


def _voxels(case: Mapping[str, Any], label: str) -> float:
    voxels = case.get("voxels")
    count = voxels.get(label, 0) if isinstance(voxels, Mapping) else 0
    return count if is_number(count) else 0


def _objects(given: Any) -> list[dict[str, Any]]:
    return [entry for entry in entries(given) if isinstance(entry, dict)]
