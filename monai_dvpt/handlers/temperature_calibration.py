# SPDX-License-Identifier: Apache-2.0
"""Probabilities that can be taken at their word, as far as the validation cases tell."""

from __future__ import annotations

import copy
import hashlib
import json
import logging

import ignite.distributed as idist
import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.metrics import calibration_binning
from scipy.optimize import minimize_scalar

from monai_dvpt.handlers.adapter_saver import AdapterSaver
from monai_dvpt.metrics import compute_cohen_kappa
from monai_dvpt.networks.adapter import TunableNetwork, adapter_metadata, save_adapter
from monai_dvpt.transforms import GradeLogits
from monai_dvpt.utils import atomic_path, to_json

__all__ = ["TemperatureCalibration"]

logger = logging.getLogger(__name__)

TEMPERATURES = (0.1, 100.0)  # the range searched
BINS = 15  # of confidence, for the calibration error


class TemperatureCalibration:
    """
    When a run is complete, divides the logits of its best network by one temperature, that with the least negative
    log-likelihood on the validation cases, based on: "Guo et al., On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>". The division is done in the weights and bias of the head, in
    ``adapter_best.safetensors`` and ``model.pt``, so nothing else has to be kept. The network of the trainer stays as
    it is, and so does the most probable grade.

    ``calibration.json``, and the entry "calibration" of the adapter's notes, tell the temperature, and before and after
    it the negative log-likelihood ("nll"), the expected calibration error ("ece", 15 bins) and the quadratic kappa of
    all outputs together, which changes only where the mean decides. They are measured on the cases that chose the
    temperature, so they flatter it. The file also tells which head was divided: in a run that is resumed, or was
    interrupted here, a head is divided once.

    Attach it after the saver and before a report of its files.

    Args:
        saver: the handler that keeps the best network; its evaluator gives the validation cases.
        num_grades: number ``K`` of grades; the network has (B, O * K) logits, and labels are of shape (B, O), -1 where
            there is none.
        decision: how grades are chosen, see :class:`monai_dvpt.transforms.GradeLogits`.

    Raises:
        ValueError: if ``num_grades`` is below 2 or ``decision`` is unknown.
    """

    def __init__(self, saver: AdapterSaver, num_grades: int, decision: str = "mode") -> None:
        self.saver = saver
        self.num_grades = num_grades
        self.grade = GradeLogits(num_grades, decision)

    def attach(self, engine: Trainer) -> None:
        """
        Args:
            engine: the trainer.
        """
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self.calibrate)

    def calibrate(self, engine: Engine) -> None:
        folder = self.saver.output_dir
        record_path, model_path, adapter_path = (
            folder / name for name in ("calibration.json", "model.pt", "adapter_best.safetensors")
        )
        state = torch.load(model_path, map_location="cpu", weights_only=True)
        network = copy.deepcopy(self.saver.network).eval()
        network.load_state_dict(state)
        head = {name: tensor for name, tensor in state.items() if name.startswith(network.HEAD)}
        record = json.loads(record_path.read_text()) if record_path.is_file() else {}
        if record.get("head_sha256") != _sha256(head):
            logits, label = self._predict(network)
            temperature = _fit(logits, label)
            divided = {name: tensor / temperature for name, tensor in head.items()}
            record = {
                "temperature": temperature,
                "graded": len(label),
                "before": self._scores(logits, label),
                "after": self._scores(logits / temperature, label),
                "head_sha256": _sha256(divided),
            }
            with atomic_path(record_path) as path:  # first, so that no head is divided without a record
                path.write_text(to_json(record))
            network.load_state_dict({**state, **divided})
            with atomic_path(model_path) as path:
                torch.save(network.state_dict(), path)
            before, after = record["before"], record["after"]
            scores = ", ".join(f"{key} {before[key]:.3f} to {after[key]:.3f}" for key in before)
            logger.info(f"Calibrated with temperature {temperature:.3f} on {len(label)} grades: {scores}.")
        if not self.saver.tunes_backbone:
            notes = adapter_metadata(adapter_path)["notes"]
            if "calibration" not in notes:
                notes = {**notes, "calibration": record}
                save_adapter(network, adapter_path, labels=self.saver.labels, notes=notes)

    @torch.no_grad()
    def _predict(self, network: TunableNetwork) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, K) and grades (N,) of all that is graded in the validation cases, in double precision."""
        evaluator, logits, labels = self.saver.evaluator, [], []
        for batch in evaluator.data_loader:
            image, label = evaluator.prepare_batch(batch, evaluator.state.device, evaluator.non_blocking)
            graded = label >= 0
            pred = evaluator.inferer(image, network).unflatten(1, (-1, self.num_grades))  # (B, O, K)
            logits.append(pred[graded])
            labels.append(label[graded])
        pair = [torch.cat(tensors).as_subclass(torch.Tensor).cpu() for tensors in (logits, labels)]
        return pair[0].double(), pair[1]

    def _scores(self, logits: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
        """Negative log-likelihood, expected calibration error, and quadratic kappa."""
        confidence, mode = logits.softmax(dim=1).max(dim=1)
        # MONAI's metric around this function would wait for the other processes
        sure, right, counts = calibration_binning(confidence[None, None], (mode == label)[None, None], num_bins=BINS)
        error = torch.nansum((sure - right).abs() * counts) / counts.sum()  # an empty bin has no means
        kappa = compute_cohen_kappa(self.grade(logits.flatten())[0], label, self.num_grades)
        return {"nll": F.cross_entropy(logits, label).item(), "ece": error.item(), "kappa": kappa.item()}


def _fit(logits: torch.Tensor, label: torch.Tensor) -> float:
    """The temperature of the least negative log-likelihood."""
    found = minimize_scalar(
        lambda log_temperature: F.cross_entropy(logits / np.exp(log_temperature), label).item(),
        bounds=np.log(TEMPERATURES),
        method="bounded",
    )
    return float(np.exp(found.x))


def _sha256(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
