# SPDX-License-Identifier: Apache-2.0
"""A trained network in the place of the one that a server reads."""

from __future__ import annotations

import logging
import os
import shutil
from datetime import datetime
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Trainer

from monai_dvpt.handlers.adapter_saver import AdapterSaver
from monai_dvpt.utils import atomic_path

__all__ = ["ModelPublisher"]

logger = logging.getLogger(__name__)


class ModelPublisher:
    """
    When a run is complete and has an epoch that is better than what it started from, replaces a file of the full
    network by that of its best epoch. What was there is kept in the folder "before" beside it, with the time in its
    name. Where there are no validation cases the last epoch is taken.

    Args:
        saver: the handler that keeps the best epoch, attached before this one; it must validate the start.
        path: the file to replace, or None for no file.
    """

    def __init__(self, saver: AdapterSaver, path: str | os.PathLike | None) -> None:
        self.saver = saver
        self.path = None if path is None else Path(path)

    def attach(self, engine: Trainer) -> None:
        """
        Args:
            engine: the trainer.
        """
        if self.path is not None and idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self.publish, self.path)

    def publish(self, engine: Engine, path: Path) -> None:
        if not self.saver.best.get("epoch"):
            logger.info(f"No epoch is better than the start: {path} stays as it is.")
            return
        before = path.parent / "before" / f"{path.stem}_{datetime.now():%Y%m%d_%H%M%S}{path.suffix}"
        with atomic_path(before) as copy:
            shutil.copyfile(path, copy)
        with atomic_path(path) as copy:
            shutil.copyfile(self.saver.output_dir / "model.pt", copy)
        logger.info(f"Epoch {self.saver.best['epoch']} is now {path}; what it was before is {before}.")
