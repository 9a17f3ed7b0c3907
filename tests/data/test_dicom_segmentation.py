# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import logging
import unittest
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from parameterized import parameterized
from pydicom.config import disable_value_validation
from utils_data import PATIENT, save_dicom, shared_data, temporary_folder
from utils_dcmqi import RAS_TO_LPS, itk_image, write_with_dcmqi

from monai_dvpt.data import DicomSeriesReader, SeriesGrid
from monai_dvpt.data.dicom_segmentation import read_dicom_seg
from monai_dvpt.data.dicom_writers import Model, place, segment_codes, write_dicom_seg, write_dicom_seg_probability
from monai_dvpt.utils import InputError

NAMES = ["liver", "spine", "a name without a code"]
MODEL = Model("Test model", "1.2.3", segment_codes(["background", *NAMES], {}))
TILTED = "awkward/failing/gantrytilting/001"
SERIES = [
    "ct_liver_seg/ct-3slice",
    "ct_liver_seg/23x38x3/multiframe",
    "ct_thorax_jpeg2000/dicom",
    "awkward/siemens_multiframe/anatomical/001",
    "hippocampus_mr",
]


def read_series(folder: Path, **options) -> tuple[tuple, np.ndarray, SeriesGrid]:
    """Shape, affine and grid of a series."""
    reader = DicomSeriesReader(**options)
    values, meta = reader.get_data(reader.read(folder))
    return values.shape, meta["affine"], meta["series_grid"]


def write(path: Path, labels: np.ndarray, affine: np.ndarray, grid: SeriesGrid) -> None:
    write_dicom_seg(path, place(grid, MODEL, affine, labels), grid, MODEL)


