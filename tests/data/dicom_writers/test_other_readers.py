# SPDX-License-Identifier: Apache-2.0
"""RTSTRUCT as DicomRTTool reads it, which rounds outlines to whole pixels; for more readers see
docs/scripts/other_readers.py. The tests of the writers read SEG with highdicom and dcmqi."""

from __future__ import annotations

import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK
from monai.utils import optional_import
from scipy.ndimage import affine_transform
from utils_data import dice, shared_data, temporary_folder
from utils_dicom_writers import ANONYMOUS, MODEL, SEGMENTS, THORAX, Series

from monai_dvpt.data.dicom_writers import place, write_rtstruct

installed = optional_import("DicomRTTool")[1]


def identified(folder: Path, name: str) -> Series:
    """Copies of a series with the identifiers that it has blank, by which the reader finds what belongs together."""
    for path in shared_data(f"dicom/{name}").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.StudyInstanceUID = dataset.StudyInstanceUID or "2.25.1"
        dataset.SeriesInstanceUID = dataset.SeriesInstanceUID or "2.25.2"
        dataset.save_as(folder / path.name)
    return Series(folder)


@unittest.skipUnless(installed, "needs DicomRTTool.")
class TestDicomRTTool(unittest.TestCase):
    def check(self, folder: Path, series: Series, labels: np.ndarray) -> None:
        from DicomRTTool.ReaderWriter import DicomReaderWriter

        grid = series.grid()
        write_rtstruct(folder / "contours.dcm", place(grid, MODEL, series.affine_ras, labels), grid, MODEL)
        names = [SEGMENTS[value]["name"] for value in (1, 2, 3)]
        reader = DicomReaderWriter(Contour_Names=names, arg_max=False, require_all_contours=False, verbose=False)
        reader.walk_through_folders(str(folder))
        reader.get_images_and_mask()
        self.assertEqual(len(reader.series_instances_dictionary), 1)
        found = np.zeros(series.shape, np.uint8)
        for value, name in enumerate(names, start=1):
            found[SimpleITK.GetArrayFromImage(reader.mask_dictionary[name]).transpose(2, 1, 0) > 0] = value
        np.testing.assert_allclose(reader.dicom_handle.GetOrigin(), series.positions[0], atol=1e-3)
        for value in np.unique(labels)[1:]:
            self.assertEqual(dice(found, labels, value), 1.0, SEGMENTS[value]["name"])

    def test_single_pixels_holes_islands_and_borders(self):
        folder = temporary_folder(self)
        series = identified(folder, ANONYMOUS)
        random, labels = np.random.default_rng(2), np.zeros(series.shape, np.uint8)
        labels[3:20, 4:22, 1:6] = 1
        labels[6:9, 7:10, 1:6] = labels[11, 15, 2] = labels[14:17, 14:17, 3] = 0
        labels[15, 15, 3] = labels[22, 5, 4] = labels[23, 6, 4] = labels[26:28, 3, 5] = 1
        labels[-2:, -3:, 7] = labels[0, :, 8] = labels[:, -1, 9] = 2
        labels[..., 10] = random.random(series.shape[:2]) < 0.5
        labels[..., 12] = 1 + (random.random(series.shape[:2]) < 0.5)
        labels[30, 40, 20] = 3
        self.check(folder, series, labels)

    def test_jpeg_2000(self):
        folder = temporary_folder(self)
        series = identified(folder, THORAX)
        mask = nib.load(shared_data("dicom/ct_thorax_jpeg2000/example_seg_dicom.nii.gz"))
        to_mask = np.linalg.inv(mask.affine) @ series.affine_ras
        given = affine_transform(np.asarray(mask.dataobj), to_mask, output_shape=series.shape, order=0)
        labels = np.zeros(series.shape, np.uint8)
        for label, value in enumerate(np.unique(given)[1:4], start=1):
            labels[given == value] = label
        self.check(folder, series, labels)


if __name__ == "__main__":
    unittest.main()
