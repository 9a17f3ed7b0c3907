# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import torch
from monai.data import MetaTensor
from parameterized import parameterized

from monai_dvpt.transforms import GradeLogits, GradeLogitsd

PROBABILITY = torch.tensor([[0.4, 0.3, 0.3], [0.1, 0.1, 0.8]])  # expected grades 0.9 and 1.7


class TestGradeLogits(unittest.TestCase):
    @parameterized.expand([("mode", [0, 2], [0.4, 0.8]), ("mean", [1, 2], [0.3, 0.8])])
    def test_by_hand(self, decision, grades, confidences):
        logits = PROBABILITY.log() + torch.tensor([[5.0], [-3.0]])  # a constant changes nothing
        grade, probability, confidence = GradeLogits(3, decision)(logits.flatten())
        self.assertEqual((grade.tolist(), grade.dtype), (grades, torch.int64))
        torch.testing.assert_close(probability, PROBABILITY)
        torch.testing.assert_close(confidence, torch.tensor(confidences))

    def test_mean_has_the_least_expected_squared_error(self):
        logits = torch.randn(50 * 4, generator=torch.Generator().manual_seed(0))
        grade, probability, _ = GradeLogits(4, "mean")(logits)
        grades = torch.arange(4)
        cost = probability @ (grades[:, None] - grades).square().float()  # (O, choice)
        self.assertEqual(grade.tolist(), cost.argmin(dim=1).tolist())

    @parameterized.expand([("mode",), ("mean",)])
    def test_temperature_changes_the_probabilities_alone(self, decision):
        logits = 3 * torch.randn(50 * 4, generator=torch.Generator().manual_seed(0))
        grade, probability, confidence = GradeLogits(4, decision, temperature=2.5)(logits)
        torch.testing.assert_close(grade, GradeLogits(4, decision)(logits)[0])
        torch.testing.assert_close(probability, (logits.view(50, 4) / 2.5).softmax(dim=1))
        torch.testing.assert_close(confidence, probability[range(50), grade])

    def test_dictionary(self):
        graded = GradeLogitsd("pred", 3)({"pred": MetaTensor(PROBABILITY.log().flatten()), "name": "a"})
        self.assertEqual(set(graded), {"pred", "name", "grade", "probability", "confidence"})
        self.assertIs(type(graded["grade"]), torch.Tensor)
        self.assertEqual(graded["grade"].tolist(), [0, 2])
        warm = GradeLogitsd("pred", 3, "mean", temperature=2.0)({"pred": PROBABILITY.log().flatten()})
        torch.testing.assert_close(warm["probability"], (PROBABILITY.log() / 2).softmax(dim=1))
        self.assertEqual(warm["grade"].tolist(), [1, 2])
        with self.assertRaisesRegex(ValueError, "keys must be one key"):
            GradeLogitsd(["pred", "other"], 3)

    @parameterized.expand(
        [
            ({"num_grades": 1}, "num_grades must be a whole number of at least 2, got 1"),
            ({"num_grades": 3, "decision": "median"}, r"decision must be one of \('mode', 'mean'\), got median"),
            ({"num_grades": 3, "temperature": 0.0}, "temperature must be a positive number, got 0.0"),
            ({"num_grades": 3, "temperature": float("nan")}, "temperature must be a positive number, got nan"),
        ]
    )
    def test_bad_arguments(self, arguments, why):
        with self.assertRaisesRegex(ValueError, why):
            GradeLogits(**arguments)

    @parameterized.expand([((7,),), ((2, 6),)])
    def test_bad_shape(self, shape):
        with self.assertRaisesRegex(ValueError, r"logits must have the shape \(O \* 3,\), got"):
            GradeLogits(3)(torch.zeros(shape))


if __name__ == "__main__":
    unittest.main()
