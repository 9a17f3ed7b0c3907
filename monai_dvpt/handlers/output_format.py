# SPDX-License-Identifier: Apache-2.0
"""In which formats the writers of results write."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from monai_dvpt.data.dicom import frames_of
from monai_dvpt.data.dicom_writers import require_highdicom
from monai_dvpt.utils import InputError

__all__ = ["DICOM_FORMATS", "OutputFormats"]

DICOM_FORMATS = ("dicom_seg", "dicom_seg_probability", "dicom_sr", "rtstruct", "overlay")


class OutputFormats:
    """
    The formats that a user asked for.

    Args:
        asked: one or several, also as one text with commas between them.
        known: those that there are.
        metadata: file of a bundle's metadata, whose name and version go into DICOM objects.

    Raises:
        InputError: if one is unknown, or DICOM is asked for and highdicom or the metadata are missing.
    """

    def __init__(self, asked: str | Sequence[str], known: Sequence[str], metadata: str | os.PathLike | None) -> None:
        texts = [text.strip() for entry in ensure_tuple(asked) for text in str(entry).split(",")]
        self.formats = [text for text in dict.fromkeys(texts) if text]
        if unknown := [text for text in self.formats if text not in known]:
            raise InputError(f"output_format must be of {', '.join(known)}, got {', '.join(unknown)}.")
        self.metadata: dict[str, Any] = {}
        if any(text in DICOM_FORMATS for text in self.formats):
            require_highdicom()
            if metadata is None:
                raise InputError("metadata must be a bundle's metadata.json where DICOM is written, got none.")
            self.metadata = json.loads(Path(metadata).read_text(encoding="utf-8"))

    def __contains__(self, name: str) -> bool:
        return name in self.formats

    @property
    def algorithm(self) -> dict[str, Any]:
        """Name and version of the model, as the DICOM writers take them."""
        return {"algorithm_name": self.metadata["name"], "algorithm_version": self.metadata["version"]}

    def source(self, image: Any) -> list[list[Any]]:
        """
        The DICOM frames that an image was read from, none where no DICOM is asked for.

        Raises:
            InputError: if it was read from something else.
        """
        if not self.metadata:
            return []
        if not (frames := frames_of(getattr(image, "meta", {}))):
            raise InputError(f"output_format {', '.join(self.formats)} must have DICOM input, to which it refers.")
        return frames
