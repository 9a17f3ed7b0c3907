# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import math
import unittest
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.transforms import Lambda
from parameterized import parameterized
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import cohen_kappa_score
from utils_data import shared_data, temporary_folder

from monai_dvpt.metrics import CohenKappaMetric, compute_cohen_kappa

WEIGHTS = ["none", "linear", "quadratic"]
CLASSES, OUTPUTS = 4, 3
ON_RANK = {"unequal": (5, 2), "none on the second": (3, 0), "none on the first": (0, 4)}
SPREADS = [(name, weights, one_class) for name in ON_RANK for weights in WEIGHTS for one_class in (False, True)]


def readings(seed: int, cases: int = 40, classes: int = CLASSES, skewed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Two readings of shape (N, OUTPUTS) that agree more often than by chance."""
    generator = np.random.default_rng(seed)
    shares = np.array([0.9, *[0.1 / (classes - 1)] * (classes - 1)]) if skewed else np.full(classes, 1 / classes)
    y, other = (generator.choice(classes, size=(cases, OUTPUTS), p=shares) for _ in range(2))
    return np.where(generator.random(y.shape) < 0.5, y, other), y


def judge(y_pred: np.ndarray, y: np.ndarray, weights: str, classes: int = CLASSES) -> float:
    """scikit-learn's, NaN without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        weights = None if weights == "none" else weights
        return cohen_kappa_score(y_pred, y, labels=range(classes), weights=weights)


class TestComputeCohenKappa(unittest.TestCase):
    def check(self, y_pred, y, classes: int = CLASSES) -> None:
        for weights in WEIGHTS:
            expected = judge(np.ravel(y_pred), np.ravel(y), weights, classes)
            found = compute_cohen_kappa(y_pred, y, classes, weights)
            self.assertEqual((found.shape, found.dtype), ((), torch.float64))
            np.testing.assert_allclose(found.item(), expected, rtol=0, atol=1e-12)

    @parameterized.expand(
        [(f"{classes} classes, {skewed}", classes, skewed) for classes in (2, 4, 19) for skewed in (False, True)]
    )
    def test_equals_scikit_learn(self, _, classes, skewed):
        for seed in range(20):
            self.check(*readings(seed, 5 + 10 * seed, classes, skewed), classes)

    @parameterized.expand(
        [
            ("one class, the same", [1, 1, 1], [1, 1, 1]),
            ("one class, another", [1, 1, 1], [2, 2, 2]),
            ("one class in the model", [1, 1, 1], [0, 1, 3]),
            ("one class in the reader", [0, 1, 3], [2, 2, 2]),
            ("one pair, the same", [3], [3]),
            ("one pair, another", [3], [0]),
            ("full disagreement", [0, 3, 0, 3], [3, 0, 3, 0]),
            ("full agreement", [0, 1, 2], [0, 1, 2]),
        ]
    )
    def test_degenerate(self, _, y_pred, y):
        self.check(y_pred, y)
        if y_pred == y and len(set(y)) == 1:
            self.assertTrue(math.isnan(compute_cohen_kappa(y_pred, y, CLASSES)))

    def test_by_hand(self):
        """[[20, 5], [10, 15]]: found 0.7, by chance 0.5. [[2, 1, 0], [0, 2, 1], [1, 0, 1]]: costs 1 and 4."""
        y_pred, y = [0] * 20 + [1] * 5 + [0] * 10 + [1] * 15, [0] * 25 + [1] * 25
        for weights in (None, *WEIGHTS):
            self.assertAlmostEqual(compute_cohen_kappa(y_pred, y, 2, weights).item(), 0.4, places=15)
        y, y_pred = [0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 2, 0, 2]
        # margins (3, 3, 2) and (3, 3, 2); by chance 8 * found costs: none 64 - 22, linear 18 + 24 + 12, quadratic 78
        for weights, expected in (("none", 1 - 8 * 3 / 42), ("linear", 1 - 8 * 4 / 54), ("quadratic", 1 - 8 * 6 / 78)):
            self.assertAlmostEqual(compute_cohen_kappa(y_pred, y, 3, weights).item(), expected, places=15)

    @parameterized.expand(WEIGHTS)
    def test_outputs(self, weights):
        y_pred, y = readings(1)
        expected = [judge(y_pred[:, index], y[:, index], weights) for index in range(OUTPUTS)]
        found = compute_cohen_kappa(y_pred, y, CLASSES, weights, reduction="none")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        found = compute_cohen_kappa(y_pred, y, CLASSES, weights, reduction="mean")
        np.testing.assert_allclose(found, np.mean(expected), rtol=0, atol=1e-12)
        one = compute_cohen_kappa(y_pred[:, 0], y[:, 0], CLASSES, weights, reduction="none")
        self.assertEqual(one.shape, (1,))

    def test_mean_is_undefined_where_one_output_is(self):
        y_pred, y = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 1], [1, 1]])
        self.assertTrue(math.isnan(compute_cohen_kappa(y_pred, y, 2, reduction="mean")))
        np.testing.assert_array_equal(compute_cohen_kappa(y_pred, y, 2, reduction="none"), [1, np.nan])
        self.assertEqual(compute_cohen_kappa(y_pred, y, 2).item(), 1)

    @parameterized.expand([(-1,), (7,), (0,)])
    def test_missing_labels(self, ignore_label):
        y_pred, y = readings(2)
        y[np.random.default_rng(0).random(y.shape) < 0.3] = ignore_label
        keep = y != ignore_label
        for weights in WEIGHTS:
            found = compute_cohen_kappa(y_pred, y, CLASSES, weights, ignore_label)
            self.assertAlmostEqual(found.item(), judge(y_pred[keep], y[keep], weights), delta=1e-12)
            found = compute_cohen_kappa(y_pred, y, CLASSES, weights, ignore_label, "none")
            expected = [judge(y_pred[k, i], y[k, i], weights) for i, k in enumerate(keep.T)]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)

    @parameterized.expand(
        [("uint8", np.uint8), ("uint16", np.uint16), ("int64", np.int64), ("float16", np.float16), ("double", float)]
    )
    def test_types_of_numbers(self, _, dtype):
        y_pred, y = readings(3)
        expected = judge(y_pred.ravel(), y.ravel(), "quadratic")
        for values in (y_pred.astype(dtype), torch.as_tensor(y_pred.astype(dtype)), y_pred.astype(dtype).tolist()):
            self.assertAlmostEqual(compute_cohen_kappa(values, y, CLASSES).item(), expected, delta=1e-12)

    @parameterized.expand(
        [
            ("class too large", {"y_pred": [0, 4]}, r"y_pred must hold whole numbers in \[0, num_classes=4\), got 4\."),
            ("missing in the model", {"y_pred": [0, -1]}, r"y_pred must hold .* got -1\."),
            ("class too small", {"y": [0, -2]}, r"y must hold .*\) or ignore_label=-1, got -2\."),
            ("fraction", {"y": [0, 1.5]}, r"y must hold whole numbers .* got 1\.5\."),
            ("not a number", {"y_pred": [0, math.nan]}, r"y_pred must hold whole numbers .* got nan\."),
            ("lengths", {"y": [0, 1, 1]}, r"y must have the shape of y_pred \(2, 1\), got \(3, 1\)\."),
            ("shape", {"y": [[[0, 1]]]}, r"y must have the shape \(N,\) or \(N, O\), got \(1, 1, 2\)\."),
            ("empty", {"y_pred": [], "y": []}, r"y must hold at least one class that is not ignore_label=-1, got none"),
            ("all missing", {"y": [-1, -1]}, r"y must hold at least one class that is not ignore_label=-1, got none"),
            ("classes", {"num_classes": 1}, r"num_classes must be a whole number of at least 2, got 1\."),
            ("weights", {"weights": "cubic"}, r"weights must be none, linear or quadratic, got cubic\."),
            ("reduction", {"reduction": "sum"}, r"reduction must be one of pooled, mean, none, got sum\."),
            (
                "empty output",
                {"y_pred": [[0, 1], [1, 0]], "y": [[0, -1], [1, -1]], "reduction": "mean"},
                r"in each output, got none in output 1\.",
            ),
        ]
    )
    def test_refused(self, _, change, message):
        arguments = {"y_pred": [0, 1], "y": [0, 1], "num_classes": CLASSES, **change}
        with self.assertRaisesRegex(ValueError, message):
            compute_cohen_kappa(**arguments)

    def test_scikit_learn_refuses_what_is_empty(self):
        with self.assertRaises(ValueError):
            cohen_kappa_score(np.zeros(0, int), np.zeros(0, int), labels=range(CLASSES))

    def test_two_human_readers(self):
        """Of 140 chest X-rays, for each of six zones, and of their sum."""
        with open(shared_data("brixia_cxr") / "annotations.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        senior, junior = (np.array([[int(row[f"{k}-{zone}"]) for zone in "ABCDEF"] for row in rows]) for k in "SJ")
        self.check(junior, senior)
        zones = compute_cohen_kappa(junior, senior, 4, reduction="none")
        np.testing.assert_allclose(
            zones, [judge(a, b, "quadratic") for a, b in zip(junior.T, senior.T, strict=True)], rtol=0, atol=1e-12
        )
        self.assertAlmostEqual(compute_cohen_kappa(junior, senior, 4).item(), 0.7888, places=4)
        self.assertAlmostEqual(compute_cohen_kappa(junior, senior, 4, reduction="mean").item(), 0.7578, places=4)
        sums = [[int(row[f"{k}-Global"]) for row in rows] for k in "JS"]
        self.check(*sums, classes=19)
        self.assertAlmostEqual(compute_cohen_kappa(*sums, 19).item(), 0.8627, places=4)


class TestCohenKappaMetric(unittest.TestCase):
    @parameterized.expand(WEIGHTS)
    def test_over_batches(self, weights):
        y_pred, y = (torch.from_numpy(labels) for labels in readings(4, 23))
        metric = CohenKappaMetric(CLASSES, weights)
        for start in range(0, 23, 5):
            metric(y_pred[start : start + 5], y[start : start + 5])
        self.assertAlmostEqual(metric.aggregate().item(), judge(y_pred.ravel(), y.ravel(), weights), delta=1e-12)
        for found, given in zip(metric.get_buffer(), (y_pred, y), strict=True):
            self.assertTrue(torch.equal(found, given))
        for reduction in ("mean", "none"):
            expected = compute_cohen_kappa(y_pred, y, CLASSES, weights, reduction=reduction)
            self.assertTrue(torch.equal(metric.aggregate(reduction), expected))
        metric.reset()
        metric(y_pred[:4], y[:4])
        self.assertEqual(metric.aggregate().item(), compute_cohen_kappa(y_pred[:4], y[:4], CLASSES, weights).item())

    @parameterized.expand(
        [
            ("outputs", lambda labels: list(labels)),
            ("floats", lambda labels: list(labels.float())),
            ("with metadata", lambda labels: [MetaTensor(item.float()) for item in labels]),
            ("one output", lambda labels: list(labels[:, :1])),
            ("scalars", lambda labels: list(labels[:, 0])),
            ("numbers", lambda labels: labels[:, 0].tolist()),
            ("decollated", lambda labels: decollate_batch(labels[:, 0])),
        ]
    )
    def test_items(self, name, items):
        y_pred, y = (torch.from_numpy(labels) for labels in readings(5, 9))
        metric = CohenKappaMetric(CLASSES)
        metric(items(y_pred), items(y))
        metric(items(y_pred)[:2], items(y)[:2])
        outputs = metric.get_buffer()[0].shape[1]
        self.assertEqual(outputs, OUTPUTS if name in ("outputs", "floats", "with metadata") else 1)
        twice = [torch.cat((labels, labels[:2]))[:, :outputs] for labels in (y_pred, y)]
        self.assertEqual(metric.aggregate().item(), compute_cohen_kappa(*twice, CLASSES).item())
        self.assertIs(type(metric.get_buffer()[0]), torch.Tensor)

    def test_items_of_the_two_may_differ_in_kind(self):
        metric = CohenKappaMetric(CLASSES)
        metric([torch.tensor([1.0]), torch.tensor([3.0])], [1, 2])
        self.assertEqual(metric.aggregate().item(), compute_cohen_kappa([1, 3], [1, 2], CLASSES).item())

    @parameterized.expand(
        [
            ("fraction", [torch.tensor([0.5])], [torch.tensor([0])], r"y_pred must hold whole numbers .* got 0\.5\."),
            ("class", [torch.tensor([0])], [torch.tensor([9])], r"y must hold whole numbers .* got 9\."),
            (
                "number of items",
                [torch.tensor([0])] * 2,
                [torch.tensor([0])],
                r"as many items as y_pred \(2\), got 1\.",
            ),
            ("no reader", [torch.tensor([0])], None, r"as many items as y_pred \(1\), got None\."),
            (
                "outputs",
                [torch.zeros(2)],
                [torch.zeros(3)],
                r"y must have the shape of y_pred \(1, 2\), got \(1, 3\)\.",
            ),
        ]
    )
    def test_refused_when_given(self, _, y_pred, y, message):
        with self.assertRaisesRegex(ValueError, message):
            CohenKappaMetric(CLASSES)(y_pred, y)

    def test_refused(self):
        with self.assertRaisesRegex(ValueError, "at least one case before aggregate"):
            CohenKappaMetric(CLASSES).aggregate()
        with self.assertRaisesRegex(ValueError, "num_classes must be"):
            CohenKappaMetric(1)
        with self.assertRaisesRegex(ValueError, "weights must be"):
            CohenKappaMetric(CLASSES, weights="cubic")
        self.assertIsNone(CohenKappaMetric(CLASSES).get_buffer())
        self.assertEqual(len(CohenKappaMetric(CLASSES)), 0)


class TestHandler(unittest.TestCase):
    def evaluate(self, handler: IgniteMetricHandler, y_pred: np.ndarray, y: np.ndarray) -> SupervisedEvaluator:
        """Cases whose image is the answer, as a float; a grade of each output, or a single number."""
        data = [{"image": torch.tensor(a).float(), "label": b} for a, b in zip(y_pred, y, strict=True)]
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(data), batch_size=4),
            network=torch.nn.Identity(),
            postprocessing=Lambda(lambda case: {**case, "grade": case["pred"]}),
            key_val_metric={"kappa": handler},
        )
        evaluator.run()
        return evaluator

    @parameterized.expand([("several outputs", slice(None)), ("one output", slice(0, 1)), ("a number", 0)])
    def test_in_an_evaluator(self, _, column):
        y_pred, y = readings(6, 10)
        y[3] = -1
        handler = IgniteMetricHandler(CohenKappaMetric(CLASSES), output_transform=from_engine(["grade", "label"]))
        for _ in range(2):  # the second run starts anew
            evaluator = self.evaluate(handler, y_pred[:, column], y[:, column])
            expected = compute_cohen_kappa(y_pred[:, column], y[:, column], CLASSES).item()
            self.assertEqual(evaluator.state.metrics["kappa"], expected)
        self.assertEqual(len(evaluator.state.metric_details["kappa"]), 2)

    def test_from_a_config(self):
        parser = ConfigParser(
            {
                "kappa": {
                    "_target_": "IgniteMetricHandler",
                    "metric_fn": {
                        "_target_": "monai_dvpt.metrics.CohenKappaMetric",
                        "num_classes": CLASSES,
                        "weights": "linear",
                        "reduction": "mean",
                    },
                    "output_transform": "$monai.handlers.from_engine(['grade', 'label'])",
                }
            }
        )
        y_pred, y = readings(7, 10)
        evaluator = self.evaluate(parser.get_parsed_content("kappa"), y_pred, y)
        expected = compute_cohen_kappa(y_pred, y, CLASSES, "linear", reduction="mean").item()
        self.assertEqual(evaluator.state.metrics["kappa"], expected)


