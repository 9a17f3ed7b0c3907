# SPDX-License-Identifier: Apache-2.0
"""Linear probes: models against those of scikit-learn, features against MONAI's ViT, and which backbone is taken."""

from __future__ import annotations

import csv
import math
import unittest
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import Dataset
from monai.networks.nets import ViT
from monai.transforms import Compose, NormalizeIntensityd, Resized, ScaleIntensityd
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score
from sklearn.preprocessing import StandardScaler
from utils_data import shared_data

from monai_dvpt.apps.probe import Candidate, Comparison, Labels, ProbeScore, compare_backbones
from monai_dvpt.apps.probe.compare import CELLS, TOKEN_PENALTY, deal_folds
from monai_dvpt.apps.probe.features import cut_window, image_features, share_of_labels, token_features
from monai_dvpt.apps.probe.logistic import cross_predict, fit_logistic
from monai_dvpt.benchmark.study.intervals import Interval
from monai_dvpt.networks.nets import DVPTViT, DVPTViTSegmenter
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.transforms import LoadImage2Dd
from monai_dvpt.utils import InputError, labels_of_values

TINY = {"hidden_size": 192, "mlp_dim": 768, "num_layers": 12, "num_heads": 3}


def sklearn_probabilities(features, truth, inside, outside, penalty):
    """Of scikit-learn's own regression, for rows that it did not see."""
    scaler = StandardScaler().fit(features[inside])
    model = LogisticRegression(C=1 / (penalty * len(inside)), tol=1e-10, max_iter=10000)
    model.fit(scaler.transform(features[inside]), truth[inside])
    return model.predict_proba(scaler.transform(features[outside]))


