# SPDX-License-Identifier: Apache-2.0
"""Classes of model and reader: what the metrics of grades and classes share."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from monai.utils import convert_to_tensor, evenly_divisible_all_gather

from monai_dvpt.utils import check_counts

__all__ = ["LabelPairMetric", "count_pairs", "to_label_pair", "to_labels"]


class LabelPairMetric(CumulativeIterationMetric):
    """
    A metric of the classes that model and reader gave each case, over all cases of an epoch in all processes, which may
    have different numbers of cases; a sampler must not repeat cases (``even_divisible=False`` of
    :class:`monai.data.DistributedSampler`). ``get_buffer()`` returns the classes of model and reader, each of shape
    (N, O) for O outputs.

    Args:
        num_classes: number of classes, at least 2.
        ignore_label: class in ``y`` where it is missing; such pairs are left out.

    Raises:
        ValueError: if ``num_classes`` is below 2; when called, if a class is out of range, or ``y_pred`` and ``y``
            differ in shape.
    """

    def __init__(self, num_classes: int, ignore_label: int = -1) -> None:
        check_counts(2, num_classes=num_classes)
        super().__init__()
        self.num_classes = num_classes
        self.ignore_label = ignore_label

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Any:
        """Each item has the shape (O,), or is a number."""
        if y is None or len(y_pred) != len(y):
            raise ValueError(f"y must have as many items as y_pred ({len(y_pred)}), got {y if y is None else len(y)}.")
        return self._compute_tensor(
            *(torch.stack([torch.as_tensor(item).as_subclass(torch.Tensor) for item in items]) for items in (y_pred, y))
        )

    def _compute_tensor(
        self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return to_label_pair(y_pred, y, self.num_classes, self.ignore_label)

    def _sync(self) -> None:
        """MONAI's skips a process without cases, and the others wait for it forever."""
        if self._synced:
            return
        buffers = self._buffers or []
        local = [torch.stack(buffer) for buffer in buffers]  # (N, ...) and (N, O)
        gathered: Any = idist.all_gather(local[1].shape[1] if local else 0)
        widths = set(gathered) - {0}
        if len(widths) > 1:
            raise ValueError(f"y must have the same number of outputs in all processes, got {sorted(widths)}.")
        if widths:
            local = local or self._empty(widths.pop())
            self._synced_tensors = [evenly_divisible_all_gather(buffer, concat=True) for buffer in local]
        self._synced = True

    def _empty(self, outputs: int) -> list[torch.Tensor]:
        """The buffers of a process without cases."""
        return [torch.empty(0, outputs, dtype=torch.int64)] * 2

    def filled_buffer(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``get_buffer()``; raises ValueError if there was no case."""
        if len(self) == 0:
            raise ValueError("the metric must be given at least one case before aggregate(), got none.")
        y_pred, y = self.get_buffer()
        return y_pred, y


def to_labels(name: str, values: Any, num_classes: int, ignore_label: int | None = None) -> torch.Tensor:
    """
    Classes of shape (N,) or (N, O) as int64 of shape (N, O) on the CPU. Raises ValueError, which names the argument
    ``name``, for another shape, or a value that is neither a class nor ``ignore_label``.
    """
    given = convert_to_tensor(values, dtype=torch.float64, device="cpu", wrap_sequence=True, track_meta=False)
    if given.ndim not in (1, 2):
        raise ValueError(f"{name} must have the shape (N,) or (N, O), got {tuple(given.shape)}.")
    labels = given.to(torch.int64)
    known = (labels == given) & (labels >= 0) & (labels < num_classes)
    if ignore_label is not None:
        known |= given == ignore_label
    if not known.all():
        allowed = "" if ignore_label is None else f" or ignore_label={ignore_label}"
        value = given[~known][0].item()
        raise ValueError(f"{name} must hold whole numbers in [0, num_classes={num_classes}){allowed}, got {value:g}.")
    return labels if labels.ndim == 2 else labels[:, None]


def to_label_pair(y_pred: Any, y: Any, num_classes: int, ignore_label: int) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`to_labels` of model and reader; raises ValueError if their shapes differ."""
    pair = to_labels("y_pred", y_pred, num_classes), to_labels("y", y, num_classes, ignore_label)
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"y must have the shape of y_pred {tuple(pair[0].shape)}, got {tuple(pair[1].shape)}.")
    return pair


def count_pairs(
    y_pred: Any, y: Any, num_classes: int, ignore_label: int = -1, groups: np.ndarray | None = None
) -> np.ndarray:
    """
    Confusion matrices, float64 of shape (groups, O, num_classes of the reader, num_classes of the model), where
    ``groups`` has the index of each case's group; by default there is one group.
    """
    predicted, read = (labels.numpy() for labels in to_label_pair(y_pred, y, num_classes, ignore_label))
    groups = np.zeros(len(read), dtype=np.int64) if groups is None else groups
    shape = (int(groups.max(initial=0)) + 1, read.shape[1], num_classes, num_classes)
    compared = read != ignore_label
    indices = (np.broadcast_to(groups[:, None], read.shape), np.broadcast_to(range(shape[1]), read.shape))
    flat = np.ravel_multi_index([index[compared] for index in (*indices, read, predicted)], shape)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)
