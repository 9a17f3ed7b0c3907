# SPDX-License-Identifier: Apache-2.0
"""Structure sets of the package's own writer and of plain pydicom; skimage is the other rasteriser."""

from __future__ import annotations

import logging
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import pydicom
from parameterized import parameterized
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid
from skimage.draw import polygon2mask
from utils_data import PATIENT, dice, save_dicom, shared_data, temporary_folder

from monai_dvpt.data import DicomSeriesReader, SeriesGrid
from monai_dvpt.data.dicom_rtstruct import describe_rtstruct, read_rtstruct
from monai_dvpt.data.dicom_writers import Model, place, segment_codes, write_rtstruct
from monai_dvpt.utils import InputError

NAMES = ["liver", "spine", "a name without a code"]
MODEL = Model("Test model", "1.2.3", segment_codes(["background", *NAMES], {}))
SERIES = [
    "ct_liver_seg/ct-3slice",
    "ct_liver_seg/23x38x3/multiframe",
    "ct_thorax_jpeg2000/dicom",
    "awkward/siemens_multiframe/anatomical/001",
    "hippocampus_mr",
]
AXES = np.array([[0, -1, 0], [0.8, 0, -0.6], [0.6, 0, 0.8]])  # oblique
ORIGIN, SPACING, SHAPE = np.array([3, -40, 12.5]), (1.5, 2, 4), (31, 27, 5)
Contours = list[tuple[int, list[tuple[float, float]]]]
"""Slice and points, in columns and rows, of each contour."""


def read_series(folder: Path, **options) -> tuple[tuple, np.ndarray, SeriesGrid]:
    """Shape, affine and grid of a series."""
    reader = DicomSeriesReader(**options)
    values, meta = reader.get_data(reader.read(folder))
    return values.shape, meta["affine"], meta["series_grid"]


