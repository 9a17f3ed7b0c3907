# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices of grades and classes."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monai.engines import Evaluator
from monai.handlers import from_engine

from monai_dvpt.metrics import CohenKappaMetric
from monai_dvpt.metrics.classwise import classwise_of_counts
from monai_dvpt.metrics.cohen_kappa import kappa_of_counts
from monai_dvpt.metrics.label_pairs import count_pairs
from monai_dvpt.utils import atomic_path

__all__ = ["ConfusionMatrixWriter", "plot_confusion_matrices"]


class ConfusionMatrixWriter:
    """
    Writes the confusion matrices over all cases of a validation in all processes: ``confusion_matrix.png``, see
    :func:`plot_confusion_matrices`, and ``confusion_matrix.csv``, with a row for each output and class of the reader
    that says how often the model gave each class. With several outputs the first rows, which name no output, are those
    of all outputs together. Each validation replaces the files.

    Args:
        output_dir: folder for the files.
        classes: names of the classes, in the order of their values.
        outputs: names of a case's outputs, by default "output 0" and so on.
        keys: of the model's and the reader's class in the engine's output for a case; each a number or of shape (O,).
        ignore_label: class of the reader where it is missing; such pairs are left out.
        ordered: whether the classes have an order, as grades have.

    Raises:
        ValueError: when called with a case, if a class has no name, or the number of outputs is not that of
            ``outputs``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        classes: Sequence[str],
        outputs: Sequence[str] | None = None,
        keys: Sequence[str] = ("grade", "label"),
        ignore_label: int = -1,
        ordered: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.ordered = ordered
        self.classes = [str(name) for name in classes]
        self.outputs = None if outputs is None else [str(name) for name in outputs]
        self.labels_of = from_engine(list(keys))
        self.ignore_label = ignore_label
        self.readings = CohenKappaMetric(len(self.classes), ignore_label=ignore_label)

    def attach(self, engine: Evaluator) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.readings.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def add(self, engine: Engine) -> None:
        _, y = cast(Sequence[torch.Tensor], self.readings(*self.labels_of(engine.state.output)))
        if self.outputs is not None and y.shape[1] != len(self.outputs):
            raise ValueError(f"outputs must have one name for each of the {y.shape[1]} outputs, got {self.outputs}.")

    def write(self, engine: Engine) -> None:
        y_pred, y = self.readings.get_buffer()  # gathers from all processes
        if idist.get_rank() > 0:
            return
        counts = count_pairs(y_pred, y, len(self.classes), self.ignore_label)[0]
        outputs = self.outputs or [f"output {index}" for index in range(len(counts))]
        matrices = list(zip(outputs, counts, strict=True))
        if len(counts) > 1:
            matrices.insert(0, ("", counts.sum(axis=0)))
        with (
            atomic_path(self.output_dir / "confusion_matrix.csv") as path,
            open(path, "w", newline="", encoding="utf-8") as file,
        ):
            table = csv.writer(file)
            table.writerow(["output", "reader", *(f"model: {name}" for name in self.classes)])
            for output, matrix in matrices:
                rows = zip(self.classes, matrix.astype(int).tolist(), strict=True)
                table.writerows([output, name, *row] for name, row in rows)
        with atomic_path(self.output_dir / "confusion_matrix.png") as path:
            plot_confusion_matrices(counts, self.classes, outputs, self.ordered).savefig(path, dpi=110)


def plot_confusion_matrices(
    counts: np.ndarray, classes: Sequence[str], outputs: Sequence[str], ordered: bool = True
) -> Figure:
    """
    The confusion matrix of all outputs together and, if there are several, a smaller one for each. A cell shows the
    number of cases and their percentage of the reader's class, which sets its shade. Titles have the quadratically
    weighted kappa or, of classes without an order, the macro-F1.

    Args:
        counts: of shape (O, classes of the reader, classes of the model).
        classes: names of the classes.
        outputs: names of the O outputs.
        ordered: whether the classes have an order.

    Returns:
        the figure, drawn without a display.
    """
    several = len(counts) > 1
    columns = math.ceil(math.sqrt(len(counts))) if several else 0
    rows = math.ceil(len(counts) / columns) if several else 1
    side = max(1.8, 0.55 * len(classes))  # of a small matrix, in inches
    margin = 0.8 + 0.07 * max(map(len, classes))
    width, height = side + margin, max(rows * (side + margin + 0.3), 1.3 * side + margin)
    figure = Figure(figsize=(height + columns * width, height), layout="constrained")
    if not several:
        _draw(figure.subplots(), counts[0], classes, "", ordered, fontsize=10)
        return figure
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(height, columns * width))[0]
    _draw(left.subplots(), counts.sum(axis=0), classes, "all outputs", ordered, fontsize=11)
    panels = right.subplots(rows, columns, squeeze=False).ravel()
    for panel, matrix, output in zip(panels[: len(counts)], counts, outputs, strict=True):
        _draw(panel, matrix, classes, output, ordered, fontsize=8)
    for panel in panels[len(counts) :]:
        panel.set_axis_off()
    return figure


def _draw(panel: Axes, matrix: np.ndarray, classes: Sequence[str], name: str, ordered: bool, fontsize: int) -> None:
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    panel.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(matrix):
        text = f"{count:.0f}\n{100 * share[row, column]:.0f} %" if count else "0"
        colour = "white" if share[row, column] > 0.6 else "black"
        panel.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=colour)
    rotation = 0 if max(map(len, classes)) < 8 else 45
    panel.set_xticks(range(len(classes)), classes, fontsize=fontsize, rotation=rotation, parse_math=False)
    panel.set_yticks(range(len(classes)), classes, fontsize=fontsize, parse_math=False)
    panel.set(xlabel="model", ylabel="reader")
    title = f"{_agreement(matrix, ordered)}, n = {totals.sum():.0f}"
    panel.set_title(f"{name}\n{title}" if name else title, fontsize=fontsize + 1, parse_math=False)


def _agreement(matrix: np.ndarray, ordered: bool) -> str:
    """What a title says of a confusion matrix."""
    if ordered:
        kappa = kappa_of_counts(matrix[None], "quadratic", "pooled")
        return "kappa undefined" if np.isnan(kappa) else f"quadratic kappa {kappa:.2f}"
    f1 = float(classwise_of_counts(matrix, "f1 score").nanmean())
    return "macro-F1 undefined" if np.isnan(f1) else f"macro-F1 {f1:.2f}"
