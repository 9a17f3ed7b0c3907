# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours against those of scikit-learn, and the features of several layers against MONAI's ViT."""

from __future__ import annotations

import unittest

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import Dataset
from monai.networks.nets import ViT
from sklearn.neighbors import KNeighborsClassifier

from monai_dvpt.apps.probe.features import layer_features
from monai_dvpt.apps.probe.logistic import cross_predict
from monai_dvpt.apps.probe.neighbours import fit_neighbours
from monai_dvpt.networks.nets import DVPTViT


def made_up(rows: int = 80, width: int = 9, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features around a direction for each class, of different lengths."""
    rng = np.random.default_rng(0)
    truth = np.arange(rows) % classes
    return (np.eye(width)[truth] + rng.normal(0, 0.4, (rows, width))) * rng.uniform(1, 9, (rows, 1)), truth


def sklearn_votes(features, truth, others, neighbours):
    """Shares of the votes, with the weights of DINO's evaluation."""

    def weights(distances):
        return np.exp((1 - distances) / 0.07)

    model = KNeighborsClassifier(neighbours, metric="cosine", weights=weights, algorithm="brute")
    return model.fit(features, truth).predict_proba(others)


class TestNeighbours(unittest.TestCase):
    def test_votes_are_those_of_scikit_learn(self):
        features, truth = made_up()
        targets = F.one_hot(torch.tensor(truth), 3)[:, None]
        for neighbours in (1, 5, 20):
            model = fit_neighbours(torch.tensor(features[:60]), targets[:60], neighbours)
            said = model(torch.tensor(features[60:]))[:, 0].exp().numpy()
            expected = sklearn_votes(features[:60], truth[:60], features[60:], neighbours)
            np.testing.assert_allclose(said, expected, atol=1e-9)

    def test_who_has_no_label_of_an_output_does_not_vote_on_it(self):
        features, truth = made_up()
        second = (truth + 1) % 3
        targets = torch.stack([F.one_hot(torch.tensor(each), 3) for each in (truth, second)], dim=1)
        targets[10:40, 1] = 0
        said = fit_neighbours(torch.tensor(features[:60]), targets[:60], 10)(torch.tensor(features[60:])).exp()
        known = np.r_[0:10, 40:60]
        np.testing.assert_allclose(
            said[:, 0].numpy(), sklearn_votes(features[:60], truth[:60], features[60:], 10), atol=1e-9
        )
        expected = sklearn_votes(features[known], second[known], features[60:], 10)
        np.testing.assert_allclose(said[:, 1].numpy(), expected, atol=1e-9)

    def test_fewer_images_than_neighbours(self):
        features, truth = made_up(12)
        said = fit_neighbours(torch.tensor(features[:6]), F.one_hot(torch.tensor(truth[:6]), 3)[:, None], 20)
        votes = said(torch.tensor(features[6:]))[:, 0].exp().numpy()
        np.testing.assert_allclose(votes, sklearn_votes(features[:6], truth[:6], features[6:], 6), atol=1e-9)

    def test_number_is_chosen_in_the_other_folds(self):
        features, truth = made_up(90)
        folds = np.random.default_rng(1).permutation(90) % 3
        expected = np.zeros((90, 3))
        for fold in range(3):
            rights = {}
            for neighbours in (1, 30):
                rights[neighbours] = 0
                for inner in {0, 1, 2} - {fold}:
                    inside, outside = (folds != fold) & (folds != inner), folds == inner
                    votes = sklearn_votes(features[inside], truth[inside], features[outside], neighbours)
                    rights[neighbours] += (votes.argmax(1) == truth[outside]).sum()
            best = 30 if rights[30] >= rights[1] else 1
            expected[folds == fold] = sklearn_votes(
                features[folds != fold], truth[folds != fold], features[folds == fold], best
            )

        def accuracy(logits, rows):
            return float((logits[:, 0].argmax(1).numpy() == truth[rows.numpy()]).mean())

        targets = F.one_hot(torch.tensor(truth), 3)[:, None].double()
        logits = cross_predict(torch.tensor(features), targets, torch.tensor(folds), accuracy, (1, 30), fit_neighbours)
        np.testing.assert_allclose(logits[:, 0].exp().numpy(), expected, atol=1e-9)


class TestLayers(unittest.TestCase):
    def test_are_those_of_a_plain_vit(self):
        for class_token in (True, False):
            torch.manual_seed(0)
            sizes = {"in_channels": 1, "img_size": (16, 24), "patch_size": 8, "num_layers": 5, "hidden_size": 24}
            sizes |= {"mlp_dim": 36, "num_heads": 3, "spatial_dims": 2, "qkv_bias": True}
            plain = ViT(**sizes, classification=class_token).eval()
            pooling = "cls" if class_token else "mean"
            net = DVPTViT(**sizes, num_classes=2, class_token=class_token, pooling=pooling, bottleneck_size=8)
            weights = {name: each for name, each in plain.state_dict().items() if not name.startswith("classif")}
            net.load_state_dict(weights, strict=False)
            images = torch.randn(9, 1, 16, 24)
            data = [{"image": image, "label": torch.tensor([index % 2])} for index, image in enumerate(images)]
            features, _ = layer_features(net, Dataset(data), "plain", 4)
            with torch.no_grad():
                x = plain.patch_embedding(images)
                if class_token:
                    x = torch.cat((plain.cls_token.expand(9, -1, -1), x), dim=1)
                expected = []
                for block in plain.blocks:
                    x = block(x)
                    y = plain.norm(x)
                    parts = [y[:, 1:].mean(1), y[:, 0]] if class_token else [y.mean(1)]
                    expected.append(torch.stack(parts, dim=1))
            torch.testing.assert_close(features.float(), torch.stack(expected[1:], dim=1), atol=1e-4, rtol=1e-4)


if __name__ == "__main__":
    unittest.main()
