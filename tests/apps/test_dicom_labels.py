# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import SimpleITK
from parameterized import parameterized
from utils_data import AFFINE_RAS, save_dicom, save_nifti, temporary_folder
from utils_dcmqi import itk_image

from monai_dvpt.apps.monailabel.dicom_labels import (
    SegConverter,
    choose_model,
    read_label_file,
    read_series,
    told_segments,
)
from monai_dvpt.apps.monailabel.labels import ModelLabels
from monai_dvpt.data.dicom import DicomSeriesReader
from monai_dvpt.data.dicom_segmentation import read_dicom_seg
from monai_dvpt.data.dicom_writers import segment_codes
from monai_dvpt.utils import InputError


def model_labels(name: str, *labels: str) -> ModelLabels:
    names = ("background", *labels)
    return ModelLabels(name, "1.2.3", segment_codes(names, {}), names)


BRAIN = model_labels("Brain", "Grey matter", "lesion")
BODY = model_labels("body", "liver", "spleen", "lesion")
LATER = model_labels("Brain 2", "grey_matter", "lesion", "edema")


def told(*names: str) -> list[dict]:
    return [{"name": name} for name in names]


class TestChooseModel(unittest.TestCase):
    @parameterized.expand(
        [
            ((BRAIN,), [], (), BRAIN),
            ((BRAIN,), told("anything"), (), BRAIN),  # the labels themselves are checked later
            ((BRAIN, BODY), told("lesion", "Liver"), (), BODY),
            ((BRAIN, BODY), told("lesion", "grey_matter"), (), BRAIN),
            ((BRAIN, BODY), told("background", "spleen"), (), BODY),
            ((BRAIN, BODY), told("Segment_1", "spleen"), ("spleen",), BODY),
            ((BRAIN, BODY), [{"name": "lesion", "model_name": "BRAIN"}], (), BRAIN),
            ((BRAIN, BODY), [{"name": "spleen", "model_name": "unknown"}], (), BODY),
            ((BRAIN, LATER), told("lesion"), (), BRAIN),  # the same value in both
            ((LATER, BRAIN), told("lesion"), (), LATER),
        ]
    )
    def test_model(self, models, names, used, expected):
        self.assertIs(choose_model(models, names, used), expected)

    @parameterized.expand(
        [
            ((BRAIN, BODY), told("lesion"), ()),  # 2 in one, 3 in the other
            ((BRAIN, BODY), told("liver", "grey matter"), ()),
            ((BRAIN, BODY), told("kidney"), ("kidney",)),
            ((BRAIN, BODY), [], ()),
            ((), told("liver"), ()),
        ]
    )
    def test_refused(self, models, names, used):
        with self.assertRaisesRegex(InputError, "names of segments must fit one model, got .*; there is "):
            choose_model(models, names, used)

    @parameterized.expand([("liver",), ({"name": "liver"},), ([{"idx": 1}],), (["liver"],), (3,)])
    def test_label_info_of_another_form(self, label_info):
        with self.assertRaisesRegex(InputError, "label_info must be a list of segments"):
            told_segments(label_info)


