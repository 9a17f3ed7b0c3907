# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import doctest
import math
import re
import time
import unittest
import warnings

import numpy as np
import yaml
from monai.bundle import ConfigParser
from parameterized import parameterized
from scipy.stats import bootstrap, kstest
from sklearn.metrics import cohen_kappa_score
from utils_data import ROOT, shared_data

from monai_dvpt.metrics import compare_kappa, compute_cohen_kappa, kappa_interval

CLASSES = 4
AGREEMENT = 0.6


def readings(seed: int, cases: int, agreement: float = AGREEMENT, outputs: tuple = ()) -> tuple[np.ndarray, np.ndarray]:
    """The reader's classes are uniform; the model repeats them with probability ``agreement``, else it guesses."""
    generator = np.random.default_rng(seed)
    y, guess = generator.integers(0, CLASSES, (2, cases, *outputs))
    return np.where(generator.random(y.shape) < agreement, y, guess), y


class TestKappaInterval(unittest.TestCase):
    def test_equals_scipy(self):
        """Of single cases, to the noise of drawing."""
        y_pred, y = readings(0, 80)

        def kappa(y_pred, y):
            return cohen_kappa_score(y_pred, y, weights="quadratic", labels=range(CLASSES))

        expected = bootstrap(
            (y_pred, y), kappa, paired=True, vectorized=False, n_resamples=1500, method="percentile", rng=1
        ).confidence_interval
        found = kappa_interval(y_pred, y, CLASSES, resamples=20000)
        self.assertEqual(found.kappa, compute_cohen_kappa(y_pred, y, CLASSES).item())
        np.testing.assert_allclose(found[1:], expected, atol=0.015)

    @parameterized.expand([("quadratic", 0.95, 100, 0.94), ("none", 0.8, 100, 0.8), ("quadratic", 0.95, 20, 0.88)])
    def test_covers_the_population(self, weights, confidence, cases, expected):
        """Its kappa is ``AGREEMENT`` with every weighting; with few cases the interval is known to be too narrow."""
        covered = 0
        for seed in range(300):
            _, low, high = kappa_interval(
                *readings(seed, cases), CLASSES, weights, confidence=confidence, resamples=500, seed=seed
            )
            covered += low <= AGREEMENT <= high
        self.assertAlmostEqual(covered / 300, expected, delta=0.04)

    def test_covers_where_the_cases_of_a_patient_are_alike(self):
        """Intervals over patients do, those over cases do not."""
        repetitions, covered = 200, np.zeros(2)
        patients = np.repeat(np.arange(60), 4)
        for seed in range(repetitions):
            y_pred, y = (np.repeat(labels, 4) for labels in readings(seed, 60))
            for index, names in enumerate((patients, None)):
                _, low, high = kappa_interval(y_pred, y, CLASSES, patients=names, resamples=400, seed=seed)
                covered[index] += low <= AGREEMENT <= high
        by_patient, by_case = covered / repetitions
        self.assertGreater(by_patient, 0.9)
        self.assertLess(by_case, 0.75)

    def test_copies_of_a_case_change_nothing(self):
        """Patients may be named, and come in any order."""
        y_pred, y = readings(1, 50)
        once = kappa_interval(y_pred, y, CLASSES)
        order = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 3))
        names = [f"patient {index:02}" for index in order]
        np.testing.assert_allclose(kappa_interval(y_pred[order], y[order], CLASSES, patients=names), once, rtol=1e-12)
        by_case = kappa_interval(y_pred[order], y[order], CLASSES)
        self.assertAlmostEqual((once.high - once.low) / (by_case.high - by_case.low), math.sqrt(3), delta=0.2)

    @parameterized.expand(["pooled", "mean"])
    def test_outputs_of_a_case_stay_together(self, reduction):
        """Six copies of one output are one output."""
        y_pred, y = readings(2, 60)
        six = [np.repeat(labels[:, None], 6, axis=1) for labels in (y_pred, y)]
        found = kappa_interval(*six, CLASSES, reduction=reduction)
        np.testing.assert_allclose(found, kappa_interval(y_pred, y, CLASSES), rtol=1e-12)

    def test_missing_labels_and_patients(self):
        y_pred, y = readings(3, 60, outputs=(2,))
        y[::3] = -1
        y[1, 0] = -1
        found = kappa_interval(y_pred, y, CLASSES)
        keep = (y != -1).any(axis=1)
        self.assertEqual(found, kappa_interval(y_pred[keep], y[keep], CLASSES))
        self.assertEqual(found.kappa, compute_cohen_kappa(y_pred, y, CLASSES).item())

    def test_seed(self):
        labels = readings(4, 50)
        self.assertEqual(kappa_interval(*labels, CLASSES), kappa_interval(*labels, CLASSES))
        self.assertNotEqual(kappa_interval(*labels, CLASSES), kappa_interval(*labels, CLASSES, seed=1))

    def test_undefined_resamples_are_left_out(self):
        """One case alone has another class: without it kappa is undefined."""
        y_pred, y = [0, 0, 0, 1], [0, 0, 0, 1]
        with warnings.catch_warnings(record=True) as caught:  # assertWarns would import all that is lazy
            warnings.simplefilter("always")
            found = kappa_interval(y_pred, y, 2)
        (warned,) = (each for each in caught if "of 2000 resamples" in str(each.message))
        self.assertEqual(found, (1, 1, 1))
        self.assertEqual(warned.filename, __file__)
        left_out = int(re.search(r"undefined in (\d+) of", str(warned.message))[1])
        self.assertAlmostEqual(left_out / 2000, (3 / 4) ** 4 + (1 / 4) ** 4, delta=0.03)

    def test_undefined_kappa(self):
        self.assertTrue(np.isnan(kappa_interval([1, 1, 1], [1, 1, 1], CLASSES)).all())

    def test_two_human_readers(self):
        with open(shared_data("brixia_cxr") / "annotations.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        senior, junior = ([[int(row[f"{kind}-{zone}"]) for zone in "ABCDEF"] for row in rows] for kind in "SJ")
        patients = [row["filename"].rpartition(".")[0].partition("_")[0] for row in rows]
        found = kappa_interval(junior, senior, 4, patients=patients)
        np.testing.assert_allclose(found, (0.789, 0.747, 0.822), atol=0.005)

    @parameterized.expand(
        [
            ("one patient", {"patients": ["a", "a", "a"]}, r"patients must be at least 2 .* got 1\."),
            ("one patient with labels", {"y": [-1, 0, -1]}, r"patients must be at least 2 .* got 1\."),
            ("names", {"patients": ["a", "b"]}, r"one name for each of the 3 cases, got the shape \(2,\)\."),
            ("missing name", {"patients": ["a", None, "b"]}, r"patients must name the patient of every case"),
            ("missing number", {"patients": [1, math.nan, 2]}, r"patients must name the patient of every case"),
            ("nothing", {"y": [-1, -1, -1]}, r"y must hold at least one class"),
            ("class", {"y_pred": [0, 1, 4]}, r"y_pred must hold whole numbers in \[0, num_classes=4\), got 4\."),
            ("confidence", {"confidence": 95}, r"confidence must be in \(0, 1\), got 95\."),
            ("resamples", {"resamples": 0}, r"resamples must be a whole number of at least 1, got 0\."),
            ("reduction", {"reduction": "none"}, r"reduction must be one of pooled, mean, got none\."),
            ("weights", {"weights": "cubic"}, r"weights must be none, linear or quadratic, got cubic\."),
        ]
    )
    def test_refused(self, _, change, message):
        arguments = {"y_pred": [0, 1, 2], "y": [0, 1, 1], "num_classes": CLASSES, **change}
        with self.assertRaisesRegex(ValueError, message):
            kappa_interval(**arguments)
        given = arguments.pop("y_pred")
        with self.assertRaisesRegex(ValueError, message):
            compare_kappa(given, given, **arguments)


class TestCompareKappa(unittest.TestCase):
    def two_models(self, seed: int, patients: int, agreements: tuple[float, float], per_patient: int = 1):
        """Predictions of two models and the labels, the same for all cases of a patient."""
        generator = np.random.default_rng(seed)
        y = generator.integers(0, CLASSES, patients)
        guesses = generator.integers(0, CLASSES, (2, patients))
        models = [
            np.where(generator.random(patients) < p, y, guess) for p, guess in zip(agreements, guesses, strict=True)
        ]
        return [np.repeat(labels, per_patient) for labels in (*models, y)]

    def test_equal_models_give_uniform_p_values(self):
        """Also where the cases of a patient are alike, if the patients are named."""
        names = np.repeat(np.arange(50), 3)
        p_values = [
            compare_kappa(
                *self.two_models(seed, 50, (0.6, 0.6), 3), CLASSES, patients=names, resamples=300, seed=seed
            ).p_value
            for seed in range(300)
        ]
        self.assertGreater(kstest(p_values, "uniform").pvalue, 0.01)
        self.assertAlmostEqual(np.mean(np.array(p_values) <= 0.05), 0.05, delta=0.03)

    def test_strong_difference(self):
        a, b, y = self.two_models(0, 100, (0.9, 0.3))
        found = compare_kappa(a, b, y, CLASSES)
        self.assertEqual(found.kappa_a, compute_cohen_kappa(a, y, CLASSES).item())
        self.assertEqual(found.kappa_b, compute_cohen_kappa(b, y, CLASSES).item())
        self.assertEqual(found.difference, found.kappa_a - found.kappa_b)
        self.assertTrue(0 < found.low < found.difference < found.high)
        self.assertLess(found.p_value, 0.001)
        other = compare_kappa(b, a, y, CLASSES)
        np.testing.assert_allclose((other.low, other.high), (-found.high, -found.low), rtol=1e-9)
        self.assertLess(other.p_value, 0.001)

    def test_interval_of_the_difference_covers_the_population(self):
        covered = 0
        for seed in range(200):
            found = compare_kappa(*self.two_models(seed, 100, (0.7, 0.5)), CLASSES, resamples=300, seed=seed)
            covered += found.low <= 0.2 <= found.high
        self.assertAlmostEqual(covered / 200, 0.95, delta=0.04)

    def test_all_swaps_of_few_patients(self):
        """Three patients: the differences of all eight swaps, one by one, judged by scikit-learn."""
        y = np.array([0, 1, 2, 3, 1, 2])
        a, b = np.array([0, 1, 2, 2, 1, 2]), np.array([1, 1, 3, 0, 2, 2])
        patients = np.array([0, 0, 1, 1, 2, 2])
        differences = []
        for swap in np.ndindex(2, 2, 2):
            swapped = np.array(swap)[patients] == 1
            pair = np.where(swapped, b, a), np.where(swapped, a, b)
            kappas = [cohen_kappa_score(y_pred, y, weights="quadratic") for y_pred in pair]
            differences.append(kappas[0] - kappas[1])
        found = compare_kappa(a, b, y, CLASSES, patients=patients)
        self.assertAlmostEqual(found.difference, differences[0], places=12)
        self.assertAlmostEqual(found.p_value, np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12), places=12)

    def test_same_predictions(self):
        a, _, y = self.two_models(1, 40, (0.6, 0.6))
        found = compare_kappa(a, a, y, CLASSES)
        self.assertEqual(found[2:], (0, 0, 0, 1))

    @parameterized.expand(["pooled", "mean"])
    def test_outputs(self, reduction):
        """Two outputs with their own kappas."""
        first, second = (self.two_models(seed, 80, (0.9, 0.3)) for seed in (2, 3))
        a, b, y = (np.stack(pair, axis=1) for pair in zip(first, second, strict=True))
        found = compare_kappa(a, b, y, CLASSES, reduction=reduction)
        self.assertEqual(found.kappa_a, compute_cohen_kappa(a, y, CLASSES, reduction=reduction).item())
        self.assertLess(found.p_value, 0.01)

    def test_reader_with_one_class(self):
        """Where both models repeat it too kappa is undefined; where only one does, for that one."""
        y, other = [1] * 5, [1, 1, 0, 1, 2]
        self.assertTrue(np.isnan(compare_kappa(y, y, y, CLASSES)).all())
        found = compare_kappa(other, y, y, CLASSES)
        self.assertEqual(found.kappa_a, 0)
        self.assertTrue(np.isnan(found[1:]).all())

    def test_fast(self):
        """10,000 drawings and swaps of 200 patients."""
        a, b, y = self.two_models(4, 200, (0.7, 0.6))
        started = time.process_time()
        compare_kappa(a, b, y, CLASSES, resamples=10000)
        self.assertLess(time.process_time() - started, 3)

    def test_other_predictions_must_fit_too(self):
        with self.assertRaisesRegex(ValueError, r"y_pred must hold whole numbers .* got 5\."):
            compare_kappa([0, 1], [0, 5], [0, 1], CLASSES)


class TestHowTo(unittest.TestCase):
    def blocks(self, language: str) -> list[str]:
        page = (ROOT / "docs" / "how-to" / "compare_models_with_kappa.md").read_text(encoding="utf-8")
        return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)

    def test_config(self):
        parser = ConfigParser(yaml.safe_load(self.blocks("yaml")[0]))
        self.assertEqual(parser.get_parsed_content("kappa").metric_fn.num_classes, 4)

    def test_example(self):
        source = "\n".join(self.blocks("python"))
        test = doctest.DocTestParser().get_doctest(source, {}, "compare_models_with_kappa.md", None, 0)
        result = doctest.DocTestRunner().run(test)
        self.assertEqual((result.failed, result.attempted), (0, len(test.examples)))
        self.assertGreater(result.attempted, 5)


if __name__ == "__main__":
    unittest.main()
