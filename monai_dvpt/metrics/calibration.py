# SPDX-License-Identifier: Apache-2.0
"""How well probabilities match frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np

from monai_dvpt.utils import check_counts

__all__ = ["calibration_scores", "reliability_bins"]

BINS = 15


def reliability_bins(
    confidence: Any, right: Any, num_bins: int = BINS, adaptive: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Cases in bins of their confidence, without the bins that are empty.

    Args:
        confidence: probabilities of the chosen grades, of shape (N,).
        right: whether the chosen grades are right, of shape (N,).
        num_bins: number of bins.
        adaptive: whether bins hold equally many cases, between quantiles of the confidence; otherwise they are equally
            wide, from 0 to 1.

    Returns:
        mean confidence, share of right grades, and number of cases of each bin.

    Raises:
        ValueError: if ``num_bins`` is below 1, the shapes differ, there is no case, or a confidence is outside [0, 1].

    Examples::

        >>> [values.round(3).tolist() for values in reliability_bins([0.5, 0.7, 0.9], [1, 0, 1], num_bins=2)]
        [[0.5, 0.8], [1.0, 0.5], [1, 2]]

    """
    check_counts(num_bins=num_bins)
    sure, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if sure.ndim != 1 or sure.shape != hit.shape or not len(sure):
        raise ValueError(f"right must have the shape (N,) of confidence {sure.shape}, N at least 1, got {hit.shape}.")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(f"confidence must be in [0, 1], got {sure.min():g} to {sure.max():g}.")
    parts = np.linspace(0, 1, num_bins + 1)[1:-1]
    edges = np.quantile(sure, parts) if adaptive else parts
    bins = np.searchsorted(edges, sure)  # equal confidences share a bin
    counts = np.bincount(bins)
    there = counts > 0
    means = [np.bincount(bins, values)[there] / counts[there] for values in (sure, hit)]
    return means[0], means[1], counts[there]


def calibration_scores(probability: Any, grade: Any, label: Any, num_bins: int = BINS) -> dict[str, float]:
    """
    Scores of probabilities, all 0 at best:

    - "ece", expected calibration error: mean distance of confidence and share of right grades over equally wide bins of
      confidence, based on: "Guo et al., On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>";
    - "adaptive_ece", the same over bins that hold equally many cases, based on: "Nixon et al., Measuring Calibration in
      Deep Learning <https://arxiv.org/abs/1904.01685>", here of the chosen grade alone;
    - "brier", mean squared distance of all probabilities of a case from 1 for its grade and 0 for the others, from 0 to
      2, based on: "Brier, Verification of forecasts expressed in terms of probability
      <https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2>".

    Args:
        probability: of shape (N, K).
        grade: indices of the chosen grades, of shape (N,); their probability is the confidence.
        label: indices of the true grades, of shape (N,).
        num_bins: number of bins.

    Raises:
        ValueError: see :func:`reliability_bins`.
    """
    chances, chosen, truth = np.asarray(probability, dtype=np.float64), np.asarray(grade), np.asarray(label)
    confidence, right = chances[np.arange(len(chances)), chosen], chosen == truth
    scores = {}
    for name, adaptive in (("ece", False), ("adaptive_ece", True)):
        sure, share, counts = reliability_bins(confidence, right, num_bins, adaptive)
        scores[name] = float(np.average(np.abs(sure - share), weights=counts))
    missed = chances - (np.arange(chances.shape[1]) == truth[:, None])
    return {**scores, "brier": float((missed**2).sum(axis=1).mean())}
