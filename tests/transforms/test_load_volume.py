# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from monai.data import NibabelReader
from nibabel.affines import apply_affine
from parameterized import parameterized
from utils_data import AFFINE_RAS, PATIENT, save_dicom, save_nifti, shared_data, temporary_folder

from monai_dvpt.transforms import LoadVolume, LoadVolumed
from monai_dvpt.utils import InputError

SHAPE = (5, 6, 7)
IMAGE = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
LABEL = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
SUFFIXES = (".nii", ".nii.gz")


def with_value(volume: np.ndarray, value: float) -> np.ndarray:
    volume = volume.astype(np.float32)
    volume[1, 2, 3] = value
    return volume


def sheared() -> np.ndarray:
    affine = AFFINE_RAS.copy()
    affine[0, 1] = 0.3
    return affine


def singular() -> np.ndarray:
    affine = AFFINE_RAS.copy()
    affine[:3, 2] = affine[:3, 1]
    return affine


def rotated(degrees: float) -> np.ndarray:
    """Directions of an oblique scan, in columns."""
    a, b = np.deg2rad((degrees, degrees / 2))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return about_x @ about_z


def both(cases: list[tuple]) -> list[tuple]:
    """Every case for both kinds of NIfTI file."""
    return [(f"{name} {suffix}", suffix, *rest) for name, *rest in cases for suffix in SUFFIXES]


