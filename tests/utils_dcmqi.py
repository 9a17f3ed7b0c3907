# SPDX-License-Identifier: Apache-2.0
"""DICOM Segmentations of another writer, dcmqi, which 3D Slicer and others use."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np
import SimpleITK

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_image(labels: np.ndarray, affine_ras: np.ndarray) -> SimpleITK.Image:
    """A label map (x, y, z) with its affine."""
    affine = RAS_TO_LPS @ affine_ras
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(labels.transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def write_with_dcmqi(path: Path, image: SimpleITK.Image, source: Path, names: dict[int, str]) -> Path:
    """A segmentation with the given label values; skips the test where dcmqi is not installed."""
    beside_python = Path(sys.executable).parent / "itkimage2segimage"
    tool = str(beside_python) if beside_python.exists() else shutil.which("itkimage2segimage")
    if tool is None:
        raise unittest.SkipTest("needs itkimage2segimage (Python package dcmqi).")
    code = {"CodeValue": "123037004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Anatomical Structure"}
    attributes = [
        {
            "labelID": value,
            "SegmentLabel": name,
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": code,
            "SegmentedPropertyTypeCodeSequence": {**code, "CodeMeaning": name},
        }
        for value, name in names.items()
    ]
    described = {"ContentCreatorName": "Reader", "SeriesNumber": "300", "InstanceNumber": "1"}
    described |= {"ContentLabel": "SEGMENTATION", "segmentAttributes": [attributes]}
    path.with_suffix(".json").write_text(json.dumps(described))
    SimpleITK.WriteImage(image, str(path.with_suffix(".nrrd")))
    command = [tool, "--inputImageList", str(path.with_suffix(".nrrd")), "--inputDICOMDirectory", str(source)]
    command += ["--outputDICOM", str(path), "--inputMetadata", str(path.with_suffix(".json"))]
    subprocess.run(command, check=True, capture_output=True)
    return path
