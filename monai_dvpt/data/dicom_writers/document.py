# SPDX-License-Identifier: Apache-2.0
"""
What all DICOM results have in common.

highdicom writes patients' names into warnings. So it only gets stand-ins with references and geometry; patient and
study are copied when the result is complete.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import OptionalImportError, optional_import
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import monai_dvpt
from monai_dvpt.data.dicom import SeriesGrid
from monai_dvpt.utils import InputError, atomic_path

from .codes import PRIVATE_SCHEME, long_string

__all__ = ["Model", "Placed", "document", "image_items", "place", "require_highdicom", "save_document"]


@dataclass(frozen=True)
class Model:
    """
    The model that made a result.

    Attributes:
        algorithm_name: name of the model.
        algorithm_version: version of the model.
        segments: description of each label value, see :func:`segment_codes`.
    """

    algorithm_name: str
    algorithm_version: str
    segments: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Placed:
    """
    The result of a model on a series; each writer takes the attributes that it writes.

    Attributes:
        labels: label values on the frames of the source, (n, rows, columns), 0 is background; uint8 or uint16.
        probability: of the labels, in [0, 1], (n, rows, columns, labels).
        image: grey values of the source, (n, rows, columns), float32.
        window: grey values that are shown black and white.
        volumes_ml: millilitres by name of label.
        grades: "grade", "confidence" (its probability) and, optionally, "set" and "coverage" by output, see
            :func:`monai_dvpt.handlers.grade_writer.grades_of`.
        picture: RGB, uint8, (rows, columns, 3).
        segmentation: DICOM SEG file of the labels, to which a report of volumes then refers.
        corrected: whether a person corrected the labels.
    """

    labels: Any = None
    probability: Any = None
    image: Any = None
    window: tuple[float, float] = (0.0, 1.0)
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    grades: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    picture: Any = None
    segmentation: str | os.PathLike | None = None
    corrected: bool = False


def place(
    source: SeriesGrid,
    model: Model,
    affine_ras: np.ndarray,
    label: np.ndarray,
    probability: np.ndarray | None = None,
    image: np.ndarray | None = None,
    **others: Any,
) -> Placed:
    """
    Places a result on the frames of its source, see :meth:`monai_dvpt.data.SeriesGrid.place`.

    Args:
        source: grid of the series.
        model: the model that made the labels.
        affine_ras: 4x4 matrix from voxels to patient coordinates (RAS, mm).
        label: label values of shape (x, y, z), 0 is background.
        probability: in [0, 1], of shape (classes, x, y, z) without background: the first is label value 1.
        image: grey values of shape (x, y, z); the 1st to the 99th percentile are shown.
        others: further attributes of :class:`Placed`, which are kept as they are.

    Raises:
        InputError: if the result does not lie on the frames, a label value is not a whole number or not described, or a
            probability is outside [0, 1].
        ValueError: if the probability has another number of classes.
    """
    label = np.asarray(label)
    if found := set(np.unique(label).tolist()) - {0, *model.segments}:
        raise InputError(f"label values must be 0 or one of {sorted(model.segments)}, got {sorted(found)[:5]}.")
    label = label.astype(np.uint8 if max(model.segments) < 256 else np.uint16)
    if probability is not None:
        probability = np.asarray(probability, dtype=np.float32)
        if probability.ndim != 4 or len(probability) != len(model.segments):
            raise ValueError(f"probability must have shape ({len(model.segments)}, x, y, z), got {probability.shape}.")
        low, high = float(probability.min()), float(probability.max())
        if not 0 <= low <= high <= 1:
            raise InputError(f"probabilities must be in [0, 1], got {low} to {high}.")
        others["probability"] = np.stack([source.place(each, affine_ras) for each in probability], axis=-1)
    if image is not None:
        image = np.asarray(image, dtype=np.float32)
        others |= {"image": source.place(image, affine_ras), "window": tuple(np.percentile(image, (1, 99)))}
    return Placed(source.place(label, affine_ras), **others)


def require_highdicom() -> Any:
    """The package highdicom; an OptionalImportError if it is not installed."""
    highdicom, installed = optional_import("highdicom")
    if not installed:
        raise OptionalImportError("DICOM results are written with highdicom: pip install 'monai_dvpt[dicom]'")
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it logs every module that it copies
    return highdicom


def document(model: Model, description: str, series_number: int) -> dict[str, Any]:
    """
    Arguments that all of highdicom's objects take. New UIDs have the root of pydicom, 1.2.826.0.1.3680043.8.498.

    Args:
        model: the model that made the result.
        description: of the series, which viewers list.
        series_number: high, so that viewers list the result after its source.
    """
    highdicom = require_highdicom()
    scheme = highdicom.coding_schemes.CodingSchemeIdentificationItem(
        PRIVATE_SCHEME, "monai_dvpt", responsible_organization="monai_dvpt"
    )
    version = long_string(f"model {model.algorithm_version}")
    return {
        "series_instance_uid": generate_uid(),
        "series_number": series_number,
        "series_description": description,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": "monai_dvpt",
        "manufacturer_model_name": long_string(model.algorithm_name),
        "software_versions": [f"monai_dvpt {monai_dvpt.__version__}", version],
        "device_serial_number": "0",  # an empty one is not allowed, and software has none
        "content_qualification": "RESEARCH",
        "coding_schemes": [scheme],
    }


def image_items(source: SeriesGrid, indices: Sequence[int] | None = None) -> list[Dataset]:
    """Items of a sequence that refers to the images of these frames, else of all."""
    items = []
    for image, numbers in source.references(indices):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        if numbers is not None:
            item.ReferencedFrameNumber = numbers
        items.append(item)
    return items


def save_document(dataset: Any, source: SeriesGrid, path: str | os.PathLike) -> Path:
    """Writes a highdicom object with patient and study of the source; an InputError if a file cannot be used."""
    with disable_value_validation():
        dataset.copy_patient_and_study_information(source.identity)
        dataset.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of labels and patients alike
        with atomic_path(path) as temporary:
            dataset.save_as(temporary)
    return Path(path)
