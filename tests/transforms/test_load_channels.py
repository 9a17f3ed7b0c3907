# SPDX-License-Identifier: Apache-2.0
"""Images of several channels; nibabel and SimpleITK say what is right."""

from __future__ import annotations

import unittest

import nibabel as nib
import numpy as np
import SimpleITK
import torch
from monai.transforms import NormalizeIntensity, ScaleIntensityRange
from parameterized import parameterized
from utils_data import AFFINE_RAS, shared_data, temporary_folder

from monai_dvpt.transforms import EachChannel, EachChanneld, LoadVolume, LoadVolumed
from monai_dvpt.utils import InputError

SIZE = (9, 11, 7)
NAMES = ("t1", "flair", "t2")


def noise(seed: int, size: tuple[int, ...] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, size).astype(np.float32)


def moved(affine: np.ndarray, offset_mm: tuple[float, ...]) -> np.ndarray:
    shifted = affine.copy()
    shifted[:3, 3] += offset_mm
    return shifted


class Channels(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def save(self, name: str, values: np.ndarray, affine: np.ndarray = AFFINE_RAS, code: int = 1) -> str:
        image = nib.Nifti1Image(values, affine)
        image.set_sform(affine, code)
        image.set_qform(None, 0)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return str(path)


class TestOneGrid(Channels):
    def test_files_equal_one_file(self):
        volumes = [noise(seed) for seed in range(3)]
        files = [self.save(f"{name}.nii.gz", volume) for name, volume in zip(NAMES, volumes, strict=True)]
        stacked = self.save("all.nii.gz", np.stack(volumes, -1))
        apart = LoadVolume(channels=NAMES)(files)
        together = LoadVolume(channels=NAMES)(stacked)
        np.testing.assert_array_equal(apart, np.stack(volumes))
        np.testing.assert_array_equal(together, np.stack(volumes))
        for loaded in (apart, together):
            np.testing.assert_allclose(loaded.affine, AFFINE_RAS, atol=1e-5)
        self.assertEqual(apart.meta["filename_or_obj"], files[0])
        self.assertEqual((apart.meta["resampled_channels"], apart.meta["covered_channels"]), ([False] * 3, [1.0] * 3))

    def test_some_channels_of_a_file_in_another_order(self):
        volumes = [noise(seed) for seed in range(3)]
        stacked = self.save("all.nii.gz", np.stack(volumes, -1))
        loaded = LoadVolume(channels=["t2", "t1"], file_channels=NAMES)(stacked)
        np.testing.assert_array_equal(loaded, np.stack([volumes[2], volumes[0]]))
        one = LoadVolume(channels=["flair"], file_channels=NAMES)(stacked)
        np.testing.assert_array_equal(one, volumes[1][None])

    def test_a_vector_of_simpleitk(self):
        values = np.stack([noise(seed) for seed in range(2)], -1)
        image = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0, 3), isVector=True)
        SimpleITK.WriteImage(image, str(self.root / "vector.nii.gz"))
        loaded = LoadVolume(channels=["a", "b"])(str(self.root / "vector.nii.gz"))
        np.testing.assert_array_equal(loaded, np.moveaxis(values, -1, 0))

    def test_with_a_label(self):
        files = [self.save(f"{name}.nii.gz", noise(seed)) for seed, name in enumerate("ab")]
        label = self.save("label.nii.gz", (noise(5) > 110).astype(np.uint8))
        load = LoadVolumed(["image", "label"], num_classes=[None, 2], channels=["a", "b"])
        case = load({"image": files, "label": label})
        self.assertEqual((case["image"].shape, case["label"].shape), ((2, *SIZE), (1, *SIZE)))
        elsewhere = self.save("elsewhere.nii.gz", (noise(5) > 110).astype(np.uint8), moved(AFFINE_RAS, (1, 0, 0)))
        with self.assertRaisesRegex(InputError, "elsewhere.nii.gz: must have the affine"):
            load({"image": files, "label": elsewhere})


