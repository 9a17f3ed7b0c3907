# SPDX-License-Identifier: Apache-2.0
"""Multinomial logistic regression, of several outputs at once, and its predictions for parts that it did not see."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["PENALTIES", "Fit", "LogisticModel", "cross_predict", "fit_logistic"]

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Penalties to choose from, see :func:`fit_logistic`."""
ITERATIONS = 300
Fit = Callable[[torch.Tensor, torch.Tensor, float], Callable[[torch.Tensor], torch.Tensor]]
TOLERANCE = 1e-6
"""Largest gradient at which a fit ends; in single precision it may end before, where nothing changes any more."""


@dataclass(frozen=True)
class LogisticModel:
    """
    A fitted regression.

    Attributes:
        mean, scale: of the features in training, of shape (C,).
        weight: of the scaled features, of shape (C, O, K).
        bias: of shape (O, K).
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of shape (N, O, K) of features of shape (N, C)."""
        scaled = (features.to(self.mean.dtype) - self.mean) / self.scale
        return (scaled @ self.weight.flatten(1)).unflatten(1, self.bias.shape) + self.bias


def fit_logistic(features: torch.Tensor, targets: torch.Tensor, penalty: float) -> LogisticModel:
    """
    Fits all outputs, which share nothing, by L-BFGS from zero. The features are scaled to mean 0 and variance 1.

    Args:
        features: of shape (N, C), in double precision where exactness matters.
        targets: of shape (N, O, K), the share of each of ``K`` classes; a row of zeros trains nothing.
        penalty: the loss of an output is its cross-entropy, summed over its rows and divided by N, plus half the
            penalty times the sum of squares of the weights; the biases are free. It is scikit-learn's
            ``LogisticRegression`` with ``C = 1 / (penalty * N)``.
    """
    mean, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    scaled, targets = (features - mean) / scale, targets.to(features.dtype)
    outputs, classes = targets.shape[1:]
    axes = None
    if len(scaled) < scaled.shape[1]:  # the best weights lie in the space of the rows, whose own axes are fewer
        axes = torch.linalg.svd(scaled, full_matrices=False)[2]  # (N, C)
        scaled = scaled @ axes.T
    weight = features.new_zeros(scaled.shape[1], outputs, classes, requires_grad=True)
    bias = features.new_zeros(outputs, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        tolerance_grad=TOLERANCE,
        tolerance_change=TOLERANCE / 1000,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = (scaled @ weight.flatten(1)).unflatten(1, (outputs, classes)) + bias
        value = _cross_entropy(logits, targets) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = weight.detach()
    if axes is not None:
        found = (axes.T @ found.flatten(1)).unflatten(1, (outputs, classes))
    return LogisticModel(mean, scale, found, bias.detach())


def cross_predict(
    features: torch.Tensor,
    targets: torch.Tensor,
    folds: torch.Tensor,
    score: Callable[[torch.Tensor, torch.Tensor], float],
    settings: Sequence[float] = PENALTIES,
    fit: Fit = fit_logistic,
) -> torch.Tensor:
    """
    Logits for every row of a model that was fitted without its fold. The setting of a model, such as its penalty, is
    the one with the best score in the other folds, each predicted from the rest of them; of equally good ones the
    largest.

    Args:
        features: of shape (N, C).
        targets: of shape (N, O, K), see :func:`fit_logistic`.
        folds: index of the fold of each row, of shape (N,); at least two folds.
        score: of logits for some rows and the indices of these rows; the higher, the better.
        settings: to choose from.
        fit: makes a model, a function of features to logits, from features, targets and a setting.

    Returns:
        of shape (N, O, K).
    """
    logits = torch.zeros(targets.shape, dtype=features.dtype)
    for fold in folds.unique():
        inside = (folds != fold).nonzero()[:, 0]
        scores = {
            setting: score(_predict(features[inside], targets[inside], folds[inside], setting, fit), inside)
            for setting in sorted(settings, reverse=True)
        }
        best = max(scores, key=lambda setting: -math.inf if math.isnan(scores[setting]) else scores[setting])
        model = fit(features[inside], targets[inside], best)
        logits[folds == fold] = model(features[folds == fold])
    return logits


def _predict(
    features: torch.Tensor, targets: torch.Tensor, folds: torch.Tensor, setting: float, fit: Fit
) -> torch.Tensor:
    """Logits for every row without its fold; of a single fold those of the model that was fitted to it."""
    logits = torch.zeros(targets.shape, dtype=features.dtype)
    parts = folds.unique()
    for fold in parts:
        inside = (folds != fold) | (len(parts) == 1)
        logits[folds == fold] = fit(features[inside], targets[inside], setting)(features[folds == fold])
    return logits


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -(targets * logits.log_softmax(dim=2)).sum() / len(logits)
