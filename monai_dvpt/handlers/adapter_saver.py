# SPDX-License-Identifier: Apache-2.0
"""Keeps the last and the best of a fine-tuning run."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer

from monai_dvpt.networks.adapter import TunableNetwork, count_parameters, save_adapter
from monai_dvpt.utils import atomic_path

__all__ = ["AdapterSaver"]

logger = logging.getLogger(__name__)


class AdapterSaver:
    """
    Writes ``adapter_last.safetensors`` after every epoch, and ``adapter_best.safetensors`` with the full network as
    ``model.pt`` whenever a validation improves on the best so far. Each file is replaced as a whole. Where the
    backbone itself is trained an adapter could not hold the result, so only ``model.pt`` is written.

    Args:
        network: the network that is trained.
        output_dir: folder for the files.
        evaluator: the validator; its key metric decides, larger is better.
    """

    def __init__(self, network: TunableNetwork, output_dir: str | os.PathLike, evaluator: Evaluator) -> None:
        self.network = network
        self.output_dir = Path(output_dir)
        self.evaluator = evaluator
        self.best: dict[str, Any] = {}
        self.last: dict[str, Any] = {}

    def attach(self, engine: Trainer) -> None:
        """
        Args:
            engine: the trainer.
        """
        self.tunes_backbone = count_parameters(self.network)["backbone"]["trainable"] > 0
        if idist.get_rank() > 0:
            return
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_last)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.save_best)

    def save_last(self, engine: Engine) -> None:
        if not self.tunes_backbone:
            notes = {"epoch": engine.state.epoch}
            save_adapter(self.network, self.output_dir / "adapter_last.safetensors", notes=notes)

    def save_best(self, engine: Engine) -> None:
        name = engine.state.key_metric_name
        metrics = {key: _plain(value) for key, value in engine.state.metrics.items()}
        self.last = {"epoch": engine.state.epoch, "metrics": metrics}
        score: Any = metrics[name]
        best = self.best["metrics"][name] if self.best else math.nan
        if not (score > best or math.isnan(best)):
            return
        self.best = self.last
        if not self.tunes_backbone:
            save_adapter(self.network, self.output_dir / "adapter_best.safetensors", notes=self.best)
        with atomic_path(self.output_dir / "model.pt") as path:
            torch.save(self.network.state_dict(), path)
        logger.info(f"Epoch {self.best['epoch']}: best {name} so far, {score:.4f}; saved to {self.output_dir}.")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.last = state["best"], state["last"]


def _plain(value: Any) -> float | list[float]:
    """A metric as a number or a list of numbers."""
    value = torch.as_tensor(value)
    return value.item() if value.ndim == 0 else value.tolist()
