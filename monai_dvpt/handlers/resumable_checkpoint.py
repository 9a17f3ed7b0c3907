# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from which a killed training run resumes as if uninterrupted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines import Trainer
from monai.optimizers import WarmupCosineSchedule
from monai.utils import set_determinism
from torch.optim.lr_scheduler import LambdaLR

from monai_dvpt.networks.adapter import backbone_sha256
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.networks.wrapped import unwrap
from monai_dvpt.utils import FolderLock, InputError, atomic_path, read_torch

__all__ = ["ResumableCheckpoint"]


class ResumableCheckpoint:
    """
    Saves the state of a run after every epoch, in one file that is replaced as a whole. The trainer's first start loads
    an existing file, unless weights were set after this handler was attached, as a server does in federated training. A
    run that does not load the file restarts a finished ``WarmupCosineSchedule``, whose learning rate would be 0. Every
    epoch has its own seed, so a resumed run sees the data of an uninterrupted one. Settings must be those of the file,
    except for the number of epochs: a learning-rate schedule then follows the new number from its current step. A
    second run in the same folder is refused while the first one runs.

    MONAI's ``CheckpointSaver`` writes in place (a kill meanwhile costs the checkpoint) and leaves out the random state.
    Attach this handler last, so that the file includes what the others do after an epoch.

    Args:
        path: the checkpoint file.
        save_dict: objects with ``state_dict`` and ``load_state_dict``; the trainer is added.
        seed: seed of the run, from which each epoch and each rank of a distributed run derives its own.
        settings: facts that a resumed run must share, JSON-serialisable; the seed is added, and the SHA-256 of the
            backbone at the start, if ``save_dict`` has a network of this package as "network".
    """

    def __init__(
        self,
        path: str | os.PathLike,
        save_dict: Mapping[str, Any],
        seed: int,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.save_dict = dict(save_dict)
        self.seed = seed
        self.settings = {**(settings or {}), "seed": seed}
        self.lock = FolderLock(self.path.parent)
        self.started = False

    def attach(self, engine: Trainer) -> None:
        self.save_dict["trainer"] = engine
        self.weights = self._weights()
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.reseed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            self.lock.acquire()
        first, self.started = not self.started, True
        if not first or not self.load(engine):
            self._restart_schedules()

    def end(self, engine: Engine) -> None:
        self.lock.release()

    def fail(self, engine: Engine, error: BaseException) -> None:
        self.lock.release()
        raise error  # ignite swallows an error that has a handler

    def load(self, engine: Engine) -> bool:
        """Whether the run resumes from the file."""
        network = self.save_dict.get("network")
        if isinstance(network, torch.nn.Module) and isinstance(inner := unwrap(network), TunableNetwork):
            self.settings["backbone_sha256"] = backbone_sha256(inner)
        if not self.path.is_file():
            return False
        if self._weights() != self.weights:
            engine.logger.info(f"Weights were set since the trainer was made, so {self.path} is not loaded.")
            return False
        max_epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length
        try:
            checkpoint = read_torch(self.path)
            before = checkpoint["settings"]
            changed = {key for key in {*before, *self.settings} if before.get(key) != self.settings.get(key)}
            if changed:
                pairs = (f"{key} was {before.get(key)}, is {self.settings.get(key)}" for key in sorted(changed))
                raise ValueError("; ".join(pairs))
            for name, item in self.save_dict.items():
                state = checkpoint[name]
                if isinstance(item, LambdaLR):  # its length is a setting, not a state
                    state = {**item.state_dict(), **{key: state[key] for key in ("last_epoch", "_step_count")}}
                item.load_state_dict(state)
        except Exception as error:
            raise InputError(
                f"{self.path}: does not fit this run, remove it or choose another output_dir: {error}"
            ) from error
        for item in self.save_dict.values():
            if isinstance(item, LambdaLR):
                _set_rates(item)
        engine.state.max_epochs, engine.state.epoch_length = max_epochs, epoch_length
        engine.logger.info(self._resumed(engine.state.epoch, max_epochs))
        return True

    def _resumed(self, epoch: int, max_epochs: int) -> str:
        if epoch < max_epochs:
            return f"Resuming after epoch {epoch} from {self.path}."
        more = f"to go on, run it with --max_epochs above {epoch}; to start anew, with another --output_dir"
        return f"This training is finished, {epoch} of {max_epochs} epochs are done ({self.path}); {more}."

    def _restart_schedules(self) -> None:
        """Restarts finished schedules, behind the warm-up if that is all there is."""
        for item in self.save_dict.values():
            if isinstance(item, WarmupCosineSchedule) and item.last_epoch >= item.t_total:
                item.last_epoch = 0 if item.t_total > item.warmup_steps else int(item.warmup_steps)
                _set_rates(item)

    def _weights(self) -> list[tuple[int, int]]:
        """Address of each tensor of the network, and how often it was written."""
        network = self.save_dict.get("network")
        tensors = network.state_dict().values() if isinstance(network, torch.nn.Module) else ()
        return [(tensor.data_ptr(), tensor._version) for tensor in tensors]

    def reseed(self, engine: Engine) -> None:
        entropy = [self.seed, engine.state.epoch, idist.get_rank()]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        set_determinism(seed)
        set_rnd(engine.data_loader.dataset, seed=seed)

    def save(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            with atomic_path(self.path) as path:
                states = {name: item.state_dict() for name, item in self.save_dict.items()}
                torch.save({**states, "settings": self.settings}, path)


def _set_rates(schedule: LambdaLR) -> None:
    """Sets the optimizer's learning rates to those of the schedule's current epoch."""
    for group, rate, scale in zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = rate * scale(schedule.last_epoch)
