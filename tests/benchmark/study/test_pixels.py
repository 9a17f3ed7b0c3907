# SPDX-License-Identifier: Apache-2.0
"""The pixel baseline, against NumPy and scikit-learn."""

from __future__ import annotations

import unittest

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from monai_dvpt.benchmark.study.pixels import PixelModel


def block_means(images: np.ndarray) -> np.ndarray:
    """Means of 8 equal parts along each axis, of images of shape (N, C, 16, 24) or (N, C, 16, 24, 8)."""
    if images.ndim == 4:
        return images.reshape(len(images), -1, 8, 2, 8, 3).mean((3, 5)).reshape(len(images), -1)
    return images.reshape(len(images), -1, 8, 2, 8, 3, 8, 1).mean((3, 5, 7)).reshape(len(images), -1)


class TestPixelModel(unittest.TestCase):
    def setUp(self):
        self.random = np.random.default_rng(3)

    def images(self, number: int, *sides: int) -> np.ndarray:
        return self.random.normal(2, 3, (number, 2, *sides)).astype(np.float32)

    def test_of_2d_and_3d_images(self):
        for sides in ((16, 24), (16, 24, 8)):
            training, others = self.images(6, *sides), self.images(4, *sides)
            model = PixelModel([torch.tensor(image) for image in training], 3)
            self.assertEqual(model.linear.weight.shape, (3, 2 * 8 ** len(sides)))
            self.assertFalse(model(torch.tensor(others)).any())  # it starts at chance
            torch.nn.init.normal_(model.linear.weight)
            torch.nn.init.normal_(model.linear.bias)
            features = StandardScaler().fit(block_means(training)).transform(block_means(others))
            expected = features @ model.linear.weight.detach().numpy().T + model.linear.bias.detach().numpy()
            np.testing.assert_allclose(model(torch.tensor(others)).detach(), expected, rtol=1e-3, atol=1e-3)

    def test_a_part_that_never_changes_is_no_division_by_zero(self):
        model = PixelModel([torch.full((1, 8, 8), 0.5)] * 3, 2)
        torch.nn.init.ones_(model.linear.weight)
        self.assertTrue(model(torch.full((1, 1, 8, 8), 0.5)).isfinite().all())

    def test_learns_as_logistic_regression(self):
        images = self.images(60, 16, 24)
        classes = (block_means(images)[:, :3].sum(1) > 6).astype(int)
        tensors = torch.tensor(images)
        model = PixelModel(list(tensors), 2)
        optimizer = torch.optim.Adam(model.parameter_groups({"head": 3e-2}))
        for _ in range(200):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(tensors), torch.tensor(classes)).backward()
            optimizer.step()
        features = StandardScaler().fit_transform(block_means(images))
        other = LogisticRegression(C=100).fit(features, classes)
        self.assertTrue((model(tensors).argmax(1).numpy() == other.predict(features)).all())
