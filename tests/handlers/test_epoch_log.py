# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import unittest

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.image import imread
from parameterized import parameterized
from utils_data import temporary_folder
from utils_training import make_trainer, tiny_network

from monai_dvpt.handlers import EpochLog


class TestEpochLog(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "out" / "history.csv"

    def train(self, epochs: int, decollate: bool = True) -> tuple[list[list[float]], list[str]]:
        """Returns the losses of every epoch and the lines that were logged."""
        trainer = make_trainer(tiny_network(), epochs, None, [EpochLog(self.path)], decollate)
        losses: list[list[float]] = []

        def add(engine: Engine) -> None:
            output = engine.state.output
            losses[-1].append(float(torch.as_tensor((output[0] if decollate else output)["loss"]).detach()))

        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: losses.append([]))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, add)
        with self.assertLogs(trainer.logger, "INFO") as logged:
            trainer.run()
        return losses, [line for line in logged.output if ": loss " in line]

    def rows(self) -> list[list[str]]:
        with open(self.path, newline="") as file:
            return list(csv.reader(file))

    @parameterized.expand([("one item per case", True), ("one for the batch", False)])
    def test_mean_loss_of_every_epoch(self, _, decollate):
        losses, lines = self.train(3, decollate)
        header, *rows = self.rows()
        self.assertEqual(header, ["epoch", "loss", "seconds"])
        self.assertEqual([row[0] for row in rows], ["1", "2", "3"])
        np.testing.assert_allclose([float(row[1]) for row in rows], np.mean(losses, axis=1), atol=1e-6)
        self.assertTrue(all(float(row[2]) > 0 for row in rows))
        self.assertEqual(len(lines), 3)
        self.assertIn(f"Epoch 2 of 3: loss {np.mean(losses[1]):.4f}, ", lines[1])
        self.assertIn("less than 1 min left", lines[2])

    def test_epochs_done_again_replace_what_stood_there(self):
        self.train(3)
        losses, _ = self.train(2)
        self.assertEqual([row[0] for row in self.rows()], ["epoch", "1", "2"])
        self.assertAlmostEqual(float(self.rows()[1][1]), np.mean(losses[0]), places=6)

    def test_curve(self):
        self.train(2)
        picture = imread(self.path.with_suffix(".png"))
        self.assertGreater(len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)), 2)


if __name__ == "__main__":
    unittest.main()
