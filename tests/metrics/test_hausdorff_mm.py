# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import unittest

import numpy as np
import torch
from monai.data import MetaTensor, list_data_collate
from parameterized import parameterized
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from monai_dvpt.metrics import HausdorffDistanceMm

SHAPE, CLASSES = (9, 10, 12), 3
SPACING = (1.0, 2.0, 0.5)
DIAGONAL = np.diag([*SPACING, 1])
OBLIQUE = np.array([[0, 0, -0.5, 7], [0.6, -1.6, 0, -3], [0.8, 1.2, 0, 5], [0, 0, 0, 1]])  # axes turned and flipped
DIAGONAL_MM = float(np.linalg.norm(np.multiply(SHAPE, SPACING)))  # of the image
ISOTROPIC = np.diag([3, 3, 3, 1])


def brute_force(y_pred: np.ndarray, y: np.ndarray, spacing: tuple[float, ...], percentile: float = 100) -> float:
    """Distance in millimetres between the surface voxels of two masks, all pairs."""
    surfaces = [np.argwhere(mask & ~binary_erosion(mask)) * spacing for mask in (y_pred > 0, y > 0)]
    pairs = cdist(*surfaces)
    return max(np.percentile(pairs.min(axis=axis), percentile) for axis in (0, 1))


def one_hot(seed: int, affine: np.ndarray = DIAGONAL) -> MetaTensor:
    """Two boxes of random place and size with a corner cut off, never equal sides; class 0 is the rest."""
    generator = np.random.default_rng(seed)
    volume = np.zeros((CLASSES, *SHAPE), dtype=np.float32)
    for value in range(1, CLASSES):
        low = generator.integers(0, 4, size=3) + [0, 0, 5 * (value - 1)]
        box = tuple(slice(a, a + b) for a, b in zip(low, generator.permutation([2, 3, 4]), strict=True))
        volume[(value, *box)] = 1
        volume[(value, *low)] = 0
    volume[0] = volume.sum(axis=0) == 0
    return MetaTensor(torch.from_numpy(volume), affine=torch.from_numpy(affine))


def expected_distances(y_pred: torch.Tensor, y: torch.Tensor, spacing: tuple[float, ...], **arguments) -> list[float]:
    return [
        brute_force(np.asarray(y_pred[value]), np.asarray(y[value]), spacing, **arguments)
        for value in range(1, CLASSES)
    ]


class TestPictures(unittest.TestCase):
    @parameterized.expand([(1.0,), (0.25,)])
    def test_pixels_of_the_file(self, side):
        """Masks of a picture; resized, with pixels that are a part of the file's."""
        masks = np.zeros((2, 2, 30, 40), np.float32)
        masks[0, 1, 4:11, 5:20] = masks[1, 1, 6:18, 9:21] = 1
        masks[:, 0] = 1 - masks[:, 1]
        affine = torch.diag(torch.tensor([side, side, 1.0, 1.0]))
        y_pred, y = (MetaTensor(mask, affine=affine) for mask in masks)
        expected = brute_force(masks[0, 1], masks[1, 1], (side, side), percentile=95)
        metric = HausdorffDistanceMm(percentile=95)
        self.assertAlmostEqual(metric([y_pred], [y]).item(), expected, places=5)