class TestOtherGrid(Channels):
    def resampled(self, path: str, first: str) -> np.ndarray:
        image = SimpleITK.ReadImage(path, SimpleITK.sitkFloat64)
        low = float(SimpleITK.GetArrayFromImage(image).min())
        identity = SimpleITK.Transform(3, SimpleITK.sitkIdentity)
        grid = SimpleITK.ReadImage(first)
        found = SimpleITK.Resample(image, grid, identity, SimpleITK.sitkLinear, low)
        return SimpleITK.GetArrayFromImage(found).transpose(2, 1, 0)

    def test_as_simpleitk_resamples(self):
        """A turned, coarser grid of more field of view; and one that leaves a slice of the first uncovered."""
        first = self.save("t1.nii.gz", noise(0))
        turn = np.eye(4)
        angle = 0.3
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        centre = AFFINE_RAS @ [4, 5, 3, 1]
        wide = turn @ np.diag([1.7, 1.3, 2.1, 1.0])
        wide[:3, 3] = centre[:3] - wide[:3, :3] @ [14, 17, 11]
        second = self.save("flair.nii.gz", noise(1, (29, 35, 23)), wide)
        short = AFFINE_RAS.copy()
        short[:3, 3] = (AFFINE_RAS @ [0, 0.75, 0, 1])[:3]
        third = self.save("t2.nii.gz", noise(2, (9, 11, 7)), short)
        loaded = LoadVolume(channels=NAMES)([first, second, third])
        np.testing.assert_array_equal(loaded[0], noise(0))
        for number, path in ((1, second), (2, third)):
            np.testing.assert_allclose(loaded[number], self.resampled(path, first), rtol=1e-5, atol=1e-3)
        self.assertEqual(loaded.meta["resampled_channels"], [False, True, True])
        self.assertEqual(loaded.meta["covered_channels"][:2], [1.0, 1.0])
        self.assertAlmostEqual(loaded.meta["covered_channels"][2], 10 / 11)  # the row of y = 0
        np.testing.assert_array_equal(loaded[2, :, 0], np.full((9, 7), noise(2).min()))

    def test_real_data(self):
        """A hippocampus, and SimpleITK's smoothed copy on a grid of its own."""
        folder = shared_data("msd_hippocampus") / "imagesTr"
        source = sorted(folder.glob("*.nii.gz"))[0]
        image = SimpleITK.Cast(SimpleITK.ReadImage(str(source)), SimpleITK.sitkFloat32)
        smooth = SimpleITK.SmoothingRecursiveGaussian(image, 1.0)
        grid = SimpleITK.Image([60, 90, 40], SimpleITK.sitkFloat32)
        grid.SetSpacing([0.8, 0.7, 1.1])
        grid.SetDirection(image.GetDirection())
        grid.SetOrigin([value + 0.3 for value in image.GetOrigin()])
        identity = SimpleITK.Transform(3, SimpleITK.sitkIdentity)
        other = SimpleITK.Resample(smooth, grid, identity, SimpleITK.sitkLinear, 0.0)
        SimpleITK.WriteImage(other, str(self.root / "smooth.nii.gz"))
        loaded = LoadVolume(channels=["t1", "smooth"])([str(source), str(self.root / "smooth.nii.gz")])
        truth = self.resampled(str(self.root / "smooth.nii.gz"), str(source))
        scale = float(np.abs(truth).max())
        np.testing.assert_allclose(loaded[1], truth, atol=1e-4 * scale)
        wanted = SimpleITK.GetArrayFromImage(smooth).transpose(2, 1, 0)[3:-3, 3:-3, 3:-3]
        self.assertGreater(np.corrcoef(loaded[1].numpy()[3:-3, 3:-3, 3:-3].ravel(), wanted.ravel())[0, 1], 0.99)

    def test_codes_of_one_kind_of_coordinates(self):
        first = self.save("t1.nii.gz", noise(0))
        shifted = moved(AFFINE_RAS, (0.1, 0, 0))
        second = self.save("t2.nii.gz", noise(1), shifted, code=4)
        with self.assertRaisesRegex(InputError, "t2.nii.gz: .*: those of the patient, got those of MNI152"):
            LoadVolume(channels=["t1", "t2"])([first, second])
        aligned = self.save("aligned.nii.gz", noise(1), shifted, code=2)
        self.assertEqual(LoadVolume(channels=["t1", "t2"])([first, aligned]).meta["resampled_channels"], [False, True])
        same = self.save("same.nii.gz", noise(1), code=4)
        self.assertEqual(LoadVolume(channels=["t1", "t2"])([first, same]).meta["resampled_channels"], [False, False])

    @parameterized.expand([((0, 0, 60),), ((0, 6, 0),)])
    def test_another_place(self, offset):
        first = self.save("t1.nii.gz", noise(0))
        second = self.save("t2.nii.gz", noise(1), moved(AFFINE_RAS, offset))
        with self.assertRaisesRegex(InputError, "t2.nii.gz: its field of view must hold at least 90% .*, holds"):
            LoadVolume(channels=["t1", "t2"])([first, second])


