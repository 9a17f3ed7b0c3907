# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import unittest

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.utils import one_hot
from parameterized import parameterized
from utils_bundles import BUNDLES, config_files

from monai_dvpt.metrics import DiceOfLabels, HausdorffDistanceMm

# eight voxels of 2 mm; class 1: 2 of 3 are found, Dice 2 * 2 / (3 + 2) = 0.8, one voxel away; class 2 is nowhere
LABEL, FOUND = [0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]
CONFIGS = [
    (f"{bundle.name}_{name}", config_files(bundle, name))
    for bundle in BUNDLES
    for name in ("train", "evaluate")
    if bundle.name.endswith("_segmentation")
]


def classes(values: list[int]) -> MetaTensor:
    image = torch.tensor(values).reshape(1, 1, 1, 8, 1).float()
    return MetaTensor(one_hot(image, 3)[0], affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))


class TestDiceOfLabels(unittest.TestCase):
    def test_class_that_is_nowhere(self):
        metrics = {
            "dice": (DiceOfLabels(include_background=False, reduction="mean_batch"), [0.8, math.nan]),
            "mean": (DiceOfLabels(include_background=False), [0.8]),
            "mm": (HausdorffDistanceMm(percentile=100, reduction="mean_batch"), [2.0, math.nan]),
        }
        for name, (metric, expected) in metrics.items():
            with self.subTest(name):
                metric([classes(FOUND)], [classes(LABEL)])
                torch.testing.assert_close(
                    torch.as_tensor(metric.aggregate()), torch.tensor(expected), equal_nan=True, check_dtype=False
                )

    def test_left_out_of_the_mean(self):
        """Class 2: in one case of two, found as a whole."""
        metric = DiceOfLabels(include_background=False, reduction="mean_batch", get_not_nans=True)
        label = [0, 1, 1, 1, 0, 2, 2, 0]
        metric([classes(FOUND), classes(label)], [classes(LABEL), classes(label)])
        score, count = metric.aggregate()
        torch.testing.assert_close(score, torch.tensor([0.9, 1.0]))
        self.assertEqual(count.tolist(), [2, 1])

    @parameterized.expand(CONFIGS)
    def test_bundles_score_by_it(self, _, config):
        parser = ConfigParser(ConfigParser.load_config_files(config))
        for id_ in ("validate#key_metric#val_mean_dice", "validate#additional_metrics#val_dice"):
            self.assertIsInstance(parser.get_parsed_content(id_).metric_fn, DiceOfLabels)


if __name__ == "__main__":
    unittest.main()