def some_labels(shape: tuple) -> np.ndarray:
    """Labels 1 and 2, nothing symmetric."""
    columns, rows, slices = shape
    labels = np.zeros(shape, np.uint8)
    labels[columns // 4 : columns // 2, rows // 5 : rows // 2, : max(slices - 1, 1)] = 2
    labels[columns // 3 : columns // 3 + 2, rows // 3 : rows // 3 + 3, 0] = 0
    labels[-3:, -2:, max(slices - 2, 0)] = 1
    return labels


class TestReadDicomSeg(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.path = self.folder / "seg.dcm"

    def synthetic(self) -> tuple[Path, tuple, np.ndarray, list]:
        volume = np.random.default_rng(0).integers(0, 900, (7, 9, 5)).astype(np.uint16)
        axes = np.array([[0, -1, 0], [0.8, 0, -0.6], [0.6, 0, 0.8]])  # oblique
        folder = save_dicom(self.folder / "series", volume, axes, np.array([3, -40, 12.5]), (1.5, 2, 4))
        return folder, *read_series(folder)

    def change(self, **elements) -> None:
        seg = pydicom.dcmread(self.path)
        for keyword, value in elements.items():
            setattr(seg, keyword, value)
        seg.save_as(self.path)

    @parameterized.expand([(name,) for name in SERIES])
    def test_what_is_written_is_read(self, name):
        shape, affine, grid = read_series(shared_data(f"dicom/{name}"))
        labels = some_labels(shape)
        write(self.path, labels, affine, grid)
        found, names = read_dicom_seg(self.path, grid)
        np.testing.assert_array_equal(found, labels)
        self.assertEqual(found.dtype, np.uint8)
        self.assertEqual(names, dict(enumerate(NAMES, start=1)))

    def test_straightened_tilted_series(self):
        shape, affine, grid = read_series(shared_data(f"dicom/{TILTED}"), tilt="resample")
        labels = some_labels(shape)
        labels[:100] = labels[-100:] = labels[:, :100] = labels[:, -100:] = 0  # what lies on the frames
        write(self.path, labels, affine, grid)
        found, _ = read_dicom_seg(self.path, grid)
        np.testing.assert_array_equal(found, labels)

    @parameterized.expand([("ct_liver_seg/ct-3slice",), ("hippocampus_mr",), (None,)])
    def test_dcmqi_writes_other_numbers(self, name):
        if name is None:
            folder, shape, affine, grid = self.synthetic()
        else:
            folder = shared_data(f"dicom/{name}")
            shape, affine, grid = read_series(folder)
        labels = some_labels(shape)
        # dcmqi numbers segments from 1, whatever the label values are
        names = {5: "spine", 9: "liver"}
        swapped = np.choose(labels, [0, 9, 5]).astype(np.uint8)
        write_with_dcmqi(self.path, itk_image(swapped, affine), folder, names)
        found, read = read_dicom_seg(self.path, grid)
        self.assertEqual(sorted(read.values()), ["liver", "spine"])
        for number, name in read.items():
            np.testing.assert_array_equal(found == number, labels == NAMES.index(name) + 1)

    @parameterized.expand(list(itertools.product([0, 1, 2], [False, True])))
    def test_dcmqi_writes_flipped_and_transposed_grids(self, axis, transposed):
        folder, shape, affine, grid = self.synthetic()
        labels = some_labels(shape)
        image = SimpleITK.Flip(itk_image(labels, affine), [axis == 0, axis == 1, axis == 2])
        if transposed:
            image = SimpleITK.PermuteAxes(image, [1, 0, 2])
        write_with_dcmqi(self.path, image, folder, {1: "liver", 2: "spine"})
        found, names = read_dicom_seg(self.path, grid)
        self.assertEqual(names, {1: "liver", 2: "spine"})
        np.testing.assert_array_equal(found, labels)

    def test_cropped(self):
        folder, shape, affine, grid = self.synthetic()
        labels = some_labels(shape)
        labels[:1] = labels[:, -1:] = 0
        write(self.path, labels, affine, grid)
        referred = pydicom.dcmread(self.path).ReferencedSeriesSequence
        write_with_dcmqi(self.path, itk_image(labels, affine)[1:, :-1], folder, {1: "liver", 2: "spine"})
        self.change(ReferencedSeriesSequence=referred)  # which dcmqi writes only of frames at the same origin
        np.testing.assert_array_equal(read_dicom_seg(self.path, grid)[0], labels)

    def test_order_of_frames_does_not_matter(self):
        _, shape, affine, grid = self.synthetic()
        labels = some_labels(shape)
        write(self.path, labels, affine, grid)
        seg = pydicom.dcmread(self.path)
        order = np.random.default_rng(0).permutation(int(seg.NumberOfFrames))
        groups = list(seg.PerFrameFunctionalGroupsSequence)
        bits = np.packbits(seg.pixel_array[order].ravel(), bitorder="little").tobytes()
        self.change(PixelData=bits + bytes(len(bits) % 2))
        self.change(PerFrameFunctionalGroupsSequence=[groups[index] for index in order])
        np.testing.assert_array_equal(read_dicom_seg(self.path, grid)[0], labels)

    def test_empty(self):
        _, shape, affine, grid = self.synthetic()
        write(self.path, np.zeros(shape), affine, grid)
        found, names = read_dicom_seg(self.path, grid)
        self.assertFalse(found.any())
        self.assertEqual(len(names), 3)

    def test_given_segmentation_of_another_writer(self):
        shape, affine, grid = read_series(shared_data("dicom/ct_liver_seg/ct-3slice"))
        image = SimpleITK.ReadImage(str(shared_data("dicom/ct_liver_seg/liver_seg.nrrd")))
        found, names = read_dicom_seg(shared_data("dicom/ct_liver_seg/liver.dcm"), grid)
        self.assertEqual(len(names), 1)
        placed = SimpleITK.Resample(image, itk_image(found, affine), interpolator=SimpleITK.sitkNearestNeighbor)
        np.testing.assert_array_equal(found > 0, SimpleITK.GetArrayFromImage(placed).transpose(2, 1, 0) > 0)

    def test_label_map_segmentation(self):
        _, shape, affine, grid = self.synthetic()
        labels = some_labels(shape)
        write(self.path, labels, affine, grid)
        seg = pydicom.dcmread(self.path)
        groups = {}  # of one frame for each place
        for group in seg.PerFrameFunctionalGroupsSequence:
            at = tuple(float(x) for x in group.PlanePositionSequence[0].ImagePositionPatient)
            groups[at] = group
            del group.SegmentIdentificationSequence
        self.assertLess(len(groups), int(seg.NumberOfFrames))
        affine_lps = RAS_TO_LPS @ affine
        kept = [round((np.linalg.inv(affine_lps) @ [*at, 1])[2]) for at in groups]
        pixels = np.stack([labels[:, :, index].T for index in kept]).tobytes()
        self.change(
            SOPClassUID="1.2.840.10008.5.1.4.1.1.66.7",
            SegmentationType="LABELMAP",
            NumberOfFrames=len(groups),
            PerFrameFunctionalGroupsSequence=list(groups.values()),
            **{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
            PixelData=pixels + bytes(len(pixels) % 2),
        )
        found, names = read_dicom_seg(self.path, grid)
        np.testing.assert_array_equal(found, labels)
        self.assertEqual(names[2], "spine")

    def test_refusals(self):
        folder, shape, affine, grid = self.synthetic()
        labels = some_labels(shape)
        with self.assertRaisesRegex(InputError, "nothing.dcm: cannot be read as DICOM"):
            read_dicom_seg(self.folder / "nothing.dcm", grid)
        with self.assertRaisesRegex(InputError, "must be a DICOM Segmentation .* is of modality MR"):
            read_dicom_seg(grid.frames[0][0], grid)
        placed = place(grid, MODEL, affine, np.zeros(shape), np.zeros((3, *shape)))
        write_dicom_seg_probability(self.path, placed, grid, MODEL)
        with self.assertRaisesRegex(InputError, "BINARY or LABELMAP, is of modality SEG, type FRACTIONAL"):
            read_dicom_seg(self.path, grid)
        other = read_series(shared_data("dicom/hippocampus_mr"))
        write(self.path, some_labels(other[0]), *other[1:])
        with self.assertRaisesRegex(InputError, r"must be of the series 1\.2\..* is of 1\.2\.826"):
            read_dicom_seg(self.path, grid)

        def refused(what: str, **elements) -> None:
            write(self.path, labels, affine, grid)
            self.change(**elements)
            with self.assertRaisesRegex(InputError, what):
                read_dicom_seg(self.path, grid)

        refused("must be of the series .* is of none", ReferencedSeriesSequence=[])
        refused("must have the frame of reference of the series", FrameOfReferenceUID="1.2.3")
        refused("describes no segment", SegmentSequence=[])
        refused("cannot be read: is truncated: has 2 bytes of pixel data", PixelData=b"ab")
        write(self.path, labels, affine, grid)
        seg = pydicom.dcmread(self.path)
        described, groups = list(seg.SegmentSequence), list(seg.PerFrameFunctionalGroupsSequence)
        refused("frame .* is of segment 1, which the file does not describe", SegmentSequence=described[1:])
        refused("once each, got 1", SegmentSequence=[described[0], *described])
        for group in groups:
            group.PlanePositionSequence[0].ImagePositionPatient[0] += 0.3
        refused(
            r"frame 1 must lie on the voxels of the image to 0\.1 mm, but is 0\.3",
            PerFrameFunctionalGroupsSequence=groups,
        )

    def test_overlap_is_refused(self):
        _, shape, affine, grid = self.synthetic()
        labels = np.zeros(shape, np.uint8)
        labels[1, 2, 3], labels[1, 2, 4] = 1, 2
        write(self.path, labels, affine, grid)
        groups = list(pydicom.dcmread(self.path).PerFrameFunctionalGroupsSequence)
        groups[0].PlanePositionSequence = groups[1].PlanePositionSequence
        self.change(PerFrameFunctionalGroupsSequence=groups)
        with self.assertRaisesRegex(InputError, "but 1 of frame . are of both segment 1 and 2"):
            read_dicom_seg(self.path, grid)

    def test_beside_the_image_is_refused(self):
        _, shape, affine, grid = self.synthetic()
        write(self.path, some_labels(shape), affine, grid)
        for smaller in ((shape[0] - 1, *shape[1:]), (*shape[:2], 2)):
            with self.assertRaisesRegex(InputError, "pixels of frame .* lie outside the image"):
                read_dicom_seg(self.path, replace(grid, shape=smaller))
        coarser = affine.copy()
        coarser[:3, 0] *= 2
        with self.assertRaisesRegex(InputError, "or has another spacing"):
            read_dicom_seg(self.path, replace(grid, affine_ras=coarser))

    def test_no_message_names_the_patient(self):
        folder, shape, affine, grid = self.synthetic()
        write(self.path, some_labels(shape), affine, grid)
        with disable_value_validation():
            self.change(PatientName=PATIENT.replace("^", ""), PatientBirthDate="7 May secret")
        with self.assertLogs(level="DEBUG") as logs, self.assertRaises(InputError) as raised:
            logging.debug("begun")  # there must be one
            read_dicom_seg(self.path, grid)
            read_dicom_seg(self.path, replace(grid, shape=(1, 1, 1)))
        for secret in (PATIENT.replace("^", ""), "secret"):
            self.assertNotIn(secret, "\n".join([*logs.output, str(raised.exception)]))


if __name__ == "__main__":
    unittest.main()
