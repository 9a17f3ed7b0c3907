# SPDX-License-Identifier: Apache-2.0
"""One line of progress per epoch."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.engines import Trainer

from monai_dvpt.utils import TimeLeft, atomic_path, write_csv

__all__ = ["EpochLog"]


class EpochLog:
    """
    Logs the mean training loss of every epoch and the time left, and adds the loss to a CSV file, where it replaces an
    interrupted run's rows for this and later epochs. In long epochs it logs the time left every half minute. At the
    end it draws the loss curve in a PNG file of the same name.

    Args:
        path: the CSV file, with the columns epoch, loss and seconds.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def attach(self, engine: Trainer) -> None:
        if idist.get_rank() > 0:
            return
        engine.add_event_handler(Events.STARTED, self.reset)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.plot)

    def reset(self, engine: Engine) -> None:
        self.timed = False

    def start(self, engine: Engine) -> None:
        if not self.timed:
            self.left, self.timed = TimeLeft(done=engine.state.epoch - 1), True  # a resumed run has done epochs before
        self.started = time.monotonic()
        self.losses: list[float] = []

    def add(self, engine: Engine) -> None:
        output = engine.state.output
        loss = (output[0] if isinstance(output, list) else output)["loss"]
        self.losses.append(float(torch.as_tensor(loss).detach()))
        epoch, epochs, length = engine.state.epoch, engine.state.max_epochs, engine.state.epoch_length
        if self.left.is_line_due():
            left = self.left(epoch - 1 + len(self.losses) / length, epochs)
            engine.logger.info(f"Epoch {epoch} of {epochs}: step {len(self.losses)} of {length}, {left}")

    def write(self, engine: Engine) -> None:
        epoch, epochs = engine.state.epoch, engine.state.max_epochs
        loss, seconds = sum(self.losses) / len(self.losses), time.monotonic() - self.started
        left = self.left(epoch, epochs)
        engine.logger.info(f"Epoch {epoch} of {epochs}: loss {loss:.4f}, {seconds:.1f} s, {left}")
        rows = [row for row in self.read() if int(row["epoch"]) < epoch]
        rows.append({"epoch": str(epoch), "loss": f"{loss:.6f}", "seconds": f"{seconds:.2f}"})
        write_csv(self.path, list(rows[0]), rows)

    def read(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def plot(self, engine: Engine) -> None:
        rows = self.read()
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot([int(row["epoch"]) for row in rows], [float(row["loss"]) for row in rows])
        axes.set(xlabel="epoch", ylabel="training loss")
        axes.grid(alpha=0.3)
        with atomic_path(self.path.with_suffix(".png")) as path:
            figure.savefig(path, dpi=110)
