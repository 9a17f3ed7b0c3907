# SPDX-License-Identifier: Apache-2.0
"""Which adapter, and which cases, an evaluation was of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_dvpt.data.datalist import images_sha256, list_sha256
from monai_dvpt.data.kinds import is_regular
from monai_dvpt.utils import atomic_path, file_sha256, to_json

from .files import Reader
from .model import Section, Text
from .training_section import ADAPTER

__all__ = ["DIGITS", "LIST", "RECORD", "keep_evaluated", "mark_adapter", "mark_key_facts"]

RECORD = "evaluated.json"
"""In the folder of an evaluation."""
LIST, FILE, NAME, IMAGES = "list_sha256", "adapter_sha256", "adapter", "images_sha256"
DIGITS = 12
OTHER = "of another adapter"


def keep_evaluated(
    folder: Path,
    adapter: str | os.PathLike,
    datalist: str | os.PathLike | None,
    cases: Sequence[Mapping[str, Any]] | None,
) -> None:
    """Writes which adapter, list and cases an evaluation was of, by their SHA-256."""
    record = {
        NAME: Path(adapter).name,
        FILE: _sha256(Path(adapter)),
        LIST: None if datalist is None else list_sha256(datalist),
        IMAGES: None if cases is None else images_sha256(cases),
    }
    with atomic_path(folder / RECORD) as path:
        path.write_text(to_json({key: value for key, value in record.items() if value}) + "\n", encoding="utf-8")


def mark_adapter(section: Section, folder: Path, train: Path, reader: Reader) -> None:
    """Says before the scores of an evaluation whether its adapter is the best of the training, and what chose that."""
    record = reader.json(folder / RECORD)
    found, best = record.get(FILE), _sha256(train / ADAPTER)
    if not section.blocks or not found or best is None:
        return
    if found == best:
        text = f"This evaluation is of the training's present best adapter, {best[:DIGITS]}."
        images = record.get(IMAGES)
        if images and images == reader.json(train / "report.json").get("validation_sha256"):
            chosen = "epoch and temperature were" if (train / "calibration.json").is_file() else "epoch was"
            text += f" Its {chosen} chosen on the cases that are scored here, so the scores are a little high."
        section.blocks.insert(0, Text(text))
        return
    shown = f"{record.get(NAME)}, {str(found)[:DIGITS]}"
    text = f"This evaluation is {OTHER} ({shown}) than the training's present best, {best[:DIGITS]}. Run it again."
    section.blocks.insert(0, Text(text, warning=True))
    mark_key_facts(section, OTHER)


def mark_key_facts(section: Section, mark: str) -> None:
    """Adds a remark to what the top of the page says of a section."""
    section.key_facts = [
        (name, value, ", ".join(filter(None, (remark, mark)))) for name, value, remark in section.key_facts
    ]


def _sha256(path: Path) -> str | None:
    """Of the bytes of a file; None without one."""
    return file_sha256(path) if is_regular(path) else None
