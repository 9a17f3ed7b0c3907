# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
from parameterized import parameterized
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from monai_dvpt.metrics import calibration_scores, reliability_bins


def predictions(count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities that are too sure, the grades nearest to the expected ones, and labels."""
    generator = np.random.default_rng(0)
    truth = generator.dirichlet(np.ones(5), count)
    label = np.array([generator.choice(5, p=row) for row in truth])
    probability = truth**2 / (truth**2).sum(axis=1, keepdims=True)
    return probability, (probability @ np.arange(5)).round().astype(int), label


class TestCalibrationScores(unittest.TestCase):
    @parameterized.expand([(15, False), (15, True), (4, False), (7, True)])
    def test_bins_are_those_of_scikit_learn(self, num_bins, adaptive):
        probability, grade, label = predictions(402)  # no edge lies on a case
        confidence, right = probability[range(402), grade], grade == label
        sure, share, counts = reliability_bins(confidence, right, num_bins, adaptive)
        strategy = "quantile" if adaptive else "uniform"
        expected = calibration_curve(right, confidence, n_bins=num_bins, strategy=strategy)
        np.testing.assert_allclose((share, sure), expected)
        self.assertEqual(counts.sum(), 402)
        if adaptive:
            self.assertLessEqual(np.ptp(counts), 1)

    @parameterized.expand([("ece", False), ("adaptive_ece", True)])
    def test_error_by_the_definition(self, name, adaptive):
        probability, grade, label = predictions()
        confidence, right = probability[range(400), grade], grade == label
        order = np.argsort(confidence)
        equally_many = np.array_split(order, 10)
        equally_wide = [np.flatnonzero(np.ceil(confidence * 10).clip(1) == each) for each in range(1, 11)]
        total = sum(
            abs(confidence[rows].sum() - right[rows].sum()) for rows in (equally_many if adaptive else equally_wide)
        )
        found = calibration_scores(probability, grade, label, num_bins=10)[name]
        self.assertAlmostEqual(found, total / 400, places=9)
        self.assertGreater(found, 0.05)

    def test_brier_score(self):
        probability, grade, label = predictions()
        expected = brier_score_loss(label, probability, labels=range(5), scale_by_half=False)
        self.assertAlmostEqual(calibration_scores(probability, grade, label)["brier"], expected)

    def test_perfect(self):
        label = np.array([0, 2, 1])
        self.assertEqual(set(calibration_scores(np.eye(3)[label], label, label).values()), {0.0})

    def test_equal_confidences_share_a_bin(self):
        sure, share, counts = reliability_bins([0.5] * 6 + [0.8] * 2, [1, 0] * 4, num_bins=4, adaptive=True)
        self.assertEqual((sure.tolist(), share.tolist(), counts.tolist()), ([0.5, 0.8], [0.5, 0.5], [6, 2]))

    @parameterized.expand(
        [
            ("bins", ([0.5], [1], 0), "num_bins must be"),
            ("shapes", ([0.5], [1, 0]), "right must have the shape"),
            ("nothing", ([], []), "N at least 1"),
            ("range", ([0.5, 1.5], [1, 0]), r"confidence must be in \[0, 1\], got 0.5 to 1.5"),
        ]
    )
    def test_bad_arguments(self, _, arguments, why):
        with self.assertRaisesRegex(ValueError, why):
            reliability_bins(*arguments)


if __name__ == "__main__":
    unittest.main()