class TestHausdorffDistanceMm(unittest.TestCase):
    @parameterized.expand(
        [
            (seed, name, affine, spacing)
            for seed in range(3)
            for name, affine, spacing in (
                ("diagonal", DIAGONAL, SPACING),
                ("oblique", OBLIQUE, (1.0, 2.0, 0.5)),
                ("isotropic", ISOTROPIC, (3.0, 3.0, 3.0)),
            )
        ]
    )
    def test_equals_brute_force(self, seed, _, affine, spacing):
        y_pred, y = one_hot(seed), one_hot(seed + 100, affine)
        metric = HausdorffDistanceMm()
        result = metric([y_pred], [y])
        expected = expected_distances(y_pred, y, spacing)
        np.testing.assert_allclose(np.asarray(result), [expected], rtol=1e-5)
        self.assertAlmostEqual(metric.aggregate().item(), np.mean(expected), places=4)

    def test_percentile(self):
        y_pred, y = one_hot(1), one_hot(101)
        result = HausdorffDistanceMm(percentile=95)([y_pred], [y])
        expected = expected_distances(y_pred, y, SPACING, percentile=95)
        np.testing.assert_allclose(np.asarray(result), [expected], rtol=1e-5)

    @parameterized.expand([("list",), ("batch",)])
    def test_each_item_has_its_own_spacing(self, kind):
        affines, spacings = (DIAGONAL, ISOTROPIC), (SPACING, (3.0, 3.0, 3.0))
        y_pred, y = [one_hot(1), one_hot(2)], [one_hot(101 + i, affine) for i, affine in enumerate(affines)]
        expected = [expected_distances(*item) for item in zip(y_pred, y, spacings, strict=True)]
        if kind == "batch":
            y_pred, y = (list_data_collate([{"x": item} for item in items])["x"] for items in (y_pred, y))
        metric = HausdorffDistanceMm(reduction="mean_batch")
        np.testing.assert_allclose(np.asarray(metric(y_pred, y)), expected, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(metric.aggregate()), np.mean(expected, axis=0), rtol=1e-5)

    def test_identical_masks(self):
        y = one_hot(1)
        self.assertEqual(HausdorffDistanceMm()([y], [y]).tolist(), [[0, 0]])

    @parameterized.expand([("y_pred",), ("y",), ("both",)])
    def test_empty_mask(self, empty):
        y_pred, y = one_hot(1), one_hot(101)
        expected = expected_distances(y_pred, y, SPACING)[1]
        if empty != "y":
            y_pred[1] = 0
        if empty != "y_pred":
            y[1] = 0
        metric = HausdorffDistanceMm(reduction="mean_batch", get_not_nans=True)
        metric([y_pred], [y])
        for _ in range(2):  # aggregating changes nothing
            distance, count = metric.aggregate()
            if empty in ("y_pred", "y"):
                self.assertAlmostEqual(distance[0].item(), DIAGONAL_MM, places=4)
            else:
                self.assertTrue(math.isnan(distance[0]))
            self.assertAlmostEqual(distance[1].item(), expected, places=4)
            self.assertEqual(count.tolist(), [empty in ("y_pred", "y"), 1])

    def test_missed_mask_counts_as_the_diagonal(self):
        y_pred, y = [one_hot(1), one_hot(2)], [one_hot(101), one_hot(102)]
        expected = [expected_distances(*item, SPACING) for item in zip(y_pred, y, strict=True)]
        y_pred[0][2] = 0
        metric = HausdorffDistanceMm()
        metric(y_pred, y)
        expected[0][1] = DIAGONAL_MM
        np.testing.assert_allclose(metric.aggregate("mean_batch"), np.mean(expected, 0), rtol=1e-5)
        np.testing.assert_allclose(metric.aggregate("none"), expected, rtol=1e-5)
        self.assertAlmostEqual(metric.aggregate().item(), np.mean(expected), places=4)

    def test_nothing_left_is_nan(self):
        y_pred, y = one_hot(1), one_hot(101)
        y_pred[1:] = 0
        y[1:] = 0
        metric = HausdorffDistanceMm()
        metric([y_pred], [y])
        self.assertTrue(math.isnan(metric.aggregate()))

    def test_label_map_without_affine(self):
        y = one_hot(1)
        for bad in (None, [], [y.as_tensor()], [y, y.as_tensor()], y.as_tensor()[None]):
            with self.assertRaisesRegex(TypeError, "^y must be label maps with an affine"):
                HausdorffDistanceMm()([y, y], bad)


if __name__ == "__main__":
    unittest.main()
