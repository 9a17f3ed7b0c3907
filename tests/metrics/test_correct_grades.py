# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import torch
from ignite.engine import Engine
from ignite.metrics import Accuracy
from sklearn.metrics import accuracy_score

from monai_dvpt.metrics import correct_grades


class TestCorrectGrades(unittest.TestCase):
    def test_accuracy_is_that_of_scikit_learn(self):
        generator = torch.Generator().manual_seed(0)
        grade = torch.randint(0, 4, (7, 3), generator=generator)
        label = torch.randint(-1, 4, (7, 3), generator=generator)
        label[6] = -1  # a batch without a grade
        cases = [{"grade": g, "label": y} for g, y in zip(grade, label, strict=True)]
        engine = Engine(lambda _, batch: batch)
        Accuracy(output_transform=correct_grades).attach(engine, "accuracy")
        found = engine.run([cases[:4], cases[4:6], cases[6:]]).metrics["accuracy"]
        graded = label >= 0
        self.assertAlmostEqual(found, accuracy_score(label[graded], grade[graded]))


if __name__ == "__main__":
    unittest.main()
