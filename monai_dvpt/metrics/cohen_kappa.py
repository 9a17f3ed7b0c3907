# SPDX-License-Identifier: Apache-2.0
"""Agreement of grades beyond chance: Cohen's kappa."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from monai_dvpt.metrics.label_pairs import LabelPairMetric, count_pairs
from monai_dvpt.utils import check_counts

__all__ = ["CohenKappaMetric", "compute_cohen_kappa"]

REDUCTIONS = ("pooled", "mean", "none")
EXPONENTS = {"linear": 1, "quadratic": 2}
"""Of the distance between two classes, by the name of the weighting."""


def compute_cohen_kappa(
    y_pred: Any,
    y: Any,
    num_classes: int,
    weights: str | None = "quadratic",
    ignore_label: int = -1,
    reduction: str = "pooled",
) -> torch.Tensor:
    """
    Cohen's kappa of two readings: 1 minus observed disagreement over disagreement expected by chance. 1 is full
    agreement, 0 is chance. Based on: "Cohen, A coefficient of agreement for nominal scales
    <https://doi.org/10.1177/001316446002000104>" and, for the weights, "Cohen, Weighted kappa: nominal scale agreement
    with provision for scaled disagreement or partial credit <https://doi.org/10.1037/h0026256>". Values are those of
    ``sklearn.metrics.cohen_kappa_score(..., labels=range(num_classes))``.

    If both readings are one and the same class throughout, kappa is undefined (chance alone agrees fully) and the
    result is NaN, as in scikit-learn but without its warning; if only one reading is constant, kappa is 0.

    Args:
        y_pred: the model's classes, whole numbers in ``[0, num_classes)`` of any numeric type, of shape (N,) or, with O
            outputs per case, (N, O).
        y: the reader's classes, of the same shape.
        num_classes: number of classes, at least 2.
        weights: weight of a disagreement: "none" or None, 1; "linear", the distance between the classes; "quadratic",
            its square.
        ignore_label: class in ``y`` where it is missing; such pairs are left out.
        reduction: over the outputs: "pooled", kappa of the pairs of all outputs together; "mean", mean of the outputs'
            kappas, NaN if one is; "none", the kappas.

    Returns:
        float64 on the CPU, a scalar, for "none" of shape (O,).

    Raises:
        ValueError: if a class is out of range, the shapes differ, or nothing is left to compare (where scikit-learn
            raises too): no pair at all or, for "mean" and "none", no pair in one of the outputs.

    Examples::

        >>> compute_cohen_kappa(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 2, 1]), num_classes=3).item()
        0.6363636363636364

    """
    check_arguments(num_classes, weights, reduction)
    counts = count_pairs(y_pred, y, num_classes, ignore_label)[0]
    check_filled(counts, reduction, ignore_label)
    return torch.as_tensor(kappa_of_counts(counts, weights, reduction))


class CohenKappaMetric(LabelPairMetric):
    """
    :func:`compute_cohen_kappa` over all cases of an epoch in all processes, which may have different numbers of cases;
    a sampler must not repeat cases (``even_divisible=False`` of :class:`monai.data.DistributedSampler`). For
    :func:`kappa_interval`, ``get_buffer()`` returns the classes of model and reader, each of shape (N, O).

    Args:
        num_classes, weights, ignore_label, reduction: see :func:`compute_cohen_kappa`.

    Raises:
        ValueError: if an argument is invalid; when called, if a class is out of range, or ``y_pred`` and ``y`` differ
            in shape.

    Examples::

        >>> metric = CohenKappaMetric(num_classes=4)
        >>> _ = metric([torch.tensor([0, 3]), torch.tensor([1, 1])], [torch.tensor([0, 2]), torch.tensor([1, -1])])
        >>> metric.aggregate().item()
        0.8571428571428572

    """

    def __init__(
        self, num_classes: int, weights: str | None = "quadratic", ignore_label: int = -1, reduction: str = "pooled"
    ) -> None:
        check_arguments(num_classes, weights, reduction)
        super().__init__(num_classes, ignore_label)
        self.weights = weights
        self.reduction = reduction

    def aggregate(self, reduction: str | None = None) -> torch.Tensor:
        """
        Args:
            reduction: by default the metric's own.

        Returns:
            the kappa, see :func:`compute_cohen_kappa`.

        Raises:
            ValueError: if there was no case, or nothing to compare.
        """
        y_pred, y = self.filled_buffer()
        reduction = reduction or self.reduction
        return compute_cohen_kappa(y_pred, y, self.num_classes, self.weights, self.ignore_label, reduction)


def check_arguments(
    num_classes: int, weights: str | None, reduction: str, reductions: Sequence[str] = REDUCTIONS
) -> None:
    """Raises ValueError for arguments that :func:`compute_cohen_kappa` refuses or a reduction not in ``reductions``."""
    check_counts(2, num_classes=num_classes)
    if weights not in (None, "none", *EXPONENTS):
        raise ValueError(f"weights must be none, linear or quadratic, got {weights}.")
    if reduction not in reductions:
        raise ValueError(f"reduction must be one of {', '.join(reductions)}, got {reduction}.")


def check_filled(counts: np.ndarray, reduction: str, ignore_label: int) -> None:
    """Raises ValueError if confusion matrices of shape (O, C, C) leave nothing to compare."""
    totals = counts.sum(axis=(-2, -1))
    if not totals.any():
        raise ValueError(f"y must hold at least one class that is not ignore_label={ignore_label}, got none.")
    if reduction != "pooled" and not totals.all():
        output = int(np.argmin(totals))
        raise ValueError(
            f"y must hold at least one class that is not ignore_label={ignore_label} in each output, "
            f"got none in output {output}."
        )


def kappa_of_counts(counts: np.ndarray, weights: str | None, reduction: str) -> np.ndarray:
    """Kappas (...), for "none" (..., O), of confusion matrices (..., O, C, C); NaN where undefined or empty."""
    if reduction == "pooled":
        counts = counts.sum(axis=-3, keepdims=True)
    classes = np.arange(counts.shape[-1])
    distance = np.abs(classes[:, None] - classes).astype(np.float64)
    cost = distance ** EXPONENTS[weights] if weights in EXPONENTS else np.sign(distance)
    found = (cost * counts).sum(axis=(-2, -1))
    # pairs by chance: the product of both margins over the number of pairs
    by_chance = np.einsum("...i,ij,...j->...", counts.sum(axis=-1), cost, counts.sum(axis=-2))
    pairs = counts.sum(axis=(-2, -1))
    kappa = 1 - np.divide(found * pairs, by_chance, out=np.full_like(found, np.nan), where=by_chance > 0)
    return kappa if reduction == "none" else kappa.mean(axis=-1)
