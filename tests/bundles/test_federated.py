# SPDX-License-Identifier: Apache-2.0
"""The hippocampus bundles as clients of federated training, with MONAI's own client: two sites, three rounds."""

from __future__ import annotations

import json
import unittest
import warnings
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject
from parameterized import parameterized
from utils_bundles import BUNDLES
from utils_data import shared_data, temporary_folder

HIPPOCAMPUS = [(bundle.name, bundle, "dvpt") for bundle in BUNDLES if bundle.name.startswith("hippocampus_")]
CASES = [["001", "004"], ["006", "007"]]  # training and validation case of each site
ROUNDS = 3
NEW = {"dvpt": "dvpt.", "lora": ".lora_b"}  # what the names of tensors have that a method adds
Weights = dict[str, torch.Tensor]


class Site:
    """A client, and its weights and learning rates when the first batch of every round arrives."""

    def __init__(self, bundle: Path, root: Path, cases: list[str], method: str) -> None:
        names = [f"hippocampus_{case}.nii.gz" for case in cases]
        items = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
        root.mkdir(exist_ok=True)
        (root / "datalist.json").write_text(json.dumps({"training": items[:1], "validation": items[1:]}))
        self.client = MonaiAlgo(
            bundle_root=str(bundle),
            send_weight_diff=False,
            config_train_filename="configs/train.yaml",
            config_evaluate_filename=None,
            train_kwargs={
                "dataset_dir": str(shared_data("msd_hippocampus")),
                "datalist": str(root / "datalist.json"),
                "output_dir": str(root / "out"),
                "amp": False,
                "val_interval": ROUNDS + 1,
                "method": method,
            },
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Executing")
            warnings.filterwarnings("ignore", category=UserWarning, module="monai.fl")
            self.client.initialize()
        self.trainer = self.client.trainer
        self.starts: list[Weights] = []
        self.rates: list[list[float]] = []
        self.begun = -1

        def at_first_batch(engine: Engine) -> None:
            if self.begun != len(self.starts):
                self.starts.append({key: value.clone() for key, value in engine.network.state_dict().items()})
                self.rates.append([group["lr"] for group in engine.optimizer.param_groups])
                self.begun = len(self.starts)

        self.trainer.add_event_handler(Events.ITERATION_STARTED, at_first_batch)

    def weights(self) -> Weights:
        return {key: torch.as_tensor(value).clone() for key, value in self.client.get_weights().weights.items()}

    def train(self, weights: Weights) -> Weights:
        self.begun = -1
        self.client.train(ExchangeObject(weights={key: value.numpy().copy() for key, value in weights.items()}))
        return self.weights()


def average(states: list[Weights]) -> Weights:
    return {key: torch.stack([state[key].double() for state in states]).mean(0).float() for key in states[0]}


class TestFederated(unittest.TestCase):
    def assert_equal(self, found: Weights, expected: Weights) -> None:
        self.assertEqual(set(found), set(expected))
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0, msg=key)

    @parameterized.expand([*HIPPOCAMPUS, (*HIPPOCAMPUS[0][:2], "lora")])
    def test_every_round_starts_from_the_servers_weights(self, _, bundle, method):
        root = temporary_folder(self)
        sites = [Site(bundle, root / str(index), cases, method) for index, cases in enumerate(CASES)]
        server = sites[0].weights()
        for number in range(ROUNDS):
            trained = [site.train(server) for site in sites]
            for site in sites:
                self.assertEqual(len(site.starts), number + 1)
                self.assert_equal(site.starts[number], server)
                self.assertGreater(min(site.rates[number]), 0)
            changed = [key for key, value in trained[0].items() if not torch.equal(value, trained[1][key])]
            # the sites disagree, so that the average is the weights of neither
            self.assertTrue(any(NEW[method] in key for key in changed), changed)
            self.assertFalse([key for key in changed if "attn.qkv.weight" in key])
            server = average(trained)

        # a client that is started again finds a checkpoint, and must not take it for what the server sends: the
        # weights that it begins with itself included
        again = Site(bundle, root / "0", CASES[0], method)
        first = again.weights()
        again.train(first)
        self.assert_equal(again.starts[0], first)
        self.assertGreater(min(again.rates[0]), 0)


if __name__ == "__main__":
    unittest.main()
