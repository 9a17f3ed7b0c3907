# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import unittest
from unittest import mock

import torch
import torch.nn.functional as F
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from parameterized import parameterized
from sklearn.metrics import cohen_kappa_score
from utils_data import temporary_folder
from utils_training import Script

from monai_dvpt.handlers import AdapterSaver, ResumableCheckpoint, TemperatureCalibration
from monai_dvpt.handlers import temperature_calibration as module
from monai_dvpt.losses import OrdinalCrossEntropy
from monai_dvpt.networks.adapter import adapter_metadata, freeze_backbone, load_adapter, parameter_groups
from monai_dvpt.networks.nets import DVPTViT

OUTPUTS, GRADES = 2, 3
LABELS = [f"{output} {grade}" for output in "AB" for grade in range(GRADES)]


def network(train=("dvpt", "head")) -> DVPTViT:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "mlp_dim": 20, "num_layers": 2, "num_heads": 3, "bottleneck_size": 5, "num_prompts": 3}
    net = DVPTViT(1, (16, 32), 16, spatial_dims=2, num_classes=OUTPUTS * GRADES, **sizes)
    return freeze_backbone(net, train)


def cases(count: int) -> list[dict]:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(-1, GRADES, (count, OUTPUTS), generator=generator)
    noise = torch.randn(count, 1, 16, 32, generator=generator)
    shift = (labels / 4).repeat_interleave(16, dim=1)[:, None, None]  # (count, 1, 1, columns)
    return [{"image": image, "label": label} for image, label in zip(noise + shift, labels, strict=True)]


