# SPDX-License-Identifier: Apache-2.0
"""The search for a method's settings: where its trials lie, and what lies at an edge."""

from __future__ import annotations

import math
import unittest
from dataclasses import asdict

import numpy as np
from parameterized import parameterized

from monai_dvpt.benchmark.study.plan import Job
from monai_dvpt.benchmark.study.search import FULL_RATES, SEARCHED, Range, Search, best_trials, edges_of

METHODS = ("full", "dvpt:num_prompts=4", "linear", "pixels")


def row(job: Job, score: float) -> dict:
    return {**asdict(job), "score": score}


def trial(score: float, encoder_rate=1e-3, head_rate=1e-3, layer_decay=0.8, method="full", fold=0) -> dict:
    return row(Job("trial", method, fold, 0, 1.0, encoder_rate, head_rate, 0.01, layer_decay), score)


class TestRange(unittest.TestCase):
    def test_places(self):
        found = Range(1e-4, 1e-2)
        for place, value in ((0, 1e-4), (0.5, 1e-3), (1, 1e-2), (1.5, 0.1), (-0.5, 1e-5)):
            self.assertAlmostEqual(found.value(place) / value, 1, places=6)
            self.assertAlmostEqual(found.place(value), place)
        self.assertEqual(Range(0.6, 1.0, logarithmic=False).value(0.25), 0.7)
        self.assertEqual(Range(0.6, 1.0, logarithmic=False, limit=1.0).value(1.5), 1.0)


class TestSearch(unittest.TestCase):
    def test_first_trials_cover_the_ranges_alike_for_every_method(self):
        found = {method: Search(method, 1).first(8) for method in METHODS}
        for method, jobs in found.items():
            self.assertEqual(
                {(job.kind, job.method, job.fold, job.seed, job.fraction) for job in jobs},
                {("trial", method, 1, 0, 1.0)},
            )
            self.assertEqual([job.head_rate for job in jobs], [job.head_rate for job in found["full"]])
        # of eight trials each is alone in an eighth of the range, in every setting
        for method, setting, (low, high) in (
            ("full", "encoder_rate", (1e-6, 3e-3)),
            ("dvpt:num_prompts=4", "encoder_rate", (1e-4, 3e-2)),
            ("linear", "head_rate", (1e-4, 3e-2)),
            ("pixels", "weight_decay", (1e-4, 0.3)),
        ):
            values = sorted(getattr(job, setting) for job in found[method])
            np.testing.assert_allclose(values, low * (high / low) ** ((np.arange(8) + 0.5) / 8), rtol=6e-3)
        decays = sorted(job.layer_decay for job in found["full"])
        np.testing.assert_allclose(decays, 0.65 + 0.35 * (np.arange(8) + 0.5) / 8, atol=1e-3)
        for method in METHODS[1:]:
            self.assertEqual({job.layer_decay for job in found[method]}, {1.0})
        for method in ("linear", "pixels"):
            self.assertEqual({job.encoder_rate for job in found[method]}, {0.0})

    @parameterized.expand([(1,), (2,), (5,), (12,)])
    def test_any_number_of_trials(self, trials):
        jobs = Search("full", 0).first(trials)
        self.assertEqual(len(set(jobs)), trials)
        for job in jobs:
            self.assertTrue(1e-6 < job.encoder_rate < 3e-3 and 0.65 < job.layer_decay < 1)

    def test_further_trials_lie_on_both_sides_of_the_best(self):
        """Where the best trial is at an edge the box keeps its width, elsewhere it is halved."""
        search = Search("lora", 0)
        jobs = search.first(8)
        best = max(jobs, key=lambda job: job.weight_decay)  # at 15/16 of its range, and inside in the others
        rows = [row(job, float(job == best)) for job in jobs]
        self.assertEqual(edges_of(best, rows), ["weight_decay"])
        further = search.further(rows)

        def places(setting: str, found: list[Job]) -> list[float]:
            return sorted(SEARCHED[setting].place(getattr(job, setting)) for job in found)

        np.testing.assert_allclose(places("weight_decay", further), (15 / 16 - 0.25, 15 / 16 + 0.25), atol=2e-3)
        for setting in ("encoder_rate", "head_rate"):
            (middle,) = places(setting, [best])
            np.testing.assert_allclose(places(setting, further), (middle - 0.125, middle + 0.125), atol=2e-3)
        # it was no better beyond: the next box is around the same trial, and half as wide in every setting
        again = search.further([*rows, *(row(job, 0.5) for job in further)])
        np.testing.assert_allclose(places("weight_decay", again), (15 / 16 - 0.125, 15 / 16 + 0.125), atol=2e-3)

    def test_a_best_rate_beyond_the_range_is_found(self):
        search, optimum = Search("full", 0), math.log(8e-3)
        jobs = search.first(8)
        for _ in range(4):
            rows = [row(job, -abs(math.log(job.encoder_rate) - optimum)) for job in jobs]
            jobs += search.further(rows)
        best = max(jobs, key=lambda job: -abs(math.log(job.encoder_rate) - optimum))
        self.assertGreater(best.encoder_rate, FULL_RATES.high)
        self.assertLess(abs(math.log(best.encoder_rate) - optimum), 0.4)
        self.assertEqual(len(set(jobs)), 16)
        self.assertLessEqual(max(job.layer_decay for job in jobs), 1.0)

    @parameterized.expand([(method, trials) for method in METHODS for trials in (1, 4, 8)])
    def test_no_trial_is_made_twice(self, method, trials):
        """Whatever the scores are; a search that begins again with the same results goes the same way."""
        for seed in range(60):
            generator, rows = np.random.default_rng(seed), []
            search, again = Search(method, 0), Search(method, 0)
            jobs = search.first(trials)
            for _ in range(9):
                rows += [row(job, generator.integers(6) / 5) for job in jobs]
                jobs = search.further(rows)
                self.assertEqual(again.further(rows), jobs)
            tried = [(r["encoder_rate"], r["head_rate"], r["weight_decay"], r["layer_decay"]) for r in rows]
            self.assertEqual(len(set(tried)), trials + 2 * 8)
            self.assertTrue(all(math.isfinite(value) for values in tried for value in values))

    def test_other_methods_and_folds_do_not_matter(self):
        first, rows = Search("lora", 1).first(3), []
        for method, fold in (("lora", 1), ("lora", 0), ("dvpt", 1)):
            rows += [row(job, index) for index, job in enumerate(Search(method, fold).first(3))]
        alone, among = (Search("lora", 1).further(chosen) for chosen in (rows[:3], rows))
        self.assertEqual(alone, among)
        self.assertEqual(first[2], best_trials(rows)["lora", 1])


