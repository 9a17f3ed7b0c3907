# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests over patients and seeds: against scikit-learn, by hand, and in the limits that are known."""

from __future__ import annotations

import math
import unittest
from itertools import product

import numpy as np
import torch
from monai.metrics import DiceMetric
from scipy.stats import norm
from sklearn.metrics import cohen_kappa_score

from monai_dvpt.benchmark.study.intervals import Run, compare_runs, correct_by_holm
from monai_dvpt.metrics import CohenKappaMetric
from monai_dvpt.utils import InputError

REFERENCE = ("full", 1.0)


def dice_runs(values: dict[tuple[str, int, int], np.ndarray], patients) -> list[Run]:
    """Runs of methods, folds and seeds whose cases have these scores, one class each, and for a fold these patients."""
    return [
        Run((method, 1.0), fold, seed, float(np.mean(scores)), [torch.as_tensor(scores)[:, None]], patients[fold])
        for (method, fold, seed), scores in values.items()
    ]


def compare(values, patients, resamples=2000):
    return compare_runs(dice_runs(values, patients), DiceMetric(), REFERENCE, resamples)


class TestCompareRuns(unittest.TestCase):
    def setUp(self):
        self.random = np.random.default_rng(5)

    def test_one_seed_is_the_mean_of_the_cases(self):
        """The bootstrap of a mean has about the limits of the normal distribution."""
        scores = self.random.normal(0.7, 0.1, 400)
        found = compare({("full", 0, 0): scores}, [range(400)]).intervals[REFERENCE]
        half = norm.ppf(0.975) * scores.std() / math.sqrt(400)
        np.testing.assert_allclose(found, (scores.mean(), scores.mean() - half, scores.mean() + half), atol=8e-4)

    def test_patients_are_drawn_whole(self):
        """Ten equal cases of each patient tell no more than one of each."""
        scores = self.random.normal(0.7, 0.1, 40)
        once = compare({("full", 0, 0): scores}, [range(40)]).intervals[REFERENCE]
        many = {("full", 0, 0): np.repeat(scores, 10)}
        whole = compare(many, [np.repeat(range(40), 10).tolist()]).intervals[REFERENCE]
        apart = compare(many, [range(400)]).intervals[REFERENCE]
        np.testing.assert_allclose(whole, once, atol=1e-9)
        self.assertLess(apart.high - apart.low, 0.5 * (whole.high - whole.low))

    def test_seeds_are_drawn(self):
        """Cases without any spread leave that of the seeds: with two, the mean of both or either alone."""
        values = {("full", 0, seed): np.full(30, score) for seed, score in ((3, 0.4), (8, 0.6))}
        found = compare(values, [range(30)]).intervals[REFERENCE]
        np.testing.assert_allclose(found, (0.5, 0.4, 0.6))

    def test_differences_are_paired(self):
        """What all methods share of a patient, a fold or a seed has no part in a difference."""
        values = {}
        for fold, seed in product(range(2), range(3)):
            shared = self.random.normal(0.1 * seed + 0.2 * fold, 0.3, 50)
            values["full", fold, seed] = shared
            values["dvpt", fold, seed] = shared + 0.01
        scores = compare(values, [range(50), range(50)])
        difference = scores.differences["dvpt", 1.0]
        np.testing.assert_allclose(difference.interval, (0.01, 0.01, 0.01), atol=1e-6)
        self.assertEqual(difference.p_value, 2 / 2001)
        self.assertGreater(np.ptp(scores.intervals["dvpt", 1.0][1:]), 0.1)
        self.assertEqual(scores.differences.keys(), {("dvpt", 1.0)})

    def test_p_values_of_no_difference_are_spread(self):
        """Of 200 pairs of methods that do not differ about one in twenty is found to differ."""
        found = 0
        for _ in range(200):
            values = {(method, 0, 0): self.random.normal(0.5, 0.1, 60) for method in ("full", "dvpt")}
            found += compare(values, [range(60)], 199).differences["dvpt", 1.0].p_value < 0.05
        self.assertTrue(2 <= found <= 22, found)

    def test_kappa_of_a_resample(self):
        """Patients who are all alike in their cases: every resample has the kappa of the whole, as scikit-learn's."""
        predicted, read = [0, 1, 2, 2, 1, 3], [0, 2, 2, 1, 1, 3]
        expected = cohen_kappa_score(read, predicted, weights="quadratic")
        buffers = [torch.tensor(classes * 7)[:, None].double() for classes in (predicted, read)]
        patients = np.repeat(range(7), 6).tolist()
        run = Run(REFERENCE, 0, 0, expected, buffers, patients)
        found = compare_runs([run], CohenKappaMetric(4), REFERENCE, 50).intervals[REFERENCE]
        np.testing.assert_allclose(found, [expected] * 3, rtol=1e-6)

    def test_folds_may_be_some_of_all(self):
        values = {(method, fold, 0): self.random.normal(0.5, 0.1, 20) for method in ("full", "dvpt") for fold in (1, 4)}
        found = compare(values, dict.fromkeys((1, 4), range(20)))
        of_each = [compare({("full", fold, 0): values["full", fold, 0]}, {fold: range(20)}) for fold in (1, 4)]
        middle = np.mean([scores.intervals[REFERENCE].mean for scores in of_each])
        self.assertAlmostEqual(found.intervals[REFERENCE].mean, middle)
        self.assertLess(found.intervals[REFERENCE].low, middle)
        self.assertFalse(math.isnan(found.differences["dvpt", 1.0].p_value))

    def test_other_patients_are_refused(self):
        runs = [*dice_runs({("full", 0, 0): np.ones(3)}, ["abc"]), *dice_runs({("dvpt", 0, 0): np.ones(3)}, ["abd"])]
        with self.assertRaisesRegex(InputError, "must have the same patients, got others in fold 0"):
            compare_runs(runs, DiceMetric(), REFERENCE, 5)

    def test_undefined_resamples_are_left_out(self):
        """Where a resample has one class alone its kappa is undefined."""
        buffers = [torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])]
        run = Run(REFERENCE, 0, 0, 1.0, buffers, ["a", "b"])
        found = compare_runs([run], CohenKappaMetric(2), REFERENCE, 100).intervals[REFERENCE]
        self.assertEqual(found, (1.0, 1.0, 1.0))
        run = Run(REFERENCE, 0, 0, 1.0, buffers, ["a", "a"])
        alone = compare_runs([run], CohenKappaMetric(2), REFERENCE, 5).intervals[REFERENCE]
        self.assertEqual(str(alone), "1.000 (1.000 to 1.000)")

    def test_the_metric_is_as_before(self):
        metric = DiceMetric()
        compare_runs(dice_runs({("full", 0, 0): np.ones(3)}, [range(3)]), metric, REFERENCE, 5)
        metric.reset()
        metric.extend(torch.tensor([[0.25], [0.75]]))
        self.assertEqual(float(metric.aggregate()), 0.5)


class TestHolm(unittest.TestCase):
    def test_by_hand(self):
        # the smallest times 4; the next times 3, but not below it; and so on, at most 1
        np.testing.assert_allclose(correct_by_holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
        np.testing.assert_allclose(correct_by_holm([0.6, 0.7]), [1, 1])
        self.assertEqual(correct_by_holm([]), [])