class TestLoadNIfTI(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    @parameterized.expand(
        both(
            [
                ("float32", np.float32, AFFINE_RAS),
                ("int16", np.int16, AFFINE_RAS),
                ("float64", np.float64, np.diag([1.5, 2, 2.5, 1])),
                ("oblique", np.float32, nib.affines.from_matvec(rotated(20) * (1, 2, 3), (4, 5, 6))),
            ]
        )
    )
    def test_equals_nibabel(self, _, suffix, dtype, affine):
        path = save_nifti(self.root / f"a{suffix}", IMAGE.astype(dtype), affine)
        volume, expected = LoadVolume()(str(path)), nib.load(path)
        self.assertEqual((tuple(volume.shape), str(volume.dtype)), ((1, *SHAPE), "torch.float32"))
        np.testing.assert_array_equal(volume.affine.numpy(), expected.affine)
        np.testing.assert_array_equal(volume.numpy()[0], expected.get_fdata(dtype=np.float32))
        self.assertEqual(volume.meta["filename_or_obj"], str(path))

    def test_scaled_values(self):
        image = nib.Nifti1Image(np.arange(210, dtype=np.int16).reshape(SHAPE), AFFINE_RAS)
        image.header.set_slope_inter(0.5, -7)
        image.to_filename(self.root / "a.nii")
        volume = LoadVolume()(str(self.root / "a.nii"))
        np.testing.assert_array_equal(volume.numpy()[0], 0.5 * np.arange(210).reshape(SHAPE) - 7)

    def test_path_object_and_reader(self):
        path = save_nifti(self.root / "a.nii", IMAGE)
        np.testing.assert_array_equal(LoadVolume(reader=NibabelReader())(path).numpy()[0], IMAGE)

    def test_fourth_dimension_of_one_is_no_channel(self):
        path = save_nifti(self.root / "a.nii", IMAGE[..., None])
        self.assertEqual(tuple(LoadVolume()(str(path)).shape), (1, *SHAPE))

    @parameterized.expand(
        both(
            [
                ("4D", np.stack([IMAGE, IMAGE], -1), AFFINE_RAS, r"must be one 3D volume, got .*\(2, 5, 6, 7\)"),
                ("2D", IMAGE[..., 0], AFFINE_RAS, r"must be one 3D volume, got .*\(1, 5, 6\)"),
                ("zeros", np.zeros_like(IMAGE), AFFINE_RAS, "image must not be constant, got 0 everywhere"),
                ("constant", np.full_like(IMAGE, 7.5), AFFINE_RAS, "image must not be constant, got 7.5 everywhere"),
                ("NaN", with_value(IMAGE, np.nan), AFFINE_RAS, "values must be finite, got 1 that are NaN or infinite"),
                ("inf", with_value(IMAGE, np.inf), AFFINE_RAS, "values must be finite, got 1 that are NaN or infinite"),
                ("-inf", with_value(IMAGE, -np.inf), AFFINE_RAS, "values must be finite, got 1 that are"),
                ("sheared", IMAGE, sheared(), r"axes must be perpendicular \(cosine up to 0.001\), got 0.0995"),
                ("singular", IMAGE, singular(), r"affine must be finite and invertible, got \[\[-2.0, 0.0, 0.0, 9.0\]"),
            ]
        )
    )
    def test_refused_image(self, _, suffix, volume, affine, message):
        self.refused(save_nifti(self.root / f"bad{suffix}", volume, affine), message)

    @parameterized.expand(both([("zero", 0.0), ("NaN", np.nan), ("infinite", np.inf)]))
    def test_refused_affine(self, _, suffix, value):
        path = self.with_third_row(f"bad{suffix}", [value] * 4)
        self.refused(path, "affine must be finite and invertible, got")

    @parameterized.expand(both([("scaled", [0, 0, 4.4, 5]), ("moved and scaled", [0, 0, 3.5, -60])]))
    def test_affine_that_disagrees_with_the_voxel_size_is_kept(self, _, suffix, row):
        """Other software, and so the viewer that shows the result, goes by the sform."""
        path = self.with_third_row(f"a{suffix}", row)
        affine = LoadVolume()(str(path)).affine.numpy()
        np.testing.assert_array_equal(affine, nib.load(path).affine)
        np.testing.assert_array_equal(affine[2], np.float32(row))

    @parameterized.expand([(".nii",), (".nii.gz",)])
    def test_refused_without_stated_geometry(self, suffix):
        image = nib.Nifti1Image(IMAGE, AFFINE_RAS)
        image.set_sform(AFFINE_RAS, code=0)
        image.set_qform(AFFINE_RAS, code=0)
        path = self.root / f"bad{suffix}"
        nib.save(image, path)
        self.assertEqual(int(nib.load(path).header["sform_code"]), 0)
        self.refused(path, "must say where it lies, by an sform_code or a qform_code above 0")

    def with_third_row(self, name: str, row: list[float]) -> Path:
        """A file of which only the sform was edited."""
        content = bytearray(save_nifti(self.root / "good.nii", IMAGE).read_bytes())
        content[312:328] = np.array(row, np.float32).tobytes()
        path = self.root / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    @parameterized.expand(
        both(
            [
                ("too large", with_value(LABEL, 3), r"labels must be whole numbers in \[0, 3\), got 0 to 3\."),
                ("negative", with_value(LABEL, -1), r"labels must be whole numbers in \[0, 3\), got -1 to 2\."),
                ("fraction", with_value(LABEL, 0.5), r"whole numbers in \[0, 3\), got 0 to 2, with fractions\."),
                ("NaN", with_value(LABEL, np.nan), "values must be finite, got 1 that are NaN or infinite"),
            ]
        )
    )
    def test_refused_label(self, _, suffix, volume, message):
        self.refused(save_nifti(self.root / f"bad{suffix}", volume), message, num_classes=3)

    @parameterized.expand([("of zeros", LABEL * 0), ("of one class", LABEL * 0 + 2), ("of all", LABEL)])
    def test_label_may_be_constant(self, _, volume):
        path = save_nifti(self.root / "label.nii", volume)
        np.testing.assert_array_equal(LoadVolume(num_classes=3)(str(path)).numpy()[0], volume)

    @parameterized.expand(both([("file",)]))
    def test_missing(self, _, suffix):
        self.refused(self.root / f"bad{suffix}", "does not exist")

    @parameterized.expand(both([("half", 0.5), ("most", 0.95), ("header", 0.1), ("nothing", 0.0)]))
    def test_truncated(self, _, suffix, share):
        path = save_nifti(self.root / f"bad{suffix}", IMAGE)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        self.refused(path, "cannot be read: is (truncated or damaged: .+|no NIfTI, NRRD, MetaImage or DICOM file)")

    @parameterized.expand(both([("plain", False), ("compressed", True)]))
    def test_text(self, _, suffix, compressed):
        path = self.root / f"bad{suffix}"
        text = b"patient,volume\n" * 100
        path.write_bytes(gzip.compress(text) if compressed else text)
        self.refused(path, "cannot be read: is (truncated or damaged: .+|no NIfTI, NRRD, MetaImage or DICOM file)")

    def refused(self, path: Path, message: str, num_classes: int | None = None) -> None:
        with self.assertRaisesRegex(InputError, message) as caught:
            LoadVolume(num_classes)(str(path))
        self.assertTrue(str(caught.exception).startswith(f"{path}: "))
        self.assertNotIn("\n", str(caught.exception))

    def test_real_image_and_label(self):
        root = shared_data("msd_hippocampus")
        for name in ("hippocampus_001", "hippocampus_004"):
            paths = {key: str(root / f"{key}sTr" / f"{name}.nii.gz") for key in ("image", "label")}
            loaded = LoadVolumed(["image", "label"], num_classes=[None, 3])(paths)
            for key, path in paths.items():
                expected = nib.load(path)
                np.testing.assert_array_equal(loaded[key].affine.numpy(), expected.affine)
                np.testing.assert_array_equal(loaded[key].numpy()[0], expected.get_fdata(dtype=np.float32))


class TestLoadDICOM(unittest.TestCase):
    def series(self, name: str) -> Path:
        if name == "real":
            return shared_data("dicom/hippocampus_mr")
        volume = np.random.default_rng(2).integers(0, 4000, (9, 8, 7)).astype(np.uint16)
        directions = rotated(25)
        if name == "against the normal":  # slices stored from the last to the first
            directions[:, 2] *= -1
        if name == "sagittal":
            directions = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]]).astype(float)
        folder = temporary_folder(self) / "series"
        suffix = "" if name == "no extension" else ".dcm"
        return save_dicom(folder, volume, directions, (-31.5, 42.25, 10), (0.8, 1.2, 2.5), suffix)

    @parameterized.expand([("real",), ("oblique",), ("against the normal",), ("sagittal",), ("no extension",)])
    def test_every_voxel_is_where_its_slice_says(self, name):
        folder = self.series(name)
        volume = LoadVolume()(str(folder))
        slices = [pydicom.dcmread(path) for path in folder.iterdir()]
        columns, rows = slices[0].Columns, slices[0].Rows
        self.assertEqual(tuple(volume.shape), (1, columns, rows, len(slices)))
        to_voxels = np.linalg.inv(volume.affine.numpy())
        row, column = np.mgrid[:rows, :columns]
        for file in slices:
            along_row, along_column = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
            between_rows, between_columns = map(float, file.PixelSpacing)
            lps = (
                np.array(file.ImagePositionPatient, float)
                + column[..., None] * between_columns * along_row
                + row[..., None] * between_rows * along_column
            )
            ras = lps * (-1, -1, 1)
            voxels = apply_affine(to_voxels, ras).round().astype(int)
            np.testing.assert_allclose(apply_affine(volume.affine.numpy(), voxels), ras, atol=0.01)  # mm
            np.testing.assert_array_equal(volume.numpy()[0][tuple(np.moveaxis(voxels, -1, 0))], file.pixel_array)

    @parameterized.expand([("real",), ("oblique",)])
    def test_patient_is_left_behind(self, name):
        folder = self.series(name)
        self.assertIn(PATIENT, str(pydicom.dcmread(next(folder.iterdir())).PatientName))
        meta = LoadVolume()(str(folder)).meta
        expected = {*GEOMETRY, "series_grid", "padding_voxels", "resampled", "set_aside"}
        self.assertEqual({str(getattr(key, "value", key)) for key in meta} - {"affine"}, expected)
        for word in PATIENT.split("^"):
            self.assertNotIn(word, str(meta))

    @parameterized.expand(
        [
            ("empty folder", None, "must hold a DICOM volume, holds none; there is: nothing"),
            ("text", "patient,volume\n", "1.dcm: must be a DICOM object, has no SOPClassUID"),
            ("cut", "DICM", "1.dcm: must be a DICOM object, has no SOPClassUID"),
        ]
    )
    def test_refused(self, name, content, why):
        folder = temporary_folder(self) / name
        folder.mkdir()
        if content:
            (folder / "1.dcm").write_bytes(bytes(128) + content.encode() if content == "DICM" else content.encode())
        with self.assertRaisesRegex(InputError, f"^{folder}: .*{why}") as caught:
            LoadVolume()(str(folder))
        self.assertNotIn("\n", str(caught.exception))