class TestBest(unittest.TestCase):
    def test_a_score_that_is_no_number_is_the_worst(self):
        rows = [trial(math.nan, 1e-1), trial(-0.2, 1e-3), trial(math.nan, 1e-2), trial(-0.3, 1e-4)]
        self.assertEqual(best_trials(rows)["full", 0].encoder_rate, 1e-3)

    def test_of_equal_trials_the_smallest_rates_are_chosen_in_any_order(self):
        rows = [trial(0.5, 1e-2), trial(0.5, 1e-3, 1e-2), trial(0.5, 1e-3, 1e-4), trial(0.4, 1e-5)]
        for chosen in (rows, rows[::-1]):
            self.assertEqual(best_trials(chosen)["full", 0], best_trials(rows[2:3])["full", 0])

    @parameterized.expand(
        [
            ("inside", 2e-3, 2e-3, 0.8, []),
            ("lowest", 1e-4, 2e-3, 0.8, ["encoder_rate"]),
            ("highest", 1e-1, 2e-3, 0.8, ["encoder_rate"]),
            ("both", 1e-1, 1e-5, 0.8, ["encoder_rate", "head_rate"]),
            ("no_layer_decay", 2e-3, 2e-3, 0.99, []),  # at 1 there is none
            ("much_layer_decay", 2e-3, 2e-3, 0.6, ["layer_decay"]),
        ]
    )
    def test_edges(self, _, encoder_rate, head_rate, layer_decay, expected):
        others = [trial(0.1, *values) for values in ((1e-3, 1e-3, 0.7), (1e-2, 1e-2, 0.9))]
        beside = [trial(0.1, 1e-7, 1e-7, 0.1, fold=1), trial(0.1, 10, 10, 1.0, method="dvpt")]  # of other searches
        decays = [{**trial(0.1, 5e-3, 5e-3), "weight_decay": decay} for decay in (0.001, 0.1)]
        best = trial(0.9, encoder_rate, head_rate, layer_decay)
        rows = [*others, best, *decays, *beside]
        self.assertEqual(edges_of(best_trials(rows)["full", 0], rows), expected)