def some_labels(shape: tuple) -> np.ndarray:
    """Labels 1 and 2 with a hole and an island, nothing symmetric."""
    columns, rows, slices = shape
    labels = np.zeros(shape, np.uint8)
    labels[columns // 4 : columns // 2, rows // 5 : rows // 2, : max(slices - 1, 1)] = 2
    labels[columns // 3 : columns // 3 + 2, rows // 3 : rows // 3 + 3, 0] = 0
    labels[-3:, -2:, max(slices - 2, 0)] = 1
    labels[1, 1, 0] = 1
    return labels


def save_rtstruct(path: Path, header: Dataset, rois: dict[int, tuple[str, Contours]]) -> Dataset:
    """
    Writes a structure set with the least that a reader needs.

    Args:
        path: of the file.
        header: of an image of the series, which ``save_dicom`` wrote with ``AXES``, ``ORIGIN`` and ``SPACING``.
        rois: name and contours by number.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.Modality = header.PatientName, header.PatientID, "RTSTRUCT"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = header.StudyInstanceUID, generate_uid()
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = header.SeriesInstanceUID
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    frame.FrameOfReferenceUID = header.FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in rois.items():
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber = drawn.ReferencedROINumber = number
        roi.ROIName, roi.ReferencedFrameOfReferenceUID = name, header.FrameOfReferenceUID
        drawn.ContourSequence = []
        for index, points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            at = [ORIGIN + AXES @ (np.array([x, y, index]) * SPACING) for x, y in points]
            contour.ContourData = [f"{value:.6f}" for value in np.ravel(at)]
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    if int(pydicom.__version__.split(".")[0]) < 3:
        dataset.is_little_endian, dataset.is_implicit_VR = True, True
    dataset.save_as(path)
    return dataset


def star(seed: int, middle: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """A polygon that is not convex."""
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 24))
    radii = radius * random.uniform(0.5, 1, 24)
    x, y = middle[0] + radii * np.cos(angles), middle[1] + radii * np.sin(angles)
    return list(zip(x.tolist(), y.tolist(), strict=True))


class TestReadRTStruct(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.path = self.folder / "contours.dcm"

    def synthetic(self) -> SeriesGrid:
        volume = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.uint16)
        folder = save_dicom(self.folder / "series", volume, AXES, ORIGIN, SPACING)
        self.header = pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True)
        return read_series(folder)[2]

    def save(self, rois: dict[int, tuple[str, Contours]]) -> Dataset:
        return save_rtstruct(self.path, self.header, rois)

    @parameterized.expand([(name,) for name in SERIES])
    def test_what_is_written_is_read(self, name):
        shape, affine, grid = read_series(shared_data(f"dicom/{name}"))
        labels = some_labels(shape)
        write_rtstruct(self.path, place(grid, MODEL, affine, labels), grid, MODEL)
        found, names = read_rtstruct(self.path, grid)
        np.testing.assert_array_equal(found, labels)
        self.assertEqual(found.dtype, np.uint8)
        self.assertEqual(names, dict(enumerate(NAMES, start=1)))
        self.assertEqual(describe_rtstruct(self.path), ({grid.first.SeriesInstanceUID}, names))

    def test_straightened_tilted_series(self):
        shape, affine, grid = read_series(shared_data("dicom/awkward/failing/gantrytilting/001"), tilt="resample")
        labels = some_labels(shape)
        labels[:100] = labels[-100:] = labels[:, :100] = labels[:, -100:] = 0  # what lies on the frames
        write_rtstruct(self.path, place(grid, MODEL, affine, labels), grid, MODEL)
        self.assertGreaterEqual(dice(read_rtstruct(self.path, grid)[0], labels, 2), 0.98)

    @parameterized.expand([(0.3,), (0.6,), (0.9,)])
    def test_channels_to_holes_lose_no_pixel(self, density):
        grid = self.synthetic()
        labels = (np.random.default_rng(1).random(SHAPE) < density).astype(np.uint8)
        affine = grid.affine_ras
        write_rtstruct(self.path, place(grid, MODEL, affine, labels), grid, MODEL)
        np.testing.assert_array_equal(read_rtstruct(self.path, grid)[0], labels)

    def test_polygons_of_another_writer(self):
        grid = self.synthetic()
        contours = {
            4: [(2, star(0, (9, 9), 8)), (3, star(1, (10.5, 8.2), 7)), (3, star(2, (22.3, 18), 6))],
            9: [(1, star(3, (15, 13), 11))],
        }
        truth = np.zeros(SHAPE, np.uint8)
        for number, polygons in contours.items():
            for index, points in polygons:
                truth[:, :, index][polygon2mask(SHAPE[:2], np.array(points))] = number
        self.assertEqual(sorted(np.unique(truth)), [0, 4, 9])
        self.save({4: ("Left lung", contours[4]), 9: ("Heart", contours[9])})
        found, names = read_rtstruct(self.path, grid)
        np.testing.assert_array_equal(found, truth)
        self.assertEqual(names, {4: "Left lung", 9: "Heart"})

    def test_contours_in_a_slice_follow_the_even_odd_rule(self):
        grid = self.synthetic()
        square = [
            (2, [(low - 0.5, low - 0.5), (high + 0.5, low - 0.5), (high + 0.5, high + 0.5), (low - 0.5, high + 0.5)])
            for low, high in ((2, 20), (5, 15), (8, 10))
        ]
        self.save({1: ("ring", square)})
        truth = np.zeros(SHAPE, np.uint8)
        truth[2:21, 2:21, 2] = 1
        truth[5:16, 5:16, 2] = 0
        truth[8:11, 8:11, 2] = 1
        np.testing.assert_array_equal(read_rtstruct(self.path, grid)[0], truth)

    def test_contours_through_the_centres_of_the_outermost_pixels(self):
        """As tracing programs write them."""
        grid = self.synthetic()
        truth = np.zeros(SHAPE, np.uint8)
        truth[3:9, 4:12, 1] = 1
        square = [(3.0, 4.0), (8.0, 4.0), (8.0, 11.0), (3.0, 11.0)]
        self.save({1: ("traced", [(1, square)])})
        np.testing.assert_array_equal(read_rtstruct(self.path, grid)[0], truth)

    def test_contours_that_share_an_edge_do_not_overlap(self):
        grid = self.synthetic()
        self.save({
            1: ("left", [(1, [(3.0, 4.0), (8.0, 4.0), (8.0, 11.0), (3.0, 11.0)])]),
            2: ("right", [(1, [(8.0, 4.0), (12.0, 4.0), (12.0, 11.0), (8.0, 11.0)])]),
        })  # fmt: skip
        found = read_rtstruct(self.path, grid)[0]
        self.assertTrue((found[3:8, 4:12, 1] == 1).all() and (found[9:13, 4:12, 1] == 2).all())
        self.assertTrue((found[8, 4:12, 1] > 0).all())

    @parameterized.expand([("the same", 0), ("crossing", 3)])
    def test_contours_of_an_roi_that_erase_each_other(self, _, shift):
        grid = self.synthetic()
        square = [(3.5, 4.5), (9.5, 4.5), (9.5, 11.5), (3.5, 11.5)]
        self.save({7: ("twice", [(2, square), (2, [(x + shift, y) for x, y in square])])})
        with self.assertRaisesRegex(InputError, "1 and 2 of value 7 in slice 3 cross or are the same"):
            read_rtstruct(self.path, grid)

    def test_a_roi_without_contours_keeps_its_name(self):
        grid = self.synthetic()
        self.save({2: ("nothing", [])})
        found, names = read_rtstruct(self.path, grid)
        self.assertFalse(found.any())
        self.assertEqual(names, {2: "nothing"})

    def test_numbers_that_a_label_map_cannot_have_are_replaced(self):
        grid = self.synthetic()
        self.save({0: ("zero", [(0, star(0, (9, 9), 8))]), 70000: ("large", [(1, star(0, (9, 9), 8))])})
        found, names = read_rtstruct(self.path, grid)
        self.assertEqual(names, {1: "zero", 2: "large"})
        self.assertEqual([sorted(np.unique(found[:, :, index])) for index in (0, 1, 2)], [[0, 1], [0, 2], [0]])

    def test_overlap_is_refused_unless_one_is_wanted(self):
        grid = self.synthetic()
        inner = star(1, (10, 10), 5)
        body = [(2, [(-0.5, -0.5), (30.5, -0.5), (30.5, 26.5), (-0.5, 26.5)])]
        dataset = self.save({1: ("body", body), 2: ("liver", [(2, inner)]), 3: ("isocentre", [(2, [(4, 4)])])})
        inside = polygon2mask(SHAPE[:2], np.array(inner))
        dataset.ROIContourSequence[2].ContourSequence[0].ContourGeometricType = "POINT"
        dataset.save_as(self.path)
        with self.assertRaisesRegex(InputError, "one of ROI 3 is POINT"):
            read_rtstruct(self.path, grid)
        with self.assertRaisesRegex(
            InputError, rf"but {inside.sum()} of slice 3 are of both ROI 1 and 2; .* with --labels"
        ):
            read_rtstruct(self.path, grid, ["body", "liver"])
        found, names = read_rtstruct(self.path, grid, ["liver"])
        np.testing.assert_array_equal(found[:, :, 2], 2 * inside)
        self.assertEqual(names, {2: "liver"})

    def striped(self, slices, points=((3.5, 4.5), (9.5, 4.5), (9.5, 11.5), (3.5, 11.5)), **attributes) -> Dataset:
        """Saves an ROI with the same square on some slices, and attributes of its contours."""
        dataset = self.save({5: ("drawn by steps", [(index, list(points)) for index in slices])})
        for contour in dataset.ROIContourSequence[0].ContourSequence:
            for keyword, value in attributes.items():
                setattr(contour, keyword, value)
        dataset.save_as(self.path)
        return dataset

    @parameterized.expand(
        [
            ("every second", (0, 2, 4), "ROI 5 leave out slices in 2 of 2 steps, .* from slice 1 to 3, 8 mm", None),
            ("every second, of one slice", (0, 2, 4), "Contour Slab Thickness is 4", 4),
            ("irregular", (0, 2, 5), "in 2 of 2 steps", 8),
            ("mostly", (0, 1, 3, 5), "in 2 of 3 steps", 8),
        ]
    )
    def test_gaps_are_refused(self, _, slices, words, thickness):
        with mock.patch(f"{__name__}.SHAPE", (31, 27, 6)):
            grid = self.synthetic()
        self.striped(slices, **({} if thickness is None else {"ContourSlabThickness": thickness}))
        with self.assertRaisesRegex(InputError, f"contours.dcm: .*{words}"):
            read_rtstruct(self.path, grid)
        self.assertEqual(read_rtstruct(self.path, grid, [])[1], {})  # it is not wanted

    @parameterized.expand(
        [(2, (1, 3), {0, 1, 2, 3}), (3, (1, 4), {0, 1, 2, 3, 4, 5}), (2, (2, 4, 6), {1, 2, 3, 4, 5, 6})]
    )
    def test_gaps_are_filled_by_a_stated_thickness(self, step, slices, filled):
        """Slabs of this thickness around the contours, with the border towards the first slice (4 mm a slice)."""
        with mock.patch(f"{__name__}.SHAPE", (31, 27, 7)):
            grid = self.synthetic()
        self.striped(slices, ContourSlabThickness=4 * step)
        truth = np.zeros((31, 27, 7), np.uint8)
        for index in range(7):
            if any(-step / 2 <= index - at < step / 2 for at in slices):
                truth[4:10, 5:12, index] = 5
        self.assertEqual(set(np.unique(truth.nonzero()[2])), filled)
        np.testing.assert_array_equal(read_rtstruct(self.path, grid)[0], truth)

    def test_slabs_that_meet_are_refused(self):
        with mock.patch(f"{__name__}.SHAPE", (31, 27, 7)):
            grid = self.synthetic()
        square = [(3.5, 4.5), (9.5, 4.5), (9.5, 11.5), (3.5, 11.5)]
        apart = [(12.5, 12.5), (15.5, 12.5), (15.5, 15.5)]
        dataset = self.save({5: ("square and piece", [*((index, square) for index in (0, 2, 4)), (5, apart)])})
        for contour in dataset.ROIContourSequence[0].ContourSequence:
            contour.ContourSlabThickness = 8
        dataset.save_as(self.path)
        with self.assertRaisesRegex(InputError, "slabs that do not meet, those of ROI 5 have two on slice 5"):
            read_rtstruct(self.path, grid)

    def test_pieces_apart_are_no_gap(self):
        grid = self.synthetic()
        near, far = [(2.5, 2.5), (5.5, 2.5), (5.5, 5.5), (2.5, 5.5)], [(12.5, 12.5), (15.5, 12.5), (15.5, 15.5)]
        self.save({1: ("two seeds", [(0, near), (3, far)]), 2: ("a hole", [(0, far), (1, far), (3, far), (4, far)])})
        with self.assertRaisesRegex(InputError, "a voxel must be of one ROI"):
            read_rtstruct(self.path, grid)
        for name, slices in (("two seeds", [0, 3]), ("a hole", [0, 1, 3, 4])):  # one step of three
            found = read_rtstruct(self.path, grid, [name])[0]
            self.assertEqual(sorted(np.unique(found.nonzero()[2])), slices)

    def test_an_offset_is_refused(self):
        grid = self.synthetic()
        self.striped([1, 2], ContourOffsetVector=[0, 0, 0])
        self.assertTrue(read_rtstruct(self.path, grid)[0].any())
        self.striped([1, 2], ContourOffsetVector=[0, 0, 2])
        with self.assertRaisesRegex(InputError, "one of ROI 5 has a Contour Offset Vector"):
            read_rtstruct(self.path, grid)

    def test_a_contour_lies_on_the_slice_that_it_names(self):
        grid = self.synthetic()
        files = {}
        for path in (self.folder / "series").iterdir():
            header = pydicom.dcmread(path, stop_before_pixels=True)
            along = (np.array(header.ImagePositionPatient, float) - ORIGIN) @ AXES[:, 2]
            files[round(along / SPACING[2])] = header.SOPInstanceUID
        for named, right in ((files[1], True), (files[2], False), (generate_uid(), False)):
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = self.header.SOPClassUID, named
            self.striped([1], ContourImageSequence=[item])
            if right:
                self.assertTrue(read_rtstruct(self.path, grid)[0][:, :, 1].any())
                continue
            with self.assertRaisesRegex(InputError, "one of ROI 5 lies on slice 2 and names another"):
                read_rtstruct(self.path, grid)

    def test_a_contour_lies_on_the_frame_that_it_names(self):
        shape, affine, grid = read_series(shared_data("dicom/ct_liver_seg/23x38x3/multiframe"))
        labels = np.zeros(shape, np.uint8)
        labels[3:7, 4:9, 1] = 1
        write_rtstruct(self.path, place(grid, MODEL, affine, labels), grid, MODEL)
        dataset = pydicom.dcmread(self.path)
        drawn = next(item for item in dataset.ROIContourSequence if "ContourSequence" in item)
        image = drawn.ContourSequence[0].ContourImageSequence[0]
        np.testing.assert_array_equal(read_rtstruct(self.path, grid)[0], labels)
        image.ReferencedFrameNumber = int(image.ReferencedFrameNumber) % 3 + 1
        dataset.save_as(self.path)
        with self.assertRaisesRegex(InputError, "names another"):
            read_rtstruct(self.path, grid)

    def test_two_rois_of_one_name(self):
        grid = self.synthetic()
        square = [(3.5, 4.5), (9.5, 4.5), (9.5, 11.5), (3.5, 11.5)]
        self.save({3: ("liver", [(1, square)]), 4: ("spine", [(3, square)]), 8: ("liver", [(2, square)])})
        with self.assertRaisesRegex(InputError, "ROIs must have different names, ROIs 3 and 8 have the same"):
            read_rtstruct(self.path, grid)
        self.assertEqual(read_rtstruct(self.path, grid, ["spine"])[1], {4: "spine"})

    def test_refusals(self):
        grid = self.synthetic()
        polygon = star(0, (9, 9), 8)
        with self.assertRaisesRegex(InputError, "nothing.dcm: cannot be read as DICOM"):
            read_rtstruct(self.folder / "nothing.dcm", grid)
        with self.assertRaisesRegex(InputError, "must be a DICOM RT Structure Set, is of modality MR"):
            read_rtstruct(grid.frames[0][0], grid)

        def refused(what: str, change, index: float = 1, points=polygon) -> None:
            dataset = self.save({1: ("liver", [(index, points)])})
            change(dataset)
            dataset.save_as(self.path)
            with self.assertRaisesRegex(InputError, f"contours.dcm: .*{what}"):
                read_rtstruct(self.path, grid)

        def keep(dataset: Dataset) -> None:
            pass

        def set_contour(keyword: str, value):
            return lambda data: setattr(data.ROIContourSequence[0].ContourSequence[0], keyword, value)

        refused("planes of the series to 0.1 mm, one of ROI 1 is 0.200 mm off", keep, index=1.05)
        refused("planes of the series to 0.1 mm, one of ROI 1 is 4.000 mm off", keep, index=5)
        refused("one of ROI 1 is 7.0 pixels outside", keep, points=[(-7, 2), (5, 2), (5, 9)])
        refused("one of ROI 1 is OPEN_PLANAR", set_contour("ContourGeometricType", "OPEN_PLANAR"))
        refused("finite x, y and z of each point", set_contour("ContourData", ["1", "2", "3", "4"]))
        refused("finite x, y and z of each point", set_contour("ContourData", []))
        refused("describes no ROI", lambda data: setattr(data, "StructureSetROISequence", []))
        refused("is of none", lambda data: setattr(data, "ReferencedFrameOfReferenceSequence", []))
        refused(
            "must have the frame of reference of the series",
            lambda data: setattr(data.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID", "1.2.3"),
        )
        refused("ROI 1 has none", lambda data: setattr(data.StructureSetROISequence[0], "ROIName", ""))
        refused(
            "each once, got 1, 1", lambda data: data.StructureSetROISequence.append(data.StructureSetROISequence[0])
        )
        refused("are of 5", lambda data: setattr(data.ROIContourSequence[0], "ReferencedROINumber", 5))

    def test_no_message_names_the_patient(self):
        grid = self.synthetic()
        dataset = self.save({1: ("liver", [(1, star(0, (9, 9), 8))])})
        name = PATIENT.split("^")[1].upper()
        dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = name
        dataset.save_as(self.path)
        with self.assertLogs(level="DEBUG") as logs, self.assertRaises(InputError) as raised:
            logging.debug("begun")  # there must be one
            read_rtstruct(self.path, grid)
        self.assertIn("one of ROI 1 is a value that the standard does not define", str(raised.exception))
        self.assertNotIn(name, "\n".join([*logs.output, str(raised.exception)]))


if __name__ == "__main__":
    unittest.main()