def made_up(rows=60, width=7, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(5, 1, (rows, width)) * np.arange(1, width + 1)
    order = np.argsort(np.argsort(features[:, 0] + rng.normal(0, 1, rows)))
    return features, order * classes // rows


def targets_of(*truths, classes=3) -> torch.Tensor:
    return F.one_hot(torch.tensor(np.stack(truths, axis=1)), classes).double()


class TestLogistic(unittest.TestCase):
    def test_outputs_are_as_scikit_learn_fits_each(self):
        (features, first), (_, second) = made_up(), made_up(seed=1)
        rows = np.arange(len(first))
        logits = fit_logistic(torch.tensor(features), targets_of(first, second), 0.02)(torch.tensor(features))
        for output, truth in enumerate((first, second)):
            expected = sklearn_probabilities(features, truth, rows, rows, 0.02)
            np.testing.assert_allclose(logits[:, output].softmax(dim=1).numpy(), expected, atol=1e-4)

    def test_more_features_than_rows(self):
        features, truth = made_up(rows=30, width=80)
        inside, outside = np.arange(20), np.arange(20, 30)
        truth[:3] = 0, 1, 2
        model = fit_logistic(torch.tensor(features[inside]), targets_of(truth[inside]), 0.05)
        said = model(torch.tensor(features[outside]))[:, 0].softmax(dim=1).numpy()
        np.testing.assert_allclose(said, sklearn_probabilities(features, truth, inside, outside, 0.05), atol=1e-4)

    def test_shares_are_weights_and_a_row_without_a_label_trains_nothing(self):
        features, truth = made_up()
        shares = targets_of(truth)
        shares[:20] = 0
        shares[20:30, 0] = torch.tensor([0.25, 0.75, 0.0])
        logits = fit_logistic(torch.tensor(features), shares, 0.02)(torch.tensor(features))
        scaled = StandardScaler().fit_transform(features)
        rows, classes = np.nonzero(shares[:, 0].numpy())
        model = LogisticRegression(C=1 / (0.02 * len(truth)), tol=1e-10, max_iter=10000)
        model.fit(scaled[rows], classes, sample_weight=shares[rows, 0, classes].numpy())
        np.testing.assert_allclose(logits[:, 0].softmax(dim=1).numpy(), model.predict_proba(scaled), atol=1e-4)

    def test_predictions_and_penalties_are_of_the_other_folds(self):
        features, truth = made_up()

        def accuracy(logits, rows):
            return float((logits[:, 0].argmax(dim=1).numpy() == truth[rows.numpy()]).mean())

        folds = np.arange(len(truth)) % 3
        penalties = (1e-4, 0.3, 10.0)
        expected = np.zeros((len(truth), 3))
        chosen = []
        for fold in range(3):
            rights = []
            for penalty in sorted(penalties, reverse=True):
                right = 0
                for inner in {0, 1, 2} - {fold}:
                    inside = np.flatnonzero((folds != fold) & (folds != inner))
                    outside = np.flatnonzero(folds == inner)
                    given = sklearn_probabilities(features, truth, inside, outside, penalty)
                    right += (given.argmax(axis=1) == truth[outside]).sum()
                rights.append(right)
            chosen.append(sorted(penalties, reverse=True)[int(np.argmax(rights))])
            inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            expected[outside] = sklearn_probabilities(features, truth, inside, outside, chosen[-1])
        logits = cross_predict(torch.tensor(features), targets_of(truth), torch.tensor(folds), accuracy, penalties)
        np.testing.assert_allclose(logits[:, 0].softmax(dim=1).numpy(), expected, atol=1e-4)


class TestFeatures(unittest.TestCase):
    def test_are_those_of_a_plain_vit(self):
        torch.manual_seed(0)
        sizes = {"in_channels": 3, "img_size": 32, "patch_size": 8, "num_layers": 2, "hidden_size": 24, "mlp_dim": 36}
        plain = ViT(**sizes, num_heads=3, classification=True, spatial_dims=2, qkv_bias=True).eval()
        net = DVPTViT(**sizes, num_heads=3, spatial_dims=2, num_classes=5, bottleneck_size=8).train()
        weights = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith("classif")}
        self.assertEqual(net.load_state_dict(weights, strict=False).unexpected_keys, [])
        images = torch.randn(11, 3, 32, 32)
        data = [{"image": image, "label": torch.tensor([index % 5, -1])} for index, image in enumerate(images)]
        features, labels = image_features(net, Dataset(data), "plain")
        with torch.no_grad():
            x = torch.cat((plain.cls_token.expand(11, -1, -1), plain.patch_embedding(images)), dim=1)
            for block in plain.blocks:
                x = block(x)
            x = plain.norm(x)
        expected = torch.cat((x[:, 1:].mean(dim=1), x[:, 0]), dim=1)
        torch.testing.assert_close(features.float(), expected, atol=1e-4, rtol=1e-4)
        self.assertEqual(labels.tolist(), [[index % 5, -1] for index in range(11)])
        self.assertTrue(net.training)

    def test_shares_of_cells(self):
        label = torch.tensor(np.random.default_rng(0).integers(0, 4, (1, 6, 8, 4)))  # 3 stands for a set
        shares = share_of_labels(label, [3, 2, 2], labels_of_values(["background", "a", "b"], [["background", "b"]]))
        blocks = label[0].numpy().reshape(3, 2, 2, 4, 2, 2)
        for value in range(3):
            np.testing.assert_allclose(shares[value].numpy(), (blocks == value).mean(axis=(1, 3, 5)), atol=1e-6)
        self.assertLess(float(shares.sum(0).min()), 1)

    def test_window_is_around_the_labels(self):
        label = torch.zeros(1, 20, 9, 5)
        label[0, 14:16, 4, 0] = 1
        image = torch.arange(label.numel()).reshape(label.shape).float()
        cut, mask = cut_window(image, label, [4, 6, 8])
        self.assertEqual((cut.shape, mask.shape), ((1, 4, 6, 8), (1, 4, 6, 8)))
        self.assertEqual(int(mask.sum()), 2)
        np.testing.assert_array_equal(cut[0, :, :, 1:6].numpy(), image[0, 13:17, 1:7].numpy())  # padded on both sides


def score(name: str, mean: float, parameters: int, below: tuple[float, float, float]) -> ProbeScore:
    return ProbeScore(name, parameters, Interval(mean, mean - 0.1, mean + 0.1), Interval(*below))


