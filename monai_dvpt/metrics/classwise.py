# SPDX-License-Identifier: Apache-2.0
"""Metrics of classes without an order: the score of each class against all others, and its mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.metrics import compute_confusion_matrix_metric, compute_roc_auc
from monai.utils import convert_to_tensor

from monai_dvpt.metrics.label_pairs import LabelPairMetric, count_pairs, to_labels

__all__ = ["ClasswiseMetric", "ClasswiseROCAUCMetric", "compute_classwise_metric", "compute_classwise_roc_auc"]

AVERAGES = ("macro", "none")


def compute_classwise_metric(
    y_pred: Any,
    y: Any,
    num_classes: int,
    metric_name: str = "f1 score",
    ignore_label: int = -1,
    average: str = "macro",
) -> torch.Tensor:
    """
    A metric of the confusion matrix, of each class against all others, or its mean over the classes: macro-F1 with
    "f1 score", balanced accuracy with "recall". The pairs of several outputs are counted together.

    A class for which the metric is undefined (0 of 0) is NaN and is left out of the mean: for "recall" a class that the
    reader never gave, for "precision" one that the model never gave, for "f1 score" one that neither gave. A class that
    the reader gave and the model never found counts, with 0. Values are those of ``sklearn.metrics.f1_score(...,
    labels=range(num_classes), average="macro", zero_division=nan)``, and so on.

    Args:
        y_pred: the model's classes, whole numbers in ``[0, num_classes)``, of shape (N,) or, with O outputs per case,
            (N, O).
        y: the reader's classes, of the same shape.
        num_classes: number of classes, at least 2.
        metric_name: a name of :func:`monai.metrics.compute_confusion_matrix_metric`, such as "precision".
        ignore_label: class in ``y`` where it is missing; such pairs are left out.
        average: "macro", the mean over the classes; "none", the value of each.

    Returns:
        float64 on the CPU, a scalar, for "none" of shape (num_classes,).

    Raises:
        ValueError: if a class is out of range, the shapes differ, ``average`` is unknown, or nothing is left to
            compare.
        NotImplementedError: if ``metric_name`` is unknown.

    Examples::

        >>> y_pred, y = [0, 1, 2, 2, 2], [0, 2, 2, 1, 2]
        >>> compute_classwise_metric(y_pred, y, num_classes=4, average="none")  # nobody gave class 3
        tensor([1.0000, 0.0000, 0.6667,    nan], dtype=torch.float64)
        >>> round(compute_classwise_metric(y_pred, y, num_classes=4).item(), 4)
        0.5556

    """
    _check_average(average)
    counts = count_pairs(y_pred, y, num_classes, ignore_label)[0].sum(axis=0)  # (reader, model)
    if not counts.any():
        raise ValueError(f"y must hold at least one class that is not ignore_label={ignore_label}, got none.")
    return _average(classwise_of_counts(counts, metric_name), average)


def compute_classwise_roc_auc(y_pred: Any, y: Any, ignore_label: int = -1, average: str = "macro") -> torch.Tensor:
    """
    Area under the receiver operating characteristic curve of each class against all others (one-vs-rest), by
    :func:`monai.metrics.compute_roc_auc`, or its mean over the classes. The cases of several outputs are pooled.

    A class that the reader gave to no case or to all has no such area: it is NaN and is left out of the mean, where
    MONAI's mean would be NaN. With all classes among the cases, the mean is that of
    ``sklearn.metrics.roc_auc_score(..., multi_class="ovr")``.

    Args:
        y_pred: probabilities, or other scores, of the classes, of shape (N, K) or, with O outputs per case, (N, O, K)
            or (N, O * K), the classes of the first output first.
        y: the reader's classes, whole numbers in ``[0, K)``, of shape (N,) or (N, O).
        ignore_label: class in ``y`` where it is missing; such pairs are left out.
        average: "macro", the mean over the classes; "none", the value of each.

    Returns:
        float64 on the CPU, a scalar, for "none" of shape (K,); NaN if it is defined for no class.

    Raises:
        ValueError: if a class is out of range, a score is not finite, the shapes do not fit, or ``average`` is unknown.

    Examples::

        >>> chances = [[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.5, 0.4, 0.1]]
        >>> compute_classwise_roc_auc(chances, [0, 1, 1], average="none")  # the reader never gave class 2
        tensor([1., 1., nan], dtype=torch.float64)

    """
    _check_average(average)
    scores = convert_to_tensor(y_pred, dtype=torch.float64, device="cpu", wrap_sequence=True, track_meta=False)
    given = convert_to_tensor(y, device="cpu", wrap_sequence=True, track_meta=False)
    num_classes = scores.numel() // max(1, given.numel())
    if num_classes < 2 or len(scores) != len(given) or scores.numel() != given.numel() * num_classes:
        shapes = f"{tuple(scores.shape)} for y of the shape {tuple(given.shape)}"
        raise ValueError(f"y_pred must have a score of each of at least 2 classes, got the shape {shapes}.")
    if not scores.isfinite().all():
        raise ValueError("y_pred must be finite, got infinite values or NaN.")
    labels = to_labels("y", given, num_classes, ignore_label).flatten()
    compared = labels != ignore_label
    one_hot = labels[compared, None] == torch.arange(num_classes)  # (N, K)
    defined = one_hot.any(dim=0) & ~one_hot.all(dim=0)
    areas = torch.full((num_classes,), torch.nan, dtype=torch.float64)
    if defined.any():
        chosen = scores.reshape(-1, num_classes)[compared][:, defined]
        areas[defined] = torch.as_tensor(
            compute_roc_auc(chosen, one_hot[:, defined].long(), average="none"), dtype=torch.float64
        )
    return _average(areas, average)


class ClasswiseMetric(LabelPairMetric):
    """
    :func:`compute_classwise_metric` over all cases of an epoch in all processes.

    Args:
        num_classes, metric_name, ignore_label, average: see :func:`compute_classwise_metric`.

    Raises:
        ValueError: if an argument is invalid; when called, if a class is out of range, or ``y_pred`` and ``y`` differ
            in shape.
        NotImplementedError: if ``metric_name`` is unknown.

    Examples::

        >>> balanced_accuracy = ClasswiseMetric(num_classes=2, metric_name="recall")
        >>> _ = balanced_accuracy(torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 1, 1]))
        >>> balanced_accuracy.aggregate().item()
        0.75

    """

    def __init__(
        self, num_classes: int, metric_name: str = "f1 score", ignore_label: int = -1, average: str = "macro"
    ) -> None:
        _check_average(average)
        compute_confusion_matrix_metric(metric_name, torch.ones(1, 4))  # raises
        super().__init__(num_classes, ignore_label)
        self.metric_name = metric_name
        self.average = average

    def aggregate(self, average: str | None = None) -> torch.Tensor:
        """
        Args:
            average: by default the metric's own.

        Returns:
            see :func:`compute_classwise_metric`.

        Raises:
            ValueError: if there was no case, or nothing to compare.
        """
        y_pred, y = self.filled_buffer()
        return compute_classwise_metric(
            y_pred, y, self.num_classes, self.metric_name, self.ignore_label, average or self.average
        )


class ClasswiseROCAUCMetric(LabelPairMetric):
    """
    :func:`compute_classwise_roc_auc` over all cases of an epoch in all processes. ``get_buffer()`` returns the scores
    of the classes, of shape (N, O * K), and the reader's classes, of shape (N, O).

    Args:
        num_classes: number ``K`` of classes, at least 2.
        ignore_label, average: see :func:`compute_classwise_roc_auc`.

    Raises:
        ValueError: if an argument is invalid; when called, if a class is out of range, or the shapes do not fit.

    Examples::

        >>> metric = ClasswiseROCAUCMetric(num_classes=3)
        >>> chances = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6], [0.2, 0.5, 0.3]])
        >>> _ = metric(chances, torch.tensor([0, 1, 2, 2]))
        >>> round(metric.aggregate().item(), 3)
        0.847

    """

    def __init__(self, num_classes: int, ignore_label: int = -1, average: str = "macro") -> None:
        _check_average(average)
        super().__init__(num_classes, ignore_label)
        self.average = average

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        labels = to_labels("y", y, self.num_classes, self.ignore_label)
        scores = convert_to_tensor(y_pred, dtype=torch.float32, device="cpu", track_meta=False)
        if len(scores) != len(labels) or scores.numel() != labels.numel() * self.num_classes:
            raise ValueError(
                f"y_pred must have the shape (N, O, {self.num_classes}) for y of the shape {tuple(labels.shape)}, "
                f"got {tuple(scores.shape)}."
            )
        return scores.reshape(len(labels), -1), labels

    def _empty(self, outputs: int) -> list[torch.Tensor]:
        return [torch.empty(0, outputs * self.num_classes), torch.empty(0, outputs, dtype=torch.int64)]

    def aggregate(self, average: str | None = None) -> torch.Tensor:
        """
        Args:
            average: by default the metric's own.

        Returns:
            see :func:`compute_classwise_roc_auc`.

        Raises:
            ValueError: if there was no case.
        """
        return compute_classwise_roc_auc(*self.filled_buffer(), self.ignore_label, average or self.average)


def classwise_of_counts(counts: np.ndarray, metric_name: str) -> torch.Tensor:
    """A metric of each class, (K,), from a confusion matrix (K of the reader, K of the model); NaN where undefined."""
    right, read, given = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    table = np.stack([right, given - right, counts.sum() - read - given + right, read - right], axis=-1)
    return compute_confusion_matrix_metric(metric_name, torch.as_tensor(table))


def _check_average(average: str) -> None:
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {', '.join(AVERAGES)}, got {average}.")


def _average(values: torch.Tensor, average: str) -> torch.Tensor:
    return values.nanmean() if average == "macro" else values
