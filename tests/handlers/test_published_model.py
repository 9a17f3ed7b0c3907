# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest
from math import nan

import torch
from ignite.engine import Events
from parameterized import parameterized
from utils_data import temporary_folder
from utils_training import make_evaluator, make_trainer, tiny_network

from monai_dvpt.handlers import AdapterSaver


class TestPublishedModel(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        self.served = self.root / "served" / "model.pt"
        self.served.parent.mkdir()
        torch.save(tiny_network(seed=1).state_dict(), self.served)
        self.before = self.served.read_bytes()

    def train(self, scores, path, epochs=2) -> AdapterSaver:
        """Scores are those of the start, of each epoch, and of the file."""
        net = tiny_network()
        evaluator = make_evaluator(net, scores)
        saver = AdapterSaver(net, self.root / "out", evaluator, validate_start=True, published_model=path)
        make_trainer(net, epochs, evaluator, [saver]).run()
        return saver

    def test_better_epoch_takes_the_place_and_the_file_from_before_is_kept(self):
        saver = self.train([0.25, 0.5, 0.375, 0.4375], self.served)
        self.assertEqual((saver.best["epoch"], saver.last["epoch"]), (1, 2))
        best = torch.load(self.root / "out" / "model.pt", weights_only=True)
        torch.testing.assert_close(torch.load(self.served, weights_only=True), best, rtol=0, atol=0)
        kept = list((self.served.parent / "before").iterdir())
        self.assertEqual([path.read_bytes() for path in kept], [self.before])
        self.assertRegex(kept[0].name, r"^model_\d{8}_\d{6}\.pt$")

    @parameterized.expand([("worse", [0.5, 0.25]), ("equal", [0.5, 0.5]), ("no number", [0.5, nan])])
    def test_nothing_happens_where_no_epoch_is_better(self, _, scores):
        self.train(scores, self.served, epochs=1)
        self.assertEqual([path.read_bytes() for path in self.served.parent.iterdir()], [self.before])

    @parameterized.expand([("worse", 0.75), ("equal", 0.5), ("no number", nan)])
    def test_nothing_happens_where_the_file_is_as_good(self, _, score):
        """Such as after a start from the backbone alone, which any epoch beats."""
        saver = self.train([0.0, 0.5, score], self.served, epochs=1)
        self.assertEqual(saver.best["metrics"]["val_score"], 0.5)
        self.assertEqual([path.read_bytes() for path in self.served.parent.iterdir()], [self.before])

    def test_the_file_is_what_is_scored_last(self):
        net, seen = tiny_network(), []
        evaluator = make_evaluator(net, [0.0, 0.5, 0.25])
        evaluator.add_event_handler(
            Events.STARTED, lambda engine: seen.append({k: v.clone() for k, v in engine.network.state_dict().items()})
        )
        served = torch.load(self.served, weights_only=True)
        saver = AdapterSaver(net, self.root / "out", evaluator, published_model=self.served)
        make_trainer(net, 1, evaluator, [saver]).run()
        torch.testing.assert_close(seen[2], served, rtol=0, atol=0)
        for other in seen[:2]:
            self.assertFalse(torch.equal(other["out.conv.conv.weight"], served["out.conv.conv.weight"]))
        self.assertIs(evaluator.network, net)

    def test_file_of_another_network(self):
        torch.save({"weight": torch.zeros(2)}, self.served)
        before = self.served.read_bytes()
        with self.assertLogs("monai_dvpt.handlers.adapter_saver", "WARNING") as logs:
            self.train([0.0, 0.5], self.served, epochs=1)
        self.assertRegex(logs.output[0], "model.pt stays as it is, since it cannot be compared with epoch 1: ")
        self.assertEqual([path.read_bytes() for path in self.served.parent.iterdir()], [before])

    def test_without_a_file_to_replace(self):
        self.train([0.25, 0.5], None, epochs=1)
        self.assertEqual(sorted(path.name for path in self.root.iterdir()), ["out", "served"])