class TestChoice(unittest.TestCase):
    def comparison(self, *scores: ProbeScore) -> Comparison:
        return Comparison("quadratic kappa", scores, 100, 50, 5)

    def test_the_best_where_it_is_clearly_better(self):
        small, large = score("small", 0.5, 5, (-0.1, -0.2, -0.01)), score("large", 0.6, 22, (0, 0, 0))
        found = self.comparison(small, large)
        self.assertEqual(found.chosen.name, "large")
        self.assertRegex(found.reason(), r"small 0\.500 .*large 0\.600.*large is the best, clearly\.$")

    def test_the_smaller_where_it_is_not(self):
        small, large = score("small", 0.5, 5, (-0.1, -0.2, 0.01)), score("large", 0.6, 22, (0, 0, 0))
        found = self.comparison(large, small)
        self.assertEqual(found.chosen.name, "small")
        self.assertRegex(
            found.reason(), r"small is -0\.100 \(-0\.200 to 0\.010\) beside the best, and of the backbones"
        )

    def test_a_larger_one_that_is_close_changes_nothing(self):
        small, large = score("small", 0.6, 5, (0, 0, 0)), score("large", 0.5, 22, (-0.1, -0.2, 0.01))
        self.assertEqual(self.comparison(large, small).chosen.name, "small")

    def test_folds_keep_patients_together_and_grades_even(self):
        patients = [index // 2 for index in range(200)]
        grades = [int(index // 2 % 10 == 0) for index in range(200)]
        folds = deal_folds(patients, grades).tolist()
        self.assertEqual(len(set(zip(patients, folds, strict=True))), 100)
        self.assertEqual(
            Counter(fold for fold, grade in zip(folds, grades, strict=True) if grade), dict.fromkeys(range(5), 4)
        )
        with self.assertRaisesRegex(InputError, "at least 2 patients, got 1"):
            deal_folds(["one", "one"], [0, 1])


def network(weights: Path, kind: type = DVPTViT, **settings):
    settings = {"in_channels": 3, "img_size": 112, "patch_size": 16, "spatial_dims": 2, **TINY, **settings}
    return load_pretrained(kind(**settings, method="linear"), weights, verbose=False).network


def prepared(keys=("image",)) -> Compose:
    """Pictures of 112 pixels, with the mean and standard deviation of ViT-Ti, 0.5."""
    modes = ["bilinear", "nearest"][: len(keys)]
    return Compose([
        LoadImage2Dd(keys="image", channels=3),
        ScaleIntensityd(keys="image"),
        NormalizeIntensityd(keys="image", subtrahend=np.full(3, 0.5), divisor=np.full(3, 0.5), channel_wise=True),
        Resized(keys=list(keys), spatial_size=(112, 112), mode=modes),
    ])  # fmt: skip


class TestRealPictures(unittest.TestCase):
    def knees(self, count: int):
        root = shared_data("knee_kl")
        with open(root / "labels.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["kl_grade"] in "03"]
        rows = sorted(rows, key=lambda row: row["image"])
        by_grade = [[row for row in rows if row["kl_grade"] == grade][:count] for grade in "03"]
        rows = [row for pair in zip(*by_grade, strict=True) for row in pair]
        data = [{"image": str(root / r["image"]), "label": torch.tensor([int(r["kl_grade"] == "3")])} for r in rows]
        return data, [row["patient"] for row in rows]

    def test_a_backbone_without_a_score_is_not_close_to_the_best(self):
        nothing = Interval(math.nan, math.nan, math.nan)
        found = Comparison(
            "mean Dice",
            [
                ProbeScore("small", 1, nothing, nothing),
                ProbeScore("large", 2, Interval(0.5, 0.4, 0.6), Interval(0, 0, 0)),
            ],
            *(8, 4, 4),
        )
        self.assertEqual((found.best.name, found.chosen.name), ("large", "large"))
        self.assertIn("large is the best, clearly", found.reason())

    def test_a_metric_that_is_not_defined_is_bad_input(self):
        net = DVPTViT(3, 112, 16, **TINY, spatial_dims=2, num_classes=2, method="linear")
        data = [{"image": torch.rand(3, 112, 112), "label": torch.tensor([-1])} for _ in range(4)]
        with self.assertRaisesRegex(InputError, "the metric is not defined on these training cases"):
            compare_backbones([Candidate("tiny", net, data)], Labels("grading", ["0", "3"]), range(4))

    def test_scores_of_knees_are_those_of_scikit_learn(self):
        weights = shared_data("weights/vit_tiny_patch16_224_timm.safetensors")
        data, patients = self.knees(10)
        dataset, net = Dataset(data, prepared()), network(weights, num_classes=2, pooling="both")
        torch.manual_seed(0)
        blind = DVPTViT(3, 112, 16, **TINY, spatial_dims=2, num_classes=2, method="linear")
        blind.encoder().norm.weight.data.zero_()  # says the same of every image
        features, truth = image_features(net, dataset, "tiny")
        folds = deal_folds(patients, [tuple(label) for label in truth.tolist()])
        judges = {
            "grading": lambda pred, rows: cohen_kappa_score(truth[rows, 0], pred, weights="quadratic"),
            "classification": lambda pred, rows: balanced_accuracy_score(truth[rows, 0], pred),
        }
        for task, judge in judges.items():
            candidates = [Candidate("blind", blind, dataset), Candidate("tiny", net, dataset)]
            found = compare_backbones(candidates, Labels(task, ["0", "3"]), patients)
            tiny = found.scores[1]

            def score(logits, rows, judge=judge):
                return judge(logits[:, 0, 1] > logits[:, 0, 0], rows)

            logits = cross_predict(features, F.one_hot(truth, 2).double(), folds, score)
            self.assertAlmostEqual(tiny.score.mean, score(logits, torch.arange(len(truth))), places=6)
            self.assertTrue(tiny.score.low <= tiny.score.mean <= tiny.score.high)
            self.assertEqual((found.best.name, found.chosen.name), ("tiny", "tiny"))
            self.assertEqual(found.patients, len(set(patients)))

    @patch("monai_dvpt.apps.probe.compare.FOLDS", 2)
    def test_dice_of_lesions_is_that_of_a_decoder_by_scikit_learn(self):
        weights = shared_data("weights/vit_tiny_patch16_224_timm.safetensors")
        root = shared_data("skin_lesions")
        masks = sorted((root / "masks").glob("*.png"))[:6]
        net = network(weights, DVPTViTSegmenter, out_channels=2)
        data = []
        for mask in masks:
            image = next((root / "images").glob(f"{mask.stem.split('_seg')[0]}*"))
            label = torch.tensor(np.array(Image.open(mask)) > 0)[None].float()
            data.append({"image": str(image), "label": label})
        dataset = Dataset(data, prepared(("image", "label")))
        patients = list(range(6))
        found = compare_backbones(
            [Candidate("tiny", net, dataset)], Labels("segmentation", ["background", "lesion"]), patients
        )
        tokens, maps = token_features(net, dataset, "tiny")
        folds, cells = deal_folds(patients, [""] * 6).numpy(), CELLS[2]
        maps = np.stack([np.asarray(label)[0] for label in maps])
        shares = maps.reshape(6, 7, cells, 4, 7, cells, 4).mean(axis=(3, 6))  # image, row, cell, column, cell
        scores = []
        for fold in range(2):
            inside = folds != fold
            rows = tokens[inside].float().numpy().reshape(-1, 192)
            scaler = StandardScaler().fit(rows)
            models = {}
            for row, column in np.ndindex(cells, cells):
                share = shares[inside][:, :, row, :, column].reshape(-1)
                model = LogisticRegression(C=1 / (TOKEN_PENALTY * len(rows)), max_iter=5000, tol=1e-6)
                weight = np.concatenate([1 - share, share])
                given = np.concatenate([scaler.transform(rows)] * 2)
                models[row, column] = model.fit(given, np.repeat([0, 1], len(rows)), sample_weight=weight)

            def lines(tokens, models=models, scaler=scaler):
                values = np.zeros((len(tokens), 7 * cells, 7 * cells))
                for (row, column), model in models.items():
                    said = model.decision_function(scaler.transform(tokens.float().numpy().reshape(-1, 192)))
                    values[:, row::cells, column::cells] = said.reshape(-1, 7, 7)
                return values

            drawn = shares[inside].reshape(-1, 7 * cells, 7 * cells)
            known = lines(tokens[inside])
            dice = [
                2 * drawn[known > -step / 4].sum() / ((known > -step / 4).sum() + drawn.sum()) for step in range(17)
            ]
            for index in np.flatnonzero(~inside):
                up = F.interpolate(torch.tensor(lines(tokens[index : index + 1]))[None], (112, 112), mode="bilinear")
                said, truth = up[0, 0].numpy() > -np.argmax(dice) / 4, maps[index] > 0
                scores.append(2 * (said & truth).sum() / (said.sum() + truth.sum()))
        self.assertAlmostEqual(found.scores[0].score.mean, float(np.mean(scores)), delta=0.01)
        self.assertGreater(found.scores[0].score.mean, 0.3)  # of three pictures


if __name__ == "__main__":
    unittest.main()
