# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import unittest
from math import nan

import torch
from ignite.engine import Engine, Events
from parameterized import parameterized
from utils_data import temporary_folder
from utils_training import make_evaluator, make_trainer, tiny_network

from monai_dvpt.handlers import AdapterSaver, ResumableCheckpoint
from monai_dvpt.networks.adapter import adapter_metadata, load_adapter
from monai_dvpt.utils import InputError


class Weights:
    """Keeps the network's weights after every epoch."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.after: dict[int, dict[str, torch.Tensor]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.keep)

    def keep(self, engine: Engine) -> None:
        state = self.network.state_dict()
        self.after[engine.state.epoch] = {name: tensor.clone() for name, tensor in state.items()}


class TestAdapterSaver(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    def train(self, scores, epochs=None, method="dvpt", checkpoint=False, validate_start=False):
        """Returns the saver and the weights after every epoch."""
        net = tiny_network(method=method)
        evaluator = make_evaluator(net, scores)
        saver = AdapterSaver(net, self.root / "out", evaluator, validate_start=validate_start)
        weights = Weights(net)
        handlers = [saver, weights]
        if checkpoint:
            handlers.append(ResumableCheckpoint(self.root / "checkpoint.pt", {"network": net, "saver": saver}, 0))
        make_trainer(net, epochs or len(scores), evaluator, handlers).run()
        return saver, weights.after

    def assert_adapter(self, name: str, expected: dict[str, torch.Tensor], method: str = "dvpt") -> None:
        """The adapter turns a freshly built network, of the same backbone, into the expected one."""
        net = tiny_network(method=method)
        load_adapter(net, self.root / "out" / name)
        torch.testing.assert_close(net.state_dict(), expected, rtol=0, atol=0)

    @parameterized.expand(
        [
            ("worse later", [0.5, 0.125, 0.25], 1),
            ("better later", [0.125, 0.25, 0.5], 3),
            ("best between", [0.125, 0.75, 0.25], 2),
            ("equal", [0.5, 0.5, 0.5], 1),
            ("no number later", [0.5, float("nan"), 0.25], 1),
            ("no number first", [float("nan"), 0.25, 0.125], 2),
        ]
    )
    def test_best_and_last(self, _, scores, best):
        saver, weights = self.train(scores)
        names = ["adapter_best.safetensors", "adapter_last.safetensors", "model.pt"]
        self.assertEqual(sorted(path.name for path in (self.root / "out").iterdir()), names)
        self.assertNotEqual(weights[1]["out.conv.conv.weight"].tolist(), weights[3]["out.conv.conv.weight"].tolist())
        self.assert_adapter("adapter_best.safetensors", weights[best])
        self.assert_adapter("adapter_last.safetensors", weights[3])
        model = torch.load(self.root / "out" / "model.pt", weights_only=True)
        torch.testing.assert_close(model, weights[best], rtol=0, atol=0)
        self.assertEqual((saver.best["epoch"], saver.best["metrics"]["val_score"]), (best, scores[best - 1]))

    @parameterized.expand(
        [
            ("nothing is better", [0.5, 0.25, 0.5], 0),
            ("second is better", [0.5, 0.25, 0.75], 2),
            ("nan", [nan, 0.1, 0.2], 2),
        ]
    )
    def test_start_counts_as_epoch_0(self, _, scores, best):
        start = {name: tensor.clone() for name, tensor in tiny_network().state_dict().items()}
        saver, weights = self.train(scores, epochs=2, validate_start=True)
        self.assertEqual((saver.start["epoch"], saver.best["epoch"], saver.last["epoch"]), (0, best, 2))
        self.assert_adapter("adapter_best.safetensors", start if best == 0 else weights[best])
        self.assert_adapter("adapter_last.safetensors", weights[2])

    def test_start_of_a_run_that_goes_on_is_that_of_its_beginning(self):
        self.train([0.5, 0.25], epochs=1, checkpoint=True, validate_start=True)
        saver, _ = self.train([0.375], epochs=2, checkpoint=True, validate_start=True)
        self.assertEqual((saver.start["metrics"]["val_score"], saver.best["epoch"]), (0.5, 0))

    @parameterized.expand(
        [("worse", [0.5, 0.25, 0.375], 0), ("better", [0.25, 0.125, 0.375], 2), ("nan", [nan, 0.1], 1)]
    )
    def test_adapter_of_an_earlier_run_in_the_folder(self, _, scores, best):
        """The first score is its own, on the validation cases of the new run."""
        _, before = self.train([0.9])
        (self.root / "out" / "model.pt").unlink()
        saver, weights = self.train(scores, epochs=len(scores) - 1)
        self.assertEqual((saver.best["epoch"], saver.last["epoch"]), (best, len(scores) - 1))
        expected = weights[best] if best else before[1]
        self.assert_adapter("adapter_best.safetensors", expected)
        model = torch.load(self.root / "out" / "model.pt", weights_only=True)
        torch.testing.assert_close(model, expected, rtol=0, atol=0)

    def test_start_and_adapter_of_an_earlier_run(self):
        _, before = self.train([0.9])
        saver, _ = self.train([0.5, 0.375, 0.25], epochs=1, validate_start=True)
        self.assertEqual((saver.best["epoch"], saver.best["metrics"]["val_score"]), (0, 0.5))
        self.assertEqual((saver.start["epoch"], saver.start["metrics"]["val_score"]), (0, 0.375))
        self.assert_adapter("adapter_best.safetensors", before[1])

    def test_adapter_of_an_earlier_run_that_does_not_fit(self):
        self.train([0.9])
        kept = (self.root / "out" / "adapter_best.safetensors").read_bytes()
        with self.assertRaisesRegex(
            InputError, "out: the adapter of the run before must fit this one .*: method must be that of"
        ):
            self.train([0.5, 0.75], epochs=1, method="lora")
        self.assertEqual((self.root / "out" / "adapter_best.safetensors").read_bytes(), kept)

    def test_last_epoch_is_kept_where_nothing_validates(self):
        net = tiny_network()
        evaluator = make_evaluator(net, [])
        evaluator.data_loader, evaluator.state.epoch_length = [], 0
        saver, weights = AdapterSaver(net, self.root / "out", evaluator), Weights(net)
        with self.assertWarnsRegex(UserWarning, "`dataloader` is empty"):
            make_trainer(net, 2, evaluator, [saver, weights]).run()
        self.assertEqual(saver.best, {"epoch": 2, "metrics": {}})
        with self.assertLogs("monai_dvpt.handlers.adapter_saver", "WARNING") as logs, self.assertWarns(UserWarning):
            AdapterSaver(tiny_network(), self.root / "out", evaluator).score_earlier(evaluator)
        self.assertRegex(logs.output[0], "is replaced unseen: there are no validation cases")
        self.assert_adapter("adapter_best.safetensors", weights.after[2])
        model = torch.load(self.root / "out" / "model.pt", weights_only=True)
        torch.testing.assert_close(model, weights.after[2], rtol=0, atol=0)

    def test_notes(self):
        saver, _ = self.train([0.125, 0.75, 0.25])
        best = adapter_metadata(self.root / "out" / "adapter_best.safetensors")["notes"]
        self.assertEqual(best, saver.best)
        self.assertEqual(len(best["metrics"]["val_dice"]), 2)  # classes
        self.assertEqual(adapter_metadata(self.root / "out" / "adapter_last.safetensors")["notes"], {"epoch": 3})

    def test_best_is_kept_over_a_restart(self):
        _, weights = self.train([0.125, 0.75], checkpoint=True)
        saver, _ = self.train([0.25, 0.5], epochs=4, checkpoint=True)
        self.assertEqual(saver.best["epoch"], 2)
        self.assert_adapter("adapter_best.safetensors", weights[2])

    def test_state_is_plain(self):
        saver, _ = self.train([0.5])
        state = saver.state_dict()
        self.assertEqual(json.loads(json.dumps(state)), state)

    def test_full_fine_tuning(self):
        """The adapter holds all of the encoder that is used, and belongs to the encoder as it was."""
        _, weights = self.train([0.25, 0.125], method="full")
        names = {"adapter_best.safetensors", "adapter_last.safetensors", "model.pt"}
        self.assertEqual({path.name for path in (self.root / "out").iterdir()}, names)
        self.assert_adapter("adapter_best.safetensors", weights[1], "full")
        self.assert_adapter("adapter_last.safetensors", weights[2], "full")
        model = torch.load(self.root / "out" / "model.pt", weights_only=True)
        torch.testing.assert_close(model, weights[1], rtol=0, atol=0)

    def test_backbone_frozen(self):
        _, weights = self.train([0.125, 0.25])
        start = tiny_network().state_dict()
        for name in start:
            if name.startswith("vit.") and "dvpt" not in name:
                torch.testing.assert_close(weights[2][name], start[name], rtol=0, atol=0)


if __name__ == "__main__":
    unittest.main()
