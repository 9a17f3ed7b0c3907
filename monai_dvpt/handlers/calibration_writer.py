# SPDX-License-Identifier: Apache-2.0
"""Whether the probabilities of grades can be believed, before and after the temperature."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.engines import Evaluator

from monai_dvpt.metrics import calibration_scores, reliability_bins
from monai_dvpt.transforms import GradeLogits
from monai_dvpt.utils import InputError, atomic_path

__all__ = ["CalibrationWriter", "plot_reliability"]

Bins = tuple[np.ndarray, np.ndarray, np.ndarray]


class CalibrationWriter:
    """
    Over all cases of a validation in all processes, adds the scores of :func:`monai_dvpt.metrics.calibration_scores` to
    the metrics, as ``val_ece``, ``val_adaptive_ece`` and ``val_brier``, and with the ending ``_uncalibrated`` those of
    the logits that no temperature divides; and writes ``reliability.png``, see :func:`plot_reliability`, and its
    numbers as ``reliability.csv``: for both temperatures, mean confidence, share of right grades and number of grades
    of each bin. All outputs count together. Each validation replaces the files.

    Attach it before a handler that saves the metrics.

    Args:
        output_dir: folder for the files.
        num_grades, decision, temperature: see :class:`monai_dvpt.transforms.GradeLogits`.

    Raises:
        ValueError: for arguments that :class:`monai_dvpt.transforms.GradeLogits` refuses.
        InputError: at the end of a validation, if no case is graded.
    """

    def __init__(
        self, output_dir: str | os.PathLike, num_grades: int, decision: str = "mode", temperature: float = 1.0
    ) -> None:
        self.output_dir = Path(output_dir)
        self.temperature = temperature
        self.grades = {
            "": GradeLogits(num_grades, decision, temperature),
            "_uncalibrated": GradeLogits(num_grades, decision),
        }
        self.logits: list[torch.Tensor] = []  # each (K,)
        self.labels: list[int] = []

    def attach(self, engine: Evaluator) -> None:
        """
        Args:
            engine: evaluator whose output per case has the logits "pred", of shape (O * K,), and the "label", of shape
                (O,), -1 where not graded.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def reset(self, engine: Engine) -> None:
        self.logits, self.labels = [], []

    def add(self, engine: Engine) -> None:
        for output in engine.state.output:
            label = torch.as_tensor(output["label"]).as_subclass(torch.Tensor).cpu()
            logits = torch.as_tensor(output["pred"]).as_subclass(torch.Tensor).cpu().view(len(label), -1)
            self.logits += list(logits[label >= 0])
            self.labels += label[label >= 0].tolist()

    def write(self, engine: Engine) -> None:
        parts: Any = idist.all_gather((self.logits, self.labels))
        logits, label = ([each for part in parts for each in part[index]] for index in (0, 1))
        if not label:
            raise InputError("the cases must have at least one grade, got none.")
        bins: dict[str, Bins] = {}
        for name, grades in self.grades.items():
            grade, probability, confidence = grades(torch.cat(logits))
            scores = calibration_scores(probability, grade, label)
            engine.state.metrics |= {f"val_{key}{name}": score for key, score in scores.items()}
            title = f"{name[1:] or f'temperature {grades.temperature:.3g}'}: error {scores['ece']:.3f}"
            bins[title] = reliability_bins(confidence, grade == torch.tensor(label))
        if idist.get_rank() > 0:
            return
        with atomic_path(self.output_dir / "reliability.csv") as path, open(path, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["temperature", "confidence", "right", "grades"])
            for grades, values in zip(self.grades.values(), bins.values(), strict=True):
                table.writerows([grades.temperature, *row] for row in zip(*(v.tolist() for v in values), strict=True))
        with atomic_path(self.output_dir / "reliability.png") as path:
            plot_reliability(bins).savefig(path, dpi=110)


def plot_reliability(bins: Mapping[str, Bins]) -> Figure:
    """
    Reliability diagrams: the share of right grades against the confidence, on the diagonal at best, and below it how
    many grades each bin has.

    Args:
        bins: by title, mean confidence, share of right grades and number of grades of each bin, see
            :func:`monai_dvpt.metrics.reliability_bins`.

    Returns:
        the figure, drawn without a display.
    """
    figure = Figure(figsize=(4.2 * len(bins), 4.8), layout="constrained")
    panels = figure.subplots(2, len(bins), squeeze=False, sharex=True, height_ratios=(3, 1))
    for (title, (confidence, right, counts)), (upper, lower) in zip(bins.items(), panels.T, strict=True):
        upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
        upper.plot(confidence, right, marker="o")
        upper.vlines(confidence, right, confidence, color="C3", alpha=0.6)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right grades")
        upper.set_title(title, fontsize=9)
        lower.bar(confidence, counts, width=0.04)
        lower.set(xlabel="confidence", ylabel="grades")
    return figure
