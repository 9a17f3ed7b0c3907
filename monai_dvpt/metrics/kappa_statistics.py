# SPDX-License-Identifier: Apache-2.0
"""How certain a kappa is, and whether two models differ."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import permutation_test

from monai_dvpt.metrics.cohen_kappa import check_arguments, check_filled, kappa_of_counts
from monai_dvpt.metrics.label_pairs import count_pairs
from monai_dvpt.utils import check_counts

__all__ = ["KappaComparison", "KappaInterval", "compare_kappa", "kappa_interval"]

BATCH = 1000  # resamples in memory at a time


class KappaInterval(NamedTuple):
    """A kappa and the ends of its confidence interval."""

    kappa: float
    low: float
    high: float


class KappaComparison(NamedTuple):
    """
    Kappas of two models, their ``difference`` (a - b) and the ends of its confidence interval, and the two-sided
    ``p_value`` of the test that the models are exchangeable.
    """

    kappa_a: float
    kappa_b: float
    difference: float
    low: float
    high: float
    p_value: float


def kappa_interval(
    y_pred: Any,
    y: Any,
    num_classes: int,
    weights: str | None = "quadratic",
    patients: Sequence | np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    ignore_label: int = -1,
    reduction: str = "pooled",
) -> KappaInterval:
    """
    Confidence interval of a kappa by the percentile bootstrap, based on: "Efron and Tibshirani, An Introduction to the
    Bootstrap, chapter 13 <https://doi.org/10.1201/9780429246593>". Patients are drawn with replacement, each with all
    their cases and outputs, since these are not independent.

    Resamples with an undefined kappa (see :func:`compute_cohen_kappa`) are left out, and a warning tells how many.
    Patients without a pair to compare are left out before.

    Args:
        y_pred, y, num_classes, weights, ignore_label: see :func:`compute_cohen_kappa`.
        patients: name or number of each case's patient, N in all; by default each case is another patient.
        confidence: probability that the interval covers the kappa of the population, in (0, 1).
        resamples: number of resamples.
        seed: of the resampling.
        reduction: see :func:`compute_cohen_kappa`; "pooled" or "mean".

    Returns:
        the kappa and its interval, all NaN where the kappa is undefined.

    Raises:
        ValueError: as :func:`compute_cohen_kappa`, or if there are fewer than two patients.

    Examples::

        >>> y_pred, y = [0, 1, 2, 3, 2, 1, 0, 3, 3, 0], [0, 1, 1, 3, 2, 2, 0, 3, 2, 1]
        >>> result = kappa_interval(y_pred, y, num_classes=4, patients=list("aabbccddee"))
        >>> [round(value, 3) for value in result]
        [0.84, 0.557, 0.969]

    """
    check_arguments(num_classes, weights, reduction, ("pooled", "mean"))
    (counts,) = count_by_patient([y_pred], y, num_classes, patients, ignore_label, reduction)
    kappa = float(kappa_of_counts(counts.sum(axis=0), weights, reduction))
    low, high = bootstrap_interval(
        counts, lambda drawn: kappa_of_counts(drawn, weights, reduction), confidence, resamples, seed
    )
    return KappaInterval(kappa, low, high)


def compare_kappa(
    y_pred_a: Any,
    y_pred_b: Any,
    y: Any,
    num_classes: int,
    weights: str | None = "quadratic",
    patients: Sequence | np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 10000,
    seed: int = 0,
    ignore_label: int = -1,
    reduction: str = "pooled",
) -> KappaComparison:
    """
    Compares two models on the same cases. The interval of the difference is as in :func:`kappa_interval`, with the same
    patients drawn for both models. The p-value comes from a paired permutation test: if the models are exchangeable,
    swapping their predictions for any patients changes the difference only by chance. It is exact if there are at most
    ``resamples`` swaps (``2**patients``); otherwise swaps are drawn and the data count as one of them, so that it is
    never 0, as proposed in: "Phipson and Smyth, Permutation p-values should never be zero
    <https://doi.org/10.2202/1544-6115.1585>".

    Args:
        y_pred_a, y_pred_b: classes of the two models, see :func:`compute_cohen_kappa`.
        y, num_classes, weights, ignore_label: see :func:`compute_cohen_kappa`.
        patients, confidence, reduction: see :func:`kappa_interval`.
        resamples: number of resamples, and the most swaps.
        seed: of both.

    Returns:
        the comparison; NaN where a kappa is undefined, for the p-value also where it is undefined in one of the swaps,
        which is possible only if the reader gave a single class.

    Raises:
        ValueError: as :func:`kappa_interval`.

    Examples::

        >>> y = [0, 1, 2, 3] * 5
        >>> result = compare_kappa(y, [1, 1, 2, 2] * 5, y, num_classes=4)
        >>> round(result.difference, 3), result.p_value < 0.01
        (0.333, True)

    """
    check_arguments(num_classes, weights, reduction, ("pooled", "mean"))
    models = count_by_patient([y_pred_a, y_pred_b], y, num_classes, patients, ignore_label, reduction)
    totals = [counts.sum(axis=0) for counts in models]
    kappa_a, kappa_b = (float(kappa_of_counts(total, weights, reduction)) for total in totals)

    def difference(drawn: np.ndarray) -> np.ndarray:
        kappas = kappa_of_counts(drawn, weights, reduction)  # (..., 2)
        return kappas[..., 0] - kappas[..., 1]

    def difference_of_swap(swapped: np.ndarray, _: np.ndarray, axis: int) -> np.ndarray:
        moved = np.tensordot(swapped, models[1] - models[0], axes=1)  # (..., O, C, C)
        # rounded, so that equal differences stay equal when summed in another order
        return difference(np.stack([totals[0] + moved, totals[1] - moved], axis=-4)).round(12)

    low, high = bootstrap_interval(np.stack(models, axis=1), difference, confidence, resamples, seed)
    test = permutation_test(
        (np.zeros(len(models[0])), np.ones(len(models[0]))),
        difference_of_swap,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=BATCH,
        rng=np.random.default_rng(seed),
    )
    p_value = float("nan") if np.isnan(test.null_distribution).any() else float(test.pvalue)
    return KappaComparison(kappa_a, kappa_b, kappa_a - kappa_b, low, high, p_value)


def count_by_patient(
    y_preds: Sequence[Any],
    y: Any,
    num_classes: int,
    patients: Sequence | np.ndarray | None,
    ignore_label: int,
    reduction: str,
) -> list[np.ndarray]:
    """For each model the confusion matrices (P, O, C, C) of patients with pairs to compare."""
    names = np.arange(len(y)) if patients is None else np.asarray(patients)
    if names.shape != (len(y),):
        raise ValueError(f"patients must have one name for each of the {len(y)} cases, got the shape {names.shape}.")
    if any(name is None or name != name for name in names):
        raise ValueError("patients must name the patient of every case, got a missing value.")
    groups = np.unique(names, return_inverse=True)[1]
    models = [count_pairs(y_pred, y, num_classes, ignore_label, groups) for y_pred in y_preds]
    check_filled(models[0].sum(axis=0), reduction, ignore_label)
    models = [counts[counts.any(axis=(1, 2, 3))] for counts in models]
    if len(models[0]) < 2:
        raise ValueError(f"patients must be at least 2 with something to compare, got {len(models[0])}.")
    return models


def bootstrap_interval(
    counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Ends of the interval of ``statistic``, which takes sums of ``counts`` (P, ...) over patients."""
    check_counts(resamples=resamples)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}.")
    rng, num_patients = np.random.default_rng(seed), len(counts)
    values = []
    for start in range(0, resamples, BATCH):
        size = min(BATCH, resamples - start)
        drawn = rng.integers(num_patients, size=(size, num_patients)) + num_patients * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * num_patients).reshape(size, num_patients)
        values.append(statistic(np.tensordot(times.astype(np.float64), counts, axes=1)))
    found = np.concatenate(values)
    defined = found[~np.isnan(found)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    if len(defined) < resamples:
        left_out = resamples - len(defined)
        warnings.warn(f"Kappa is undefined in {left_out} of {resamples} resamples, which are left out.", stacklevel=3)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
