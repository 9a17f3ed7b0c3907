# SPDX-License-Identifier: Apache-2.0
"""The formats of results."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from monai_dvpt.data import SeriesGrid
from monai_dvpt.data.dicom_writers import Model, Placed, require_highdicom, segment_codes
from monai_dvpt.data.formats import FORMATS
from monai_dvpt.utils import InputError

__all__ = ["OutputFormats"]


class OutputFormats:
    """
    The formats that a user asked for.

    Args:
        asked: one or several, or one text with commas between them.
        bundle: "segmentation", "pictures" or "grading", see :class:`monai_dvpt.data.formats.Format`.
        metadata: file of the bundle's metadata; DICOM objects have its name and version.
        labels: names of the classes in the order of their values, background first; none of a grading bundle.

    Raises:
        InputError: if one is unknown, or the metadata are missing for DICOM.
        OptionalImportError: if highdicom is missing for DICOM.
    """

    def __init__(
        self, asked: str | Sequence[str], bundle: str, metadata: str | os.PathLike | None, labels: Sequence[str] = ()
    ) -> None:
        texts = [text.strip() for entry in ensure_tuple(asked) for text in str(entry).split(",")]
        self.formats = [text for text in dict.fromkeys(texts) if text]
        known = [name for name, form in FORMATS.items() if bundle in form.bundles]
        if unknown := [text for text in self.formats if text not in known]:
            raise InputError(f"output_format must be of {', '.join(known)}, got {', '.join(unknown)}.")
        self.dicom = any(FORMATS[name].write is not None for name in self.formats)
        if self.dicom:
            require_highdicom()
            if metadata is None:
                raise InputError("metadata must be a bundle's metadata.json where DICOM is written, got none.")
            about = json.loads(Path(metadata).read_text(encoding="utf-8"))
            self.model = Model(about["name"], about["version"], segment_codes(labels, about))

    def __contains__(self, name: str) -> bool:
        return name in self.formats

    def source(self, image: Any) -> SeriesGrid:
        """The series of an image; raises InputError if it was not read from DICOM."""
        if (grid := getattr(image, "meta", {}).get("series_grid")) is None:
            raise InputError(f"output_format {', '.join(self.formats)} must have DICOM input, to which it refers.")
        return grid

    def write(self, stem: str, placed: Placed, source: SeriesGrid) -> None:
        """Writes the chosen DICOM objects of a result about ``source``; ``stem`` is their path without suffix."""
        for name, form in FORMATS.items():
            if name in self.formats and form.write is not None:
                path = form.write(stem + form.suffix, placed, source, self.model)
                if name == "dicom_seg":
                    placed = replace(placed, segmentation=path)
