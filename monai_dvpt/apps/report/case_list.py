# SPDX-License-Identifier: Apache-2.0
"""Which list of cases results are of, and whether the bundle has another by now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_dvpt.data.datalist import CHECK

from .evaluated import DIGITS, LIST, RECORD, mark_key_facts
from .files import Reader
from .model import Section, Text

__all__ = ["mark_evaluation", "mark_training", "present_list"]

EARLIER = "of an earlier list of cases"


def present_list(check: Mapping[str, Any]) -> str:
    """The first digits of what tells the bundle's list from others; "" where ``new`` did not write the bundle."""
    facts = check.get("list")
    return str(facts.get("sha256"))[:DIGITS] if isinstance(facts, Mapping) else ""


def mark_training(section: Section, folder: Path, configs: Path, reader: Reader) -> None:
    """Puts the list of a training before what the section says of it."""
    settings = reader.json(folder / "report.json").get("settings")
    kept = settings if isinstance(settings, Mapping) else {}
    cases = kept.get("cases")
    counts = cases if isinstance(cases, Mapping) else {}
    parts = [f"{counts[part]} {part}" for part in ("training", "validation") if part in counts]
    _mark(section, kept, f" with {' and '.join(parts)} cases" if parts else "", configs, reader)


def mark_evaluation(section: Section, folder: Path, configs: Path, reader: Reader) -> None:
    """Puts the list of an evaluation before its scores, and marks those at the top of the page."""
    if _mark(section, reader.json(folder / RECORD), "", configs, reader):
        mark_key_facts(section, EARLIER)


def _mark(section: Section, kept: Mapping[str, Any], counts: str, configs: Path, reader: Reader) -> bool:
    """Whether the results are of an earlier list; nothing is said of bundles that ``new`` did not write."""
    current, found = present_list(reader.json(configs / CHECK)), str(kept.get(LIST) or "")[:DIGITS]
    if not section.blocks or not current:
        return False
    what = section.title.lower()
    if found == current:
        text = f"This {what} is of the present list of cases, {current}{counts}."
    elif found:
        text = f"This {what} is {EARLIER}, {found}{counts}; the list is now {current}, see Data. Run it again."
    else:
        text = f"It is not recorded of which list of cases this {what} is; the list is now {current}, see Data."
    section.blocks.insert(0, Text(text, warning=found != current))
    return bool(found) and found != current