class TestTemperatureCalibration(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    def train(self, scores, epochs, train=("dvpt", "head"), interval=1, calibrate=True) -> DVPTViT:
        """Trains, or goes on; the validation scores are as given. Returns the network of the trainer."""
        net = network(train)
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(cases(20)), batch_size=6),
            network=net,
            key_val_metric={"val_score": Script(scores)},
        )
        saver = AdapterSaver(net, self.root, evaluator, LABELS)
        handlers = [ValidationHandler(interval, evaluator), saver]
        handlers += [TemperatureCalibration(saver, GRADES)] if calibrate else []
        optimizer = torch.optim.AdamW(parameter_groups(net, {"backbone": 1e-3, "dvpt": 1e-2, "head": 1e-1}))
        state = {"network": net, "optimizer": optimizer, "saver": saver}
        SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=DataLoader(Dataset(cases(9)), batch_size=3),
            network=net,
            optimizer=optimizer,
            loss_function=OrdinalCrossEntropy(GRADES),
            train_handlers=[*handlers, ResumableCheckpoint(self.root / "checkpoint.pt", state, 0)],
        ).run()
        return net

    def model(self) -> dict[str, torch.Tensor]:
        return torch.load(self.root / "model.pt", weights_only=True)

    def record(self) -> dict:
        return json.loads((self.root / "calibration.json").read_text())

    def nll(self, state: dict[str, torch.Tensor], temperature: float = 1.0) -> float:
        net = network()
        net.load_state_dict(state)
        batch = cases(20)
        label = torch.stack([case["label"] for case in batch]).flatten()
        with torch.no_grad():
            logits = net.eval()(torch.stack([case["image"] for case in batch])).view(-1, GRADES)
        return F.cross_entropy(logits / temperature, label, ignore_index=-1).item()

    def assert_consistent(self) -> None:
        """Model and adapter hold the same weights, and the notes of the adapter are the record."""
        net, state = network(), self.model()
        load_adapter(net, self.root / "adapter_best.safetensors", labels=LABELS)
        torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)
        notes = adapter_metadata(self.root / "adapter_best.safetensors")["notes"]
        self.assertEqual(notes["calibration"], self.record())

    def assert_divided_once(self, before: dict[str, torch.Tensor]) -> None:
        temperature = self.record()["temperature"]
        for name, tensor in self.model().items():
            factor = temperature if name.startswith("classification_head.") else 1
            torch.testing.assert_close(tensor, before[name] / factor, rtol=1e-6, atol=0, msg=name)

    def test_the_head_is_divided_by_the_best_temperature(self):
        net = self.train([0.5, 0.25], 2, calibrate=False)
        before = self.model()  # of the first epoch
        self.assertNotEqual(before["classification_head.bias"].tolist(), net.classification_head.bias.tolist())
        last = self.train([], 2)
        self.assert_divided_once(before)
        self.assert_consistent()
        torch.testing.assert_close(net.state_dict(), last.state_dict(), rtol=0, atol=0)  # not that of the trainer
        record = self.record()
        self.assertAlmostEqual(record["before"]["nll"], self.nll(before), places=5)
        self.assertAlmostEqual(record["after"]["nll"], self.nll(self.model()), places=5)
        around = [self.nll(before, record["temperature"] * factor) for factor in (0.98, 1.02)]
        self.assertLess(record["after"]["nll"], min(around))
        self.assertLess(record["after"]["nll"], record["before"]["nll"])
        self.assertLess(record["temperature"], 50)
        self.assertEqual(record["graded"], sum(int((case["label"] >= 0).sum()) for case in cases(20)))
        self.assertEqual(adapter_metadata(self.root / "adapter_best.safetensors")["notes"]["epoch"], 1)

    @parameterized.expand([("no better", [0.1], 3), ("better", [0.9], 3), ("nothing to do", [], 2)])
    def test_a_run_that_goes_on_divides_once(self, _, scores, epochs):
        self.train([0.5, 0.25], 2)
        first = self.model()
        last = self.train(scores, epochs)
        self.assert_consistent()
        if scores == [0.9]:
            self.assert_divided_once(last.state_dict())
        else:
            torch.testing.assert_close(self.model(), first, rtol=0, atol=0)

    def test_the_last_validation_comes_first(self):
        """A last epoch that is validated at the end alone is calibrated, once, also when the run is started again."""
        self.train([0.5, 0.75], 3, interval=2)
        first, record = self.model(), self.record()
        self.assertEqual(adapter_metadata(self.root / "adapter_best.safetensors")["notes"]["epoch"], 3)
        self.train([0.75], 3, interval=2)
        torch.testing.assert_close(self.model(), first, rtol=0, atol=0)
        self.assertEqual(self.record(), record)
        self.assert_consistent()

    @parameterized.expand([("save", module.torch), ("save_adapter", module)])
    def test_interrupted(self, name, owner):
        self.train([0.5, 0.25], 2, calibrate=False)
        before = self.model()
        with mock.patch.object(owner, name, side_effect=KeyboardInterrupt), self.assertRaises(KeyboardInterrupt):
            self.train([], 2)
        self.train([], 2)
        self.assert_divided_once(before)
        self.assert_consistent()

    def test_backbone_trained(self):
        train = ("backbone", "dvpt", "head")
        self.train([0.5], 1, train, calibrate=False)
        before = self.model()
        for _ in range(2):
            self.train([], 1, train)
            self.assert_divided_once(before)
        self.assertFalse((self.root / "adapter_best.safetensors").exists())

    @parameterized.expand([("mode",), ("mean",)])
    def test_scores_by_hand(self, decision):
        """Confidence 0.9, 0.8 and 0.6: right in 1 of 1, in 0 of 1, and in 1 of 1."""
        probability = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.1, 0.8], [0.6, 0.0, 0.4]], dtype=torch.float64) + 1e-12
        label = torch.tensor([0, 1, 0])
        scores = TemperatureCalibration(None, 3, decision)._scores(probability.log(), label)
        self.assertAlmostEqual(scores["ece"], (0.1 + 0.8 + 0.4) / 3)
        self.assertAlmostEqual(scores["nll"], -math.log(0.9 * 0.1 * 0.6) / 3)
        grade = {"mode": [0, 2, 0], "mean": [0, 2, 1]}[decision]
        self.assertAlmostEqual(scores["kappa"], cohen_kappa_score(label, grade, weights="quadratic"))

    @parameterized.expand([("too sure", 4.0), ("too unsure", 0.25), ("right", 1.0)])
    def test_known_temperature(self, _, temperature):
        """Labels drawn from the probabilities of the logits, which are then multiplied."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(20000, 4, generator=generator, dtype=torch.float64)
        label = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
        found = module._fit(logits * temperature, label)
        self.assertAlmostEqual(found / temperature, 1, delta=0.05)
        scores = TemperatureCalibration(None, 4)._scores(logits * temperature / found, label)
        self.assertLess(scores["ece"], 0.02)

    def test_bad_argument(self):
        with self.assertRaisesRegex(ValueError, "num_grades must be a whole number of at least 2"):
            TemperatureCalibration(None, 1)


if __name__ == "__main__":
    unittest.main()
