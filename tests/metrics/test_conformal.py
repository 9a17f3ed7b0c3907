# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import unittest
from dataclasses import asdict

import numpy as np
from parameterized import parameterized

from monai_dvpt.metrics import PredictionSets, conformal_threshold, fewest_cases, ordinal_scores

GRADES = 4


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def score(probability: np.ndarray, grade: int) -> float:
    """Of one case, by the definition."""
    mean = sum(k * p for k, p in enumerate(probability))
    variance = sum(p * (k - mean) ** 2 for k, p in enumerate(probability))
    return abs(grade - mean) / math.sqrt(variance + 1 / 12)


def threshold(scores: list[float], percent: int) -> float:
    """In whole numbers: the least score that enough of the n scores and the new one do not exceed."""
    needed = -(-(len(scores) + 1) * percent // 100)
    return min((s for s in scores if sum(other <= s for other in scores) >= needed), default=math.inf)


def sets(case: np.ndarray, limits: list[float], grade: int) -> set[int]:
    """Of one case and output, by the definition."""
    inside = {k for k in range(GRADES) if score(case, k) <= limits[k]} | {grade}
    return set(range(min(inside), max(inside) + 1))


def cases(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (count, GRADES) of a model that is too sure and leans to low grades, and grades of unequal frequency."""
    generator = np.random.default_rng(seed)
    label = generator.choice(GRADES, count, p=[0.5, 0.2, 0.2, 0.1])
    seen = 0.7 * label + generator.normal(0, 0.6, count)
    return -4 * (np.arange(GRADES) - seen[:, None]) ** 2, label


class TestScores(unittest.TestCase):
    def test_by_the_definition(self):
        probability = np.random.default_rng(0).dirichlet(np.full(GRADES, 0.5), (30, 2))
        expected = [[[score(each, k) for k in range(GRADES)] for each in case] for case in probability]
        np.testing.assert_allclose(ordinal_scores(probability), expected, rtol=1e-12)

    def test_grades_below_a_score_are_a_range(self):
        scores = ordinal_scores(np.random.default_rng(0).dirichlet(np.full(7, 0.2), 500))
        for row in scores:
            for limit in row:
                (inside,) = np.nonzero(row <= limit)
                self.assertEqual(len(inside), np.ptp(inside) + 1)

    def test_a_sure_prediction(self):
        np.testing.assert_allclose(ordinal_scores([0.0, 1.0, 0.0]), np.sqrt(12) * np.array([1, 0, 1]))


class TestThreshold(unittest.TestCase):
    @parameterized.expand([(50,), (70,), (90,), (95,), (99,)])
    def test_by_the_definition(self, percent):
        generator = np.random.default_rng(percent)
        for count in (*range(1, 40), 99, 100, 199):
            scores = generator.integers(0, 25, count) / 8  # with ties
            self.assertEqual(conformal_threshold(scores, percent / 100), threshold(scores.tolist(), percent), count)
        self.assertEqual(conformal_threshold([], 0.5), math.inf)

    @parameterized.expand([(50,), (70,), (90,), (95,), (99,)])
    def test_fewest_cases(self, percent):
        least = fewest_cases(percent / 100)
        finite = [math.isfinite(threshold([0.0] * count, percent)) for count in (least - 1, least)]
        self.assertEqual(finite, [False, True])


class TestPredictionSets(unittest.TestCase):
    def fit(self, count: int = 60, seed: int = 1) -> tuple[PredictionSets, np.ndarray, np.ndarray]:
        """Two outputs, one of which is not graded everywhere."""
        pairs = [cases(count, seed), cases(count, seed + 1)]
        logits, label = (np.stack(each, axis=1) for each in zip(*pairs, strict=True))
        label[::5, 1] = -1
        return PredictionSets.fit(logits, label, 0.8, temperature=2.5), logits, label

    def test_by_the_definition(self):
        found, logits, label = self.fit()
        probability = softmax(logits / 2.5)
        limits = []
        for o in range(2):
            scores = [[score(probability[n, o], k) for n in np.flatnonzero(label[:, o] == k)] for k in range(GRADES)]
            limits.append([threshold(each, 80) for each in scores])
            self.assertEqual(list(found.counts[o]), [len(each) for each in scores])
        np.testing.assert_allclose([[math.inf if t is None else t for t in row] for row in found.thresholds], limits)
        new, _ = cases(80, 9)
        new = new.reshape(40, 2, GRADES)
        chosen = np.random.default_rng(0).integers(0, GRADES, (40, 2))
        inside = found(new, chosen)
        for n, o in np.ndindex(40, 2):
            expected = sets(softmax(new[n, o] / 2.5), limits[o], chosen[n, o])
            self.assertEqual(set(np.flatnonzero(inside[n, o])), expected)

    def test_coverage_in_each_grade(self):
        """Over many draws, although the model is wrong more often in some grades; one threshold for all would fail."""
        held, sizes = [], []
        single = []
        for seed in range(300):
            logits, label = cases(300, 2 * seed)
            found = PredictionSets.fit(logits[:, None], label[:, None], 0.9)
            new, truth = cases(400, 2 * seed + 1)
            inside = found(new[:, None], new.argmax(axis=1)[:, None])[:, 0]
            right = inside[range(400), truth]
            held.append([right[truth == k].mean() for k in range(GRADES)])
            sizes.append(inside.sum(axis=1).mean())
            limit = (
                threshold([score(p, k) for p, k in zip(softmax(logits), label, strict=True)], 90) if seed < 20 else 0
            )
            if limit:
                alone = ordinal_scores(softmax(new))[range(400), truth] <= limit
                single.append([alone[truth == k].mean() for k in range(GRADES)])
        held = np.mean(held, axis=0)
        self.assertGreater(held.min(), 0.895)
        self.assertLess(held.max(), 0.94)
        self.assertLess(np.mean(sizes), 3)
        self.assertLess(np.mean(single, axis=0).min(), 0.8)

    def test_a_grade_with_too_few_cases_is_in_every_set(self):
        logits, label = cases(200, 3)
        few = np.flatnonzero(label == 3)[:8]
        kept = np.concatenate([np.flatnonzero(label < 3), few])
        found = PredictionSets.fit(logits[kept, None], label[kept, None], 0.9)
        self.assertEqual((found.counts[0][3], found.thresholds[0][3]), (8, None))
        self.assertNotIn(None, found.thresholds[0][:3])
        self.assertEqual(found.too_few(["knee"], ["0", "1", "2", "3"]), {"knee: 3": 8})
        self.assertTrue(found(logits[:, None], label[:, None])[:, 0, 3].all())

    def test_json_keeps_it(self):
        found, logits, label = self.fit(20)
        again = PredictionSets(**json.loads(json.dumps(asdict(found))))
        np.testing.assert_array_equal(again(logits, label.clip(0)), found(logits, label.clip(0)))
        self.assertIn(None, [limit for row in again.thresholds for limit in row])

    @parameterized.expand(
        [
            ("coverage", {"coverage": 1.0}, r"coverage must be a number in \(0, 1\), got 1.0"),
            ("coverage as text", {"coverage": "0.9"}, "coverage must be a number"),
            ("temperature", {"temperature": 0}, "temperature must be a number"),
            ("negative", {"thresholds": [[0.5, -1.0]]}, "thresholds must be at least 0"),
            ("not a number", {"thresholds": [[0.5, math.nan]]}, "thresholds must be at least 0"),
            ("another shape", {"thresholds": [[0.5]]}, "one for each of the counts"),
        ]
    )
    def test_bad_arguments(self, _, changes, why):
        good = {"coverage": 0.9, "temperature": 1.0, "counts": [[9, 9]], "thresholds": [[0.5, None]]}
        with self.assertRaisesRegex(ValueError, why):
            PredictionSets(**{**good, **changes})

    def test_other_shapes_are_refused(self):
        found, logits, label = self.fit()
        with self.assertRaisesRegex(ValueError, "logits must have the shape"):
            found(logits[:, :1], label[:, :1])
        with self.assertRaisesRegex(ValueError, "label must have the shape"):
            PredictionSets.fit(logits, label[:, 0])


if __name__ == "__main__":
    unittest.main()
