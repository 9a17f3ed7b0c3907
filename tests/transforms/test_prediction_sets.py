# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import torch
from monai.data import MetaTensor

from monai_dvpt.metrics import PredictionSets
from monai_dvpt.transforms import GradeLogitsd, PredictionSetsd

# of the first output grades 0 and 1 are near enough where the expected grade is 0.4; of the second, none but its own
SETS = PredictionSets(0.8, 1.0, [[9, 9, 9], [9, 9, 9]], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
PROBABILITY = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])


class TestPredictionSetsd(unittest.TestCase):
    def test_sets_beside_the_grades(self):
        logits = MetaTensor((PROBABILITY.log() + 3).flatten())
        found = PredictionSetsd("pred", SETS)(GradeLogitsd("pred", 3, "mean")({"pred": logits, "name": "a"}))
        self.assertEqual(found["grade"].tolist(), [0, 1])
        # by hand: variance 0.44 + 1/12, so distances 0.4, 0.6 and 1.6 over 0.724
        self.assertEqual(found["grade_set"].tolist(), [[True, True, False], [False, True, False]])
        self.assertEqual((found["grade_set"].dtype, found["coverage"], found["name"]), (torch.bool, 0.8, "a"))

    def test_the_temperature_is_that_of_the_sets(self):
        """Not the one by which a user divides probabilities."""
        cases = [GradeLogitsd("pred", 3, "mean", t)({"pred": PROBABILITY.log().flatten()}) for t in (1.0, 5.0)]
        one, other = (PredictionSetsd("pred", SETS)(case)["grade_set"] for case in cases)
        self.assertTrue(torch.equal(one, other))

    def test_bad_arguments(self):
        with self.assertRaisesRegex(ValueError, "keys must be one key"):
            PredictionSetsd(["a", "b"], SETS)
        with self.assertRaisesRegex(ValueError, r"logits must have the shape \(2 \* 3,\), got \(3,\)"):
            PredictionSetsd("pred", SETS)({"pred": torch.zeros(3), "grade": torch.zeros(1)})


if __name__ == "__main__":
    unittest.main()
