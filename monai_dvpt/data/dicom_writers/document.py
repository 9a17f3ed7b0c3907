# SPDX-License-Identifier: Apache-2.0
"""
What all DICOM results have in common.

Nothing that names a patient is given to highdicom, which writes names into warnings: it gets stand-ins with the
references and the geometry alone, and patient and study are copied when the result is complete.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.utils import OptionalImportError, optional_import
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

import monai_dvpt
from monai_dvpt.data.dicom import SeriesGrid
from monai_dvpt.utils import atomic_path

from .codes import PRIVATE_SCHEME, long_string
from .placed import Model

__all__ = ["document", "image_items", "require_highdicom", "save_document"]


def require_highdicom() -> Any:
    """
    The package highdicom.

    Raises:
        OptionalImportError: if it is not installed.
    """
    highdicom, installed = optional_import("highdicom")
    if not installed:
        raise OptionalImportError("DICOM results are written with highdicom: pip install 'monai_dvpt[dicom]'")
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every module that it copies
    return highdicom


def document(model: Model, description: str, series_number: int) -> dict[str, Any]:
    """
    Arguments that all of highdicom's objects take. New UIDs have the root of pydicom, 1.2.826.0.1.3680043.8.498.

    Args:
        model: whose result it is.
        description: of the series, which viewers list.
        series_number: behind those of the source in lists of viewers.
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
    """
    Copies patient and study from the source and writes the file.

    Args:
        dataset: a highdicom object.
        source: what it is about.
        path: the file.

    Raises:
        InputError: if it cannot be written.
    """
    with disable_value_validation():
        dataset.copy_patient_and_study_information(source.identity)
        dataset.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of labels and patients alike
        with atomic_path(path) as temporary:
            dataset.save_as(temporary)
    return Path(path)
