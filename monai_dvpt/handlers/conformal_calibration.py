# SPDX-License-Identifier: Apache-2.0
"""Prediction sets, calibrated on cases that trained nothing and chose nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import Trainer

from monai_dvpt.metrics import PredictionSets, fewest_cases
from monai_dvpt.networks.adapter import adapter_metadata
from monai_dvpt.utils import InputError, atomic_path, to_json

from .adapter_saver import AdapterSaver
from .best_network import best_network, note_in_adapter, predict_logits
from .temperature_calibration import calibrated_temperature

__all__ = ["ConformalCalibration", "calibrated_sets"]

logger = logging.getLogger(__name__)


class ConformalCalibration:
    """
    At the end of a run, finds the thresholds of :class:`monai_dvpt.metrics.PredictionSets` for the best network on
    calibration cases, and writes them to ``conformal.json`` and as "conformal" to the notes of
    ``adapter_best.safetensors``. Without calibration cases it says so, writes no file and removes an earlier one.

    Attach it after :class:`monai_dvpt.handlers.TemperatureCalibration`, whose temperature it uses, and before a report
    of the saver's files.

    Args:
        saver: the handler of the best network; its evaluator prepares and predicts the cases.
        data_loader: the calibration cases, which must neither train nor validate; may be empty.
        outputs: names of the ``O`` graded outputs.
        grades: names of the ``K`` grades; the network has (B, O * K) logits; labels are of shape (B, O), missing -1.
        coverage: probability with which a set holds the true grade, in (0, 1).

    Raises:
        ValueError: if ``coverage`` is outside its range.
    """

    def __init__(
        self,
        saver: AdapterSaver,
        data_loader: DataLoader,
        outputs: Sequence[str],
        grades: Sequence[str],
        coverage: float = 0.9,
    ) -> None:
        PredictionSets(coverage, 1.0, [[0]], [[None]])  # raises
        self.saver = saver
        self.data_loader = data_loader
        self.outputs = [str(output) for output in outputs]
        self.grades = [str(grade) for grade in grades]
        self.coverage = coverage

    def attach(self, engine: Trainer) -> None:
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self.calibrate)

    def calibrate(self, engine: Engine) -> None:
        folder, network = self.saver.output_dir, best_network(self.saver)
        if not len(self.data_loader):
            (folder / "conformal.json").unlink(missing_ok=True)
            note_in_adapter(self.saver, network, "conformal", None)
            logger.warning("No prediction sets: the list has no part calibration, of cases for them alone.")
            return
        logits, label = predict_logits(self.saver.evaluator, network, self.data_loader, len(self.grades))
        temperature = calibrated_temperature(folder / "adapter_best.safetensors")
        sets = PredictionSets.fit(logits, label, self.coverage, temperature)
        with atomic_path(folder / "conformal.json") as path:
            path.write_text(to_json(asdict(sets)))
        note_in_adapter(self.saver, network, "conformal", asdict(sets))
        logger.info(f"Calibrated prediction sets with coverage {self.coverage:g} on {len(label)} cases.")
        if few := sets.too_few(self.outputs, self.grades):
            found = ", ".join(f"{name} ({count})" for name, count in few.items())
            least = fewest_cases(self.coverage)
            logger.warning(f"In every prediction set, as fewer than {least} calibration cases have it: {found}.")


def calibrated_sets(path: str | os.PathLike) -> PredictionSets | None:
    """
    The prediction sets that :class:`ConformalCalibration` wrote to an adapter; None, and a line in the log, if it has
    none.

    Args:
        path: the adapter file.

    Raises:
        InputError: if the file is not an adapter, or what it says of the sets is not valid.
    """
    notes = adapter_metadata(path).get("notes")
    found = notes.get("conformal") if isinstance(notes, dict) else None
    if found is None:
        logger.info("No prediction sets: the adapter was trained without calibration cases.")
        return None
    try:
        return PredictionSets(**found)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: conformal must be what a training wrote, got {found!r}: {error}") from error
