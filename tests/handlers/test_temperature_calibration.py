# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import unittest

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from parameterized import parameterized
from safetensors.torch import load_file
from utils_data import temporary_folder
from utils_training import Script

from monai_dvpt.handlers import AdapterSaver, ResumableCheckpoint, TemperatureCalibration, calibrated_temperature
from monai_dvpt.handlers import temperature_calibration as module
from monai_dvpt.losses import OrdinalCrossEntropy
from monai_dvpt.networks.adapter import adapter_metadata, load_adapter, save_adapter
from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.parts import parameter_groups, tune
from monai_dvpt.utils import InputError

OUTPUTS, GRADES = 2, 3
LABELS = [f"{output} {grade}" for output in "AB" for grade in range(GRADES)]


def network(method="dvpt") -> DVPTViT:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "mlp_dim": 20, "num_layers": 2, "num_heads": 3, "bottleneck_size": 5, "num_prompts": 3}
    net = DVPTViT(1, (16, 32), 16, spatial_dims=2, num_classes=OUTPUTS * GRADES, **sizes)
    return tune(net, net.method if method == "dvpt" else method)


def cases(count: int) -> list[dict]:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(-1, GRADES, (count, OUTPUTS), generator=generator)
    noise = torch.randn(count, 1, 16, 32, generator=generator)
    shift = (labels / 4).repeat_interleave(16, dim=1)[:, None, None]  # (count, 1, 1, columns)
    return [{"image": image, "label": label} for image, label in zip(noise + shift, labels, strict=True)]


class TestTemperatureCalibration(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        self.adapter = self.root / "adapter_best.safetensors"

    def train(self, scores, epochs, method="dvpt", interval=1, calibrate=True) -> DVPTViT:
        """Trains, or goes on; the validation scores are as given. Returns the network of the trainer."""
        net = network(method)
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(cases(20)), batch_size=6),
            network=net,
            key_val_metric={"val_score": Script(scores)},
        )
        saver = AdapterSaver(net, self.root, evaluator, LABELS)
        handlers = [ValidationHandler(interval, evaluator), saver]
        handlers += [TemperatureCalibration(saver, GRADES)] if calibrate else []
        optimizer = torch.optim.AdamW(parameter_groups(net, {"method": 1e-2, "head": 1e-1}))
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

    def nll(self, state: dict[str, torch.Tensor], temperature: float = 1.0, method: str = "dvpt") -> float:
        net = network(method)
        net.load_state_dict(state)
        batch = cases(20)
        label = torch.stack([case["label"] for case in batch]).flatten()
        with torch.no_grad():
            logits = net.eval()(torch.stack([case["image"] for case in batch])).view(-1, GRADES)
        return F.cross_entropy(logits / temperature, label, ignore_index=-1).item()

    def test_the_best_temperature_is_noted_and_nothing_is_changed(self):
        net = self.train([0.5, 0.25], 2, calibrate=False)
        model, adapter = self.model(), load_file(self.adapter)  # of the first epoch
        self.assertEqual(calibrated_temperature(self.adapter), 1.0)
        self.assertNotEqual(model["classification_head.bias"].tolist(), net.classification_head.bias.tolist())
        last = self.train([], 2)
        torch.testing.assert_close(last.state_dict(), net.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(self.model(), model, rtol=0, atol=0)
        torch.testing.assert_close(load_file(self.adapter), adapter, rtol=0, atol=0)
        load_adapter(network(), self.adapter, labels=LABELS)
        notes, record = adapter_metadata(self.adapter)["notes"], self.record()
        self.assertEqual((notes["epoch"], notes["calibration"]), (1, record))
        temperature = calibrated_temperature(self.adapter)
        self.assertEqual(temperature, record["temperature"])
        self.assertAlmostEqual(record["before"]["nll"], self.nll(model), places=5)
        self.assertAlmostEqual(record["after"]["nll"], self.nll(model, temperature), places=5)
        around = [self.nll(model, temperature * factor) for factor in (0.98, 1.02)]
        self.assertLess(record["after"]["nll"], min(around))
        self.assertLess(record["after"]["nll"], record["before"]["nll"])
        self.assertLess(temperature, 50)
        self.assertEqual(record["graded"], sum(int((case["label"] >= 0).sum()) for case in cases(20)))

    @parameterized.expand([("no better", [0.1], 3), ("better", [0.9], 3), ("nothing to do", [], 2)])
    def test_a_run_that_goes_on(self, _, scores, epochs):
        self.train([0.5, 0.25], 2)
        first = self.record()
        self.train(scores, epochs)
        self.assertEqual(self.record() != first, scores == [0.9])
        self.assertEqual(adapter_metadata(self.adapter)["notes"]["calibration"], self.record())
        self.assertAlmostEqual(self.record()["before"]["nll"], self.nll(self.model()), places=5)

    def test_the_last_validation_comes_first(self):
        """A last epoch that is validated at the end alone is calibrated."""
        self.train([0.5, 0.75], 3, interval=2)
        notes = adapter_metadata(self.adapter)["notes"]
        self.assertEqual((notes["epoch"], notes["calibration"]), (3, self.record()))

    def test_full_fine_tuning(self):
        self.train([0.5], 1, "full")
        self.assertAlmostEqual(self.record()["before"]["nll"], self.nll(self.model(), method="full"), places=5)
        self.assertEqual(adapter_metadata(self.adapter)["notes"]["calibration"], self.record())

    @parameterized.expand([("mode", [0.9, 0.8, 0.6], [1, 0, 1]), ("mean", [0.9, 0.8, 0.05], [1, 0, 0])])
    def test_scores_by_hand(self, decision, confidence, right):
        """Each confidence has a bin of its own."""
        probability = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.1, 0.8], [0.6, 0.05, 0.35]], dtype=torch.float64) + 1e-12
        label = torch.tensor([0, 1, 0])
        # undivided, the third has the expected grade 0.51
        scores = TemperatureCalibration(None, 3, decision)._scores(2 * probability.log(), label, 2.0)
        self.assertAlmostEqual(scores["ece"], np.abs(np.subtract(confidence, right)).mean(), places=6)
        self.assertAlmostEqual(scores["nll"], -math.log(0.9 * 0.1 * 0.6) / 3)

    @parameterized.expand([("too sure", 4.0), ("too unsure", 0.25), ("right", 1.0)])
    def test_known_temperature(self, _, temperature):
        """Labels drawn from the probabilities of the logits, which are then multiplied."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(20000, 4, generator=generator, dtype=torch.float64)
        label = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
        found = module._fit(logits * temperature, label)
        self.assertAlmostEqual(found / temperature, 1, delta=0.05)
        scores = TemperatureCalibration(None, 4)._scores(logits * temperature, label, found)
        self.assertLess(scores["ece"], 0.02)

    def test_bad_argument(self):
        with self.assertRaisesRegex(ValueError, "num_grades must be a whole number of at least 2"):
            TemperatureCalibration(None, 1)
        with self.assertRaisesRegex(ValueError, "decision must be one of"):
            TemperatureCalibration(None, 3, "median")

    @parameterized.expand([(0,), (-2.0,), (None,), ("2",), (True,)])
    def test_a_temperature_that_is_none_is_refused(self, value):
        save_adapter(network(), self.adapter, notes={"calibration": {"temperature": value}})
        with self.assertRaisesRegex(
            InputError, rf"{self.adapter}: temperature must be a positive number, got {value!r}"
        ):
            calibrated_temperature(self.adapter)


if __name__ == "__main__":
    unittest.main()
