# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import unittest

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from parameterized import parameterized
from utils_data import temporary_folder

from monai_dvpt.handlers import CalibrationWriter, plot_reliability
from monai_dvpt.utils import InputError

OUTPUTS, GRADES = 2, 4


def cases(count: int) -> list[dict]:
    """Logits as images, so that a network that changes nothing gives them; some grades are missing."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, OUTPUTS, GRADES, generator=generator)
    label = torch.multinomial((logits / 2).softmax(dim=2).flatten(0, 1), 1, generator=generator).view(count, OUTPUTS)
    label[::3, 1] = -1
    return [{"image": image.flatten(), "label": each} for image, each in zip(logits, label, strict=True)]


def scores(logits: np.ndarray, label: np.ndarray, decision: str, temperature: float, adaptive: bool) -> list[float]:
    """Calibration error over 15 bins, and Brier score, by their definitions."""
    powers, plain = np.exp(logits / temperature), np.exp(logits)
    probability = powers / powers.sum(axis=1, keepdims=True)
    means = plain @ np.arange(GRADES) / plain.sum(axis=1)
    grade = plain.argmax(axis=1) if decision == "mode" else means.round().astype(int)
    sure, right = probability[range(len(label)), grade], grade == label
    edges = np.quantile(sure, np.arange(1, 15) / 15) if adaptive else np.arange(1, 15) / 15
    bins = (sure[:, None] > edges).sum(axis=1)
    error = sum(abs((sure - right)[bins == each].sum()) for each in range(15)) / len(label)
    return [error, ((probability - np.eye(GRADES)[label]) ** 2).sum(axis=1).mean()]


class TestCalibrationWriter(unittest.TestCase):
    def run_on(self, data: list[dict], **arguments) -> dict[str, float]:
        self.root = temporary_folder(self)
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(data), batch_size=16),
            network=torch.nn.Identity(),
            val_handlers=[CalibrationWriter(self.root, GRADES, **arguments)],
        )
        evaluator.run()
        evaluator.run()  # which starts anew
        return evaluator.state.metrics

    @parameterized.expand([("mode", 2.0), ("mean", 2.0), ("mode", 1.0)])
    def test_scores_before_and_after(self, decision, temperature):
        data = cases(150)
        found = self.run_on(data, decision=decision, temperature=temperature)
        label = torch.stack([case["label"] for case in data]).flatten().numpy()
        logits = torch.stack([case["image"] for case in data]).view(-1, GRADES).numpy()[label >= 0].astype(np.float64)
        label = label[label >= 0]
        self.assertEqual(len(label), 250)
        for ending, divisor in (("", temperature), ("_uncalibrated", 1.0)):
            for name, adaptive in (("ece", False), ("adaptive_ece", True)):
                error, brier = scores(logits, label, decision, divisor, adaptive)
                self.assertAlmostEqual(found[f"val_{name}{ending}"], error, places=5)
                self.assertAlmostEqual(found[f"val_brier{ending}"], brier, places=5)
        if decision == "mode" and temperature == 2.0:  # by which the labels were drawn
            self.assertLess(found["val_ece"], found["val_ece_uncalibrated"])

        with open(self.root / "reliability.csv", newline="") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        self.assertEqual(sum(row["grades"] for row in rows), 2 * 250)
        half = [row for row in rows if row["temperature"] == temperature]
        half = half[: len(half) // (1 + (temperature == 1.0))]
        gaps = sum(row["grades"] * abs(row["confidence"] - row["right"]) for row in half) / 250
        self.assertAlmostEqual(gaps, found["val_ece"], places=6)
        self.assertTrue((self.root / "reliability.png").read_bytes().startswith(b"\x89PNG"))

    def test_nothing_graded(self):
        with self.assertRaisesRegex(InputError, "at least one grade, got none"):
            self.run_on([{**case, "label": torch.tensor([-1, -1])} for case in cases(3)])

    def test_diagram(self):
        bins = {"one": (np.array([0.3, 0.9]), np.array([0.2, 0.7]), np.array([4, 6])), "two": (np.array([0.5]),) * 3}
        upper, _, lower, _ = plot_reliability(bins).axes
        diagonal, line = upper.lines
        self.assertEqual(diagonal.get_xydata().tolist(), [[0, 0], [1, 1]])
        self.assertEqual(line.get_xydata().tolist(), [[0.3, 0.2], [0.9, 0.7]])
        self.assertEqual([bar.get_height() for bar in lower.patches], [4, 6])
        self.assertEqual(upper.get_title(), "one")


if __name__ == "__main__":
    unittest.main()
