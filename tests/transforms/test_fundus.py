# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
import torch
from monai.data import MetaTensor
from parameterized import parameterized
from PIL import Image
from scipy.ndimage import gaussian_filter
from utils_data import shared_data

from monai_dvpt.transforms import BenGraham, BenGrahamd, CropToDisc, CropToDiscd, LoadImage2D
from monai_dvpt.utils import InputError


def disc(rows: int, columns: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    """A disc, brighter to the right, on black, in three colours: of shape (3, rows, columns)."""
    y, x = np.mgrid[:rows, :columns]
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
    return np.stack([inside * (0.2 + 0.5 * x / columns) * share for share in (1.0, 0.6, 0.3)]).astype(np.float32)


class TestCropToDisc(unittest.TestCase):
    @parameterized.expand(
        [
            ("margins", (60, 100), (31, 52), 24, (7, 56, 28, 77)),
            ("cut off above and below", (40, 100), (20, 45), 30, (0, 40, 15, 76)),
            ("whole", (41, 41), (20, 20), 20, (0, 41, 0, 41)),
        ]
    )
    def test_disc(self, _, shape, centre, radius, box):
        image = disc(*shape, centre, radius)
        noisy = np.clip(image + np.random.default_rng(0).normal(0, 0.002, image.shape), 0, 1).astype(np.float32)
        padded = CropToDisc()(MetaTensor(torch.from_numpy(noisy)))
        found = padded[:, 1:-1, 1:-1]
        for line in (padded[:, 0], padded[:, -1], padded[:, :, 0], padded[:, :, -1]):  # a black margin of one pixel
            self.assertFalse(line.any())
        # the outermost rows and columns have only a short chord of the disc
        rows, columns = (box[1] - box[0], box[3] - box[2])
        self.assertTrue(rows - 2 <= found.shape[1] <= rows and columns - 2 <= found.shape[2] <= columns, found.shape)
        top, left = (box[0] + (rows - found.shape[1]) // 2, box[2] + (columns - found.shape[2]) // 2)
        expected = noisy[:, top : top + found.shape[1], left : left + found.shape[2]]
        np.testing.assert_array_equal(found.numpy(), expected)

    def test_refused(self):
        for image in (torch.zeros(3, 8, 8), torch.full((3, 8, 8), -1.0)):
            image = MetaTensor(image, meta={"filename_or_obj": "eye.png"})
            with self.assertRaisesRegex(InputError, "eye.png: must have values of at least 0, and not only 0"):
                CropToDisc()(image)

    def test_photograph(self):
        """The disc of a real photograph reaches to all four sides of the crop."""
        path = sorted(shared_data("dr_fundus/images").glob("*.jpg"))[0]
        found = CropToDiscd("image")({"image": LoadImage2D(3)(str(path))})["image"]
        grey = np.asarray(Image.open(path).convert("RGB"), dtype=float).mean(axis=2)
        threshold = grey.mean() / 10
        rows, columns = (np.flatnonzero(grey.mean(axis=axis) >= threshold) for axis in (1, 0))
        self.assertEqual(tuple(found.shape[1:]), (np.ptp(rows) + 1 + 2 * 3, np.ptp(columns) + 1 + 2 * 3))
        self.assertEqual(round(0.01 * max(np.ptp(rows), np.ptp(columns))), 3)  # the margin
        for line in (found[:, 2], found[:, -3], found[:, :, 2], found[:, :, -3]):
            self.assertEqual(float(line.abs().max()), 0)


class TestBenGraham(unittest.TestCase):
    def test_equals_the_report(self):
        """Its formula, with SciPy's blur; all but the first lines on NumPy."""
        image = disc(90, 90, (44.5, 44.5), 45) + np.random.default_rng(0).uniform(0, 0.1, (3, 90, 90)).astype(
            np.float32
        )
        blurred = np.stack([gaussian_filter(channel, 45 / 30, mode="constant") for channel in image.astype(float)])
        y, x = np.mgrid[:90, :90] - 44.5
        expected = np.where(y**2 + x**2 < (0.9 * 45) ** 2, 4 * image - 4 * blurred + 0.5, 0.5).clip(0, 1)
        found = BenGrahamd("image")({"image": MetaTensor(torch.from_numpy(image))})["image"]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)

    def test_illumination_goes_and_vessels_stay(self):
        y, x = np.mgrid[:224, :224]
        light = np.broadcast_to(0.3 + 0.4 * x / 224, (3, 224, 224)).astype(np.float32)
        vessel = (np.abs(y - 112) < 2) * np.float32(0.1)
        even, lined = (BenGraham()(torch.from_numpy(image)) for image in (light, light - vessel))
        middle = (slice(None), slice(60, 164), slice(60, 164))
        self.assertLess((even[middle] - 0.5).abs().max(), 0.01)
        self.assertLess(lined[:, 112, 60:164].max(), 0.3)
        self.assertTrue((lined[:, 0, 0] == 0.5).all())

    def test_any_size(self):
        """The blur grows with the image: half the size gives half the picture."""
        large = disc(448, 448, (223.5, 223.5), 224)
        small = disc(224, 224, (111.5, 111.5), 112)
        found = [BenGraham()(torch.from_numpy(image)).numpy() for image in (large, small)]
        halved = found[0].reshape(3, 224, 2, 224, 2).mean(axis=(2, 4))
        self.assertLess(np.abs(halved - found[1])[:, 20:204, 20:204].mean(), 0.01)

    def test_refused(self):
        with self.assertRaisesRegex(ValueError, r"image must be of shape \(channels, side, side\), got \(3, 8, 9\)"):
            BenGraham()(torch.zeros(3, 8, 9))


if __name__ == "__main__":
    unittest.main()
