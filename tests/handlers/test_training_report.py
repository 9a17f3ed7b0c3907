# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import resource
import unittest
from types import SimpleNamespace
from unittest import mock

import torch
from monai.data import DataLoader, Dataset
from parameterized import parameterized
from utils_data import temporary_folder
from utils_training import LABELS, make_evaluator, make_trainer, tiny_network

from monai_dvpt.data import images_sha256
from monai_dvpt.handlers import AdapterSaver, TrainingReport, peak_memory_mib
from monai_dvpt.networks.parts import count_parameters


class TestTrainingReport(unittest.TestCase):
    def setUp(self):
        self.root, self.labels = temporary_folder(self), LABELS[1:]

    def train(self, scores, method="dvpt", validate=True, **arguments):
        """Returns the network, its saver, the handler, the report it wrote and the lines it logged."""
        net = tiny_network(method=method)
        evaluator = make_evaluator(net, scores)
        saver = AdapterSaver(net, self.root, evaluator)
        report = TrainingReport(saver, self.labels, **arguments)
        trainer = make_trainer(net, len(scores), evaluator if validate else None, [saver, report])
        with self.assertLogs("monai_dvpt.handlers.training_report", "INFO") as logged:
            trainer.run()
        return net, saver, report, json.loads((self.root / "report.json").read_text()), "\n".join(logged.output)

    def test_numbers(self):
        settings = {"seed": 0, "trainable": ["method", "head"]}
        net, saver, _, report, log = self.train([0.25, 0.75, 0.5], settings=settings)
        counts = count_parameters(net)
        self.assertEqual(report["parameters"], counts)
        trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
        everything = sum(parameter.numel() for parameter in net.parameters())
        encoder = sum(parameter.numel() for parameter in net.vit.parameters())
        dvpt = sum(parameter.numel() for parameter in net.vit.dvpt.parameters())
        self.assertAlmostEqual(report["trainable_percent_of_network"], 100 * trained / everything)
        self.assertAlmostEqual(report["method_percent_of_encoder"], 100 * dvpt / encoder)
        self.assertEqual(report["method_bytes"], 4 * dvpt)  # float32
        options = {"bottleneck_size": 5, "num_prompts": 3, "share_every": 3, "start_layer": 0, "side_path": False}
        options |= {"norm": "plain", "zero_init": "up", "aggregation": "read_back"}
        self.assertEqual(report["method"], {"name": "dvpt", **options})
        sizes = {name: (self.root / name).stat().st_size for name in ("adapter_best.safetensors", "model.pt")}
        self.assertEqual(report["file_bytes"], sizes)
        self.assertEqual((report["epochs"], report["settings"]), (3, settings))

        self.assertEqual(report["best"]["epoch"], 2)
        self.assertEqual(report["best"]["metrics"]["val_score"], 0.75)
        self.assertEqual((report["last"]["epoch"], report["last"]["metrics"]["val_score"]), (3, 0.5))
        for name, kept in (("best", saver.best), ("last", saver.last)):
            per_class = dict(zip(["anterior", "posterior"], kept["metrics"]["val_dice"], strict=True))
            self.assertEqual(report[name]["metrics"]["val_dice"], per_class)
        self.assertGreater(report["seconds"], 0)
        for words in ("epoch   2  3", "val_score   0.7500  0.5000", "val_dice anterior  ", f"{4 * dvpt:,} bytes"):
            self.assertRegex(log, words.replace("  ", " +"))

    def test_images_that_chose_the_epoch(self):
        _, saver, handler, report, _ = self.train([0.5])
        self.assertIsNone(report["validation_sha256"])  # the images are no files
        cases = [{"image": f"/data/{name}.nii.gz"} for name in "ab"]
        for dataset in (Dataset(cases), Dataset(Dataset(cases))):
            with mock.patch.object(saver.evaluator, "data_loader", DataLoader(dataset)):
                handler.write(SimpleNamespace(state=SimpleNamespace(epoch=1)))
            report = json.loads((self.root / "report.json").read_text())
            self.assertEqual(report["validation_sha256"], images_sha256(cases))

    def test_labels_that_are_numbers(self):
        self.labels = [1, 0]
        _, _, _, report, log = self.train([0.5])
        self.assertEqual(list(report["best"]["metrics"]["val_dice"]), ["1", "0"])
        self.assertIn("val_dice 0 ", log)

    def test_full_fine_tuning(self):
        net, _, _, report, _ = self.train([0.5], method="full")
        counts = report["parameters"]
        self.assertEqual(report["method"], {"name": "full"})
        self.assertEqual(list(report["file_bytes"]), ["adapter_best.safetensors", "model.pt"])
        encoder = {name: parameter.numel() for name, parameter in net.vit.named_parameters()}
        cross = sum(number for name, number in encoder.items() if "norm_cross_attn" in name)  # never used
        trained = sum(encoder.values()) - cross
        self.assertEqual(counts["backbone"], {"total": cross, "trainable": 0})
        self.assertEqual(counts["method"], {"total": trained, "trainable": trained})
        self.assertAlmostEqual(report["method_percent_of_encoder"], 100 * trained / (trained + cross))

    def test_last_epoch_is_validated_all_the_same(self):
        _, _, _, report, _ = self.train([0.5], validate=False)
        self.assertEqual((report["best"]["epoch"], report["last"]["metrics"]["val_score"]), (1, 0.5))

    def test_time_before_an_interruption_counts(self):
        _, _, report, written, _ = self.train([0.5])
        before = report.state_dict()["seconds"]
        self.assertGreaterEqual(before, written["seconds"])
        report.load_state_dict({"seconds": 3600.0})
        self.assertGreaterEqual(report.state_dict()["seconds"], 3600 + written["seconds"])

    @parameterized.expand([("cpu",)])
    def test_peak_memory(self, device):
        peak = peak_memory_mib(torch.device(device))
        self.assertGreater(peak, 50)  # PyTorch alone
        self.assertLess(peak, 2**20)
        self.assertLessEqual(peak, peak_memory_mib(torch.device(device)))
        self.assertGreaterEqual(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, peak)


if __name__ == "__main__":
    unittest.main()
