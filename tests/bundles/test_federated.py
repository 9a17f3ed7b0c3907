# SPDX-License-Identifier: Apache-2.0
"""The bundles as sites of MONAI's own federated client."""

from __future__ import annotations

import json
import unittest
import warnings
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from parameterized import parameterized
from utils_bundles import REPOSITORY
from utils_data import save_nifti, temporary_folder

BUNDLES = [(f"hippocampus_mri_dvpt_{name}",) for name in ("unetr_segmentation", "vit_classification")]
ROUNDS = 3


def write_site(root: Path, seed: int) -> Path:
    """Two cases to train on and one to validate on, each with a box of both labels."""
    generator = np.random.default_rng(seed)
    cases = []
    for index in range(3):
        label = np.zeros((36, 50, 36), np.uint8)
        label[8:20, 10:30, 8 : 18 + index] = 1
        label[8:20, 30:40, 8 : 18 + index] = 2
        image = (100 + 60.0 * label + generator.normal(0, 5, label.shape)).astype(np.float32)
        paths = {key: root / f"{key}{index}.nii.gz" for key in ("image", "label")}
        save_nifti(paths["image"], image, np.eye(4))
        save_nifti(paths["label"], label, np.eye(4))
        cases.append({key: path.name for key, path in paths.items()})
    (root / "datalist.json").write_text(json.dumps({"training": cases[:2], "validation": cases[2:]}))
    return root


class Watch:
    """Weights when the first batch of a round is taken, and the learning rates of all batches."""

    def __init__(self, trainer: Engine) -> None:
        self.rates: list[float] = []
        self.first: dict[str, torch.Tensor] | None = None
        trainer.add_event_handler(Events.ITERATION_STARTED, self.look)

    def look(self, engine: Engine) -> None:
        self.rates += [group["lr"] for group in engine.optimizer.param_groups]
        if self.first is None:
            self.first = copy(engine.network)


def copy(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


class TestFederated(unittest.TestCase):
    def site(self, bundle: str, data: Path, output: Path) -> MonaiAlgo:
        root = REPOSITORY / "bundles" / bundle
        train = ConfigWorkflow(
            config_file=str(root / "configs" / "train.yaml"),
            meta_file=str(root / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            **{"bundle_root": str(root), "dataset_dir": str(data), "datalist": "auto", "output_dir": str(output)},
        )
        algo = MonaiAlgo(str(root), config_evaluate_filename=None, train_workflow=train, send_weight_diff=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="executing the bundle config")
            algo.initialize()
        return algo

    @parameterized.expand(BUNDLES)
    def test_every_round_starts_from_the_servers_weights(self, bundle):
        root = temporary_folder(self)
        folders = [write_site(root / f"data{index}", index) for index in range(2)]
        sites = [self.site(bundle, data, root / f"output{index}") for index, data in enumerate(folders)]
        server = copy(sites[0].trainer.network)
        for round_ in range(ROUNDS):
            if round_ == 2:  # a site that was started anew finds its own checkpoint
                sites[1] = self.site(bundle, folders[1], root / "output1")
            returned = []
            for site in sites:
                watch = Watch(site.trainer)
                site.train(ExchangeObject(weights=server))
                torch.testing.assert_close(watch.first, server, rtol=0, atol=0)
                self.assertTrue(watch.rates and min(watch.rates) > 0, watch.rates)
                returned.append({name: tensor.clone() for name, tensor in site.get_weights().weights.items()})
                self.assertTrue(any(not torch.equal(returned[-1][name], server[name]) for name in server))
            server = {
                name: torch.stack([weights[name].double() for weights in returned]).mean(0).to(tensor.dtype)
                for name, tensor in server.items()
            }


if __name__ == "__main__":
    unittest.main()
