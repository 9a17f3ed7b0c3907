# SPDX-License-Identifier: Apache-2.0
"""TensorBoard curves that a resumed run continues."""

from __future__ import annotations

import os
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import TensorBoardStatsHandler
from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardLog"]


class TensorBoardLog(TensorBoardStatsHandler):
    """
    :class:`monai.handlers.TensorBoardStatsHandler` of either iterations or epochs, whose points replace those of an
    interrupted run for the same iterations or epochs. It writes nothing before the first epoch.

    Args:
        log_dir: folder of this handler alone, since only the iteration or epoch tells points apart.
        iteration_log: whether to write the output of every iteration; else the metrics of every epoch.
        kwargs: other arguments of MONAI's handler.
    """

    def __init__(self, log_dir: str | os.PathLike, iteration_log: bool = True, **kwargs: Any) -> None:
        unused: Any = object()  # the writer is made when the first step is known
        super().__init__(unused, iteration_log=iteration_log, epoch_log=not iteration_log, **kwargs)
        self.log_dir = log_dir

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: trainer or evaluator; the handler that resumes a run is attached to the trainer's start.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self.open)
        super().attach(engine)

    def open(self, engine: Engine) -> None:
        if not self.internal_writer:
            step = engine.state.iteration + 1 if self.iteration_log else engine.state.epoch
            self._writer = SummaryWriter(str(self.log_dir), purge_step=step)
            self.internal_writer = True