class TestRefusals(Channels):
    def test_numbers_of_files_and_channels(self):
        files = [self.save(f"{name}.nii.gz", noise(seed)) for seed, name in enumerate("abc")]
        stacked = self.save("all.nii.gz", np.stack([noise(seed) for seed in range(3)], -1))
        for path, channels, words in (
            (files, "ab", "a.nii.gz: must be one file for each of the channels a, b, got 3 files"),
            (files[0], "ab", "a.nii.gz: must be a 3D volume of 2 channels, got"),
            (stacked, "ab", "all.nii.gz: must be a 3D volume of 2 channels, got"),
            (stacked, "", "all.nii.gz: must be one 3D volume, got"),
            (files, "", "a.nii.gz: a list of files must be those of one DICOM series, got nifti files"),
        ):
            with self.subTest(words), self.assertRaisesRegex(InputError, words):
                LoadVolume(channels=tuple(channels))(path)

    def test_a_bad_channel(self):
        good, constant = noise(0), np.full(SIZE, 3, np.float32)
        bad = noise(1)
        bad[1, 2, 3] = np.nan
        stacked = self.save("all.nii.gz", np.stack([good, constant], -1))
        with self.assertRaisesRegex(InputError, "all.nii.gz: channel b must not be constant, got 3"):
            LoadVolume(channels="ab")(stacked)
        files = [self.save("a.nii.gz", good), self.save("b.nii.gz", bad)]
        with self.assertRaisesRegex(InputError, "b.nii.gz: values must be finite"):
            LoadVolume(channels="ab")(files)
        sheared = AFFINE_RAS.copy()
        sheared[0, 1] += 0.5
        with self.assertRaisesRegex(InputError, "c.nii.gz: axes must be perpendicular"):
            LoadVolume(channels="ab")([files[0], self.save("c.nii.gz", good, sheared)])

    def test_names(self):
        for arguments, words in (
            ({"channels": ["a", "A"]}, "must differ in letters or digits"),
            ({"channels": ["c"], "file_channels": ["a", "b"]}, r"must be of \['a', 'b'\], got \['c'\]"),
            ({"channels": ["a"], "num_classes": 2}, "a label map has one"),
        ):
            with self.subTest(words), self.assertRaisesRegex(ValueError, words):
                LoadVolume(**arguments)


class TestEachChannel(unittest.TestCase):
    def test_a_transform_each(self):
        image = torch.stack([torch.tensor(noise(0)), 20 * torch.tensor(noise(1)) - 2000])
        rules = [NormalizeIntensity(), ScaleIntensityRange(-100, 100, 0.0, 1.0, clip=True)]
        found = EachChanneld("image", rules)({"image": image, "name": "a"})["image"]
        values = image.numpy().astype(np.float64)
        np.testing.assert_allclose(found[0], (values[0] - values[0].mean()) / values[0].std(), atol=1e-4)
        np.testing.assert_allclose(found[1], np.clip((values[1] + 100) / 200, 0, 1), atol=1e-4)
        self.assertLess(float(image[1].min()), -100)  # the input is not changed

    def test_number_of_channels(self):
        with self.assertRaisesRegex(ValueError, "image must have 1 channels, got 2"):
            EachChannel([NormalizeIntensity()])(torch.zeros(2, 3, 3, 3))


if __name__ == "__main__":
    unittest.main()
