# SPDX-License-Identifier: Apache-2.0
"""The short report at the end of a fine-tuning run."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch.utils.data import Dataset

from monai_dvpt.data.datalist import images_sha256
from monai_dvpt.handlers.adapter_saver import AdapterSaver
from monai_dvpt.networks.parts import count_parameters
from monai_dvpt.utils import atomic_path, to_json

__all__ = ["TrainingReport"]

logger = logging.getLogger(__name__)


class TrainingReport:
    """
    Writes ``report.json`` at the end of a run, and logs it as a table: scores of the best and the last validation,
    parameters of every part, seconds, peak memory of the GPU or else of the process, and sizes of the saved files; the
    file also has "validation_sha256", see :func:`monai_dvpt.data.images_sha256`.

    Args:
        saver: the handler of the best epoch.
        labels: names of the values of a metric that is a list, such as the classes without background.
        settings: facts about the run, JSON-serialisable.
    """

    def __init__(self, saver: AdapterSaver, labels: Sequence[str], settings: dict[str, Any] | None = None) -> None:
        self.saver = saver
        self.labels = [str(label) for label in labels]
        self.settings = settings or {}
        self.seconds_before = 0.0

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        self.started = time.monotonic()

    def write(self, engine: Engine) -> None:
        network, folder = self.saver.network, self.saver.output_dir
        parameters = count_parameters(network)
        total = parameters["network"]
        names = network.encoder().named_parameters()
        encoder = sum(parameter.numel() for name, parameter in names if network.encoder().is_own(name))
        files = [folder / name for name in ("adapter_best.safetensors", "model.pt")]
        method_bytes = sum(tensor.nbytes for _, tensor in network.tensors(["method"]))
        report = {
            "best": self._named(self.saver.best),
            "last": self._named(self.saver.last),
            "epochs": engine.state.epoch,
            "parameters": parameters,
            "trainable_percent_of_network": 100 * total["trainable"] / total["total"],
            "method": {"name": network.method.name, **network.method.options},
            "method_percent_of_encoder": 100 * parameters["method"]["total"] / encoder if encoder else 0.0,
            "method_bytes": method_bytes,
            "file_bytes": {file.name: file.stat().st_size for file in files if file.is_file()},
            "seconds": self._seconds(),
            "peak_memory_mib": peak_memory_mib(next(network.parameters()).device),
            "validation_sha256": self._validation_sha256(),
            "settings": self.settings,
        }
        with atomic_path(folder / "report.json") as path:
            path.write_text(to_json(report))
        logger.info("\n".join([f"Report ({folder / 'report.json'}):", *_lines(report)]))

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seconds_before = state["seconds"]

    def _validation_sha256(self) -> str | None:
        """Of the images that chose the best epoch."""
        cases: Any = getattr(self.saver.evaluator.data_loader, "dataset", None)
        while isinstance(cases, Dataset):  # one may lie around another
            cases = getattr(cases, "data", None)
        return images_sha256(cases) if isinstance(cases, Sequence) else None

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _named(self, best: dict[str, Any]) -> dict[str, Any]:
        metrics = {
            key: dict(zip(self.labels, value, strict=True)) if isinstance(value, list) else value
            for key, value in best.get("metrics", {}).items()
        }
        return {**best, "metrics": metrics} if best else {}


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB since the process started: of the GPU where ``device`` is one, else of the process (Unix)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource  # Unix only
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _lines(report: dict[str, Any]) -> list[str]:
    best, last, lines = report["best"], report["last"], []
    if last:
        lines = [f"  {'':<26} {'best':>8} {'last':>8}", f"  {'epoch':<26} {best['epoch']:>8} {last['epoch']:>8}"]
    for name, value in last.get("metrics", {}).items():
        for label in value if isinstance(value, dict) else [""]:
            scores = [v["metrics"][name][label] if label else v["metrics"][name] for v in (best, last)]
            lines.append(f"  {name + ' ' + label:<26} {scores[0]:>8.4f} {scores[1]:>8.4f}")
    for part, count in report["parameters"].items():
        share = 100 * count["trainable"] / max(1, count["total"])
        lines.append(f"  {part:<26} {count['trainable']:,} of {count['total']:,} parameters trained ({share:.2f} %)")
    lines.append(
        f"  method, of the encoder     {report['method_percent_of_encoder']:.2f} %, {report['method_bytes']:,} bytes"
    )
    lines += [f"  {name:<26} {size:,} bytes" for name, size in report["file_bytes"].items()]
    lines.append(f"  time                       {report['seconds']:.0f} s")
    lines.append(f"  peak memory                {report['peak_memory_mib']:.0f} MiB")
    return lines
