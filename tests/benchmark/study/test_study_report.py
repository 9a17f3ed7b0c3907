# SPDX-License-Identifier: Apache-2.0
"""The written report of a study."""

from __future__ import annotations

import math
import unittest

from utils_data import temporary_folder

from monai_dvpt.benchmark.study.intervals import Difference, Interval, Scores
from monai_dvpt.benchmark.study.study_report import write_report


def row(method: str, fraction: float, fold: int, seed: int, score: float) -> dict:
    return {
        **{"kind": "final", "method": method, "fraction": fraction, "fold": fold, "seed": seed, "score": score},
        **{"metric": "val_kappa", "training_cases": int(100 * fraction), "scored_cases": 40},
        **{"encoder_parameters": 0 if method == "linear" else 26052, "head_parameters": 4632},
        **{"encoder_rate": 1e-3, "head_rate": 2e-3, "seconds": 12.5, "peak_memory_mib": 900},
    }


class TestReport(unittest.TestCase):
    def test_report_has_a_line_for_every_method_and_fraction_and_three_plots(self):
        folder = temporary_folder(self)
        rows = [
            row(method, fraction, 0, seed, 0.5 + 0.1 * fraction + 0.01 * seed)
            for method in ("full", "dvpt", "linear")
            for fraction in (0.2, 1.0)
            for seed in (0, 1)
        ]
        trials = [{**row("full", 1.0, 0, 0, score), "kind": "trial"} for score in (0.31, 0.42)]
        groups = [(method, fraction) for method in ("full", "dvpt", "linear") for fraction in (0.2, 1.0)]
        interval = Interval(0.605, 0.541, 0.669)
        differences = {group: Difference(Interval(-0.01, -0.02, 0.015), 0.34) for group in groups[:1] + groups[2:]}
        scores = Scores(
            {**dict.fromkeys(groups, interval), ("linear", 0.2): Interval(0.5, math.nan, math.nan)}, differences
        )
        text = write_report(rows, trials, scores, "full", folder, ["how it was made"]).read_text()
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        self.assertEqual(len(lines), 1 + 6 + 1 + 3)
        self.assertIn("| full | 0 | 0.001 | 0.002 | 0.420, 0.310 |", lines)
        self.assertIn("how it was made", text)
        self.assertIn("| full | 100% | 100 | 2 | 0.605 (0.541 to 0.669) |  | 26,052 | 4,632 |", text)
        self.assertIn("| 0.605 (0.541 to 0.669) | -0.010 (-0.020 to 0.015), p 0.340 |", text)
        self.assertIn("| linear | 20% | 20 | 2 | 0.500 |", text)
        self.assertIn("2,000 resamples of the patients", text)
        for name in ("labels", "parameters", "cost"):
            self.assertTrue((folder / f"score_by_{name}.png").read_bytes().startswith(b"\x89PNG"))
