# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import unittest

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, NormalizeIntensityd, ScaleIntensityRanged
from parameterized import parameterized

from monai_dvpt.data import DicomSeriesReader
from monai_dvpt.handlers import CaseWriter
from monai_dvpt.transforms import LoadVolumed
from monai_dvpt.utils import describe


def setup(window: float = 250, modality: str = "CT", overlap: float = 0.25, fmt: str = "nifti", out: str = "a") -> list:
    return [
        Compose(
            [
                LoadVolumed("image", dicom_reader=DicomSeriesReader(modality=modality)),
                ScaleIntensityRanged("image", -175, window, 0, 1),
                NormalizeIntensityd("image", subtrahend=np.array([0.5])),
            ]
        ),
        SlidingWindowInferer((4, 4, 4), overlap=overlap, device=torch.device("cpu")),
        CaseWriter(out, ["background", "liver"], fmt),
        torch.nn.Linear(2, 3),
    ]


class TestDescribe(unittest.TestCase):
    def test_what_is_set_up_alike_is_alike(self):
        first, second = (json.dumps(describe(setup(out=out))) for out in "ab")
        self.assertEqual(first, second)
        self.assertIn("ScaleIntensityRange", first)

    @parameterized.expand([("window", 200), ("modality", "MR"), ("overlap", 0.5), ("fmt", "nifti,")])
    def test_what_is_not_differs(self, name, value):
        same = name == "fmt"  # the same formats, written in another way
        self.assertEqual(describe(setup()) == describe(setup(**{name: value})), same)

    def test_values(self):
        self.assertEqual(describe({"a": (1, None, True), "b": np.float32}), {"a": [1, None, True], "b": "float32"})
        self.assertEqual(describe(torch.ones(2)), describe(np.ones(2, np.float32)))
        self.assertNotEqual(describe(torch.ones(2)), describe(torch.zeros(2)))
        self.assertNotEqual(describe(np.dtype("uint8")), describe(np.dtype("float32")))
        self.assertNotEqual(describe(np.float32(1)), describe(np.float32(2)))
        self.assertEqual(describe({"b", "a"}), ["a", "b"])
        around: list = []
        around.append(around)
        self.assertEqual(describe(around), ["list"])


if __name__ == "__main__":
    unittest.main()
