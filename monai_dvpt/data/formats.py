# SPDX-License-Identifier: Apache-2.0
"""The formats in which results are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .dicom_writers import (
    write_dicom_seg,
    write_dicom_seg_probability,
    write_dicom_sr,
    write_rtstruct,
    write_secondary_capture,
)

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True)
class Format:
    """
    A format of results.

    Attributes:
        description: of the file.
        suffix: of the file's name, after the name of the case.
        bundles: tasks with such results, "segmentation" (of volumes), "pictures" (their segmentation) or "grading".
        write: for a DICOM format, which needs DICOM input, its writer, see :mod:`monai_dvpt.data.dicom_writers`.
    """

    description: str
    suffix: str
    bundles: tuple[str, ...] = ("segmentation",)
    write: Callable[..., Path] | None = None


BOTH: Any = ("segmentation", "grading")
FORMATS = {
    "nifti": Format(
        "label map, uint8, on the grid of the input, RAS+; for a picture only if it is NIfTI",
        "_seg.nii.gz",
        ("segmentation", "pictures"),
    ),
    "png": Format("label map of a picture, of its size; the only label is white, 255", "_seg.png", ("pictures",)),
    "json": Format(
        "numbers; a picture and grades.csv are beside it; of classes without an order `NAME_classes.json` and "
        "classes.csv",
        "_grades.json",
        ("grading",),
    ),
    "uncertainty": Format(
        "map, float32, on the grid of the input, RAS+: entropy of the probabilities of the classes, from 0, sure of "
        "one, to 1, all alike",
        "_uncertainty.nii.gz",
    ),
    "dicom_seg": Format(
        "DICOM SEG, binary; the number of a segment is the value of its label, and a label that was not found stays "
        "declared",
        "_seg.dcm",
        write=write_dicom_seg,
    ),
    "dicom_seg_probability": Format(
        "DICOM SEG, fractional: the probability of each label", "_probability.dcm", write=write_dicom_seg_probability
    ),
    "dicom_sr": Format(
        "TID 1500 report of the volumes, which refers to the segments if dicom_seg is written too, or of the grades "
        "with their probabilities and prediction sets",
        "_sr.dcm",
        BOTH,
        write_dicom_sr,
    ),
    "rtstruct": Format("RT Structure Set, outlines on each slice", "_rtstruct.dcm", write=write_rtstruct),
    "secondary_capture": Format(
        "Secondary Capture, colour, of the slices that hold labels, or of the picture of the grades",
        "_secondary_capture.dcm",
        BOTH,
        write_secondary_capture,
    ),
}
"""By name, in the order of writing: a report refers to files that are written before it."""
