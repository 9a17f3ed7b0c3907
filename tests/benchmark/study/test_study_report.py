# SPDX-License-Identifier: Apache-2.0
"""Intervals, paired differences and the written report of a study."""

from __future__ import annotations

import math
import unittest

import numpy as np
from scipy import stats
from utils_data import temporary_folder

from monai_dvpt.benchmark.study.study_report import mean_interval, paired_differences, scores_of, write_report


def row(method: str, fraction: float, fold: int, seed: int, score: float) -> dict:
    return {
        **{"kind": "final", "method": method, "fraction": fraction, "fold": fold, "seed": seed, "score": score},
        **{"metric": "val_kappa", "training_cases": int(100 * fraction), "scored_cases": 40},
        **{"encoder_parameters": 0 if method == "linear" else 26052, "head_parameters": 4632},
        **{"encoder_rate": 1e-3, "head_rate": 2e-3, "seconds": 12.5, "peak_memory_mib": 900},
    }


class TestReport(unittest.TestCase):
    def test_interval_is_students(self):
        values = [0.50, 0.55, 0.63, 0.61]
        low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
        np.testing.assert_allclose(mean_interval(values), (np.mean(values), low, high), rtol=1e-12)

    def test_one_value_has_no_interval(self):
        interval = mean_interval([0.5])
        self.assertEqual((interval.mean, str(interval)), (0.5, "0.500"))
        self.assertTrue(math.isnan(interval.low))

    def test_differences_are_paired_by_fold_and_seed(self):
        rows = [row("full", 1.0, 0, seed, score) for seed, score in enumerate((0.4, 0.6, 0.8))]
        rows += [row("dvpt", 1.0, 0, seed, score) for seed, score in enumerate((0.41, 0.62, 0.83))]
        rows += [row("dvpt", 1.0, 1, 0, 0.9), row("full", 0.5, 0, 1, 0.5)]  # the first has no partner
        differences = paired_differences(rows, "full")
        self.assertAlmostEqual(differences["dvpt", 1.0].mean, 0.02)
        np.testing.assert_allclose(differences["dvpt", 1.0], mean_interval([0.01, 0.02, 0.03]), atol=1e-9)
        self.assertAlmostEqual(differences["full", 0.5].mean, -0.1)
        self.assertEqual(set(differences), {("dvpt", 1.0), ("full", 0.5)})

    def test_seeds_of_a_fold_count_as_one_value(self):
        rows = [row("dvpt", 1.0, fold, seed, 0.5 + 0.1 * fold + 0.02 * seed) for fold in (0, 1) for seed in (0, 1)]
        np.testing.assert_allclose(scores_of(rows), [0.51, 0.61])
        np.testing.assert_allclose(scores_of(rows[:2]), [0.50, 0.52])
        rows += [row("full", 1.0, fold, seed, 0.5) for fold in (0, 1) for seed in (0, 1)]
        np.testing.assert_allclose(
            paired_differences(rows, "full")["dvpt", 1.0], mean_interval([0.01, 0.11]), atol=1e-9
        )

    def test_report_has_a_line_for_every_method_and_fraction_and_three_plots(self):
        folder = temporary_folder(self)
        rows = [
            row(method, fraction, 0, seed, 0.5 + 0.1 * fraction + 0.01 * seed)
            for method in ("full", "dvpt", "linear")
            for fraction in (0.2, 1.0)
            for seed in (0, 1)
        ]
        trials = [{**row("full", 1.0, 0, 0, score), "kind": "trial"} for score in (0.31, 0.42)]
        text = write_report(rows, trials, "full", folder, ["how it was made"]).read_text()
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        self.assertEqual(len(lines), 1 + 6 + 1 + 3)
        self.assertIn("| full | 0 | 0.001 | 0.002 | 0.420, 0.310 |", lines)
        self.assertIn("how it was made", text)
        self.assertIn("| full | 100% | 100 | 2 | 0.605 (0.541 to 0.669) |  | 26,052 | 4,632 |", text)
        for name in ("labels", "parameters", "cost"):
            self.assertTrue((folder / f"score_by_{name}.png").read_bytes().startswith(b"\x89PNG"))
