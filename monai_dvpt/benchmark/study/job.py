# SPDX-License-Identifier: Apache-2.0
"""One training run of a study, through the bundle's own ``train.yaml``."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections import UserDict
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.metrics import CumulativeIterationMetric
from monai.utils import set_determinism

from monai_dvpt.handlers import peak_memory_mib
from monai_dvpt.networks.methods import as_method
from monai_dvpt.networks.parts import count_parameters
from monai_dvpt.utils import InputError, path_for_config, reason

from .pixels import PIXELS, PixelModel, use_pixels
from .plan import PROBES, Job, Split, parse_method, patient_of, settings_of

__all__ = ["GIVEN", "Task", "data_root", "has_classes", "key_metric", "read_cases", "run_job", "train_and_score"]

GIVEN = ("cases", "layer_decay", "learning_rates", "method", "seed", "weight_decay")
"""Keys of ``train.yaml`` that the study sets."""
KEPT_HANDLERS = ("LrScheduleHandler",)
"""Handlers of the trainer that change the training; all others write files or validate."""


@dataclass(frozen=True)
class Task:
    """
    What all jobs of a study share.

    Attributes:
        bundle: folder of a bundle whose ``configs/train.yaml`` has the keys ``cases``, ``method``, ``network``,
            ``learning_rates``, ``weight_decay``, ``layer_decay``, ``train#trainer``, ``train#handlers`` and
            ``validate#evaluator``; for ``equal_steps`` also ``max_epochs``, ``batch_size`` and, if an epoch has several
            crops of each case, ``crops_per_case``; for the pixel baseline also ``network_def#num_classes``,
            ``device``, ``train#optimizer`` and ``validate#preprocessing``.
        settings: values by key that replace those of the config.
        threads: threads of each job.
        equal_steps: whether a job with fewer labels trains for more epochs: as many steps as with all labels, to the
            nearest whole epoch.
    """

    bundle: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    equal_steps: bool = False

    def workflow(self, **overrides: Any) -> ConfigWorkflow:
        """The bundle's training, not yet initialised."""
        configs = Path(self.bundle) / "configs"
        return ConfigWorkflow(
            config_file=str(configs / "train.yaml"),
            meta_file=str(configs / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            **{"bundle_root": path_for_config(self.bundle), **self.settings, **overrides},
        )


def key_metric(task: Task) -> CumulativeIterationMetric:
    """The metric that scores the runs of a bundle."""
    handlers = task.workflow().parser.get_parsed_content("validate#key_metric")
    return next(iter(handlers.values())).metric_fn


def data_root(task: Task) -> str:
    """The folder of a bundle's data; empty if the bundle has none."""
    parser = task.workflow().parser
    return str(parser.get_parsed_content("dataset_dir")) if "dataset_dir" in parser else ""


def has_classes(task: Task) -> bool:
    """Whether a bundle's network grades or classifies images, so that the pixel baseline applies."""
    return task.workflow().parser.get("network_def#num_classes") is not None


def probe_of(task: Task) -> str:
    """The frozen linear probe of a bundle as a method (text): its head must not read prompts."""
    pooling = task.workflow().parser.get("pooling")
    reads = pooling == "prompts" or (isinstance(pooling, list) and pooling[0] == "prompts")
    return PROBES[1] if reads else PROBES[0]


def read_cases(task: Task) -> dict[str, list[dict[str, Any]]]:
    """
    The bundle's lists of cases.

    Raises:
        InputError: if the config cannot make them.
    """
    try:
        lists = task.workflow().parser.get_parsed_content("cases")
        lists["training"]  # missing in a list only for evaluation
        return dict(lists)
    except Exception as error:  # MONAI's config parser wraps every error
        raise InputError(f"{task.bundle}: {reason(error)}") from error


def run_job(task: Task, job: Job, split: Split) -> dict[str, Any]:
    """
    :func:`train_and_score` with errors of one line for the parent process; their tracebacks are printed.

    Raises:
        InputError: if the run fails.
    """
    try:
        return train_and_score(task, job, split)
    except Exception as error:
        traceback.print_exc()
        raise InputError(reason(error)) from None


def train_and_score(task: Task, job: Job, split: Split) -> dict[str, Any]:
    """
    Trains as the bundle does, without its validations and files, and scores the last epoch. If the job has the bundle's
    method, its missing options are the bundle's. A trial whose parameters become infinite or NaN scores NaN.

    Returns:
        the job's values, the bundle's key metric as "score" and its name as "metric", numbers of cases and of
        parameters tuned in the encoder and in head and decoder, seconds of training, peak memory in MiB, and as
        "cases" what the key metric keeps of each scored case.

    Raises:
        InputError: if the parameters of a final run become infinite or NaN.
    """
    torch.set_num_threads(task.threads)
    training, scored = split.cases(job)
    rates = {"method": job.encoder_rate, "decoder": job.head_rate, "head": job.head_rate}
    decays = {"weight_decay": job.weight_decay, "layer_decay": job.layer_decay}
    workflow = task.workflow(seed=job.seed, learning_rates=rates, **decays, **settings_of(job.method))
    parser = workflow.parser
    if job.method == PIXELS:
        use_pixels(parser, training)
    else:
        own, chosen = as_method(parser.get_parsed_content("method")), parse_method(job.method)
        parser["method"] = {**(own.options if own.name == chosen["name"] else {}), **chosen}
    if task.equal_steps and job.fraction < 1:
        everything, _ = split.cases(replace(job, fraction=1.0))
        steps = parser.get_parsed_content("max_epochs") * _batches(everything, parser)
        parser["max_epochs"] = round(steps / _batches(training, parser))
    parser["cases"] = UserDict({"training": training, "validation": scored})  # a dict would be parsed
    handlers = parser.get("train#handlers")
    parser["train#handlers"] = [h for h in handlers if str(h["_target_"]).endswith(KEPT_HANDLERS)]
    parser["validate#handlers"], parser["validate#additional_metrics"] = [], {}
    workflow.initialize()
    set_determinism(job.seed)
    network, evaluator = (parser.get_parsed_content(name) for name in ("network", "validate#evaluator"))
    trainer = parser.get_parsed_content("train#trainer")
    started = time.monotonic()
    trainer.run()
    seconds = time.monotonic() - started
    memory = peak_memory_mib(next(network.parameters()).device)
    ((name, key),) = parser.get_parsed_content("validate#key_metric").items()
    score, values = math.nan, []
    if all(parameter.isfinite().all() for parameter in network.parameters()):
        evaluator.run()
        score, values = float(evaluator.state.metrics[name]), _values_of_cases(key.metric_fn, scored, data_root(task))
    elif job.kind == "final":
        raise InputError(f"training must stay finite, but diverged with the learning rates {rates}.")
    encoder_parameters, head_parameters = _count(network)
    return {
        **asdict(job),
        "metric": name,
        "score": score,
        "training_cases": len(training),
        "scored_cases": len(scored),
        "encoder_parameters": encoder_parameters,
        "head_parameters": head_parameters,
        "seconds": round(seconds, 1),
        "peak_memory_mib": round(memory),
        "cases": values,
    }


def _count(network: Any) -> tuple[int, int]:
    """Parameters that are trained in the encoder, and in head and decoder."""
    if isinstance(network, PixelModel):
        return 0, sum(parameter.numel() for parameter in network.parameters())
    counts = {part: count["trainable"] for part, count in count_parameters(network).items()}
    return counts["method"], counts["head"] + counts["decoder"]


def _values_of_cases(metric: Any, cases: Sequence[Mapping[str, Any]], root: str) -> list[dict[str, Any]]:
    """What a metric keeps of each case, a row for each, with its image by its path in a folder, and its patient."""
    if not isinstance(metric, CumulativeIterationMetric):
        raise InputError(f"validate#key_metric must be a cumulative metric of MONAI, got {type(metric).__name__}.")
    buffers = metric.get_buffer()
    parts = [buffers] if isinstance(buffers, torch.Tensor) else list(buffers)
    names = ["score"] if len(parts) == 1 else ["prediction", "label"]
    images = [_inside(str(case["image"]), root) for case in cases]
    patients = [
        image if (patient := patient_of(case)) == str(case["image"]) else patient
        for case, image in zip(cases, images, strict=True)
    ]
    columns: dict[str, list[Any]] = {"image": images, "patient": patients}
    for name, buffer in zip(names, parts, strict=True):
        columns |= {f"{name}_{index}": values.tolist() for index, values in enumerate(buffer.reshape(len(cases), -1).T)}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _inside(path: str, root: str) -> str:
    """A path relative to a folder, if it lies inside."""
    relative = os.path.relpath(path, root) if root else path
    return path if relative.startswith(os.pardir) else relative


def _batches(cases: Sized, parser: ConfigParser) -> int:
    """Batches of an epoch."""
    crops = parser.get_parsed_content("crops_per_case") if "crops_per_case" in parser else 1
    return math.ceil(len(cases) * crops / parser.get_parsed_content("batch_size"))