class TestReadLabelFile(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        self.labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)

    def write(self, suffix: str) -> Path:
        path = self.folder / f"label{suffix}"
        if suffix == ".bin":
            path.write_bytes(self.labels.tobytes(order="F"))
        elif suffix.startswith(".nii"):
            save_nifti(path, self.labels, AFFINE_RAS)
        else:
            SimpleITK.WriteImage(itk_image(self.labels, AFFINE_RAS), str(path))
        return path

    @parameterized.expand([(".nii.gz",), (".nii",), (".nrrd",), (".seg.nrrd",), (".bin",)])
    def test_formats(self, suffix):
        found = read_label_file(self.write(suffix), (4, 5, 6), AFFINE_RAS)
        np.testing.assert_array_equal(found, self.labels)

    def test_refusals(self):
        path = self.write(".nrrd")
        for shape, affine, what in (
            ((4, 6, 5), AFFINE_RAS, r"label.nrrd: must have the size of the image, \(4, 6, 5\)"),
            ((4, 5, 6), AFFINE_RAS @ np.diag([1, 1, -1, 1]), "must lie on the image to 0.1 mm"),
            ((4, 5, 6), AFFINE_RAS * [[1], [1], [1.01], [1]], r"is 0\.250 mm off"),
            ((4, 5, 6), AFFINE_RAS * np.nan, "must lie on the image"),
        ):
            with self.assertRaisesRegex(InputError, what):
                read_label_file(path, shape, affine)
        layers = SimpleITK.Compose([itk_image(self.labels, AFFINE_RAS)] * 2)
        SimpleITK.WriteImage(layers, str(path))
        with self.assertRaisesRegex(InputError, "one layer, has .* and 2"):
            read_label_file(path, (4, 5, 6), AFFINE_RAS)
        with self.assertRaisesRegex(InputError, "must have a byte for each of the 121 voxels, has 120"):
            read_label_file(self.write(".bin"), (11, 11, 1), AFFINE_RAS)
        with self.assertRaisesRegex(InputError, "nothing.nii.gz: cannot be read as a label map"):
            read_label_file(self.folder / "nothing.nii.gz", (4, 5, 6), AFFINE_RAS)


class TestSegConverter(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)
        volume = np.random.default_rng(0).integers(0, 900, (7, 9, 5)).astype(np.uint16)
        axes = np.array([[0, -1, 0], [0.8, 0, -0.6], [0.6, 0, 0.8]])
        self.series = save_dicom(self.folder / "series", volume, axes, np.array([3, -40, 12.5]), (1.5, 2, 4))
        _, self.grid = read_series(self.series, DicomSeriesReader())
        self.labels = np.zeros((7, 9, 5), np.uint8)
        self.labels[1:3, 2:7, 3] = 2
        self.result = save_nifti(self.folder / "result.nii.gz", self.labels.astype(np.float32), self.grid.affine_ras)

    @parameterized.expand(
        [
            ((BRAIN,), None),
            ((BRAIN,), told("something else")),
            ((BODY, BRAIN), told("grey matter")),
            ((BODY, BRAIN), [{"name": "lesion", "model_name": "brain"}]),
        ]
    )
    def test_a_lone_label_has_its_own_name(self, models, label_info):
        path = Path(SegConverter(models)(str(self.series), str(self.result), label_info, use_itk=True))
        self.addCleanup(path.unlink)
        found, names = read_dicom_seg(path, self.grid)
        self.assertEqual(names, {1: "Grey matter", 2: "lesion"})
        np.testing.assert_array_equal(found, self.labels)

    def test_refusals_leave_nothing(self):
        with mock.patch("tempfile.tempdir", str(temporary_folder(self))):
            high = save_nifti(self.folder / "high.nii.gz", self.labels * 2, self.grid.affine_ras)
            with self.assertRaisesRegex(InputError, r"labels must be of the model's .* got \[4\]"):
                SegConverter([BRAIN])(self.series, high, None)
            with self.assertRaisesRegex(InputError, "names of segments must fit one model"):
                SegConverter([BRAIN, BODY])(self.series, self.result, None)
            with mock.patch("monai_dvpt.apps.monailabel.dicom_labels.write_seg", side_effect=InputError("full")):
                with self.assertRaisesRegex(InputError, "full"):
                    SegConverter([BRAIN])(self.series, self.result, None)
            self.assertEqual(list(Path(tempfile.gettempdir()).iterdir()), [])

    def test_a_sheared_grid_is_refused(self):
        reader = DicomSeriesReader()
        values, meta = reader.get_data(reader.read(self.series))
        meta["affine"][:3, 2] += 0.05 * meta["affine"][:3, 0]
        with mock.patch.object(reader, "get_data", return_value=(values, meta)):
            with self.assertRaisesRegex(InputError, "axes must be at right angles"):
                read_series(self.series, reader)


if __name__ == "__main__":
    unittest.main()
