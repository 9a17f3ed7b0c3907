# SPDX-License-Identifier: Apache-2.0
"""Limits of memory, and names of patients where files cannot be read."""

from __future__ import annotations

import unittest
from unittest import mock

import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian
from utils_data import save_dicom, temporary_folder

from monai_dvpt.data.dicom import DicomSeriesReader, find_series, headers
from monai_dvpt.utils import InputError
from monai_dvpt.utils.limits import VARIABLE

VOLUME = np.random.default_rng(0).integers(0, 4000, (9, 8, 6)).astype(np.uint16)
TILT = np.array([[1, 0, 0], [0, 1, np.sin(0.2)], [0, 0, np.cos(0.2)]])


class TestLimits(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self) / "study"

    def save(self, directions: np.ndarray = TILT) -> list:
        save_dicom(self.folder, VOLUME, directions, (0, 0, 0), (1, 1.5, 2))
        return sorted(self.folder.iterdir())

    def test_what_a_deflated_file_inflates_to(self):
        for path in self.save(np.eye(3)):
            dataset = pydicom.dcmread(path)
            dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            dataset.ImageComments = 3000 * "x"  # which deflates to next to nothing
            dataset.save_as(path)
            self.assertLess(path.stat().st_size, 3000)
        self.assertEqual([series.verdict for series in find_series(self.folder)], ["ok"])
        with mock.patch.dict("os.environ", {VARIABLE: "3000"}):
            reasons = {series.reason for series in find_series(self.folder)}
        self.assertEqual(len(reasons), 6)
        self.assertTrue(all("what it inflates to must take at most 3,000 bytes" in reason for reason in reasons))

    def test_deflated_files_of_many_sizes(self):
        """Behind the stream a byte may stand that fills up to an even length."""
        path = self.save(np.eye(3))[0]
        for side in (*range(40, 60), 1024):
            dataset = pydicom.dcmread(path)
            dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            dataset.Rows, dataset.Columns, dataset.PixelData = side, 1024, bytes(2 * side * 1024)
            dataset.save_as(self.folder.with_suffix(".dcm"))
            self.assertEqual(headers.read_header(self.folder.with_suffix(".dcm")).size, (1024, side))

    def test_memory_of_a_volume(self):
        self.save()
        size = 4 * VOLUME.size
        reader = DicomSeriesReader(tilt="resample")
        self.assertGreater(reader.get_data(reader.read(self.folder))[0].nbytes, size)
        for limit, needed in ((size - 1, f"{size:,}"), (size, r"[\d,]+")):  # as it is, and straightened
            with mock.patch.dict("os.environ", {VARIABLE: str(limit)}):
                what = f"a volume must take at most {limit:,} bytes of memory, would take {needed}"
                with self.assertRaisesRegex(InputError, what):
                    reader.get_data(reader.read(self.folder))

    def test_lossy(self):
        paths = self.save(np.eye(3))
        self.assertFalse(find_series(self.folder)[0].facts()["lossy"])
        dataset = pydicom.dcmread(paths[2])
        dataset.LossyImageCompression = "01"
        dataset.save_as(paths[2])
        self.assertTrue(find_series(self.folder)[0].facts()["lossy"])
        reader = DicomSeriesReader()
        self.assertTrue(reader.get_data(reader.read(self.folder))[1]["lossy"])

    def test_broken_file_named_after_the_patient(self):
        self.save()
        (self.folder / "AVASARALA_CHRISJEN_9.dcm").write_bytes(b"cut")
        for series in find_series(self.folder):
            self.assertIn("one of its files: must be a DICOM object", series.reason)
            self.assertNotIn("AVASARALA", f"{series} {series.facts()} {series!r}".upper())


if __name__ == "__main__":
    unittest.main()
