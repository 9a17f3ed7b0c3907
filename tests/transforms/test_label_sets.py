# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.utils import one_hot
from monai.transforms import AsDiscreted, RandCropByLabelClassesd
from parameterized import parameterized
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from monai_dvpt.metrics import DiceOfLabels, HausdorffDistanceMm
from monai_dvpt.transforms import LabelSetsd

LABELS = ["background", "anterior", "posterior", "tail"]
SETS = [LABELS, ["background", "posterior", "tail"]]
MEMBERS = [{0}, {1}, {2}, {3}, {0, 1, 2, 3}, {0, 2, 3}]  # of each value, written by hand
SPACING = (1.0, 2.0, 0.5)
AFFINE = torch.diag(torch.tensor([*SPACING, 1.0]))


def example(sides: tuple[int, ...], values: int) -> tuple[np.ndarray, np.ndarray]:
    """A label map and label values of a prediction that is mostly right."""
    generator = np.random.default_rng(len(sides))
    truth, noise = generator.integers(values, size=(2, *sides))
    return truth, np.where(generator.random(sides) < 0.7, truth, noise) % len(LABELS)


def prepared(truth: np.ndarray, predicted: np.ndarray, sets: list) -> dict[str, MetaTensor]:
    masks = one_hot(torch.from_numpy(predicted)[None, None], len(LABELS))[0]
    data = {
        "pred": MetaTensor(masks, affine=AFFINE),
        "label": MetaTensor(torch.from_numpy(truth)[None].float(), AFFINE),
    }
    return LabelSetsd("pred", LABELS, sets)(data)


def dice(truth: np.ndarray, predicted: np.ndarray, c: int) -> float:
    """Of the voxels of which is known whether they are of the class; NaN where none is."""
    known = [MEMBERS[v] == {c} or c not in MEMBERS[v] for v in truth.ravel()]
    y, x = truth.ravel()[known] == c, predicted.ravel()[known] == c
    return 2 * (x & y).sum() / (x.sum() + y.sum()) if y.any() else np.nan


class TestLabelSetsd(unittest.TestCase):
    @parameterized.expand([((9, 8),), ((7, 6, 5),)])
    def test_dice_is_that_of_the_known_voxels(self, sides):
        truth, predicted = example(sides, len(MEMBERS))
        data = prepared(truth, predicted, SETS)
        metric = DiceOfLabels(reduction="mean_batch")
        metric([data["pred"]], [data["label"]])
        expected = [dice(truth, predicted, c) for c in range(len(LABELS))]
        np.testing.assert_allclose(metric.aggregate(), expected, rtol=1e-6)

    def test_class_of_which_nothing_was_drawn(self):
        """Only the anterior part was drawn in the first case: the second alone scores the others."""
        truths, predictions = zip(*[example((6, 5, 4), len(LABELS)), example((5, 6, 4), len(LABELS))], strict=True)
        truths = [np.where(truths[0] == 1, 1, 5), truths[1]]
        cases = [prepared(*pair, SETS) for pair in zip(truths, predictions, strict=True)]
        metric = DiceOfLabels(include_background=False, reduction="mean_batch", get_not_nans=True)
        metric([case["pred"] for case in cases], [case["label"] for case in cases])
        score, count = metric.aggregate()
        scores = np.array([[dice(*pair, c) for c in (1, 2, 3)] for pair in zip(truths, predictions, strict=True)])
        self.assertEqual(np.isnan(scores).tolist(), [[False, True, True], [False] * 3])
        np.testing.assert_allclose(score, np.nanmean(scores, axis=0), rtol=1e-6)
        self.assertEqual(count.tolist(), [2, 1, 1])

    def test_distance_of_classes_that_are_wholly_known(self):
        truth, predicted = np.zeros((2, 8, 9, 10), dtype=int)
        truth[1:5, 2:7, 3:6], predicted[2:7, 3:7, 1:6] = 1, 1
        predicted[6, 7, 7:] = 2
        truth[truth == 0] = 5
        data = prepared(truth, predicted, SETS)
        metric = HausdorffDistanceMm(percentile=95, reduction="mean_batch")
        metric([data["pred"]], [data["label"]])
        surfaces = [np.argwhere(mask & ~binary_erosion(mask)) * SPACING for mask in (predicted == 1, truth == 1)]
        pairs = cdist(*surfaces)
        expected = max(np.percentile(pairs.min(axis=axis), 95) for axis in (0, 1))
        np.testing.assert_allclose(metric.aggregate(), [expected, np.nan, np.nan], rtol=1e-5)

    @parameterized.expand([(True, [0, 1, 2, 3]), (False, [1, 2, 3])])
    def test_distance_where_slices_were_drawn(self, include_background, classes):
        truth, predicted = example((6, 5, 4), len(LABELS))
        truth[:, :, ::2] = 4
        data = prepared(truth, predicted, SETS)
        metric = HausdorffDistanceMm(include_background, reduction="mean_batch")
        metric([data["pred"]], [data["label"]])
        self.assertTrue(torch.isnan(metric.aggregate()).all())
        self.assertEqual(len(metric.aggregate()), len(classes))

    @parameterized.expand([((9, 8),), ((7, 6, 5),)])
    def test_without_sets_as_monai(self, sides):
        truth, predicted = example(sides, len(LABELS))
        data = prepared(truth, predicted, [])
        logits = torch.from_numpy(np.stack([predicted == c for c in range(len(LABELS))]) * 3.0)
        batch = {"pred": logits, "label": MetaTensor(torch.from_numpy(truth)[None].float(), affine=AFFINE)}
        expected = AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=len(LABELS))(batch)
        for key in ("pred", "label"):
            np.testing.assert_array_equal(data[key], expected[key])
            self.assertEqual(data[key].dtype, expected[key].dtype)
        self.assertTrue(torch.equal(data["label"].affine, AFFINE))

    def test_given_tensors_stay_as_they_are(self):
        label = MetaTensor(torch.tensor([[[4.0, 1.0]]]))
        masks = torch.ones(4, 1, 2)
        data = {"pred": masks, "label": label, "name": "a"}
        after = LabelSetsd("pred", LABELS, SETS)(data)
        self.assertEqual(after["name"], "a")
        self.assertEqual((label.tolist(), masks.sum().item()), ([[[4, 1]]], 8))
        self.assertNotIn("classes_with_unknown_voxels", label.meta)
        with self.assertRaisesRegex(ValueError, r"pred must have the shape \(4, 1, 2\), got \(3, 1, 2\)"):
            LabelSetsd("pred", LABELS, SETS)({**data, "pred": masks[:3]})


class TestOtherTransforms(unittest.TestCase):
    def test_crops_about_no_voxel_of_a_set(self):
        """MONAI looks only for the values below ``num_classes``."""
        label = np.full((1, 9, 9, 9), 4.0)
        label[0, 2, 3, 4], label[0, 6, 5, 3] = 1, 2
        crop = RandCropByLabelClassesd(["label"], "label", [3, 3, 3], num_classes=4, num_samples=30, warn=False)
        crop.set_random_state(0)
        centres = {float(sample["label"][0, 1, 1, 1]) for sample in crop({"label": torch.from_numpy(label)})}
        self.assertEqual(centres, {1.0, 2.0})


if __name__ == "__main__":
    unittest.main()
