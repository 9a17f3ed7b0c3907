# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import unittest

import numpy as np
import torch
from monai.losses import DiceCELoss
from parameterized import parameterized

from monai_dvpt.losses import LabelSetDiceCELoss

LABELS = ["background", "liver", "spleen", "kidney"]
SETS = [["background", "kidney"], LABELS, ["liver", "spleen", "kidney"]]
MEMBERS = [{0}, {1}, {2}, {3}, {0, 3}, {0, 1, 2, 3}, {1, 2, 3}]  # of each value, written by hand
SHAPES = [(2, 5, 6), (3, 4, 5, 3)]  # samples and sides


def example(shape: tuple[int, ...], values: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of shape (B, C, *spatial), and a label map."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], len(LABELS), *shape[1:], generator=generator, dtype=torch.float64)
    label = torch.randint(values, (shape[0], 1, *shape[1:]), generator=generator).double()
    return logits.requires_grad_(), label


def by_loops(logits: np.ndarray, label: np.ndarray, smooth: float = 1e-5) -> float:
    """Voxel by voxel."""
    entropies, dices = [], []
    for sample, values in zip(logits, label[:, 0], strict=True):
        sums = {c: [0.0, 0.0, 0.0, 0] for c in range(len(LABELS))}  # overlap, predicted, true, known voxels
        for place in np.ndindex(*values.shape):
            members = MEMBERS[int(values[place])]
            scores = np.exp(sample[(slice(None), *place)])
            share = scores / scores.sum()
            if len(members) < len(LABELS):
                entropies.append(-math.log(sum(share[c] for c in members)))
            for c in range(len(LABELS)):
                if c in members and len(members) > 1:
                    continue
                true = float(c in members)
                sums[c][0] += share[c] * true
                sums[c][1] += share[c]
                sums[c][2] += true
                sums[c][3] += 1
        dices += [1 - (2 * o + smooth) / (p + t + smooth) for o, p, t, known in sums.values() if known]
    return (np.mean(entropies) if entropies else 0.0) + (np.mean(dices) if dices else 0.0)


class TestLabelSetDiceCELoss(unittest.TestCase):
    @parameterized.expand([(shape, seed) for shape in SHAPES for seed in range(3)])
    def test_equals_loops(self, shape, seed):
        logits, label = example(shape, len(MEMBERS), seed)
        loss = LabelSetDiceCELoss(LABELS, SETS)(logits, label)
        self.assertAlmostEqual(loss.item(), by_loops(logits.detach().numpy(), label.numpy()), places=10)

    @parameterized.expand([(shape, sets) for shape in SHAPES for sets in ([], SETS)])
    def test_single_labels_as_monai(self, shape, sets):
        logits, label = example(shape, len(LABELS))
        expected = DiceCELoss(to_onehot_y=True, softmax=True)(logits, label)
        (gradient,) = torch.autograd.grad(expected, logits)
        loss = LabelSetDiceCELoss(LABELS, sets)(logits, label)
        (ours,) = torch.autograd.grad(loss, logits)
        if not sets:
            self.assertTrue(torch.equal(loss, expected) and torch.equal(ours, gradient))
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours, gradient, rtol=0, atol=1e-12)

    def test_one_precision_lower(self):
        logits, label = example(SHAPES[1], len(LABELS))
        expected = DiceCELoss(to_onehot_y=True, softmax=True)(logits.float(), label)
        self.assertAlmostEqual(LabelSetDiceCELoss(LABELS, SETS)(logits.float(), label).item(), expected.item(), 6)

    def test_gradients_are_those_of_differences(self):
        logits, label = example((2, 2, 3), len(MEMBERS))
        self.assertTrue(torch.autograd.gradcheck(lambda x: LabelSetDiceCELoss(LABELS, SETS)(x, label), logits))

    def test_nothing_is_known_of_a_batch(self):
        logits, label = example(SHAPES[0], 1)
        loss = LabelSetDiceCELoss(LABELS, SETS)(logits, label + 5)
        loss.backward()
        self.assertEqual(loss.item(), 0)
        self.assertTrue(torch.equal(logits.grad, torch.zeros_like(logits)))

    def test_what_an_ignored_voxel_predicts_does_not_count(self):
        logits, label = example(SHAPES[1], len(LABELS))
        label[:, :, ::2] = label[0] = 5
        loss = LabelSetDiceCELoss(LABELS, SETS)
        value = loss(logits, label)
        value.backward()
        ignored = (label == 5).expand_as(logits)
        self.assertEqual(logits.grad[ignored].abs().max(), 0)
        self.assertGreater(logits.grad[~ignored].abs().min(), 0)
        other = torch.where(ignored, logits + 1e3 * torch.rand_like(logits), logits)
        self.assertAlmostEqual(loss(other, label).item(), value.item(), 12)

    def test_large_logits(self):
        _, label = example(SHAPES[1], len(MEMBERS))
        logits = torch.zeros(3, 4, 4, 5, 3)
        logits[:, 1] = 1e4
        logits.requires_grad_()
        loss = LabelSetDiceCELoss(LABELS, SETS)(logits, label)
        loss.backward()
        self.assertTrue(torch.isfinite(loss) and torch.isfinite(logits.grad).all())

    @parameterized.expand([(["liver"],), (["liver", "liver"],), (["liver", "lung"],), ("liver",), ([],)])
    def test_bad_set(self, names):
        with self.assertRaisesRegex(ValueError, "^label_sets must be lists of two or more of the labels .*, got "):
            LabelSetDiceCELoss(LABELS, [names])

    def test_bad_labels_and_shapes(self):
        with self.assertRaisesRegex(ValueError, "labels must have two or more names, got \\['lesion'\\]"):
            LabelSetDiceCELoss(["lesion"])
        logits, label = example(SHAPES[0], 2)
        for pair in ((logits[:, :3], label), (logits, label[:, 0]), (logits, label[..., :-1])):
            with self.assertRaisesRegex(ValueError, "y_pred must have the shape"):
                LabelSetDiceCELoss(LABELS)(*pair)


if __name__ == "__main__":
    unittest.main()
