# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import torch
from parameterized import parameterized
from utils_data import temporary_folder
from utils_training import make_evaluator, make_trainer, tiny_network

from monai_dvpt.handlers import AdapterSaver


class TestPublishedModel(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        self.served = self.root / "served" / "model.pt"
        self.served.parent.mkdir()
        self.served.write_bytes(b"before")

    def train(self, scores, path) -> AdapterSaver:
        net = tiny_network()
        evaluator = make_evaluator(net, scores)
        saver = AdapterSaver(net, self.root / "out", evaluator, validate_start=True, published_model=path)
        make_trainer(net, len(scores) - 1, evaluator, [saver]).run()
        return saver

    def test_better_epoch_takes_the_place_and_the_file_from_before_is_kept(self):
        self.train([0.25, 0.5, 0.375], self.served)
        best = torch.load(self.root / "out" / "model.pt", weights_only=True)
        torch.testing.assert_close(torch.load(self.served, weights_only=True), best, rtol=0, atol=0)
        kept = list((self.served.parent / "before").iterdir())
        self.assertEqual([path.read_bytes() for path in kept], [b"before"])
        self.assertRegex(kept[0].name, r"^model_\d{8}_\d{6}\.pt$")

    @parameterized.expand([("worse", [0.5, 0.25]), ("equal", [0.5, 0.5]), ("no number", [0.5, float("nan")])])
    def test_nothing_happens_where_no_epoch_is_better(self, _, scores):
        self.train(scores, self.served)
        self.assertEqual([path.read_bytes() for path in self.served.parent.iterdir()], [b"before"])

    def test_without_a_file_to_replace(self):
        self.train([0.25, 0.5], None)
        self.assertEqual(sorted(path.name for path in self.root.iterdir()), ["out", "served"])
