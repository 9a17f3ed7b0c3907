# SPDX-License-Identifier: Apache-2.0
"""A training run that can be killed at any time and goes on as if it had not been."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines import Trainer
from monai.utils import set_determinism

from monai_dvpt.utils import InputError, atomic_path

__all__ = ["ResumableCheckpoint"]


class ResumableCheckpoint:
    """
    Saves the state of a run after every epoch, in one file that is replaced as a whole, and loads it when the run
    starts and the file exists. Every epoch draws from its own seed, so a resumed run sees what an uninterrupted one
    would have seen.

    MONAI's ``CheckpointSaver`` writes in place (a kill while it writes costs the checkpoint) and leaves the random
    state out. Attach this handler last, so that what the others do after an epoch is in the file.

    Args:
        path: the checkpoint file.
        save_dict: objects with ``state_dict`` and ``load_state_dict``; the trainer is added.
        seed: seed of the run; epoch ``e`` uses ``seed + e``, and other ranks of a distributed run others.
    """

    def __init__(self, path: str | os.PathLike, save_dict: Mapping[str, Any], seed: int) -> None:
        self.path = Path(path)
        self.save_dict = dict(save_dict)
        self.seed = seed

    def attach(self, engine: Trainer) -> None:
        """
        Args:
            engine: the trainer.
        """
        self.save_dict["trainer"] = engine
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_STARTED, self.reseed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def load(self, engine: Engine) -> None:
        if not self.path.is_file():
            return
        max_epochs = engine.state.max_epochs
        try:
            checkpoint = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, item in self.save_dict.items():
                item.load_state_dict(checkpoint[name])
        except Exception as error:
            raise InputError(
                f"{self.path}: does not fit this run, remove it or choose another output_dir: {error}"
            ) from error
        engine.state.max_epochs = max_epochs  # the user may ask for more epochs than before
        engine.logger.info(f"Resuming after epoch {engine.state.epoch} from {self.path}.")

    def reseed(self, engine: Engine) -> None:
        seed = self.seed + engine.state.epoch + 1000 * idist.get_rank()
        set_determinism(seed)
        set_rnd(engine.data_loader.dataset, seed=seed)

    def save(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            with atomic_path(self.path) as path:
                torch.save({name: item.state_dict() for name, item in self.save_dict.items()}, path)
