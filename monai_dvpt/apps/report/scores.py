# SPDX-License-Identifier: Apache-2.0
"""Scores with 95 % intervals, by the percentile bootstrap over cases or patients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

from monai_dvpt.metrics.cohen_kappa import kappa_of_counts
from monai_dvpt.metrics.kappa_statistics import bootstrap_interval
from monai_dvpt.metrics.label_pairs import count_pairs

from .model import number

__all__ = ["RESAMPLES", "Score", "agreement", "mean_score"]

RESAMPLES = 2000
CONFIDENCE = 0.95


class Score(NamedTuple):
    """A score and the ends of its interval, NaN where nothing can be resampled."""

    value: float
    low: float
    high: float

    def key_fact(self, name: str) -> tuple[str, str, str]:
        """For the top of a page."""
        remark = "" if math.isnan(self.low) else f"95 %: {number(self.low)} to {number(self.high)}"
        return name, number(self.value), remark


def mean_score(values: Sequence[float]) -> Score:
    """The mean over cases; with an infinite value there is no interval."""
    if not values:
        return Score(math.nan, math.nan, math.nan)
    mean = float(np.mean(values))
    if len(values) < 2 or not math.isfinite(mean):
        return Score(mean, math.nan, math.nan)
    found = bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Score(mean, float(found.low), float(found.high))


def agreement(
    answers: Sequence[int], labels: Sequence[int], num_classes: int, patients: Sequence[str], ordered: bool
) -> dict[str, Score]:
    """
    How the model's answers agree with the reader's labels. Patients are drawn with all their pairs.

    Args:
        answers, labels: of each pair, in ``[0, num_classes)``.
        num_classes: number of grades or classes.
        patients: of each pair.
        ordered: whether they have an order; then "quadratic kappa" and "within one grade", else "macro-F1".

    Returns:
        the scores by name.
    """
    index = np.unique(np.asarray(patients), return_inverse=True)[1]
    counts = count_pairs(answers, labels, num_classes, groups=index)  # (P, 1, C, C)
    statistics: Mapping[str, Callable[[np.ndarray], np.ndarray]] = (
        {"quadratic kappa": _kappa, "accuracy": _accuracy, "within one grade": _within_one}
        if ordered
        else {"accuracy": _accuracy, "macro-F1": _macro_f1}
    )
    scores = {}
    for name, statistic in statistics.items():
        low = high = math.nan
        if len(counts) > 1:
            with warnings.catch_warnings():  # resamples without a kappa are left out
                warnings.simplefilter("ignore", UserWarning)
                low, high = bootstrap_interval(counts, statistic, CONFIDENCE, RESAMPLES, seed=0)
        scores[name] = Score(float(statistic(counts.sum(axis=0))), low, high)
    return scores


def _kappa(counts: np.ndarray) -> np.ndarray:
    return kappa_of_counts(counts, "quadratic", "pooled")


def _accuracy(counts: np.ndarray) -> np.ndarray:
    pooled = counts.sum(axis=-3)
    return np.trace(pooled, axis1=-2, axis2=-1) / pooled.sum(axis=(-2, -1))


def _within_one(counts: np.ndarray) -> np.ndarray:
    pooled = counts.sum(axis=-3)
    classes = np.arange(pooled.shape[-1])
    near = np.abs(classes[:, None] - classes) <= 1
    return (pooled * near).sum(axis=(-2, -1)) / pooled.sum(axis=(-2, -1))


def _macro_f1(counts: np.ndarray) -> np.ndarray:
    """As :func:`monai_dvpt.metrics.compute_classwise_metric`, of many confusion matrices at once."""
    pooled = counts.sum(axis=-3)
    right = np.diagonal(pooled, axis1=-2, axis2=-1)
    both = pooled.sum(axis=-1) + pooled.sum(axis=-2)
    f1 = np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)
    return f1.sum(axis=-1) / (both > 0).sum(axis=-1)
