# SPDX-License-Identifier: Apache-2.0
"""Small pictures that tests write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from utils_data import PATIENT


def save_picture(path: Path, seed: int = 0, size: tuple[int, int] = (5, 7)) -> Path:
    """Writes a grey picture of ``size`` rows and columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8)).save(path)
    return path


def save_radiograph(path: Path, patient: str) -> pydicom.Dataset:
    """Writes a radiograph of 4 rows and 6 columns; returns its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = DigitalXRayImageStorageForPresentation
    header.SOPInstanceUID, header.SeriesInstanceUID, header.StudyInstanceUID = (generate_uid() for _ in range(3))
    header.PatientName, header.PatientID, header.Modality = PATIENT, patient, "DX"
    header.AccessionNumber = f"A{patient}"
    header.Rows, header.Columns, header.SamplesPerPixel = 4, 6, 1
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.PhotometricInterpretation = "MONOCHROME2"
    header.PixelData = np.arange(24, dtype=np.uint16).tobytes()
    pydicom.dcmwrite(path, header, **WRITE)
    return header


WRITE = {"enforce_file_format": True} if int(pydicom.__version__.split(".")[0]) >= 3 else {"write_like_original": False}
