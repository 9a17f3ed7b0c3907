# SPDX-License-Identifier: Apache-2.0
"""The handlers of every fine-tuning run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.engines import Evaluator, Trainer
from monai.handlers import ValidationHandler, from_engine

from monai_dvpt.networks.parts import TunableNetwork

from .adapter_saver import AdapterSaver
from .conformal_calibration import ConformalCalibration
from .epoch_log import EpochLog
from .resumable_checkpoint import ResumableCheckpoint
from .temperature_calibration import TemperatureCalibration
from .tensorboard_log import TensorBoardLog
from .training_report import TrainingReport

__all__ = ["TrainingRoutine"]


class TrainingRoutine:
    """
    Logs every epoch, validates, saves the last and the best, calibrates, reports, and saves a checkpoint, in the one
    order that is right. Attach it after a handler of the learning rate.

    Args:
        network, evaluator, output_dir, labels, validate_start, published_model, preparation: see :class:`AdapterSaver`.
        tensorboard_dir: folder for curves of the loss and, in its folder "validation", of the metrics.
        metric_labels: see "labels" of :class:`TrainingReport`.
        seed: see :class:`ResumableCheckpoint`.
        save_dict: optimizer and learning-rate schedule, for the checkpoint.
        settings: facts for the report, which a resumed run must share; JSON-serialisable.
        val_interval: epochs from one validation to the next.
        calibration: arguments of :class:`TemperatureCalibration` without the saver; None for no calibration.
        conformal: arguments of :class:`ConformalCalibration` without the saver; None for no prediction sets.
    """

    def __init__(
        self,
        network: TunableNetwork,
        evaluator: Evaluator,
        output_dir: str | os.PathLike,
        tensorboard_dir: str | os.PathLike,
        labels: Sequence[str],
        metric_labels: Sequence[str],
        seed: int,
        save_dict: Mapping[str, Any],
        settings: dict[str, Any],
        val_interval: int = 1,
        validate_start: bool = False,
        published_model: str | os.PathLike | None = None,
        preparation: Mapping[str, Any] | None = None,
        calibration: Mapping[str, Any] | None = None,
        conformal: Mapping[str, Any] | None = None,
    ) -> None:
        folder = Path(output_dir)
        options = (validate_start, published_model, preparation)
        self.saver = AdapterSaver(network, folder, evaluator, labels, *options)
        report = TrainingReport(self.saver, metric_labels, settings)
        state = {"network": network, **save_dict, "saver": self.saver, "report": report}
        self.curves = TensorBoardLog(Path(tensorboard_dir) / "validation", iteration_log=False)
        self.handlers: list[Any] = [
            EpochLog(folder / "history.csv"),
            ValidationHandler(val_interval, evaluator),
            TensorBoardLog(tensorboard_dir, tag_name="train_loss", output_transform=from_engine(["loss"], first=True)),
            self.saver,
            *([TemperatureCalibration(self.saver, **calibration)] if calibration else []),
            *([ConformalCalibration(self.saver, **conformal)] if conformal else []),
            report,
            ResumableCheckpoint(folder / "checkpoint.pt", state, seed, settings),
        ]

    def attach(self, engine: Trainer) -> None:
        self.curves.attach(self.saver.evaluator)
        for handler in self.handlers:
            handler.attach(engine)
