# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
import pydicom
from matplotlib import colormaps
from parameterized import parameterized
from utils_data import temporary_folder
from utils_dicom import validator_errors
from utils_dicom_writers import (
    ANONYMOUS,
    ENHANCED,
    LIVER,
    MODEL,
    THORAX,
    TILTED,
    Series,
    instance_uid,
)

from monai_dvpt.data.dicom_writers import Placed, place, write_secondary_capture


class TestSecondaryCapture(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "capture.dcm"

    def write(self, series: Series, labels: np.ndarray) -> pydicom.Dataset:
        self.image = np.random.default_rng(0).normal(50, 20, series.shape)
        self.image[0, 0], self.image[1, 0] = -1e4, 1e4
        grid = series.grid()
        placed = place(grid, MODEL, series.affine_ras, labels, image=self.image)
        write_secondary_capture(self.path, placed, grid, MODEL)
        self.assertEqual(validator_errors(self.path), [])
        return pydicom.dcmread(self.path)

    @parameterized.expand([(LIVER,), (TILTED,), (ENHANCED,), (THORAX,), (ANONYMOUS,)])
    def test_series(self, name):
        series = Series(name)
        labels = series.labels()
        dataset = self.write(series, labels)
        shown = np.flatnonzero(labels.any(axis=(0, 1)))
        pictures = dataset.pixel_array.reshape(len(shown), *series.shape[1::-1], 3).transpose(2, 1, 0, 3).astype(float)
        labels = labels[..., shown]
        coloured = np.ptp(pictures, axis=-1) > 0
        np.testing.assert_array_equal(coloured, labels > 0)
        # the outline has the label's colour, the inside a mix of it with the image
        blue = np.rint(np.array(colormaps["tab10"](0)[:3]) * 255)
        np.testing.assert_array_equal(pictures[labels == 1].reshape(-1, 3)[0], blue)
        column, row = series.shape[0] // 2 - 3, series.shape[1] // 2 - 3
        low, high = np.percentile(self.image, (1, 99))
        grey = np.clip((self.image[column, row, 0] - low) / (high - low), 0, 1) * 255
        np.testing.assert_allclose(pictures[column, row, 0], 0.45 * np.array([10, 200, 30]) + 0.55 * grey, atol=1)
        np.testing.assert_array_equal(pictures[0, 0, 0], [0, 0, 0])
        np.testing.assert_array_equal(pictures[1, 0, 0], [255, 255, 255])
        files = {instance_uid(header): header.filename for header in series.headers}
        sources = {files[item.ReferencedSOPInstanceUID] for item in dataset.SourceImageSequence}
        self.assertEqual(sources, {series.frames[index][0] for index in shown})

    def test_empty_shows_the_middle(self):
        series = Series(LIVER)
        dataset = self.write(series, np.zeros(series.shape))
        self.assertEqual(dataset.NumberOfFrames, 1)
        (item,) = dataset.SourceImageSequence
        self.assertEqual(item.ReferencedSOPInstanceUID, pydicom.dcmread(series.frames[1][0]).SOPInstanceUID)

    def test_picture(self):
        series = Series(ANONYMOUS)
        picture = np.random.default_rng(0).integers(0, 255, (7, 9, 3)).astype(np.uint8)
        write_secondary_capture(self.path, Placed(picture=picture), series.grid(), MODEL)
        self.assertEqual(validator_errors(self.path), [])
        dataset = pydicom.dcmread(self.path)
        np.testing.assert_array_equal(dataset.pixel_array, picture)
        self.assertEqual((dataset.BurnedInAnnotation, dataset.SeriesDescription), ("YES", "Picture"))
        self.assertEqual(dataset.StudyInstanceUID, series.headers[0].StudyInstanceUID)
        with self.assertRaisesRegex(ValueError, "uint8 of shape"):
            write_secondary_capture(self.path, Placed(picture=picture[..., 0]), series.grid(), MODEL)


if __name__ == "__main__":
    unittest.main()
