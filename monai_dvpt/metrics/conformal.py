# SPDX-License-Identifier: Apache-2.0
"""Prediction sets of ordered grades that hold the true grade with a chosen frequency, whatever the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from scipy.special import softmax

__all__ = ["PredictionSets", "conformal_threshold", "fewest_cases", "ordinal_scores"]


def ordinal_scores(probability: Any) -> np.ndarray:
    """
    How far each grade is from the prediction: its distance from the expected grade over the standard deviation, whose
    square is raised by 1/12, the variance of rounding, so that a sure prediction does not divide by 0. Based on: "Lei
    et al., Distribution-Free Predictive Inference for Regression <https://arxiv.org/abs/1604.04173>", locally weighted
    residuals, on the indices of the grades. The grades below any score are a range, as for the ordinal sets of "Lu et
    al., Improving Trustworthiness of AI Disease Severity Rating in Medical Imaging with Ordinal Conformal Prediction
    Sets <https://arxiv.org/abs/2207.02238>", which grow around the most probable grade by its neighbours instead.

    Args:
        probability: of the grades in their order, of shape (..., K).

    Returns:
        float64, at least 0, of shape (..., K).

    Examples::

        >>> ordinal_scores([0.25, 0.5, 0.25]).round(3).tolist()
        [1.309, 0.0, 1.309]

    """
    chances = np.asarray(probability, dtype=np.float64)
    grades = np.arange(chances.shape[-1])
    distance = grades - (chances @ grades)[..., None]  # (..., K)
    variance = (chances * distance**2).sum(axis=-1, keepdims=True)
    return np.abs(distance) / np.sqrt(variance + 1 / 12)


def conformal_threshold(scores: Any, coverage: float) -> float:
    """
    The score that a new case does not exceed with at least this probability, if it and the given cases are
    exchangeable: the ceil((n + 1) * coverage)-th smallest of n. Based on: "Vovk et al., Algorithmic Learning in a
    Random World <https://doi.org/10.1007/b106715>", split (inductive) conformal prediction.

    Args:
        scores: of the calibration cases at their true grades, of shape (n,).
        coverage: in (0, 1).

    Returns:
        the threshold; infinite if n is below :func:`fewest_cases`.

    Examples::

        >>> conformal_threshold([0.5, 0.1, 0.9, 0.3], coverage=0.6), conformal_threshold([0.5, 0.1], coverage=0.9)
        (0.5, inf)

    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    rank = math.ceil((len(ordered) + 1) * _exact(coverage))
    return float(ordered[rank - 1]) if rank <= len(ordered) else math.inf


def fewest_cases(coverage: float) -> int:
    """
    The fewest calibration cases of a grade from which a threshold can be found.

    Examples::

        >>> fewest_cases(0.9), fewest_cases(0.95)
        (9, 19)

    """
    exact = _exact(coverage)
    return math.ceil(exact / (1 - exact))


@dataclass(frozen=True)
class PredictionSets:
    """
    Ranges of grades that hold the true grade with at least a chosen probability in each grade of each output, for new
    cases that are exchangeable with the calibration cases. The thresholds are class-conditional (Mondrian), based on:
    "Vovk, Conditional validity of inductive conformal predictors <https://arxiv.org/abs/1209.2673>"; scores are
    :func:`ordinal_scores`. A grade whose score is at most its threshold is in the set, and so are the grades between
    two others and the model's own grade; these can only raise the coverage.

    Attributes:
        coverage: the probability, in (0, 1).
        temperature: divides the logits of the network.
        counts: numbers of calibration cases by output and grade, (O, K).
        thresholds: largest scores by output and grade, (O, K); None where there were too few cases, so that the grade
            is in every set.

    Raises:
        ValueError: if an attribute is outside its range, or the tables are not of one shape.
    """

    coverage: float
    temperature: float
    counts: Sequence[Sequence[int]]
    thresholds: Sequence[Sequence[float | None]]

    def __post_init__(self) -> None:
        for name, value, top in (("coverage", self.coverage, 1), ("temperature", self.temperature, math.inf)):
            if type(value) not in (int, float) or not 0 < value < top:
                raise ValueError(f"{name} must be a number in (0, {top}), got {value!r}.")
        limits, counts = self._limits(), np.asarray(self.counts, dtype=np.int64)
        if limits.ndim != 2 or limits.shape != counts.shape or not (limits >= 0).all():
            raise ValueError(f"thresholds must be at least 0, one for each of the counts, got {self.thresholds!r}.")

    @classmethod
    def fit(cls, logits: Any, label: Any, coverage: float = 0.9, temperature: float = 1.0) -> PredictionSets:
        """
        Args:
            logits: of calibration cases, which neither trained the network nor chose anything, of shape (N, O, K).
            label: indices of the true grades, of shape (N, O); -1 if not graded.
            coverage: in (0, 1).
            temperature: divides the logits.

        Raises:
            ValueError: if an argument is outside its range or of another shape.
        """
        logits, label = np.asarray(logits, dtype=np.float64), np.asarray(label)
        if logits.ndim != 3 or logits.shape[:2] != label.shape:
            raise ValueError(f"label must have the shape (N, O) of logits {logits.shape}, got {label.shape}.")
        outputs, grades = logits.shape[1:]
        cls(coverage, temperature, [[0]], [[None]])  # raises
        scores = ordinal_scores(softmax(logits / temperature, axis=-1))
        graded = [[scores[label[:, o] == k, o, k] for k in range(grades)] for o in range(outputs)]
        limits = [[conformal_threshold(each, coverage) for each in row] for row in graded]
        return cls(
            coverage=coverage,
            temperature=temperature,
            counts=[[len(each) for each in row] for row in graded],
            thresholds=[[limit if limit < math.inf else None for limit in row] for row in limits],
        )

    def __call__(self, logits: Any, grade: Any) -> np.ndarray:
        """
        Args:
            logits: of shape (..., O, K).
            grade: indices of the model's grades, of shape (..., O).

        Returns:
            whether each grade is in the set, of shape (..., O, K).

        Raises:
            ValueError: if the numbers of outputs and grades are not those of the thresholds.
        """
        logits, limits = np.asarray(logits, dtype=np.float64), self._limits()
        if logits.shape[-2:] != limits.shape:
            raise ValueError(f"logits must have the shape (..., {limits.shape}), got {logits.shape}.")
        chosen = np.arange(limits.shape[1]) == np.asarray(grade)[..., None]
        inside = (ordinal_scores(softmax(logits / self.temperature, axis=-1)) <= limits) | chosen
        from_below, from_above = (np.maximum.accumulate(each, axis=-1) for each in (inside, inside[..., ::-1]))
        return from_below & from_above[..., ::-1]

    def too_few(self, outputs: Sequence[str], grades: Sequence[str]) -> Mapping[str, int]:
        """Numbers of calibration cases of the grades that are in every set, by "output: grade"."""
        return {
            f"{output}: {grade}": count
            for output, counts, limits in zip(outputs, self.counts, self.thresholds, strict=True)
            for grade, count, limit in zip(grades, counts, limits, strict=True)
            if limit is None
        }

    def _limits(self) -> np.ndarray:
        return np.array([[math.inf if limit is None else limit for limit in row] for row in self.thresholds])


def _exact(coverage: float) -> Fraction:
    """As typed: 0.7 * 10 is 7.000000000000001 otherwise."""
    return Fraction(str(coverage))
