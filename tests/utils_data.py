# SPDX-License-Identifier: Apache-2.0
"""Real data that tests share, and small files that they write."""

from __future__ import annotations

import os
import tempfile
import unittest
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

T = TypeVar("T")
VARIABLE = "MONAI_DVPT_TEST_DATA"
ROOT = Path(__file__).parents[1]
AFFINE_RAS = np.array([[-2, 0, 0, 9], [0, 3, 0, -7], [0, 0, 4, 5], [0, 0, 0, 1.0]])
"""Left-handed, anisotropic, and not at the origin."""
PATIENT = "Chrisjen^Avasarala"


def shared_data(path: str = "") -> Path:
    """A file or folder of the shared test data; skips the test where there is none."""
    roots = [os.environ.get(VARIABLE), ROOT.parent / "shared" / "data"]
    root = next((Path(root) for root in roots if root and Path(root).is_dir()), None)
    if root is None:
        raise unittest.SkipTest(f"needs the shared test data: set {VARIABLE} to its folder.")
    return root / path


def entered(test: unittest.TestCase | type[unittest.TestCase], context: AbstractContextManager[T]) -> T:
    """What a context gives; it is left after the test, or after the tests of a class; Python 3.11 has that too."""
    stack = ExitStack()
    (test.addClassCleanup if isinstance(test, type) else test.addCleanup)(stack.close)
    return stack.enter_context(context)


def temporary_folder(test: unittest.TestCase | type[unittest.TestCase]) -> Path:
    """A folder that is removed after the test, or after the tests of a class."""
    return Path(entered(test, tempfile.TemporaryDirectory())).resolve()


def save_nifti(path: Path, volume: np.ndarray, affine: np.ndarray = AFFINE_RAS) -> Path:
    """Writes a volume; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def save_dicom(
    folder: Path,
    volume: np.ndarray,
    orientation: np.ndarray,
    origin_lps: np.ndarray,
    spacing_mm: tuple,
    suffix: str = ".dcm",
    modality: str = "MR",
    patient: str = "19",
) -> Path:
    """
    Writes a series, one file per slice in an order that is neither that of the names nor of the positions.

    Args:
        folder: where to.
        volume: (columns, rows, slices), uint16.
        orientation: 3x3, in its columns the directions (LPS) along a row, along a column, and from slice to slice.
        origin_lps: position of the first voxel in mm.
        spacing_mm: distance between columns, rows and slices.
        suffix: of the files' names.
        modality: of the series, "MR" or "CT".
        patient: identifier of the patient.
    """
    folder.mkdir(parents=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    names, numbers = (np.random.default_rng(seed).permutation(volume.shape[2]) for seed in (0, 1))
    for index in range(volume.shape[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"{names[index]:03}{suffix}"
        dataset = pydicom.FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.PatientName, dataset.PatientID, dataset.Modality = PATIENT, patient, modality
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.SeriesNumber, dataset.InstanceNumber = 1, int(numbers[index]) + 1
        position = np.asarray(origin_lps) + index * spacing_mm[2] * orientation[:, 2]
        dataset.ImagePositionPatient = [f"{value:.9g}" for value in position]
        dataset.ImageOrientationPatient = [f"{value:.9g}" for value in orientation[:, :2].T.ravel()]
        dataset.PixelSpacing = [f"{spacing_mm[1]:g}", f"{spacing_mm[0]:g}"]  # between rows, between columns
        dataset.SliceThickness = f"{spacing_mm[2]:g}"
        dataset.Rows, dataset.Columns = volume.shape[1], volume.shape[0]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelData = volume[:, :, index].T.astype("<u2").tobytes()
        if int(pydicom.__version__.split(".")[0]) < 3:
            dataset.is_little_endian, dataset.is_implicit_VR = True, False
        dataset.save_as(path)
    return folder


def dice(a: np.ndarray, b: np.ndarray, value: int) -> float:
    """Dice of one label of two label maps, of which at least one has it."""
    a, b = a == value, b == value
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())
