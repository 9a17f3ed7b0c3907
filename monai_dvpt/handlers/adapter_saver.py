# SPDX-License-Identifier: Apache-2.0
"""Saves the last and the best epoch of a fine-tuning run."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer

from monai_dvpt.networks.adapter import save_adapter
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.networks.wrapped import unwrap
from monai_dvpt.utils import atomic_path

__all__ = ["AdapterSaver"]

logger = logging.getLogger(__name__)


class AdapterSaver:
    """
    Writes ``adapter_last.safetensors`` after every epoch, and ``adapter_best.safetensors`` and the full network
    ``model.pt`` after every validation that improves on the best. The last epoch is always validated; without
    validation cases it is the best. Each file is replaced as a whole.

    Args:
        network: the network in training.
        output_dir: folder for the files.
        evaluator: the validator; its key metric decides, larger is better.
        labels: names of the classes, background first, stored in the adapters.
        validate_start: whether to validate the start of a run too, as epoch 0; always done with a published model.
        published_model: file of a full network, or None; at the end of the run the best epoch replaces it if better
            than the start. The previous file moves to the folder "before" beside it, the time in its name.
        preparation: settings with which the images are prepared, by name, kept in the notes of the adapters for
            :func:`monai_dvpt.networks.adapter.prepared_with`; JSON-serialisable.
    """

    def __init__(
        self,
        network: TunableNetwork,
        output_dir: str | os.PathLike,
        evaluator: Evaluator,
        labels: Sequence[str] | None = None,
        validate_start: bool = False,
        published_model: str | os.PathLike | None = None,
        preparation: Mapping[str, Any] | None = None,
    ) -> None:
        self.network: TunableNetwork = unwrap(network)
        self.output_dir = Path(output_dir)
        self.evaluator = evaluator
        self.labels = labels
        self.validate_start = validate_start or published_model is not None
        self.published_model = None if published_model is None else Path(published_model)
        self.kept = {"preparation": dict(preparation)} if preparation else {}
        self.epoch: int | None = None  # where it differs from the validator's
        self.start: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.last: dict[str, Any] = {}

    def attach(self, engine: Trainer) -> None:
        if self.validate_start:
            engine.add_event_handler(Events.EPOCH_STARTED(once=1), self.validate_first)  # not when a run is resumed
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_last)
        engine.add_event_handler(Events.COMPLETED, self.validate_last)
        if self.published_model is not None and idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self.publish, self.published_model)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.validated)

    def validate_first(self, engine: Engine) -> None:
        self.epoch = 0
        self.evaluator.run()
        self.epoch = None
        self.start = self.last

    def save_last(self, engine: Engine) -> None:
        self._save_adapter("adapter_last.safetensors", {"epoch": engine.state.epoch})

    def validate_last(self, engine: Engine) -> None:
        if self.last.get("epoch") != engine.state.epoch:
            self.evaluator.run(engine.state.epoch)
        if not self.last:
            self.last = self.best = {"epoch": engine.state.epoch, "metrics": {}}
            self._save_best()
            logger.info(f"No validation cases: the last epoch is saved to {self.output_dir}.")

    def validated(self, engine: Engine) -> None:
        name = engine.state.key_metric_name
        metrics = {key: torch.as_tensor(value).tolist() for key, value in engine.state.metrics.items()}
        self.last = {"epoch": engine.state.epoch if self.epoch is None else self.epoch, "metrics": metrics}
        score: Any = metrics[name]
        best = self.best["metrics"][name] if self.best else math.nan
        if not (score > best or math.isnan(best)):
            return
        self.best = self.last
        self._save_best()
        if idist.get_rank() == 0:
            logger.info(f"Epoch {self.best['epoch']}: best {name} so far, {score:.4f}; saved to {self.output_dir}.")

    def publish(self, engine: Engine, path: Path) -> None:
        if not self.best.get("epoch"):
            logger.info(f"No epoch is better than the start: {path} stays as it is.")
            return
        before = path.parent / "before" / f"{path.stem}_{datetime.now():%Y%m%d_%H%M%S}{path.suffix}"
        for source, target in ((path, before), (self.output_dir / "model.pt", path)):
            with atomic_path(target) as copy:
                shutil.copyfile(source, copy)
        logger.info(f"Epoch {self.best['epoch']} is now {path}; what it was before is {before}.")

    def _save_best(self) -> None:
        self._save_adapter("adapter_best.safetensors", self.best)
        if idist.get_rank() == 0:
            with atomic_path(self.output_dir / "model.pt") as path:
                torch.save(self.network.state_dict(), path)

    def _save_adapter(self, name: str, notes: dict[str, Any]) -> None:
        if idist.get_rank() == 0:
            save_adapter(self.network, self.output_dir / name, labels=self.labels, notes={**self.kept, **notes})

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "best": self.best, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start, self.best, self.last = state["start"], state["best"], state["last"]
