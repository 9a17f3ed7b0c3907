# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import unittest

import torch
import torch.nn.functional as F
from parameterized import parameterized

from monai_dvpt.losses import OrdinalCrossEntropy

BATCH, OUTPUTS, K = 5, 2, 3


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and grades of which some are missing."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, OUTPUTS * K, generator=generator, requires_grad=True)
    return logits, torch.tensor([[0, 2], [1, -1], [2, 2], [-1, -1], [1, 0]])


class TestOrdinalCrossEntropy(unittest.TestCase):
    @parameterized.expand([(None,), (0.5,), (1.7,)])
    def test_by_hand(self, sharpness):
        logits, label = batch()
        losses = []
        for row, grades in zip(logits.detach(), label.tolist(), strict=True):
            for output, grade in enumerate(grades):
                if grade >= 0:
                    log_p = torch.log_softmax(row[output * K : (output + 1) * K], dim=0).tolist()
                    weights = [math.exp(-sharpness * (i - grade) ** 2) if sharpness else i == grade for i in range(K)]
                    losses.append(-sum(w * p for w, p in zip(weights, log_p, strict=True)) / sum(weights))
        self.assertEqual(len(losses), 7)
        found = OrdinalCrossEntropy(K, sharpness)(logits, label)
        self.assertAlmostEqual(found.item(), sum(losses) / 7, places=5)

    def test_sharp_labels_are_plain_cross_entropy(self):
        logits, label = batch()
        plain = F.cross_entropy(logits.view(BATCH * OUTPUTS, K), label.view(-1), ignore_index=-1)
        for sharpness in (None, 1e3):
            torch.testing.assert_close(OrdinalCrossEntropy(K, sharpness)(logits, label), plain)

    def test_a_near_grade_costs_less(self):
        loss = OrdinalCrossEntropy(4, 1.0)
        costs = [
            loss(5 * F.one_hot(torch.tensor([grade]), 4).float(), torch.tensor([[0]])).item() for grade in range(4)
        ]
        self.assertEqual(costs, sorted(costs))
        self.assertEqual(len(set(costs)), 4)

    @parameterized.expand([(None,), (1.0,)])
    def test_nothing_graded(self, sharpness):
        logits, label = batch()
        found = OrdinalCrossEntropy(K, sharpness)(logits, torch.full_like(label, -1))
        found.backward()
        self.assertEqual((found.item(), logits.grad.abs().max().item()), (0.0, 0.0))

    def test_no_gradient_where_nothing_is_graded(self):
        logits, label = batch()
        OrdinalCrossEntropy(K, 1.0)(logits, label).backward()
        used = logits.grad.view(BATCH, OUTPUTS, K).abs().sum(dim=2) > 0
        self.assertEqual(used.tolist(), (label >= 0).tolist())

    @parameterized.expand(
        [
            ({"num_grades": 1}, "num_grades must be a whole number of at least 2"),
            ({"num_grades": 3, "sharpness": 0.0}, "sharpness must be positive or None, got 0.0"),
        ]
    )
    def test_bad_arguments(self, arguments, why):
        with self.assertRaisesRegex(ValueError, why):
            OrdinalCrossEntropy(**arguments)

    @parameterized.expand([((BATCH, 5), (BATCH, OUTPUTS)), ((BATCH, 6), (BATCH,)), ((BATCH, 6), (BATCH - 1, OUTPUTS))])
    def test_bad_shapes(self, pred, label):
        with self.assertRaisesRegex(ValueError, r"y_pred must have the shape \(B, O \* 3\)"):
            OrdinalCrossEntropy(K)(torch.zeros(pred), torch.zeros(label, dtype=torch.int64))


if __name__ == "__main__":
    unittest.main()
