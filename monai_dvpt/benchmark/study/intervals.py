# SPDX-License-Identifier: Apache-2.0
"""How certain the scores of a study are: intervals and tests over patients and seeds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_dvpt.utils import InputError, progress

__all__ = ["Difference", "Interval", "Run", "Scores", "compare_runs", "correct_by_holm"]

RESAMPLES = 2000

Group = tuple[str, float]  # method and fraction of the labels


class Interval(NamedTuple):
    """A score and its 95 % confidence interval, whose limits are NaN where nothing could be resampled."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if math.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})")


class Difference(NamedTuple):
    """A difference of two scores, and its two-sided p-value, corrected for all differences of the study."""

    interval: Interval
    p_value: float

    def __str__(self) -> str:
        return f"{self.interval}, p {self.p_value:.3f}"


@dataclass(frozen=True)
class Run:
    """
    A final run; ``buffers`` are the key metric's, each with one row for each case of the test part, and ``patients``
    are those of the cases.
    """

    group: Group
    fold: int
    seed: int
    score: float
    buffers: Sequence[torch.Tensor]
    patients: Sequence[Hashable]


@dataclass(frozen=True)
class Scores:
    """
    The score of each group, the mean over folds and seeds, and those of the others minus the reference's; ``resampled``
    are the scores of each group in all resamples, alike for all groups.
    """

    intervals: Mapping[Group, Interval]
    differences: Mapping[Group, Difference]
    resampled: Mapping[Group, np.ndarray]

    def minus(self, group: Group, other: Group) -> Interval:
        """The score of a group minus that of another one, in the same resamples."""
        mean = self.intervals[group].mean - self.intervals[other].mean
        return Interval(mean, *_limits(self.resampled[group] - self.resampled[other]))


def compare_runs(
    runs: Sequence[Run],
    metric: Any,
    reference: Group,
    resamples: int = RESAMPLES,
) -> Scores:
    """
    Percentile intervals by the hierarchical bootstrap, based on: "Efron and Tibshirani, An Introduction to the
    Bootstrap, chapter 13 <https://doi.org/10.1201/9780429246593>". Each resample draws the patients of every test part,
    with all their cases, and the seeds, both with replacement and alike for all groups, so that differences are paired.

    There is one run for each group, fold and seed; ``metric`` computes a score from its buffers; the other groups are
    compared with ``reference``.

    Raises:
        InputError: if runs of one fold have other patients.
    """
    groups = list(dict.fromkeys(run.group for run in runs))
    seeds = sorted({run.seed for run in runs})
    patients = _patients_of(runs)
    folds = list(patients)
    scores = np.full((resamples, len(groups), len(seeds), len(folds)), np.nan)
    generator = np.random.default_rng(0)
    drawn_cases = {fold: _draw_cases(cases, resamples, generator) for fold, cases in patients.items()}
    drawn_seeds = generator.integers(len(seeds), size=(resamples, len(seeds)))
    for run in progress(runs, "intervals", unit="run"):
        place = groups.index(run.group), seeds.index(run.seed), folds.index(run.fold)
        scores[(slice(None), *place)] = [_score(metric, run.buffers, cases) for cases in drawn_cases[run.fold]]
    by_seed = np.take_along_axis(scores.mean(axis=3), drawn_seeds[:, None], axis=2)
    resampled = dict(zip(groups, by_seed.mean(axis=2).T, strict=True))
    means = {group: float(np.mean([run.score for run in runs if run.group == group])) for group in groups}
    intervals = {group: Interval(means[group], *_limits(resampled[group])) for group in groups}
    others = [group for group in groups if group != reference]
    changes = {group: resampled[group] - resampled[reference] for group in others}
    p_values = correct_by_holm([_p_value(change) for change in changes.values()])
    differences = {
        group: Difference(Interval(means[group] - means[reference], *_limits(changes[group])), p_value)
        for group, p_value in zip(others, p_values, strict=True)
    }
    return Scores(intervals, differences, resampled)


def correct_by_holm(p_values: Sequence[float]) -> list[float]:
    """
    P-values corrected for their number, based on: "Holm, A Simple Sequentially Rejective Multiple Test Procedure
    <https://www.jstor.org/stable/4615733>".
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected.tolist()


def _patients_of(runs: Sequence[Run]) -> dict[int, Sequence[Hashable]]:
    """The patient of each case of every fold's test part."""
    found: dict[int, Sequence[Hashable]] = {}
    for run in sorted(runs, key=lambda run: run.fold):
        if list(found.setdefault(run.fold, run.patients)) != list(run.patients):
            raise InputError(f"runs of one fold must have the same patients, got others in fold {run.fold}.")
    return found


def _draw_cases(patients: Sequence[Hashable], resamples: int, generator: np.random.Generator) -> list[np.ndarray]:
    """For each resample, the cases of as many patients as there are, drawn with replacement."""
    cases: dict[Hashable, list[int]] = {}
    for index, patient in enumerate(patients):
        cases.setdefault(patient, []).append(index)
    listed = list(cases.values())
    drawn = generator.integers(len(listed), size=(resamples, len(listed)))
    return [np.concatenate([listed[patient] for patient in row]) for row in drawn]


def _score(metric: Any, buffers: Sequence[torch.Tensor], cases: np.ndarray) -> float:
    """The metric of some cases; NaN where it is undefined."""
    metric.reset()
    chosen = [buffer[cases] for buffer in buffers]
    metric.extend(*(buffer[:1] for buffer in chosen))  # it must not be empty
    metric.get_buffer = lambda: chosen if len(chosen) > 1 else chosen[0]
    try:
        return float(metric.aggregate())
    except ValueError:  # nothing to compare
        return math.nan
    finally:
        del metric.get_buffer


def _limits(values: np.ndarray) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (math.nan, math.nan)
    return float(low), float(high)


def _p_value(differences: np.ndarray) -> float:
    """Twice the share of resamples on the rarer side of zero; never 0, as with more resamples some may lie there."""
    differences = differences[~np.isnan(differences)]
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, 2 * (rarer + 1) / (len(differences) + 1))
