# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
import pydicom
import SimpleITK
from parameterized import parameterized
from skimage.draw import polygon2mask
from utils_data import dice, shared_data, temporary_folder
from utils_dicom import validator_errors
from utils_dicom_writers import ANONYMOUS, ENHANCED, LIVER, MODEL, SEGMENTS, SERIES, TILTED, Series

from monai_dvpt.data.dicom_writers import place, write_rtstruct
from monai_dvpt.data.dicom_writers.rtstruct import outlines
from monai_dvpt.utils import InputError


def read_contours(dataset: pydicom.Dataset, series: Series) -> np.ndarray:
    """Label map (columns, rows, n) of the pixels whose centres lie inside the contours."""
    labels = np.zeros(series.shape, np.uint8)
    to_voxel = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ series.affine_ras)
    for roi in dataset.ROIContourSequence:
        for contour in roi.get("ContourSequence", []):
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            x, y, z = to_voxel[:3, :3] @ points.T + to_voxel[:3, 3:]
            k = round(z[0])
            np.testing.assert_allclose(z, k, atol=1e-3)
            labels[polygon2mask(series.shape[:2], np.stack([x, y], axis=1)), k] = roi.ReferencedROINumber
    return labels


class TestWriteRTStruct(unittest.TestCase):
    def write(self, series: Series, labels: np.ndarray) -> pydicom.Dataset:
        path = temporary_folder(self) / "contours.dcm"
        grid = series.grid()
        write_rtstruct(path, place(grid, MODEL, series.affine_ras, labels), grid, MODEL)
        self.assertEqual(validator_errors(path), [])
        return pydicom.dcmread(path)

    @parameterized.expand([(name,) for name in SERIES])
    def test_series(self, name):
        series = Series(name)
        labels = series.labels()
        dataset = self.write(series, labels)
        np.testing.assert_array_equal(read_contours(dataset, series), labels)
        for roi in dataset.ROIContourSequence:
            for contour in roi.get("ContourSequence", []):
                self.assertEqual(contour.ContourGeometricType, "CLOSED_PLANAR")
                self.assertEqual(len(contour.ContourData), 3 * contour.NumberOfContourPoints)
                self.assertLessEqual(max(len(value.original_string) for value in contour.ContourData), 16)

    def test_liver(self):
        series = Series(LIVER)
        image = SimpleITK.ReadImage(str(shared_data("dicom/ct_liver_seg/liver_seg.nrrd")))
        labels = (SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0) > 0).astype(np.uint8)
        self.assertGreaterEqual(dice(read_contours(self.write(series, labels), series), labels, 1), 0.9999)

    def test_every_label_is_declared(self):
        series = Series(ANONYMOUS)
        dataset = self.write(series, np.zeros(series.shape))
        names = {roi.ROINumber: roi.ROIName for roi in dataset.StructureSetROISequence}
        self.assertEqual(names, {value: segment["name"] for value, segment in SEGMENTS.items()})
        self.assertEqual([roi.ReferencedROINumber for roi in dataset.ROIContourSequence], [1, 2, 3])
        self.assertFalse(any("ContourSequence" in roi for roi in dataset.ROIContourSequence))
        self.assertEqual([list(roi.ROIDisplayColor) for roi in dataset.ROIContourSequence][1], [10, 200, 30])
        self.assertEqual(dataset.PatientID, series.headers[0].PatientID)

    @parameterized.expand([(LIVER,), (TILTED,), (ENHANCED,)])
    def test_references(self, name):
        series = Series(name)
        dataset = self.write(series, series.labels())
        frame = dataset.ReferencedFrameOfReferenceSequence[0]
        images = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].ContourImageSequence
        self.assertEqual({item.ReferencedSOPInstanceUID for item in images}, {h.SOPInstanceUID for h in series.headers})
        files = {header.SOPInstanceUID: header.filename for header in series.headers}
        for contour in dataset.ROIContourSequence[1].ContourSequence:
            item = contour.ContourImageSequence[0]
            index = series.frames.index([files[item.ReferencedSOPInstanceUID], item.get("ReferencedFrameNumber", 1)])
            to_voxel = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ series.affine_ras)
            self.assertAlmostEqual((to_voxel @ [*map(float, contour.ContourData[:3]), 1])[2], index, places=3)

    def test_wrong_affine(self):
        series = Series(LIVER)
        series.affine_ras[2, 3] += 0.2
        with self.assertRaisesRegex(InputError, "0.200 mm off"):
            self.write(series, series.labels())


class TestOutlines(unittest.TestCase):
    def check(self, mask: np.ndarray) -> list[np.ndarray]:
        polygons = outlines(mask)
        filled = np.zeros(mask.shape, bool)
        for polygon in polygons:
            filled ^= polygon2mask(mask.shape, polygon[:, ::-1])
        np.testing.assert_array_equal(filled, mask)
        return polygons

    def test_single_pixel(self):
        mask = np.zeros((4, 5), bool)
        mask[1, 3] = True
        (polygon,) = self.check(mask)
        self.assertEqual(sorted(map(tuple, polygon.round(9).tolist())), [(2.51, 1), (3, 0.51), (3, 1.49), (3.49, 1)])

    def test_straight_lines_have_no_points_between(self):
        (polygon,) = self.check(np.ones((6, 9), bool))
        self.assertEqual(len(polygon), 8)

    def test_holes_are_joined_and_an_island_in_a_hole_is_apart(self):
        mask = np.zeros((30, 40), bool)
        mask[2:28, 3:37] = True
        mask[5:9, 6:10] = mask[15:25, 20:34] = mask[12, 12] = False
        mask[18:20, 25:28] = True
        self.assertEqual(len(self.check(mask)), 2)

    @parameterized.expand([(0.1,), (0.5,), (0.9,)])
    def test_random(self, density):
        self.check(np.random.default_rng(1).random((40, 33)) < density)


if __name__ == "__main__":
    unittest.main()
