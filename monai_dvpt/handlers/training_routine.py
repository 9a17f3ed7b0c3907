# SPDX-License-Identifier: Apache-2.0
"""What every fine-tuning run does beside its iterations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.engines import Evaluator, Trainer
from monai.handlers import ValidationHandler, from_engine

from monai_dvpt.networks.parts import TunableNetwork

from .adapter_saver import AdapterSaver
from .epoch_log import EpochLog
from .resumable_checkpoint import ResumableCheckpoint
from .temperature_calibration import TemperatureCalibration
from .tensorboard_log import TensorBoardLog
from .training_report import TrainingReport

__all__ = ["TrainingRoutine"]


class TrainingRoutine:
    """
    Logs every epoch, validates, keeps the last and the best, calibrates, reports, and saves what an interrupted run
    goes on from, in the one order that is right. Attach it after a handler of the learning rate.

    Args:
        network, evaluator, output_dir, labels, validate_start, published_model: see :class:`AdapterSaver`.
        tensorboard_dir: folder for curves of the loss, and in "validation" below it of the metrics.
        metric_labels: names of what a metric that is a list has a value for, such as the classes without background.
        seed: see :class:`ResumableCheckpoint`.
        save_dict: optimizer and learning-rate schedule, for the checkpoint.
        settings: facts for the report, which a resumed run must have again; JSON-serialisable.
        val_interval: epochs from one validation to the next.
        calibration: arguments of :class:`TemperatureCalibration` but its saver; None for no calibration.
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
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        folder = Path(output_dir)
        self.saver = AdapterSaver(network, folder, evaluator, labels, validate_start, published_model)
        report = TrainingReport(self.saver, metric_labels, settings)
        state = {"network": network, **save_dict, "saver": self.saver, "report": report}
        self.curves = TensorBoardLog(Path(tensorboard_dir) / "validation", iteration_log=False)
        self.handlers: list[Any] = [
            EpochLog(folder / "history.csv"),
            ValidationHandler(val_interval, evaluator),
            TensorBoardLog(tensorboard_dir, tag_name="train_loss", output_transform=from_engine(["loss"], first=True)),
            self.saver,
            *([TemperatureCalibration(self.saver, **calibration)] if calibration else []),
            report,
            ResumableCheckpoint(folder / "checkpoint.pt", state, seed, settings),
        ]

    def attach(self, engine: Trainer) -> None:
        """
        Args:
            engine: the trainer.
        """
        self.curves.attach(self.saver.evaluator)
        for handler in self.handlers:
            handler.attach(engine)
