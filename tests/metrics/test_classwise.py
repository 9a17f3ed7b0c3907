# SPDX-License-Identifier: Apache-2.0
"""Metrics of classes without an order, against scikit-learn."""

from __future__ import annotations

import math
import unittest
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from monai.handlers import from_engine
from parameterized import parameterized
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score, roc_auc_score
from utils_data import temporary_folder

from monai_dvpt.benchmark.study.intervals import Run, compare_runs
from monai_dvpt.metrics import (
    ClasswiseMetric,
    ClasswiseROCAUCMetric,
    compute_classwise_metric,
    compute_classwise_roc_auc,
)

CLASSES = 5
JUDGES = {"f1 score": f1_score, "recall": recall_score, "precision": precision_score}


def readings(seed: int, cases: int = 60, missing: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """
    Probabilities (N, CLASSES) and classes of a reader (N,) that they often hit, some of them equal; the reader never
    gives the class ``missing``.
    """
    generator = np.random.default_rng(seed)
    y = generator.choice([index for index in range(CLASSES) if index != missing], cases)
    scores = generator.normal(0, 1, (cases, CLASSES)).round(1) + 1.2 * np.eye(CLASSES)[y]
    chances = np.exp(scores)
    return chances / chances.sum(axis=1, keepdims=True), y


def judge(name: str, y_pred: np.ndarray, y: np.ndarray, average: str | None = "macro"):
    return JUDGES[name](y, y_pred, labels=range(CLASSES), average=average, zero_division=np.nan)


class TestComputeClasswiseMetric(unittest.TestCase):
    @parameterized.expand(JUDGES)
    def test_equals_scikit_learn(self, name):
        for seed in range(20):
            chances, y = readings(seed, 5 + 5 * seed)
            y_pred = chances.argmax(axis=1)
            found = compute_classwise_metric(y_pred, y, CLASSES, name)
            self.assertEqual((found.shape, found.dtype), ((), torch.float64))
            self.assertAlmostEqual(found.item(), judge(name, y_pred, y), places=12)
            found = compute_classwise_metric(y_pred, y, CLASSES, name, average="none")
            np.testing.assert_allclose(found, judge(name, y_pred, y, None), atol=1e-12)

    def test_recall_is_balanced_accuracy(self):
        chances, y = readings(3)
        y_pred = chances.argmax(axis=1)
        found = compute_classwise_metric(y_pred, y, CLASSES, "recall").item()
        self.assertAlmostEqual(found, balanced_accuracy_score(y, y_pred), places=12)

    @parameterized.expand(JUDGES)
    def test_classes_that_are_missing(self, name):
        """From the reader alone, from the model alone, and from both."""
        for y_pred, y in (([0, 1, 2, 4], [0, 1, 1, 4]), ([0, 1, 1, 1], [0, 1, 2, 3]), ([0, 0, 0], [0, 0, 0])):
            found = compute_classwise_metric(y_pred, y, CLASSES, name, average="none")
            np.testing.assert_allclose(found, judge(name, np.array(y_pred), np.array(y), None), atol=1e-12)
            mean = compute_classwise_metric(y_pred, y, CLASSES, name).item()
            self.assertAlmostEqual(mean, judge(name, np.array(y_pred), np.array(y)), places=12)

    def test_a_class_that_the_model_never_found_counts(self):
        self.assertEqual(compute_classwise_metric([0, 0], [0, 1], 2, "recall").item(), 0.5)
        self.assertAlmostEqual(compute_classwise_metric([0, 0], [0, 1], 2).item(), 1 / 3)  # 2/3 and 0

    def test_outputs_are_pooled_without_missing_labels(self):
        generator = np.random.default_rng(0)
        y_pred, y = generator.integers(0, CLASSES, (2, 40, 3))
        y[generator.random(y.shape) < 0.3] = -1
        keep = y != -1
        found = compute_classwise_metric(y_pred, y, CLASSES).item()
        self.assertAlmostEqual(found, judge("f1 score", y_pred[keep], y[keep]), places=12)

    @parameterized.expand(
        [
            ("class", {"y_pred": [0, 5]}, ValueError, r"y_pred must hold whole numbers in \[0, num_classes=5\), got 5"),
            ("missing", {"y": [-1, -1]}, ValueError, r"y must hold at least one class that is not ignore_label=-1"),
            ("average", {"average": "micro"}, ValueError, "average must be one of macro, none, got micro"),
            ("name", {"metric_name": "kappa"}, NotImplementedError, "metric is not implemented"),
        ]
    )
    def test_refused(self, _, change, error, message):
        with self.assertRaisesRegex(error, message):
            compute_classwise_metric(**{"y_pred": [0, 1], "y": [0, 1], "num_classes": CLASSES, **change})


class TestComputeClasswiseROCAUC(unittest.TestCase):
    def test_equals_scikit_learn(self):
        for seed in range(10):
            chances, y = readings(seed, 40 + 5 * seed)
            self.assertEqual(len(set(y)), CLASSES)
            found = compute_classwise_roc_auc(chances, y)
            expected = roc_auc_score(y, chances, multi_class="ovr", labels=range(CLASSES))
            self.assertAlmostEqual(found.item(), expected, places=12)
            found = compute_classwise_roc_auc(chances, y, average="none")
            each = [roc_auc_score(y == index, chances[:, index]) for index in range(CLASSES)]
            np.testing.assert_allclose(found, each, atol=1e-12)

    def test_a_class_that_the_reader_never_gave(self):
        chances, y = readings(1, missing=2)
        each = [roc_auc_score(y == index, chances[:, index]) for index in range(CLASSES) if index != 2]
        found = compute_classwise_roc_auc(chances, y, average="none").numpy()
        self.assertTrue(math.isnan(found[2]))
        np.testing.assert_allclose(np.delete(found, 2), each, atol=1e-12)
        self.assertAlmostEqual(compute_classwise_roc_auc(chances, y).item(), np.mean(each), places=12)
        self.assertTrue(math.isnan(compute_classwise_roc_auc(chances, np.full_like(y, 2))))

    def test_outputs_and_missing_labels(self):
        (first, y), (second, z) = readings(4), readings(5)
        both = np.stack([y, z], axis=1)
        both[::7, 1] = -1
        keep = both.ravel() != -1
        pooled = np.stack([first, second], axis=1).reshape(-1, CLASSES)[keep]
        expected = roc_auc_score(both.ravel()[keep], pooled, multi_class="ovr")
        for scores in (np.stack([first, second], axis=1), np.concatenate([first, second], axis=1)):
            self.assertAlmostEqual(compute_classwise_roc_auc(scores, both).item(), expected, places=12)

    @parameterized.expand(
        [
            ("shape", {"y": [0, 1, 1]}, r"y_pred must have a score of each of at least 2 classes, got the shape"),
            ("class", {"y": [0, 3]}, r"y must hold whole numbers in \[0, num_classes=3\) or ignore_label=-1, got 3"),
            ("finite", {"y_pred": [[0.0, 1, 0], [math.nan, 0, 0]]}, "y_pred must be finite"),
            ("average", {"average": "weighted"}, "average must be one of macro, none, got weighted"),
        ]
    )
    def test_refused(self, _, change, message):
        given = {"y_pred": [[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]], "y": [0, 2], **change}
        with self.assertRaisesRegex(ValueError, message):
            compute_classwise_roc_auc(**given)


class TestMetrics(unittest.TestCase):
    def cases(self, chances: np.ndarray, y: np.ndarray) -> list[dict[str, torch.Tensor]]:
        """As an evaluator gives them, of one output."""
        return [
            {
                "probability": torch.tensor(row[None]),
                "grade": torch.tensor([row.argmax()]),
                "label": torch.tensor([one]),
            }
            for row, one in zip(chances, y, strict=True)
        ]

    def test_over_batches(self):
        chances, y = readings(6, 23)
        chances = chances.astype(np.float32)
        cases = self.cases(chances, y)
        metrics = {"grade": ClasswiseMetric(CLASSES), "probability": ClasswiseROCAUCMetric(CLASSES)}
        for key, metric in metrics.items():
            for start in range(0, 23, 5):
                metric(*from_engine([key, "label"])(cases[start : start + 5]))
        expected = judge("f1 score", chances.argmax(axis=1), y)
        self.assertAlmostEqual(metrics["grade"].aggregate().item(), expected, places=12)
        expected = np.mean([roc_auc_score(y == index, chances[:, index]) for index in range(CLASSES)])
        self.assertAlmostEqual(metrics["probability"].aggregate().item(), expected, places=6)
        shapes = [tuple(buffer.shape) for buffer in metrics["probability"].get_buffer()]
        self.assertEqual(shapes, [(23, CLASSES), (23, 1)])

    @parameterized.expand(
        [
            ("f1", ClasswiseMetric(CLASSES), "grade"),
            ("auroc", ClasswiseROCAUCMetric(CLASSES), "probability"),
        ]
    )
    def test_as_the_metric_of_a_study(self, name, metric, key):
        """The score and its interval over patients, from the buffers as a study keeps them."""
        chances, y = readings(7, 40)
        metric(*from_engine([key, "label"])(self.cases(chances, y)))
        buffers = [buffer.reshape(40, -1).float() for buffer in metric.get_buffer()]
        patients = [str(index // 2) for index in range(40)]
        runs = [Run((method, 1.0), 0, 0, metric.aggregate().item(), buffers, patients) for method in ("a", "b")]
        interval = compare_runs(runs, metric, ("a", 1.0), resamples=60).intervals["a", 1.0]

        def score(cases: np.ndarray) -> float:
            truth, chance = y[cases], chances[cases]
            if name == "f1":
                return judge("f1 score", chance.argmax(axis=1), truth)
            return float(np.mean([roc_auc_score(truth == c, chance[:, c]) for c in set(truth)]))

        self.assertAlmostEqual(interval.mean, score(np.arange(40)), places=6)
        drawn = np.random.default_rng(0).integers(20, size=(60, 20))  # as the study draws patients
        scores = [score(np.concatenate([2 * row, 2 * row + 1])) for row in drawn]
        np.testing.assert_allclose(interval[1:], np.percentile(scores, [2.5, 97.5]), atol=1e-6)

    def test_refused(self):
        for metric in (ClasswiseMetric(CLASSES), ClasswiseROCAUCMetric(CLASSES)):
            with self.assertRaisesRegex(ValueError, "at least one case before aggregate"):
                metric.aggregate()
        for kind in (ClasswiseMetric, ClasswiseROCAUCMetric):
            with self.assertRaisesRegex(ValueError, "num_classes must be a whole number of at least 2, got 1"):
                kind(1)
            with self.assertRaisesRegex(ValueError, "average must be one of"):
                kind(CLASSES, average="micro")
        with self.assertRaises(NotImplementedError):
            ClasswiseMetric(CLASSES, metric_name="kappa")
        with self.assertRaisesRegex(ValueError, r"y_pred must have the shape \(N, O, 5\) for y of the shape \(2, 1\)"):
            ClasswiseROCAUCMetric(CLASSES)(torch.zeros(2, 4), torch.zeros(2))


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    chances, y = (torch.from_numpy(values) for values in readings(8, 30))
    found = []
    for share in (30, 11):  # no case on the second, and unequal numbers
        mine = slice(0, share) if rank == 0 else slice(share, None)
        for metric, y_pred in (
            (ClasswiseMetric(CLASSES), chances.argmax(dim=1)),
            (ClasswiseROCAUCMetric(CLASSES), chances),
        ):
            if len(y[mine]):
                metric(y_pred[mine], y[mine])
            found.append(metric.aggregate().item())
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


class TestDistributed(unittest.TestCase):
    def test_unequal_numbers_of_cases(self):
        folder = temporary_folder(self)
        torch.multiprocessing.spawn(run_rank, args=(folder,), nprocs=2)
        chances, y = readings(8, 30)
        expected = [judge("f1 score", chances.argmax(axis=1), y), roc_auc_score(y, chances, multi_class="ovr")]
        for rank in range(2):
            np.testing.assert_allclose(torch.load(folder / f"{rank}.pt"), expected * 2, atol=1e-6)


if __name__ == "__main__":
    unittest.main()
