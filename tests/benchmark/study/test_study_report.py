# SPDX-License-Identifier: Apache-2.0
"""The written report of a study."""

from __future__ import annotations

import math
import unittest

import numpy as np
import torch
from monai.metrics import DiceMetric
from utils_data import temporary_folder

from monai_dvpt.benchmark.study.intervals import Difference, Interval, Run, Scores, compare_runs
from monai_dvpt.benchmark.study.study_report import write_report


def row(method: str, fraction: float, fold: int, seed: int, score: float) -> dict:
    return {
        **{"kind": "final", "method": method, "fraction": fraction, "fold": fold, "seed": seed, "score": score},
        **{"metric": "val_kappa", "training_cases": int(100 * fraction), "scored_cases": 40},
        **{"encoder_parameters": 0 if method == "linear" else 26052, "head_parameters": 4632},
        **{"encoder_rate": 1e-3, "head_rate": 2e-3, "weight_decay": 0.03, "layer_decay": 0.8},
        **{"seconds": 12.5, "peak_memory_mib": 900},
    }


def trial(method: str, score: float, **settings) -> dict:
    return {**row(method, 1.0, settings.pop("fold", 0), 0, score), "kind": "trial", **settings}


def trials_around(method: str, fold: int = 0) -> list[dict]:
    """A best trial between two others in every setting."""
    names = ("encoder_rate", "head_rate", "weight_decay", "layer_decay")
    middle = row(method, 1.0, fold, 0, 0.42)
    sides = [{name: middle[name] * factor for name in names} for factor in (0.5, 1.2)]
    return [trial(method, 0.42, fold=fold), *(trial(method, 0.31, fold=fold, **side) for side in sides)]


class TestReport(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def report(self, methods=("full", "dvpt", "linear", "pixels"), trials=None, **intervals) -> str:
        rows = [
            row(method, fraction, 0, seed, 0.5 + 0.1 * fraction + 0.01 * seed)
            for method in methods
            for fraction in (0.2, 1.0)
            for seed in (0, 1)
        ]
        groups = [(method, fraction) for method in methods for fraction in (0.2, 1.0)]
        found = {group: intervals.get(group[0], Interval(0.605, 0.541, 0.669)) for group in groups}
        found["linear", 0.2] = Interval(0.5, math.nan, math.nan)
        difference = Difference(Interval(-0.01, -0.02, 0.015), 0.34)
        differences = {group: difference for group in groups if group != ("full", 1.0)}
        trials = [t for method in methods for t in trials_around(method)] if trials is None else trials
        # of independent scores: evenly spread over the interval, and in another order for each group
        order = np.random.default_rng(0)
        resampled = {group: order.permutation(np.linspace(*interval[1:], 400)) for group, interval in found.items()}
        scores = Scores(found, differences, resampled)
        path = write_report(rows, trials, scores, "full", self.folder, ["how it was made"])
        return path.read_text()

    def test_report_has_a_line_for_every_method_and_fraction_and_three_plots(self):
        text = self.report()
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        self.assertEqual(len(lines), 1 + 8 + 1 + 4)
        self.assertIn("| full | 0 | 0.001 | 0.002 | 0.03 | 0.8 | 3 |  | 0.420, 0.310, 0.310 |", lines)
        self.assertIn("| dvpt | 0 | 0.001 | 0.002 | 0.03 |  | 3 |  | 0.420, 0.310, 0.310 |", lines)
        self.assertIn("| linear | 0 |  | 0.002 | 0.03 |  | 3 |  | 0.420, 0.310, 0.310 |", lines)
        self.assertIn("how it was made", text)
        self.assertIn("| full | 100% | 100 | 2 | 0.605 (0.541 to 0.669) |  | 26,052 | 4,632 |", text)
        self.assertIn("| 0.605 (0.541 to 0.669) | -0.010 (-0.020 to 0.015), p 0.340 |", text)
        self.assertIn("| linear | 20% | 20 | 2 | 0.500 |", text)
        self.assertIn("2,000 resamples of the patients", text)
        self.assertIn("No best trial lies at an edge", text)
        for name in ("labels", "parameters", "cost"):
            self.assertTrue((self.folder / f"score_by_{name}.png").read_bytes().startswith(b"\x89PNG"))

    def test_best_trials_at_an_edge_are_named(self):
        trials = [*trials_around("full"), *trials_around("full", 2), *trials_around("dvpt")]
        trials += [trial("full", 0.5, encoder_rate=1e-2, fold=fold) for fold in (0, 2)]
        trials += [trial("dvpt", 0.5, head_rate=1e-4)]
        text = self.report(("full", "dvpt", "linear"), trials)
        self.assertIn("**Best trials at an edge of what was tried**", text)
        self.assertIn("- full: rate of the encoder, in fold 0, 2\n", text)
        self.assertIn("- dvpt: rate of head and decoder, in fold 0\n", text)
        self.assertRegex(text, r"\| full \| 2 \| 0\.01 .* \| 4 \| rate of the encoder \| 0\.500, 0\.420")
        self.assertNotIn("No best trial", text)

    def test_says_when_the_best_method_is_no_better_than_a_baseline(self):
        low, middle, high = Interval(0.3, 0.2, 0.4), Interval(0.45, 0.35, 0.5), Interval(0.8, 0.7, 0.9)
        says = "This task says nothing about tuning"
        for intervals, close in (
            ({"full": middle, "dvpt": high, "linear": low, "pixels": middle}, []),
            ({"full": low, "dvpt": middle, "linear": low, "pixels": Interval(0.1, 0.0, 0.2)}, ["linear"]),
            ({"full": middle, "dvpt": low, "linear": high, "pixels": low}, ["linear", "pixels"]),
        ):
            text = self.report(**intervals)
            self.assertEqual(text.count(says), len(close))
            for name in close:
                self.assertRegex(text, rf"{says}\*\*: (full|dvpt), the best .* minus {name} is .* does not lie above 0")
            self.assertIn("pixels: the pixel baseline", text)
        text = self.report(("full", "linear"), full=high, linear=low)
        self.assertNotIn(says, text)
        self.assertIn("A pixel baseline is only for networks that grade or classify", text)
        self.assertNotIn(says, self.report(("linear", "pixels")))

    def test_methods_are_compared_with_the_baselines_case_by_case(self):
        """Easy and hard cases make both intervals wide; only what differs in every case counts."""
        easy = np.tile([0.2, 0.8], 15)
        half = np.tile([0.1, 0.1, -0.1, -0.1], 8)[:30]  # better in some cases, worse in others
        for gain, says_nothing in ((np.full(30, 0.05), False), (half, True), (np.zeros(30), True)):
            values = {"full": easy + gain, "linear": easy}
            runs = [
                Run((method, 1.0), 0, 0, float(dice.mean()), [torch.tensor(dice)[:, None]], range(30))
                for method, dice in values.items()
            ]
            scores = compare_runs(runs, DiceMetric(), ("full", 1.0), 200)
            self.assertLess(scores.intervals["full", 1.0].low, scores.intervals["linear", 1.0].high)
            rows = [row(method, 1.0, 0, 0, float(dice.mean())) for method, dice in values.items()]
            text = write_report(rows, trials_around("full"), scores, "full", self.folder).read_text()
            self.assertEqual("full, the best method with all labels, minus linear is" in text, says_nothing)
            if np.ptp(gain) == 0:  # as in every resample
                np.testing.assert_allclose(scores.minus(("full", 1.0), ("linear", 1.0)), gain[0], atol=1e-6)
