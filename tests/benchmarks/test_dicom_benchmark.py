# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import unittest
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pydicom
from monai.data import ITKReader
from parameterized import parameterized
from tqdm import tqdm
from utils_commands import call
from utils_data import shared_data, temporary_folder

from benchmarks import dicom_series
from benchmarks.__main__ import main
from benchmarks.dicom_series import COLUMNS, READERS, make_series, measure_readers
from monai_dvpt.data.dicom import find_series

SMALL = "dicom/ct_liver_seg/23x38x3/image"
CT = "dicom/ct_liver_seg/ct-3slice"
RLE = "dicom/awkward/generic/compressed_rle/001"


class Brighter(ITKReader):
    """Is wrong by 1."""

    def get_data(self, img):
        values, meta = super().get_data(img)
        return values + 1, meta


class Shifted(ITKReader):
    """Is elsewhere by 1 mm."""

    def get_data(self, img):
        values, meta = super().get_data(img)
        return values, {**meta, "affine": meta["affine"] + np.eye(4, k=3)}


def in_this_process(workers: int, _) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers)


class TestMakeSeries(unittest.TestCase):
    @parameterized.expand([(SMALL, True, 7), (RLE, True, 6), (RLE, False, 6)])
    def test_positions_and_pixels_continue(self, source, decompress, slices):
        paths = sorted(shared_data(source).iterdir(), key=lambda path: int(pydicom.dcmread(path).InstanceNumber))
        folder = temporary_folder(self) / "new"
        written = make_series(paths, folder, slices, decompress)
        made = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        self.assertEqual(written, sum(path.stat().st_size for path in folder.iterdir()))
        self.assertEqual(len(made), slices)
        originals = [pydicom.dcmread(path) for path in paths]
        first, second = (np.array(dataset.ImagePositionPatient, float) for dataset in originals[:2])
        for index, dataset in enumerate(made):
            position = np.array(dataset.ImagePositionPatient, float)
            np.testing.assert_allclose(position, first + index * (second - first), atol=1e-3)
            np.testing.assert_array_equal(dataset.pixel_array, originals[index % len(paths)].pixel_array)
            compressed = originals[0].file_meta.TransferSyntaxUID.is_compressed and not decompress
            self.assertEqual(dataset.file_meta.TransferSyntaxUID.is_compressed, compressed)
            self.assertEqual(dataset.SOPInstanceUID, dataset.file_meta.MediaStorageSOPInstanceUID)
        self.assertEqual(len({dataset.SOPInstanceUID for dataset in [*made, *originals]}), slices + len(paths))
        self.assertEqual(len({dataset.SeriesInstanceUID for dataset in made}), 1)
        self.assertNotEqual(made[0].SeriesInstanceUID, originals[0].SeriesInstanceUID)
        (found,) = find_series(folder)
        self.assertEqual((found.verdict, found.num_slices), ("ok", slices))


class TestMeasureReaders(unittest.TestCase):
    def setUp(self):
        executor = mock.patch.object(dicom_series, "ProcessPoolExecutor", in_this_process)
        executor.start()
        self.addCleanup(executor.stop)

    def test_all_agree(self):
        results = measure_readers(shared_data(SMALL), READERS, 3, tqdm(disable=True))
        self.assertEqual([result["reader"] for result in results], list(READERS))
        for result in results:
            self.assertIs(result["same"], True)
            self.assertTrue(0 < result["seconds_min"] <= result["seconds"] <= result["seconds_max"])
            self.assertGreaterEqual(result["peak_bytes"], 0)
            named = {column.key for column in COLUMNS}
            self.assertEqual(set(result) | {"pixels"}, named | {"seconds_min", "seconds_max"})
        base = next(result for result in results if result["reader"] == "ITKReader")
        self.assertEqual((base["ratio"], base["cpu_ratio"]), (1, 1))
        self.assertAlmostEqual(results[0]["cpu_ratio"], results[0]["cpu_seconds"] / base["cpu_seconds"])
        self.assertAlmostEqual(results[0]["ratio"], results[0]["seconds"] / base["seconds"])

    @parameterized.expand([(Brighter,), (Shifted,)])
    def test_wrong_volume(self, reader):
        readers = {"ITKReader": ITKReader, "wrong": reader}
        _, result = measure_readers(shared_data(SMALL), readers, 1, tqdm(disable=True))
        self.assertIs(result["same"], False)


class TestCommand(unittest.TestCase):
    def test_file_with_processes(self):
        folder = temporary_folder(self)
        with mock.patch.dict(dicom_series.READERS, {"ITKReader": ITKReader}, clear=True):
            argv = ["--data", shared_data(CT), "--slices", 20, "--repeats", 1, "--output", folder]
            status, _, err = call(main, "dicom", *argv)
        self.assertEqual(status, 0)
        self.assertIn("uncompressed: 100%", err)
        with open(folder / "dicom.csv", newline="") as file:
            (result,) = csv.DictReader(file)  # came uncompressed
        self.assertEqual([result[key] for key in ("slices", "columns", "rows")], ["20", "512", "512"])
        self.assertEqual((result["pixels"], result["reader"], result["same"]), ("uncompressed", "ITKReader", "True"))
        self.assertGreater(int(result["peak_bytes"]), 10e6)  # float32 has 21e6
        self.assertGreater(int(result["file_bytes"]), 20 * 2 * 512 * 512)

    def test_table(self):
        with mock.patch.object(dicom_series, "ProcessPoolExecutor", in_this_process):
            status, out, _ = call(main, "dicom", "--data", shared_data(RLE), "--slices", 4, "--repeats", 1)
        self.assertEqual(status, 0)
        table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line[0] == "|"]
        self.assertEqual(table[0], [column.title for column in COLUMNS])
        kinds = [kind for kind in ("uncompressed", "RLE Lossless") for _ in READERS]
        self.assertEqual(
            [row[:2] for row in table[2:]], [list(pair) for pair in zip(kinds, 2 * [*READERS], strict=True)]
        )
        self.assertEqual([row[-1] for row in table[2:]], 6 * ["yes"])
        self.assertIn("4 slices of 256 x 256", out)
        self.assertIn("Machine: ", out)

    def test_bad_arguments(self):
        for arguments, message in (
            (("--data", "nowhere"), "nowhere: "),
            (("--data", shared_data(SMALL), "--slices", 1), "--slices must be at least 2, got 1."),
            (("--data", shared_data(SMALL), "--repeats", 0), "--repeats must be at least 1, got 0."),
            (("--data", shared_data("dicom/ct_liver_seg/23x38x3/multiframe")), "must have one slice in each file"),
            (("--data", shared_data("dicom/awkward/failing/sliceincrement/002")), "missing"),
        ):
            status, out, err = call(main, "dicom", *arguments)
            self.assertEqual((status, out), (1, ""))
            self.assertIn(message, err)


if __name__ == "__main__":
    unittest.main()
