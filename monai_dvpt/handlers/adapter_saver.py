# SPDX-License-Identifier: Apache-2.0
"""Saves the last and the best epoch of a fine-tuning run."""

from __future__ import annotations

import copy
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

from monai_dvpt.networks.adapter import load_adapter, save_adapter
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.networks.wrapped import unwrap
from monai_dvpt.utils import InputError, atomic_path, read_torch

__all__ = ["AdapterSaver"]

logger = logging.getLogger(__name__)


class AdapterSaver:
    """
    Writes ``adapter_last.safetensors`` after every epoch, and ``adapter_best.safetensors`` and the full network
    ``model.pt`` after every validation that improves on the best. The last epoch is always validated; without
    validation cases it is the best. Each file is replaced as a whole.

    Nothing gets worse unseen: a run that starts anew in the folder of another one scores that one's best adapter first,
    on its own validation cases, as the best so far, of epoch 0. One that the network cannot load is refused.

    Args:
        network: the network in training.
        output_dir: folder for the files.
        evaluator: the validator; its key metric decides, larger is better.
        labels: names of the classes, background first, stored in the adapters.
        validate_start: whether to validate the start of a run too, as epoch 0; always done with a published model.
        published_model: file of a full network, or None; at the end of the run the best epoch replaces it if better
            than the start and, on the same validation cases, than this file. The previous file moves to the folder
            "before" beside it, the time in its name. Without validation cases the last epoch replaces it.
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
        self.compares = False  # while another network than that in training is validated
        self.start: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.last: dict[str, Any] = {}

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED(once=1), self.score_earlier)  # not when a run is resumed
        if self.validate_start:
            engine.add_event_handler(Events.EPOCH_STARTED(once=1), self.validate_first)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_last)
        engine.add_event_handler(Events.COMPLETED, self.validate_last)
        if self.published_model is not None:
            engine.add_event_handler(Events.COMPLETED, self.publish, self.published_model)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.validated)

    def score_earlier(self, engine: Engine) -> None:
        path = self.output_dir / "adapter_best.safetensors"
        if not path.is_file():
            return
        network = copy.deepcopy(self.network)
        try:
            load_adapter(network, path, labels=self.labels, preparation=self.kept.get("preparation"))
        except InputError as error:
            raise InputError(
                f"{self.output_dir}: the adapter of the run before must fit this one to be compared with it, "
                f"choose another output_dir: {error}"
            ) from error
        if metrics := self._score(network):
            self.best = {"epoch": 0, "metrics": metrics}
            self._save_model(network)
            logger.info(f"{path} is of the run before, and stays until an epoch is better: {self._said(metrics)}")
        else:
            logger.warning(f"{path} is of the run before, and is replaced unseen: there are no validation cases.")

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
        if self.compares:
            return
        name, metrics = engine.state.key_metric_name, self._metrics()
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
        if self.best["metrics"] and not self._is_better_than(path):
            return
        if idist.get_rank() > 0:
            return
        before = path.parent / "before" / f"{path.stem}_{datetime.now():%Y%m%d_%H%M%S}{path.suffix}"
        for source, target in ((path, before), (self.output_dir / "model.pt", path)):
            with atomic_path(target) as part:
                shutil.copyfile(source, part)
        logger.info(f"Epoch {self.best['epoch']} is now {path}; what it was before is {before}.")

    def _is_better_than(self, path: Path) -> bool:
        """Whether the best epoch is better than the full network of a file on the same cases."""
        network = copy.deepcopy(self.network)
        try:
            network.load_state_dict(read_torch(path))
        except (InputError, RuntimeError) as error:
            logger.warning(
                f"{path} stays as it is, since it cannot be compared with epoch {self.best['epoch']}: {error}"
            )
            return False
        name, metrics = self.evaluator.state.key_metric_name, self._score(network)
        if better := self.best["metrics"][name] > metrics[name]:  # not if either is no number
            return better
        logger.info(f"Epoch {self.best['epoch']} is not better than {path}, which stays: {self._said(metrics)}")
        return False

    def _score(self, network: TunableNetwork) -> dict[str, Any]:
        """The metrics of another network on the validation cases; none without cases."""
        ours, self.evaluator.network, self.compares = self.evaluator.network, network, True
        try:
            self.evaluator.run()
            return self._metrics()
        finally:
            self.evaluator.network, self.compares = ours, False

    def _metrics(self) -> dict[str, Any]:
        return {key: torch.as_tensor(value).tolist() for key, value in self.evaluator.state.metrics.items()}

    def _said(self, metrics: dict[str, Any]) -> str:
        name: Any = self.evaluator.state.key_metric_name
        return f"{name} {metrics[name]:.4f}"

    def _save_best(self) -> None:
        self._save_adapter("adapter_best.safetensors", self.best)
        self._save_model(self.network)

    def _save_model(self, network: TunableNetwork) -> None:
        if idist.get_rank() == 0:
            with atomic_path(self.output_dir / "model.pt") as path:
                torch.save(network.state_dict(), path)

    def _save_adapter(self, name: str, notes: dict[str, Any]) -> None:
        if idist.get_rank() == 0:
            save_adapter(self.network, self.output_dir / name, labels=self.labels, notes={**self.kept, **notes})

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "best": self.best, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start, self.best, self.last = state["start"], state["best"], state["last"]
