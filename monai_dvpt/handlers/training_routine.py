# SPDX-License-Identifier: Apache-2.0
"""What every fine-tuning run does beside its iterations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.engines import Evaluator, Trainer
from monai.handlers import ValidationHandler, from_engine

from monai_dvpt.networks.adapter import TunableNetwork

from .adapter_saver import AdapterSaver
from .epoch_log import EpochLog
from .model_publisher import ModelPublisher
from .resumable_checkpoint import ResumableCheckpoint
from .temperature_calibration import TemperatureCalibration
from .tensorboard_log import TensorBoardLog
from .training_report import TrainingReport

__all__ = ["TrainingRoutine"]


class TrainingRoutine:
    """
    Logs every epoch, validates, keeps the last and the best, calibrates, reports, saves what an interrupted run goes on
    from, and publishes, in the one order that is right. Attach it after a handler of the learning rate.

    Attributes:
        saver: :class:`AdapterSaver`.
        report: :class:`TrainingReport`.

    Args:
        network: the network that is trained.
        evaluator: the validator; its key metric decides, larger is better.
        output_dir: folder for the files, ``history.csv`` and ``checkpoint.pt`` among them.
        seed: of the run.
        save_dict: optimizer and learning-rate schedule, for the checkpoint.
        labels: names of the classes, background first, to be stored in the adapters.
        metric_labels: names of what a metric that is a list has a value for, such as the classes without background.
        settings: facts for the report, which a resumed run must have again; JSON-serialisable.
        val_interval: epochs from one validation to the next.
        validate_start: whether what a run starts from is validated too; it always is where a model is published.
        calibration: arguments of :class:`TemperatureCalibration` but its saver; None for no calibration.
        published_model: file that the best network replaces, see :class:`ModelPublisher`; None for no file.
        tensorboard_dir: folder for curves of the loss, and in "validation" below it of the metrics; None for no curves.
    """

    def __init__(
        self,
        network: TunableNetwork,
        evaluator: Evaluator,
        output_dir: str | os.PathLike,
        seed: int,
        save_dict: Mapping[str, Any],
        labels: Sequence[str] | None = None,
        metric_labels: Sequence[str] = (),
        settings: dict[str, Any] | None = None,
        val_interval: int = 1,
        validate_start: bool = False,
        calibration: Mapping[str, Any] | None = None,
        published_model: str | os.PathLike | None = None,
        tensorboard_dir: str | os.PathLike | None = None,
    ) -> None:
        folder = Path(output_dir)
        self.evaluator = evaluator
        self.saver = AdapterSaver(network, folder, evaluator, labels, validate_start or published_model is not None)
        self.report = TrainingReport(self.saver, metric_labels, settings)
        save_dict = {"network": network, **save_dict, "saver": self.saver, "report": self.report}
        self.handlers: list[Any] = [
            EpochLog(folder / "history.csv"),
            ValidationHandler(val_interval, evaluator),
            self.saver,
            self.report,
            ResumableCheckpoint(folder / "checkpoint.pt", save_dict, seed, settings),
            ModelPublisher(self.saver, published_model),
        ]
        if calibration is not None:
            self.handlers.insert(3, TemperatureCalibration(self.saver, **calibration))
        self.curves = []
        if tensorboard_dir is not None:
            loss = from_engine(["loss"], first=True)
            self.handlers.insert(2, TensorBoardLog(tensorboard_dir, tag_name="train_loss", output_transform=loss))
            self.curves = [TensorBoardLog(Path(tensorboard_dir) / "validation", iteration_log=False)]

    def attach(self, engine: Trainer) -> None:
        """
        Args:
            engine: the trainer.
        """
        for handler in self.curves:
            handler.attach(self.evaluator)
        for handler in self.handlers:
            handler.attach(engine)
