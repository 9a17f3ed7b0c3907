# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling, by which probabilities match frequencies in the validation cases."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines import Trainer
from scipy.optimize import minimize_scalar

from monai_dvpt.handlers.adapter_saver import AdapterSaver
from monai_dvpt.metrics import calibration_scores
from monai_dvpt.networks.adapter import adapter_metadata
from monai_dvpt.transforms import GradeLogits
from monai_dvpt.utils import InputError, atomic_path, to_json

from .best_network import best_network, note_in_adapter, predict_logits

__all__ = ["TemperatureCalibration", "calibrated_temperature"]

logger = logging.getLogger(__name__)

TEMPERATURES = (0.1, 100.0)  # the range searched


class TemperatureCalibration:
    """
    At the end of a run, finds the temperature that, as divisor of the best network's logits, gives the least negative
    log-likelihood on the validation cases, based on: "Guo et al., On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>". Weights and grades do not change: :class:`monai_dvpt.transforms.GradeLogits`
    applies the temperature to its probabilities.

    It is written to ``calibration.json`` and as "calibration" to the notes of ``adapter_best.safetensors``, with the
    number of grades ("graded") and, before and after the division, the negative log-likelihood ("nll") and the scores
    of :func:`monai_dvpt.metrics.calibration_scores`. These are measured on the cases that chose the temperature, so
    they flatter it.

    Attach it after the saver and before a report of its files.

    Args:
        saver: the handler of the best network; its evaluator has the validation cases.
        num_grades: number ``K`` of grades; the network has (B, O * K) logits; labels are of shape (B, O), missing -1.
        decision: how grades are chosen, see :class:`monai_dvpt.transforms.GradeLogits`.

    Raises:
        ValueError: if ``num_grades`` is below 2 or ``decision`` is unknown.
    """

    def __init__(self, saver: AdapterSaver, num_grades: int, decision: str = "mode") -> None:
        GradeLogits(num_grades, decision)  # raises
        self.saver = saver
        self.num_grades = num_grades
        self.decision = decision

    def attach(self, engine: Trainer) -> None:
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self.calibrate)

    def calibrate(self, engine: Engine) -> None:
        network = best_network(self.saver)
        evaluator = self.saver.evaluator
        logits, label = predict_logits(evaluator, network, evaluator.data_loader, self.num_grades)
        logits, label = logits[label >= 0], label[label >= 0]  # (N, K) and (N,), of all outputs
        temperature = _fit(logits, label)
        before, after = (self._scores(logits, label, divisor) for divisor in (1.0, temperature))
        calibration = {"temperature": temperature, "graded": len(label), "before": before, "after": after}
        with atomic_path(self.saver.output_dir / "calibration.json") as path:
            path.write_text(to_json(calibration))
        note_in_adapter(self.saver, network, "calibration", calibration)
        scores = ", ".join(f"{key} {before[key]:.3f} to {after[key]:.3f}" for key in before)
        logger.info(f"Calibrated with temperature {temperature:.3f} on {len(label)} grades: {scores}.")

    def _scores(self, logits: torch.Tensor, label: torch.Tensor, temperature: float) -> dict[str, float]:
        """Negative log-likelihood, and the scores of the calibration."""
        grade, probability, _ = GradeLogits(self.num_grades, self.decision, temperature)(logits.flatten())
        nll = F.cross_entropy(logits / temperature, label).item()
        return {"nll": nll, **calibration_scores(probability, grade, label)}


def calibrated_temperature(path: str | os.PathLike) -> float:
    """
    The temperature that :class:`TemperatureCalibration` wrote to an adapter; by default 1.0.

    Args:
        path: the adapter file.

    Raises:
        InputError: if the file is not an adapter, or the temperature not a positive number.
    """
    notes = adapter_metadata(path).get("notes")
    calibration = notes.get("calibration") if isinstance(notes, dict) else None
    if calibration is None:
        return 1.0
    temperature: Any = calibration.get("temperature") if isinstance(calibration, dict) else calibration
    if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
        raise InputError(f"{path}: temperature must be a positive number, got {temperature!r}.")
    return float(temperature)


def _fit(logits: torch.Tensor, label: torch.Tensor) -> float:
    """The temperature of the least negative log-likelihood."""
    found = minimize_scalar(
        lambda log_temperature: F.cross_entropy(logits / np.exp(log_temperature), label).item(),
        bounds=np.log(TEMPERATURES),
        method="bounded",
    )
    return float(np.exp(found.x))
