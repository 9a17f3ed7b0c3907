# SPDX-License-Identifier: Apache-2.0
"""Training of an adapter on corrected labels."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from monai.bundle import ConfigWorkflow
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list, name_to_device

from monai_dvpt.handlers import AdapterSaver
from monai_dvpt.networks.adapter import load_adapter, save_adapter
from monai_dvpt.networks.methods import as_method
from monai_dvpt.networks.parts import adapter_parts, freeze_backbone
from monai_dvpt.utils import InputError, path_for_config, to_json

from .adapter_versions import AdapterVersions
from .bundles import ServedBundle
from .infer import IN_USE, chosen, refusing
from .labelled_cases import Case, labelled_cases, split_cases

__all__ = ["AS_START", "AdapterTrainTask"]

logger = logging.getLogger(__name__)

TRAINED = ["method", "head"]
"""Trained parts; the decoder stays the shipped adapter's, so a version is small."""
AS_START = "as start_from"
"""The first choice of tuning method in a viewer."""
LEAST_CROPS = 16
"""The least crops in an epoch; of few cases each gives several, since crops are random."""


class AdapterTrainTask(TrainTask):
    """
    Trains an adapter further with the bundle's own training, on the images with a final label, and keeps the result as
    a new version. It comes into use only if it scores better than the adapter in use, on the same cases in the same
    run: the validation cases or, if "val_split" is 0, the training cases. Backbone and decoder are frozen. Another
    tuning method than the adapter's starts anew, with the adapter's head.

    Args:
        bundle: a bundle with a segmentation.
        versions: its adapters.
    """

    def __init__(self, bundle: ServedBundle, versions: AdapterVersions) -> None:
        super().__init__(f"Trains the adapter of: {bundle.metadata['description']}")
        self.bundle = bundle
        self.versions = versions

    def config(self) -> dict[str, Any]:
        """The settings that a viewer offers."""
        return {
            "max_epochs": 20,
            "val_split": 0.2,
            "device": device_list(),
            "start_from": [IN_USE, *self.versions.names],
            "method": [AS_START, *self.bundle.methods],
            "seed": 0,
        }

    def info(self) -> dict[str, Any]:
        return {**super().info(), "version": self.bundle.metadata["version"]}

    def stats(self) -> dict[str, Any]:
        """The versions with their scores; "best_metric", "epoch" and "total_time" as viewers show them."""
        records, active = self.versions.records(), self.versions.active
        used = next((record for record in records if record["name"] == active), {})
        last = records[-1] if records else {}
        return {
            "adapter": active,
            "best_metric": used.get("score") or 0,
            "epoch": last.get("epochs", 0),
            "total_epochs": last.get("epochs", 0),
            "total_time": f"{last.get('seconds', 0):.0f} s",
            "versions": records,
        }

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Trains with the settings of :meth:`config`; the record of the new "version", and the one now "in_use"."""
        self.versions.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.versions.folder / ".training.lock", timeout=0)
        with refusing():
            try:
                with lock:
                    return self._train({**self.config(), **request}, datastore)
            except Timeout as error:
                raise InputError(f"{self.bundle.name}: is being trained; one training at a time.") from error

    def _train(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        started = time.monotonic()
        start, used = chosen(request["start_from"]), self.versions.active
        start = used if start == IN_USE else start
        run = self.versions.folder / "run"  # of the current training
        shutil.rmtree(run, ignore_errors=True)
        cases, left_out = labelled_cases(datastore, self.bundle.labels, run / "labels")
        if not cases:
            why = "; ".join(f"{name}: {text}" for name, text in left_out.items())
            raise InputError(f"{self.bundle.name}: must have images with a final label to train on, found none. {why}")
        seen = self.versions.trained_on(start) | self.versions.trained_on(used)
        training, validation = split_cases(cases, float(request["val_split"]), seen)
        scored_on = "validation" if validation else "training"
        logger.info(f"{len(training)} training and {len(validation)} validation cases, {len(left_out)} left out")
        network = self.versions.load(self.bundle.network(), start, self._labels)
        method, former = chosen(request["method"]), network.method.name
        if method not in (AS_START, former):
            torch.manual_seed(int(request["seed"]))
            network.encoder().attach(as_method(method))
        freeze_backbone(network, TRAINED)
        first = save_adapter(network, run / "start.safetensors", labels=self._labels)
        request = {**request, "method": {"name": network.method.name, **network.method.options}}
        workflow = self._workflow(request, first, run, training, validation or training)
        workflow.initialize()
        workflow.run()
        saver = workflow.parser.get_parsed_content("train#handlers")[-1].saver
        load_adapter(network, run / f"adapter_{'best' if saver.best['epoch'] else 'last'}.safetensors")
        facts = {
            "start": start,
            "method": network.method.name,
            **self._scores(saver, used, is_start=used == start and network.method.name == former),
            "scored_on": scored_on,
            "training_cases": [case["name"] for case in training],
            "validation_cases": [case["name"] for case in validation],
            "left_out": left_out,
            "epochs": int(request["max_epochs"]),
            "seconds": round(time.monotonic() - started, 1),
        }
        parts = [part for part in TRAINED if part in adapter_parts(network)]
        name = self.versions.add(network, parts, self._labels, facts)
        self._keep(run, name)
        before, score = facts["score_in_use_before"], facts["score"]
        if score > before:
            self.versions.use(name)
        in_use = self.versions.active
        compared = f"{name}: {facts['metric']} {score:.4f}, {used}: {before:.4f} on the {scored_on} cases"
        logger.info(f"{compared}; {in_use} is in use now")
        return json.loads(to_json({"version": name, "in_use": in_use, **facts}))  # NaN is no JSON

    @property
    def _labels(self) -> list[str]:
        return list(self.bundle.labels.names)

    def _workflow(
        self, request: Mapping[str, Any], first: Path, run: Path, training: list[Case], validation: list[Case]
    ) -> ConfigWorkflow:
        """The bundle's training, from an adapter and on these cases."""
        epochs, config = int(request["max_epochs"]), self.bundle.root / "configs"
        settings: dict[str, Any] = {
            "output_dir": path_for_config(str(run)),
            "adapter_path": path_for_config(str(first)),
            "method": request["method"],
            "published_model": None,
            "trainable": TRAINED,
            "max_epochs": epochs,
            "val_interval": max(1, epochs // 5),
            "seed": int(request["seed"]),
            "device": torch.device(name_to_device(chosen(request["device"]))),
        }
        workflow = ConfigWorkflow(
            config_file=str(config / "train.yaml"),
            meta_file=str(config / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            bundle_root=path_for_config(str(self.bundle.root)),
            **settings,
        )
        parser = workflow.parser
        for key, value in self.bundle.settings.items():
            if key in parser and key not in settings:
                parser[key] = value
        if "organs" in parser:  # the labels have the values of the model
            parser["organs"] = {name: [value] for value, name in enumerate(self._labels) if value}
        crops = max(int(parser.get("crops_per_case", 1)), -(-LEAST_CROPS // len(training)))
        for key, cases in (("train", training * crops), ("validate", validation)):
            pairs = [{"image": os.path.abspath(c["image"]), "label": os.path.abspath(c["label"])} for c in cases]
            parser[f"{key}#dataset#data"] = tuple(pairs)  # the parser does not read a tuple as a config
        if "settings#list_sha256" in parser:
            parser["settings#list_sha256"] = None  # the cases are not those of the bundle's list
        parser["train#dataset#hash_as_key"] = True  # caches an image once, however often it is used
        return workflow

    def _scores(self, saver: AdapterSaver, used: str, is_start: bool) -> dict[str, Any]:
        """The best scores of a finished run, and those of the version in use on the same cases."""
        metric = saver.evaluator.state.key_metric_name
        kept, before = saver.best if saver.best["epoch"] else saver.last, saver.start["metrics"][metric]
        if not is_start:
            self.versions.load(saver.network, used, self._labels)
            saver.evaluator.run()
            before = float(saver.evaluator.state.metrics[metric])
        return {
            "score": kept["metrics"][metric],
            "in_use_before": used,
            "score_in_use_before": before,
            "metric": metric,
            "epoch": kept["epoch"],
        }

    def _keep(self, run: Path, name: str) -> None:
        """Keeps the records of a run beside its version, and removes the rest."""
        for file in ("report.json", "history.csv", "history.png"):
            if (run / file).is_file():
                (run / file).replace(self.versions.folder / f"{name}_{file}")
        shutil.rmtree(run)
