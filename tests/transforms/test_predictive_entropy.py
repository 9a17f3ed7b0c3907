# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
import torch
from monai.data import MetaTensor
from parameterized import parameterized
from scipy.stats import entropy
from utils_data import AFFINE_RAS

from monai_dvpt.transforms import PredictiveEntropy, PredictiveEntropyd


class TestPredictiveEntropy(unittest.TestCase):
    @parameterized.expand([(2, torch.float32, 1e-6), (5, torch.float32, 1e-6), (3, torch.float16, 1e-3)])
    def test_equals_scipy(self, classes, dtype, tolerance):
        probability = np.random.default_rng(0).dirichlet(np.full(classes, 0.3), (3, 4, 5)).transpose(3, 0, 1, 2)
        found = PredictiveEntropy()(torch.from_numpy(probability).to(dtype))
        self.assertEqual((found.shape, found.dtype), ((1, 3, 4, 5), torch.float32))
        np.testing.assert_allclose(found[0], entropy(probability, base=classes, axis=0), atol=tolerance)

    def test_other_sums(self):
        """Of interpolation at a border: divided by the sum, as SciPy does; a voxel outside of it is 0."""
        probability = np.random.default_rng(0).dirichlet(np.ones(3), 50).T * np.linspace(0.01, 1, 50)
        found = PredictiveEntropy()(torch.from_numpy(np.pad(probability, ((0, 0), (0, 1)))))
        np.testing.assert_allclose(found[0, :-1], entropy(probability, base=3, axis=0), atol=1e-5)
        self.assertEqual(found[0, -1], 0)

    def test_ends(self):
        for classes in (2, 3, 7):
            certain, alike = torch.eye(classes)[:, :1], torch.full((classes, 1), 1 / classes)
            self.assertEqual(PredictiveEntropy()(certain).item(), 0)
            self.assertAlmostEqual(PredictiveEntropy()(alike).item(), 1, places=6)

    def test_dictionary(self):
        pred = MetaTensor(torch.full((2, 3, 4, 5), 0.5), affine=AFFINE_RAS)
        found = PredictiveEntropyd("pred")({"pred": pred})
        self.assertIs(found["pred"], pred)
        torch.testing.assert_close(found["uncertainty"].affine, pred.affine)
        self.assertTrue(torch.equal(found["uncertainty"].as_tensor(), torch.ones(1, 3, 4, 5)))
        with self.assertRaisesRegex(ValueError, "keys must be one key"):
            PredictiveEntropyd(["a", "b"])
        with self.assertRaisesRegex(ValueError, r"at least 2 classes, got shape \(1, 4\)"):
            PredictiveEntropy()(torch.ones(1, 4))


if __name__ == "__main__":
    unittest.main()
