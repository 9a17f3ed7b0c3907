# SPDX-License-Identifier: Apache-2.0
"""Which runs a study makes, on which cases."""

from __future__ import annotations

import unittest

from parameterized import parameterized

from monai_dvpt.benchmark.study.plan import (
    Job,
    default_folds,
    final_jobs,
    make_splits,
    method_text,
    parse_method,
    settings_of,
)
from monai_dvpt.utils import InputError


def cases(count: int, images_per_patient: int = 1, prefix: str = "") -> list[dict]:
    return [{"image": f"{prefix}{i:03}.png", "group": f"{prefix}{i // images_per_patient}"} for i in range(count)]


def names(part) -> set[str]:
    return {case["image"] for case in part}


def final(fraction: float, seed: int) -> Job:
    return Job("final", "dvpt", 0, seed, fraction, 1e-3, 1e-3, 0.1, 1.0)


class TestSplits(unittest.TestCase):
    def test_listed_parts_are_kept(self):
        lists = {"training": cases(4), "validation": cases(3, prefix="v"), "test": cases(2, prefix="t")}
        (split,) = make_splits(lists, 0, 0.25)
        self.assertEqual((split.training, split.tuning, split.test), tuple(lists.values()))

    def test_without_a_test_part_validation_is_reported_and_tunes_nothing(self):
        lists = {"training": cases(20), "validation": cases(5, prefix="v")}
        (split,) = make_splits(lists, 0, 0.25)
        self.assertEqual(names(split.test), names(lists["validation"]))
        self.assertEqual(len(split.tuning), 5)
        self.assertEqual(names(split.training) | names(split.tuning), names(lists["training"]))
        self.assertFalse(names(split.training) & names(split.tuning))

    def test_folds_test_every_case_once_and_keep_patients_together(self):
        lists = {"training": cases(30, 3), "validation": cases(9, 3, prefix="v")}
        splits = make_splits(lists, 5, 0.25)
        tested = [case["image"] for split in splits for case in split.test]
        self.assertEqual(sorted(tested), sorted(names(lists["training"]) | names(lists["validation"])))
        for split in splits:
            groups = [{case["group"] for case in part} for part in (split.training, split.tuning, split.test)]
            self.assertFalse(groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
            self.assertTrue(all(groups))
            self.assertLessEqual(max(len(s.test) for s in splits) - min(len(s.test) for s in splits), 3)

    def test_few_patients_are_folded(self):
        few = {"training": cases(1998, 2), "validation": cases(1, prefix="v")}
        self.assertEqual(default_folds({**few, "test": []}), 0)
        self.assertEqual(default_folds({"training": few["training"]}), 5)  # of 999 patients
        self.assertEqual(default_folds({"training": cases(1000)}), 0)

    def test_more_folds_than_patients_are_refused(self):
        with self.assertRaisesRegex(InputError, "--folds must be at most the number of patients, 2, got 3"):
            make_splits({"training": cases(6, 3)}, 3, 0.25)

    def test_fractions_are_nested_and_of_whole_patients(self):
        (split,) = make_splits({"training": cases(40, 2), "validation": cases(4, prefix="v")}, 0, 0.25)
        parts = {f: split.cases(final(f, seed=3))[0] for f in (0.2, 0.5, 1.0)}
        self.assertEqual([len(part) for part in parts.values()], [8, 20, 40])
        self.assertLess(names(parts[0.2]), names(parts[0.5]))
        self.assertEqual(parts[0.5], split.cases(Job("final", "full", 0, 3, 0.5, 1.0, 1.0, 0.2, 0.9))[0])
        self.assertNotEqual(names(parts[0.5]), names(split.cases(final(0.5, seed=4))[0]))
        patients = [case["group"] for case in parts[0.2]]
        self.assertEqual({patients.count(patient) for patient in patients}, {2})

    def test_trials_are_scored_on_the_tuning_part_alone(self):
        (split,) = make_splits({"training": cases(8), "validation": cases(4, prefix="v")}, 0, 0.25)
        job = Job("trial", "dvpt", 0, 0, 1.0, 1e-3, 1e-3, 0.1, 1.0)
        self.assertEqual(split.cases(job), (split.training, split.tuning))
        self.assertEqual(split.cases(final(1.0, 0))[1], split.test)


class TestJobs(unittest.TestCase):
    def test_methods_with_settings(self):
        text = method_text(" linear + pooling=[prompts, {every: 2}]+augment=false")
        self.assertEqual(text, "linear+pooling=[prompts, {every: 2}]+augment=false")
        self.assertEqual(parse_method(text), {"name": "linear"})
        self.assertEqual(settings_of(text), {"pooling": ["prompts", {"every": 2}], "augment": False})
        self.assertEqual(settings_of("lora:rank=8"), {})
        with self.assertRaisesRegex(InputError, "each setting once"):
            settings_of("linear+augment=true+augment=false")

    def test_final_runs_take_the_chosen_settings(self):
        best = {("dvpt", 1): Job("trial", "dvpt", 1, 0, 1.0, 0.002, 0.003, 0.04, 0.7)}
        jobs = final_jobs(best, [0.4, 1.0], [0, 1])
        self.assertEqual(
            jobs, [Job("final", "dvpt", 1, s, f, 0.002, 0.003, 0.04, 0.7) for f in (0.4, 1.0) for s in (0, 1)]
        )

    def test_methods_are_parsed(self):
        self.assertEqual(parse_method("linear"), {"name": "linear"})
        for text in ("lora:rank=8,alpha=0.5", "lora: rank=8, alpha = 0.5"):
            self.assertEqual(parse_method(text), {"name": "lora", "rank": 8, "alpha": 0.5})

    @parameterized.expand(
        [
            ("lorax", "must be of"),
            ("lora:rank", "key=value"),
            ("lora:rank=x", "in their ranges"),
            ("lora:rank=8,rank=4", "each once"),
            ("lora:prompts=8", "options of \\['rank', 'alpha'\\] for lora"),
            ("lora:rank=0", "in their ranges, got lora:rank=0: rank must be"),
        ]
    )
    def test_bad_methods_are_refused(self, text, message):
        with self.assertRaisesRegex(InputError, message):
            parse_method(text)
