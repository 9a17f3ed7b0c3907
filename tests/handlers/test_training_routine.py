# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import unittest

import torch
from utils_data import temporary_folder
from utils_training import LABELS, make_evaluator, make_trainer, tiny_network

from monai_dvpt.handlers import TrainingRoutine
from monai_dvpt.networks.adapter import adapter_metadata
from monai_dvpt.utils import InputError

FILES = ["adapter_best.safetensors", "adapter_last.safetensors", "checkpoint.pt", "history.csv", "history.png"]
FILES += ["model.pt", "report.json"]


class TestTrainingRoutine(unittest.TestCase):
    def run_once(self, epochs: int, scores: list[float], **options) -> TrainingRoutine:
        net = tiny_network()
        evaluator = make_evaluator(net, scores)
        options = {"seed": 0, "save_dict": {}, "settings": {}, **options}
        folders = (self.root / "out", self.root / "curves")
        routine = TrainingRoutine(net, evaluator, *folders, LABELS, LABELS[1:], **options)
        make_trainer(net, epochs, None, [routine]).run()
        return routine

    def setUp(self):
        self.root = temporary_folder(self)

    def test_a_run_that_goes_on(self):
        """Files and scores; of a second run with more epochs too, which keeps what was best before."""
        routine = self.run_once(2, [0.5, 0.25], settings={"fact": 1})
        self.assertEqual(sorted(path.name for path in (self.root / "out").iterdir() if path.name[0] != "."), FILES)
        self.assertEqual((routine.saver.best["epoch"], routine.saver.last["epoch"]), (1, 2))
        self.assertEqual(adapter_metadata(self.root / "out" / "adapter_best.safetensors")["labels"], LABELS)
        more = self.run_once(3, [0.375], settings={"fact": 1}, val_interval=3)
        self.assertEqual((more.saver.best["epoch"], more.saver.last["epoch"]), (1, 3))
        report = json.loads((self.root / "out" / "report.json").read_text())
        self.assertEqual((report["epochs"], report["settings"]), (3, {"fact": 1}))
        self.assertEqual(list(report["best"]["metrics"]["val_dice"]), LABELS[1:])
        with open(self.root / "out" / "history.csv") as file:
            self.assertEqual([row["epoch"] for row in csv.DictReader(file)], ["1", "2", "3"])
        with self.assertRaisesRegex(InputError, "fact was 1, is 2"):
            self.run_once(4, [0.5], settings={"fact": 2})

    def test_curves_and_a_published_model(self):
        """The start is validated, and an epoch that is better than it and the file is published."""
        served = self.root / "model.pt"
        torch.save(tiny_network(seed=1).state_dict(), served)
        routine = self.run_once(1, [0.25, 0.5, 0.375], published_model=served)
        self.assertEqual(routine.saver.start["metrics"]["val_score"], 0.25)
        best = torch.load(self.root / "out" / "model.pt", weights_only=True)
        torch.testing.assert_close(torch.load(served, weights_only=True), best, rtol=0, atol=0)
        for folder in ("curves", "curves/validation"):
            self.assertEqual(len(list((self.root / folder).glob("events*"))), 1)


if __name__ == "__main__":
    unittest.main()
