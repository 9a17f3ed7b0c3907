# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import random
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandScaleIntensityd
from parameterized import parameterized
from utils_data import temporary_folder
from utils_training import make_trainer, tiny_network

from monai_dvpt.handlers import ResumableCheckpoint
from monai_dvpt.utils import InputError

SEED = 3
NOISE = torch.rand(5, 2, 1, 8, 6, generator=torch.Generator().manual_seed(SEED))
CASES = [{"image": image, "label": label} for image, label in NOISE]


class Kill:
    """Ends the run inside an epoch, as a kill would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.end)

    def end(self, engine: Engine) -> None:
        if engine.state.epoch == self.epoch and engine.state.iteration % engine.state.epoch_length == 2:
            raise KeyboardInterrupt


class Run:
    """A small training run, all of its objects new, with every kind of randomness that a bundle has."""

    def __init__(
        self, path: Path, epochs: int, seed: int = SEED, width: int = 3, dataset: type[Dataset] = CacheDataset, kill=0
    ) -> None:
        for noise in (random.random, np.random.random, lambda: torch.rand(7)):
            noise()  # a new process does not start where the last one was
        weights = torch.Generator().manual_seed(0)
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(1, width, 3, padding=1),
            torch.nn.BatchNorm2d(width),
            torch.nn.Dropout(0.3),
            torch.nn.Conv2d(width, 1, 3, padding=1),
        )
        for parameter in self.network.parameters():
            parameter.data = torch.rand(parameter.shape, generator=weights) - 0.5
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.7)
        transforms = [
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=0),
            RandScaleIntensityd("image", factors=0.5, prob=0.5),
            RandGaussianNoised("image", prob=0.5),
        ]
        options = {"progress": False} if dataset is CacheDataset else {}
        loader = DataLoader(dataset(CASES, Compose(transforms), **options), batch_size=2, shuffle=True)
        self.losses: list[float] = []
        save = {"network": self.network, "optimizer": self.optimizer, "lr_scheduler": self.scheduler}
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=loader,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=torch.nn.MSELoss(),
            train_handlers=[
                LrScheduleHandler(self.scheduler, print_lr=False),
                Kill(kill),
                ResumableCheckpoint(path, save, seed),
            ],
        )
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self.add_loss)

    def add_loss(self, engine: Engine) -> None:
        self.losses.append(engine.state.output[0]["loss"])

    def start(self) -> Run:
        self.trainer.run()
        return self


class TestResumableCheckpoint(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        self.path = self.root / "checkpoint.pt"

    def assert_equal(self, found: Run, expected: Run) -> None:
        """To the last bit."""
        for name in ("network", "optimizer", "scheduler"):
            torch.testing.assert_close(
                getattr(found, name).state_dict(), getattr(expected, name).state_dict(), rtol=0, atol=0
            )
        self.assertEqual(found.losses, expected.losses[-len(found.losses) :])
        self.assertEqual(found.trainer.state.epoch, expected.trainer.state.epoch)
        self.assertEqual(found.trainer.state.iteration, expected.trainer.state.iteration)

    def test_a_finished_run_says_so(self):
        path = temporary_folder(self) / "checkpoint.pt"
        Run(path, 2).start()
        for epochs, words in (
            (2, r"finished, 2 of 2 epochs .*, run it with --max_epochs above 2;"),
            (1, "finished, 2 of 1 "),
            (3, "Resuming after epoch 2"),
        ):
            run = Run(path, epochs)
            with self.assertLogs(run.trainer.logger, "INFO") as logs:
                run.start()
            self.assertEqual(len([line for line in logs.output if "finished, " in line or "Resuming " in line]), 1)
            self.assertRegex("\n".join(logs.output), words)
            self.assertEqual(len(run.losses), 3 * max(epochs - 2, 0))

    @parameterized.expand([(CacheDataset,), (Dataset,)])
    def test_two_runs_of_two_epochs_equal_one_of_four(self, dataset):
        whole = Run(self.root / "whole.pt", 4, dataset=dataset).start()
        Run(self.path, 2, dataset=dataset).start()
        resumed = Run(self.path, 4, dataset=dataset).start()
        self.assertEqual(len(resumed.losses), 2 * 3)
        self.assert_equal(resumed, whole)

    @parameterized.expand([(2,), (3,), (4,)])
    def test_killed_inside_an_epoch(self, epoch):
        whole = Run(self.root / "whole.pt", 4).start()
        with self.assertRaises(KeyboardInterrupt):
            Run(self.path, 4, kill=epoch).start()
        resumed = Run(self.path, 4).start()
        self.assertEqual(len(resumed.losses), (5 - epoch) * 3)
        self.assert_equal(resumed, whole)

    def test_killed_in_the_first_epoch(self):
        with self.assertRaises(KeyboardInterrupt):
            Run(self.path, 2, kill=1).start()
        self.assertFalse(self.path.exists())
        self.assert_equal(Run(self.path, 2).start(), Run(self.root / "whole.pt", 2).start())

    def test_randomness_matters(self):
        """What the tests above compare does depend on the seed, and differs between epochs."""
        first, second = Run(self.path, 2).start(), Run(self.root / "other.pt", 2, seed=SEED + 50).start()
        self.assertNotEqual(first.losses, second.losses)
        self.assertNotEqual(first.losses[:3], first.losses[3:])

    def test_run_that_is_complete(self):
        whole = Run(self.path, 2).start()
        again = Run(self.path, 2).start()
        self.assertEqual(again.losses, [])
        torch.testing.assert_close(again.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)

    @parameterized.expand(
        [
            ("another network", None, "size mismatch"),
            ("truncated", lambda content: content[: len(content) // 2], ""),
            ("empty", lambda content: b"", ""),
            ("text", lambda content: b"epoch,loss\n", ""),
        ]
    )
    def test_checkpoint_that_does_not_fit(self, _, spoil, why):
        Run(self.path, 1).start()
        if spoil:
            self.path.write_bytes(spoil(self.path.read_bytes()))
        run = Run(self.path, 2, width=3 if spoil else 4)
        self.silence(run)
        with self.assertRaisesRegex(InputError, f"^{self.path}: does not fit this run, remove it or .*(?s:.*){why}"):
            run.start()

    def silence(self, run: Run) -> None:
        """No log of the error that is expected; the logger is that of all trainers."""
        patch = mock.patch.object(run.trainer.logger, "disabled", True)
        patch.start()
        self.addCleanup(patch.stop)

    def test_another_backbone_is_refused(self):
        """It would take the place of the given one in silence: a checkpoint holds the whole network."""

        def run(seed: int) -> None:
            net = tiny_network(seed=seed)
            make_trainer(net, 1, None, [ResumableCheckpoint(self.path, {"network": net}, SEED)]).run()

        run(seed=0)
        run(seed=0)
        with self.assertRaisesRegex(InputError, "does not fit this run.*backbone_sha256 was [0-9a-f]{64}, is"):
            run(seed=1)

    def test_checkpoint_without_a_part(self):
        Run(self.path, 1).start()
        checkpoint = torch.load(self.path, weights_only=True)
        del checkpoint["lr_scheduler"]
        torch.save(checkpoint, self.path)
        run = Run(self.path, 2)
        self.silence(run)
        with self.assertRaisesRegex(InputError, f"^{self.path}: does not fit this run.*lr_scheduler"):
            run.start()

    @parameterized.expand([(OSError(28, "No space left on device"), InputError), (KeyboardInterrupt(), None)])
    def test_crash_while_writing(self, error, kind):
        """The last checkpoint stays whole, and the run goes on from it."""
        Run(self.path, 2).start()
        before = self.path.read_bytes()

        def crash(state: dict, path: Path) -> None:
            path.write_bytes(before[:1000])
            raise error

        run = Run(self.path, 3)
        self.silence(run)
        with mock.patch("torch.save", crash), self.assertRaises(kind or type(error)) as caught:
            run.start()
        if kind:
            message = f"{self.path}: cannot be written: [Errno 28] No space left on device"
            self.assertEqual(str(caught.exception), message)
        self.assertEqual(self.path.read_bytes(), before)
        self.assertEqual([path for path in self.root.iterdir() if path.name != ".lock"], [self.path])
        self.assert_equal(Run(self.path, 3).start(), Run(self.root / "whole.pt", 3).start())

    def test_not_over_weights_that_were_set(self):
        """Neither at a second start of one trainer, nor by a new trainer on the folder of an earlier one."""
        run = Run(self.path, 1).start()
        for given in (run, Run(self.path, 1)):
            weights = {name: torch.full_like(value, 0.25) for name, value in run.network.state_dict().items()}
            given.network.load_state_dict(weights)
            given.trainer.state.max_epochs = given.trainer.state.epoch + 1
            found: list[dict] = []

            def look(engine: Engine, found: list[dict] = found) -> None:
                found.append({name: value.clone() for name, value in engine.network.state_dict().items()})

            handler = given.trainer.add_event_handler(Events.EPOCH_STARTED, look)
            given.start()
            handler.remove()
            torch.testing.assert_close(found[0], weights, rtol=0, atol=0)

    def test_second_run_in_the_folder_is_refused(self):
        refused = []

        def start_other(engine: Engine) -> None:
            other = Run(self.path, 1)
            self.silence(other)
            with self.assertRaisesRegex(
                InputError, rf"one run at a time.*: process {os.getpid()} on .*, started \d{{4}}-"
            ):
                other.start()
            self.assertEqual(other.losses, [])
            refused.append(engine.state.epoch)

        run = Run(self.path, 2)
        run.trainer.add_event_handler(Events.EPOCH_STARTED, start_other)
        run.start()
        self.assertEqual(refused, [1, 2])
        Run(self.path, 3).start()


if __name__ == "__main__":
    unittest.main()
