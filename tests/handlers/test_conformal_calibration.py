# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import unittest

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from parameterized import parameterized
from safetensors.torch import load_file
from utils_data import temporary_folder
from utils_training import Script

from monai_dvpt.handlers import AdapterSaver, ConformalCalibration, TemperatureCalibration, calibrated_sets
from monai_dvpt.losses import OrdinalCrossEntropy
from monai_dvpt.metrics import PredictionSets
from monai_dvpt.networks.adapter import adapter_metadata, save_adapter
from monai_dvpt.networks.nets import DVPTViT
from monai_dvpt.networks.parts import freeze_backbone, parameter_groups
from monai_dvpt.utils import InputError

OUTPUTS, GRADES = ["left", "right"], ["none", "mild", "severe"]
LABELS = [f"{output} {grade}" for output in OUTPUTS for grade in GRADES]


def network() -> DVPTViT:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "mlp_dim": 20, "num_layers": 2, "num_heads": 3, "bottleneck_size": 5, "num_prompts": 3}
    return freeze_backbone(DVPTViT(1, (16, 32), 16, spatial_dims=2, num_classes=len(LABELS), **sizes))


def cases(count: int, top: int = len(GRADES)) -> list[dict]:
    """With grades below ``top``, some missing."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(-1, top, (count, len(OUTPUTS)), generator=generator)
    noise = torch.randn(count, 1, 16, 32, generator=generator)
    shift = (labels / 4).repeat_interleave(16, dim=1)[:, None, None]  # (count, 1, 1, columns)
    return [{"image": image, "label": label} for image, label in zip(noise + shift, labels, strict=True)]


class TestConformalCalibration(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        self.adapter, self.record = self.root / "adapter_best.safetensors", self.root / "conformal.json"

    def train(self, calibration: list[dict], coverage: float = 0.7) -> None:
        net = network()
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(cases(12)), batch_size=6),
            network=net,
            key_val_metric={"val_score": Script([0.5, 0.25])},  # the first epoch is the best
        )
        saver = AdapterSaver(net, self.root, evaluator, LABELS)
        loader = DataLoader(Dataset(calibration), batch_size=7)
        SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=2,
            train_data_loader=DataLoader(Dataset(cases(9)), batch_size=3),
            network=net,
            optimizer=torch.optim.AdamW(parameter_groups(net, {"method": 1e-2, "head": 1e-1})),
            loss_function=OrdinalCrossEntropy(len(GRADES)),
            train_handlers=[
                *(ValidationHandler(1, evaluator), saver, TemperatureCalibration(saver, len(GRADES))),
                ConformalCalibration(saver, loader, OUTPUTS, GRADES, coverage),
            ],
        ).run()

    def test_thresholds_of_the_best_network(self):
        with self.assertLogs("monai_dvpt.handlers.conformal_calibration", "INFO") as logs:
            self.train(cases(40))
        self.assertEqual([r.levelname for r in logs.records], ["INFO"])
        self.assertIn("coverage 0.7 on 40 cases", logs.output[0])
        notes = adapter_metadata(self.adapter)["notes"]
        self.assertEqual((notes["epoch"], notes["conformal"]), (1, json.loads(self.record.read_text())))
        found = calibrated_sets(self.adapter)
        temperature = notes["calibration"]["temperature"]
        self.assertEqual((found.coverage, found.temperature), (0.7, temperature))
        net = network().eval()
        net.load_state_dict(torch.load(self.root / "model.pt", weights_only=True))
        torch.testing.assert_close(load_file(self.adapter)["classification_head.bias"], net.classification_head.bias)
        with torch.no_grad():
            logits = net(torch.stack([case["image"] for case in cases(40)])).double().view(40, 2, 3)
        label = torch.stack([case["label"] for case in cases(40)])
        probability = (logits / temperature).softmax(dim=2).numpy()
        for o, k in np.ndindex(2, 3):
            rows = probability[(label[:, o] == k).numpy(), o]
            mean = rows @ [0, 1, 2]
            scores = np.sort(np.abs(k - mean) / np.sqrt(rows @ [0, 1, 4] - mean**2 + 1 / 12))
            self.assertEqual(found.counts[o][k], len(scores))
            rank = -(-(len(scores) + 1) * 7 // 10)
            self.assertAlmostEqual(found.thresholds[o][k], scores[rank - 1], places=5)

    def test_too_few_cases_of_a_grade(self):
        with self.assertLogs("monai_dvpt.handlers.conformal_calibration", "WARNING") as logs:
            self.train(cases(60, top=2), coverage=0.9)
        self.assertRegex(logs.output[0], r"fewer than 9 calibration cases have it: left: severe \(0\), right: severe")
        self.assertEqual([row[2] for row in calibrated_sets(self.adapter).thresholds], [None, None])

    def test_no_calibration_cases(self):
        self.train(cases(40))
        self.adapter.unlink()  # else it is scored first, and stays if it is better
        with self.assertLogs("monai_dvpt.handlers.conformal_calibration", "WARNING") as logs:
            self.train([])
        self.assertRegex(logs.output[0], "No prediction sets: the list has no part calibration")
        self.assertFalse(self.record.exists())
        self.assertNotIn("conformal", adapter_metadata(self.adapter)["notes"])
        self.assertIn("calibration", adapter_metadata(self.adapter)["notes"])
        with self.assertLogs("monai_dvpt.handlers.conformal_calibration", "INFO") as logs:
            self.assertIsNone(calibrated_sets(self.adapter))
        self.assertIn("No prediction sets", logs.output[0])

    @parameterized.expand([(0,), (1.0,), ("0.9",), (math.nan,)])
    def test_bad_coverage(self, coverage):
        with self.assertRaisesRegex(ValueError, r"coverage must be a number in \(0, 1\)"):
            ConformalCalibration(None, None, OUTPUTS, GRADES, coverage)

    @parameterized.expand(
        [
            ("no object", [0.9]),
            ("a value missing", {"coverage": 0.9}),
            ("no table", {"coverage": 0.9, "temperature": 1.0, "counts": [1], "thresholds": [0.5]}),
            ("a value of its own", {"coverage": 2, "temperature": 1.0, "counts": [[1]], "thresholds": [[0.5]]}),
            ("text", {"coverage": 0.9, "temperature": 1.0, "counts": [[1]], "thresholds": [["half"]]}),
        ]
    )
    def test_notes_that_are_not_valid(self, _, notes):
        save_adapter(network(), self.adapter, notes={"conformal": notes})
        with self.assertRaisesRegex(InputError, f"{self.adapter}: conformal must be what a training wrote, got"):
            calibrated_sets(self.adapter)

    def test_an_adapter_without_notes(self):
        save_adapter(network(), self.adapter)
        self.assertIsNone(calibrated_sets(self.adapter))
        sets = PredictionSets(0.9, 1.5, [[9, 4, 9]], [[0.5, None, 1.5]])
        save_adapter(network(), self.adapter, notes={"conformal": vars(sets)})
        self.assertEqual(calibrated_sets(self.adapter), sets)


if __name__ == "__main__":
    unittest.main()