GEOMETRY = ("filename_or_obj", "original_affine", "space")


class TestLoadVolumed(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        self.load = LoadVolumed(["image", "label"], num_classes=[None, 3])

    def paths(self, suffix: str = ".nii", image=IMAGE, label=LABEL, label_affine=AFFINE_RAS) -> dict[str, str]:
        return {
            "image": str(save_nifti(self.root / f"image{suffix}", image)),
            "label": str(save_nifti(self.root / f"label{suffix}", label, label_affine)),
        }

    def test_each_key_has_its_own_rules(self):
        loaded = self.load({**self.paths(), "name": "case"})
        np.testing.assert_array_equal(loaded["image"].numpy()[0], IMAGE)
        np.testing.assert_array_equal(loaded["label"].numpy()[0], LABEL)
        self.assertEqual(loaded["name"], "case")
        with self.assertRaisesRegex(InputError, "label.nii: labels must be whole numbers"):
            self.load(self.paths(label=with_value(LABEL, 9)))
        with self.assertRaisesRegex(InputError, "image.nii: image must not be constant"):
            self.load(self.paths(image=np.ones(SHAPE, np.float32)))

    @parameterized.expand(both([("cut", LABEL[:, :-1]), ("swapped", LABEL.transpose(1, 0, 2))]))
    def test_other_size(self, _, suffix, label):
        paths = self.paths(suffix, label=label)
        message = rf"^{paths['label']}: must have the size of {paths['image']}, \(5, 6, 7\), got .*\."
        with self.assertRaisesRegex(InputError, message) as caught:
            self.load(paths)
        self.assertIn(str(label.shape), str(caught.exception))

    @parameterized.expand(both([("shifted", (0, 3), 0.5), ("flipped", (0, 0), 4.0), ("small", (2, 3), 0.01)]))
    def test_other_affine(self, _, suffix, entry, difference):
        affine = AFFINE_RAS.copy()
        affine[entry] += difference
        paths = self.paths(suffix, label_affine=affine)
        message = f"^{paths['label']}: must have the affine of {paths['image']} to 0.001 mm, differs by {difference:g}"
        with self.assertRaisesRegex(InputError, message):
            self.load(paths)

    def test_rounding_of_the_affine_is_allowed(self):
        affine = AFFINE_RAS.copy()
        affine[0, 3] += 5e-4
        self.assertEqual(tuple(self.load(self.paths(label_affine=affine))["label"].shape), (1, *SHAPE))

    def test_missing_key(self):
        paths = self.paths()
        del paths["label"]
        with self.assertRaises(KeyError):
            self.load(paths)
        lenient = LoadVolumed(["image", "label"], num_classes=[None, 3], allow_missing_keys=True)
        self.assertEqual(set(lenient(paths)), {"image"})


if __name__ == "__main__":
    unittest.main()
