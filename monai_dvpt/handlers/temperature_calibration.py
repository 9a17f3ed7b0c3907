# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling, by which probabilities match frequencies in the validation cases."""

from __future__ import annotations

import copy
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
from monai.metrics import calibration_binning
from scipy.optimize import minimize_scalar

from monai_dvpt.handlers.adapter_saver import AdapterSaver
from monai_dvpt.networks.adapter import adapter_metadata, save_adapter
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.transforms import GradeLogits
from monai_dvpt.utils import InputError, atomic_path, read_torch, to_json

__all__ = ["TemperatureCalibration", "calibrated_temperature"]

logger = logging.getLogger(__name__)

TEMPERATURES = (0.1, 100.0)  # the range searched
BINS = 15  # of confidence, for the calibration error


class TemperatureCalibration:
    """
    At the end of a run, finds the temperature that, as divisor of the best network's logits, gives the least negative
    log-likelihood on the validation cases, based on: "Guo et al., On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>". Weights and grades do not change: :class:`monai_dvpt.transforms.GradeLogits`
    applies the temperature to its probabilities.

    It is written to ``calibration.json`` and as "calibration" to the notes of ``adapter_best.safetensors``, with the
    number of grades ("graded") and, before and after the division, the negative log-likelihood ("nll") and the expected
    calibration error of the confidence in the chosen grade ("ece", 15 bins). These are measured on the cases that chose
    the temperature, so they flatter it.

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
        folder = self.saver.output_dir
        network = copy.deepcopy(self.saver.network).eval()
        network.load_state_dict(read_torch(folder / "model.pt"))
        logits, label = self._predict(network)
        temperature = _fit(logits, label)
        before, after = (self._scores(logits, label, divisor) for divisor in (1.0, temperature))
        calibration = {"temperature": temperature, "graded": len(label), "before": before, "after": after}
        with atomic_path(folder / "calibration.json") as path:
            path.write_text(to_json(calibration))
        adapter = folder / "adapter_best.safetensors"
        notes = {**adapter_metadata(adapter)["notes"], "calibration": calibration}
        save_adapter(network, adapter, labels=self.saver.labels, notes=notes)
        scores = ", ".join(f"{key} {before[key]:.3f} to {after[key]:.3f}" for key in before)
        logger.info(f"Calibrated with temperature {temperature:.3f} on {len(label)} grades: {scores}.")

    @torch.no_grad()
    def _predict(self, network: TunableNetwork) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, K), in double precision, and grades (N,) of all graded outputs of the validation cases."""
        evaluator, logits, labels = self.saver.evaluator, [], []
        for batch in evaluator.data_loader:
            prepared = evaluator.prepare_batch(batch, evaluator.state.device, evaluator.non_blocking)
            image, label, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
            graded = label >= 0
            pred = evaluator.inferer(image, network, *args, **kwargs).unflatten(1, (-1, self.num_grades))  # (B, O, K)
            logits.append(pred[graded])
            labels.append(label[graded])
        pair = [torch.cat(tensors).as_subclass(torch.Tensor).cpu() for tensors in (logits, labels)]
        return pair[0].double(), pair[1]

    def _scores(self, logits: torch.Tensor, label: torch.Tensor, temperature: float) -> dict[str, float]:
        """Negative log-likelihood, and expected calibration error of the chosen grades."""
        grade, _, confidence = GradeLogits(self.num_grades, self.decision, temperature)(logits.flatten())
        # MONAI's metric around this function would wait for the other processes
        sure, right, counts = calibration_binning(confidence[None, None], (grade == label)[None, None], num_bins=BINS)
        error = torch.nansum((sure - right).abs() * counts) / counts.sum()  # an empty bin has no means
        return {"nll": F.cross_entropy(logits / temperature, label).item(), "ece": error.item()}


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