def graded(cases: int, one_class: bool) -> tuple[np.ndarray, np.ndarray]:
    """Two readings, or two that found nothing but the same class."""
    return (np.full((cases, OUTPUTS), 2),) * 2 if one_class else readings(8, cases)


def run_rank(rank: int, folder: Path) -> None:
    """What both ranks find with each spread of the cases over them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, weights, one_class in SPREADS:
        counts = ON_RANK[name]
        y_pred, y = (torch.from_numpy(labels) for labels in graded(sum(counts), one_class))
        mine = slice(0, counts[0]) if rank == 0 else slice(counts[0], None)
        metric = CohenKappaMetric(CLASSES, weights=weights)
        for index in range(sum(counts))[mine]:
            metric([y_pred[index]], [y[index]])
        found[name, weights, one_class] = [metric.aggregate(), *metric.get_buffer()]
    for name, outputs, message in (("no case", (0, 0), "at least one case"), ("outputs", (2, 3), r"got \[2, 3\]")):
        metric = CohenKappaMetric(CLASSES)
        if outputs[rank]:
            metric([torch.zeros(outputs[rank])], [torch.zeros(outputs[rank])])
        with unittest.TestCase().assertRaisesRegex(ValueError, message, msg=name):
            metric.aggregate()
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


class TestDistributed(unittest.TestCase):
    def test_unequal_numbers_of_cases(self):
        folder = temporary_folder(self)
        torch.multiprocessing.spawn(run_rank, args=(folder,), nprocs=2)
        for rank in range(2):
            for (name, weights, one_class), (kappa, *buffer) in torch.load(folder / f"{rank}.pt").items():
                y_pred, y = graded(sum(ON_RANK[name]), one_class)
                expected = judge(y_pred.ravel(), y.ravel(), weights)
                self.assertEqual(math.isnan(expected), one_class)
                np.testing.assert_allclose(kappa.item(), expected, rtol=0, atol=1e-12)
                np.testing.assert_array_equal(torch.stack(buffer), np.stack((y_pred, y)))


if __name__ == "__main__":
    unittest.main()
